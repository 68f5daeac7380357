//! AVX2 and AVX-512.

#![allow(clippy::undocumented_unsafe_blocks, reason = "the callers': the instructions are there, pointers are valid")]

use std::arch::x86_64::*;

use super::{Pairs, Together};
use crate::simd;

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256i);

impl Pairs for Avx2 {
    type Floats = simd::Avx2;
    const TOGETHER: Together = Together::FourByTwo;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        unsafe { Self(_mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        unsafe { Self(_mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn values(from: *const i16) -> Self {
        unsafe { Self(_mm256_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: Self, values: Self) -> Self {
        unsafe { Self(_mm256_add_epi32(self.0, _mm256_madd_epi16(weights.0, values.0))) }
    }
    #[inline(always)]
    unsafe fn floats(self) -> Self::Floats {
        unsafe { simd::Avx2(_mm256_cvtepi32_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const i8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) }
    }
}

/// As [`Avx2`], where one instruction multiplies and adds.
#[derive(Clone, Copy)]
pub(super) struct AvxVnni(Avx2);

impl Pairs for AvxVnni {
    type Floats = simd::Avx2;
    const TOGETHER: Together = Avx2::TOGETHER;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        unsafe { Self(Avx2::zeros()) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        unsafe { Self(Avx2::weights(from)) }
    }
    #[inline(always)]
    unsafe fn values(from: *const i16) -> Self {
        unsafe { Self(Avx2::values(from)) }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: Self, values: Self) -> Self {
        unsafe { Self(Avx2(_mm256_dpwssd_avx_epi32(self.0.0, weights.0.0, values.0.0))) }
    }
    #[inline(always)]
    unsafe fn floats(self) -> Self::Floats {
        unsafe { self.0.floats() }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const i8) {
        unsafe { Avx2::prefetch(at) }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512i);

impl Pairs for Avx512 {
    type Floats = simd::Avx512;
    const TOGETHER: Together = Together::EightByTwo;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        unsafe { Self(_mm512_setzero_si512()) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        unsafe { Self(_mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn values(from: *const i16) -> Self {
        unsafe { Self(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: Self, values: Self) -> Self {
        unsafe { Self(_mm512_dpwssd_epi32(self.0, weights.0, values.0)) }
    }
    #[inline(always)]
    unsafe fn floats(self) -> Self::Floats {
        unsafe { simd::Avx512(_mm512_cvtepi32_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const i8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) }
    }
}
