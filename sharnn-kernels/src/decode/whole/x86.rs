//! AVX2 and AVX-512.

#![allow(clippy::undocumented_unsafe_blocks, reason = "the callers': the instructions are there, pointers are valid")]

use std::arch::x86_64::*;

use super::{Pairs, Together};
use crate::simd;

/// AVX2; with `VNNI` of AVX-VNNI one instruction multiplies and adds.
#[derive(Clone, Copy)]
pub(super) struct Avx2<const VNNI: bool>(__m256i);

impl<const VNNI: bool> Pairs for Avx2<VNNI> {
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
        unsafe {
            Self(match VNNI {
                true => _mm256_dpwssd_avx_epi32(self.0, weights.0, values.0),
                false => _mm256_add_epi32(self.0, _mm256_madd_epi16(weights.0, values.0)),
            })
        }
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
