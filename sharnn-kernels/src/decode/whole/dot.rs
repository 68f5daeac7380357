//! NEON's dot products of 8 bits: four columns of a row at once, and of an activation two digits.
//!
//! ```text
//! x = 256 h + l + 128        h = ⌊x / 256⌋ and l = (x mod 256) - 128, both in -128..=127
//! Σ w x = 256 Σ w h + Σ w l + 128 Σ w
//! ```
//!
//! All of this is computed modulo 2³². The whole sum is less than 2³¹ in size, see [`super`], so what is left modulo 2³² is the sum
//! itself, whatever its parts are.

#![allow(clippy::undocumented_unsafe_blocks, reason = "the callers': the instructions are there, pointers are valid")]
#![allow(unused_unsafe, reason = "which intrinsics are safe differs between compilers")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::{AHEAD, GROUP, Sums, Together};
use crate::simd;

/// Sums of eight rows, four to a register: those of the upper digits, and those of the lower ones.
#[derive(Clone, Copy)]
pub(super) struct Dot {
    pub(super) upper: [int32x4_t; 2],
    pub(super) lower: [int32x4_t; 2],
}

/// Adds to each sum the products of its four weights with the four digits of a lane. The intrinsic is not stable.
#[inline(always)]
unsafe fn dot<const LANE: usize>(mut sums: int32x4_t, weights: int8x16_t, digits: int8x16_t) -> int32x4_t {
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {:v}.4s, {:v}.16b, {:v}.4b[{}]",
            inout(vreg) sums, in(vreg) weights, in(vreg) digits, const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Adds the products of four columns, whose digits are these lanes.
#[inline(always)]
unsafe fn add_lane<const UPPER: usize, const LOWER: usize, const VECTORS: usize, const S: usize>(
    sums: &mut [[Dot; VECTORS]; S],
    weights: *const i8,
    digits: &[int8x16_t; S],
) {
    unsafe {
        for v in 0..VECTORS {
            let at = weights.add(v * Dot::ROWS * Dot::COLUMNS);
            if v % 2 == 0 {
                prefetch(at);
            }
            let weights = [vld1q_s8(at), vld1q_s8(at.add(16))];
            for (sums, &digits) in sums.iter_mut().zip(digits) {
                for (i, weights) in weights.into_iter().enumerate() {
                    sums[v].upper[i] = dot::<UPPER>(sums[v].upper[i], weights, digits);
                    sums[v].lower[i] = dot::<LOWER>(sums[v].lower[i], weights, digits);
                }
            }
        }
    }
}

/// The digits of the same eight values of each activation.
#[inline(always)]
pub(super) unsafe fn digits<const S: usize>(values: [*const i16; S], eight: usize) -> [int8x16_t; S] {
    unsafe {
        let mut digits = [vdupq_n_s8(0); S];
        for (digits, values) in digits.iter_mut().zip(values) {
            *digits = vld1q_s8(values.add(8 * eight).cast());
        }
        digits
    }
}

/// Fetches a line of weights ahead.
#[inline(always)]
pub(super) unsafe fn prefetch(weights: *const i8) {
    unsafe {
        asm!("prfm pldl1keep, [{}, {}]", in(reg) weights, const AHEAD, options(nostack, preserves_flags, readonly))
    }
}

impl Sums for Dot {
    type Floats = simd::Neon;
    const COLUMNS: usize = 4;
    const TOGETHER: Together = Together::FourByOne;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        unsafe { Self { upper: [vdupq_n_s32(0); 2], lower: [vdupq_n_s32(0); 2] } }
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
                add_lane::<0, 2, VECTORS, S>(sums, weights, &digits);
                add_lane::<1, 3, VECTORS, S>(sums, weights.add(4 * GROUP), &digits);
            }
        }
    }
    #[inline(always)]
    unsafe fn floats(self, of_weights: *const i32) -> Self::Floats {
        unsafe {
            let mut sums = self.lower;
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = vaddq_s32(*sums, vshlq_n_s32::<7>(vld1q_s32(of_weights.add(4 * i))));
                *sums = vaddq_s32(vshlq_n_s32::<8>(self.upper[i]), *sums);
            }
            simd::Neon(vcvtq_f32_s32(sums[0]), vcvtq_f32_s32(sums[1]))
        }
    }
}
