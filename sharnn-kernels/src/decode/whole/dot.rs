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

/// Sums of eight rows, four to a register: those of the upper digits, and those of the lower ones.
#[derive(Clone, Copy)]
pub(super) struct Dot {
    upper: [int32x4_t; 2],
    lower: [int32x4_t; 2],
}

/// Bytes of a pair of columns.
const PAIR: usize = 2 * GROUP;

/// Pairs of columns that are split into digits at once.
const BLOCK: usize = 8;

/// The digits of 16 values: four of them are a lane of a dot product.
#[derive(Clone, Copy)]
struct Digits {
    upper: int8x16_t,
    lower: int8x16_t,
}

impl Digits {
    #[inline(always)]
    unsafe fn of(values: *const i16) -> Self {
        unsafe {
            let (a, b) = (vld1q_s8(values.cast()), vld1q_s8(values.add(8).cast()));
            // To flip the highest bit of a byte is to subtract 128, as what is left has a sign.
            Self { upper: vuzp2q_s8(a, b), lower: veorq_s8(vuzp1q_s8(a, b), vdupq_n_s8(i8::MIN)) }
        }
    }
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

/// Adds the products of two pairs of columns, which are a lane of the digits.
#[inline(always)]
unsafe fn add_lane<const LANE: usize, const VECTORS: usize, const S: usize>(
    sums: &mut [[Dot; VECTORS]; S],
    weights: *const i8,
    digits: &[Digits; S],
) {
    unsafe {
        asm!(
            "prfm pldl1keep, [{0}, {1}]",
            "prfm pldl1keep, [{0}, {2}]",
            in(reg) weights, const AHEAD + LANE * 2 * PAIR, const AHEAD + LANE * 2 * PAIR + PAIR,
            options(nostack, preserves_flags, readonly)
        );
        let at = weights.add(LANE * 2 * PAIR);
        for v in 0..VECTORS {
            let at = at.add(v * Dot::ROWS * 2);
            let (first, second) = (vld1q_s16(at.cast()), vld1q_s16(at.add(PAIR).cast()));
            let weights = [vzip1q_s16(first, second), vzip2q_s16(first, second)];
            for (sums, digits) in sums.iter_mut().zip(digits) {
                for (i, weights) in weights.into_iter().enumerate() {
                    let weights = vreinterpretq_s8_s16(weights);
                    sums[v].upper[i] = dot::<LANE>(sums[v].upper[i], weights, digits.upper);
                    sums[v].lower[i] = dot::<LANE>(sums[v].lower[i], weights, digits.lower);
                }
            }
        }
    }
}

/// Adds the products of a block of pairs.
#[inline(always)]
unsafe fn add_block<const VECTORS: usize, const S: usize>(
    sums: &mut [[Dot; VECTORS]; S],
    weights: *const i8,
    digits: &[Digits; S],
) {
    unsafe {
        add_lane::<0, VECTORS, S>(sums, weights, digits);
        add_lane::<1, VECTORS, S>(sums, weights, digits);
        add_lane::<2, VECTORS, S>(sums, weights, digits);
        add_lane::<3, VECTORS, S>(sums, weights, digits);
    }
}

impl Sums for Dot {
    const ROWS: usize = 8;
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
            let mut digits = [Digits { upper: vdupq_n_s8(0), lower: vdupq_n_s8(0) }; S];
            let whole = pairs / BLOCK * BLOCK;
            for pair in (0..whole).step_by(BLOCK) {
                let at = weights.add(pair * PAIR);
                for (digits, values) in digits.iter_mut().zip(values) {
                    *digits = Digits::of(values.add(2 * pair));
                }
                add_block(sums, at, &digits);
            }
            let left = pairs - whole;
            if left > 0 {
                // Behind the last pair may be anything or nothing: zeros stand there.
                for (digits, values) in digits.iter_mut().zip(values) {
                    let mut last = [0; 2 * BLOCK];
                    std::ptr::copy_nonoverlapping(values.add(2 * whole), last.as_mut_ptr(), 2 * left);
                    *digits = Digits::of(last.as_ptr());
                }
                let mut last = [0; BLOCK * PAIR];
                for pair in 0..left {
                    let from = weights.add((whole + pair) * PAIR);
                    std::ptr::copy_nonoverlapping(from, last.as_mut_ptr().add(pair * PAIR), VECTORS * Self::ROWS * 2);
                }
                add_block(sums, last.as_ptr(), &digits);
            }
        }
    }
    #[inline(always)]
    unsafe fn write(self, of_weights: *const i32, to: *mut f32) {
        unsafe {
            for i in 0..2 {
                let lower = vaddq_s32(self.lower[i], vshlq_n_s32::<7>(vld1q_s32(of_weights.add(4 * i))));
                let sums = vaddq_s32(vshlq_n_s32::<8>(self.upper[i]), lower);
                vst1q_f32(to.add(4 * i), vcvtq_f32_s32(sums));
            }
        }
    }
}
