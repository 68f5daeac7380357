//! NEON's matrix products of 8 bits: eight columns of two rows at once, and of an activation both digits.
//!
//! ```text
//! ┌ w₁ ┐               ┌ Σ w₁ h   Σ w₁ l ┐
//! │    │ [ hᵀ   lᵀ ] = │                 │      digits as in `dot`, whose sums these are
//! └ w₂ ┘               └ Σ w₂ h   Σ w₂ l ┘
//! ```

#![allow(clippy::undocumented_unsafe_blocks, reason = "the callers': the instructions are there, pointers are valid")]
#![allow(unused_unsafe, reason = "which intrinsics are safe differs between compilers")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::dot::{Dot, digits, prefetch};
use super::{GROUP, Sums, Together};
use crate::simd;

/// Sums of eight rows, two to a register: of each one that of the upper digits, and that of the lower ones.
#[derive(Clone, Copy)]
pub(super) struct Squares([int32x4_t; 4]);

/// Adds the products of two rows of eight weights with the digits of eight values. The intrinsic is not stable.
#[inline(always)]
unsafe fn add_product(sums: &mut int32x4_t, weights: int8x16_t, digits: int8x16_t) {
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {:v}.4s, {:v}.16b, {:v}.16b",
            inout(vreg) *sums, in(vreg) weights, in(vreg) digits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

impl Sums for Squares {
    type Floats = simd::Neon;
    const COLUMNS: usize = 8;
    const TOGETHER: Together = Together::FourByOne;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        unsafe { Self([vdupq_n_s32(0); 4]) }
    }
    #[inline(always)]
    unsafe fn add_part<const VECTORS: usize, const S: usize>(
        sums: &mut [[Self; VECTORS]; S],
        weights: *const i8,
        values: [*const i16; S],
        pairs: usize,
    ) {
        unsafe {
            for eight in 0..pairs / 4 {
                let digits = digits(values, eight);
                let weights = weights.add(8 * GROUP * eight);
                for v in 0..VECTORS {
                    let weights = weights.add(v * Self::ROWS * Self::COLUMNS);
                    prefetch(weights);
                    for rows in 0..4 {
                        let weights = vld1q_s8(weights.add(16 * rows));
                        for (sums, &digits) in sums.iter_mut().zip(&digits) {
                            add_product(&mut sums[v].0[rows], weights, digits);
                        }
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn floats(self, of_weights: *const i32) -> Self::Floats {
        unsafe {
            let [a, b, c, d] = self.0;
            let upper = [vuzp1q_s32(a, b), vuzp1q_s32(c, d)];
            let lower = [vuzp2q_s32(a, b), vuzp2q_s32(c, d)];
            Dot { upper, lower }.floats(of_weights)
        }
    }
}
