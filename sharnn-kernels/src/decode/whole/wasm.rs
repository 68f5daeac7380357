//! simd128 of WebAssembly: pairs of four rows in each of two registers.

#![allow(clippy::undocumented_unsafe_blocks, reason = "the callers': the instructions are there, pointers are valid")]
#![allow(unused_unsafe, reason = "which intrinsics are safe differs between compilers")]

use std::arch::wasm32::*;

use super::{Pairs, Together};
use crate::simd;

#[derive(Clone, Copy)]
pub(super) struct Simd128(v128, v128);

impl Pairs for Simd128 {
    type Floats = simd::Simd128;
    // A vector is two of the sixteen registers that engines have on x86.
    const TOGETHER: Together = Together::TwoByTwo;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        unsafe { Self(i32x4_splat(0), i32x4_splat(0)) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        unsafe { Self(i16x8_load_extend_i8x8(from), i16x8_load_extend_i8x8(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn values(from: *const i16) -> Self {
        unsafe {
            let pair = v128_load32_splat(from.cast());
            Self(pair, pair)
        }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: Self, values: Self) -> Self {
        unsafe {
            Self(
                i32x4_add(self.0, i32x4_dot_i16x8(weights.0, values.0)),
                i32x4_add(self.1, i32x4_dot_i16x8(weights.1, values.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn floats(self) -> Self::Floats {
        unsafe { simd::Simd128(f32x4_convert_i32x4(self.0), f32x4_convert_i32x4(self.1)) }
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const i8) {}
}
