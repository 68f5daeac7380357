//! NEON: the first weights of eight pairs in one register, the second ones in another.

#![allow(clippy::undocumented_unsafe_blocks, reason = "the callers': the instructions are there, pointers are valid")]
#![allow(unused_unsafe, reason = "which intrinsics are safe differs between compilers")]

use std::arch::aarch64::*;

use super::{Pairs, Together};
use crate::simd;

/// Sums of eight rows; of weights and values eight of 16 bits each.
#[derive(Clone, Copy)]
pub(super) struct Neon(int32x4_t, int32x4_t);

impl Neon {
    #[inline(always)]
    unsafe fn of(first: int16x8_t, second: int16x8_t) -> Self {
        unsafe { Self(vreinterpretq_s32_s16(first), vreinterpretq_s32_s16(second)) }
    }

    #[inline(always)]
    unsafe fn halves(self) -> [int16x8_t; 2] {
        unsafe { [vreinterpretq_s16_s32(self.0), vreinterpretq_s16_s32(self.1)] }
    }
}

impl Pairs for Neon {
    type Floats = simd::Neon;
    const TOGETHER: Together = Together::FourByTwo;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        unsafe { Self(vdupq_n_s32(0), vdupq_n_s32(0)) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        unsafe {
            let pairs = vreinterpretq_s16_s8(vld1q_s8(from));
            Self::of(vshrq_n_s16::<8>(vshlq_n_s16::<8>(pairs)), vshrq_n_s16::<8>(pairs))
        }
    }
    #[inline(always)]
    unsafe fn values(from: *const i16) -> Self {
        unsafe { Self::of(vld1q_dup_s16(from), vld1q_dup_s16(from.add(1))) }
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: Self, values: Self) -> Self {
        unsafe {
            let ([w, w_after], [x, x_after]) = (weights.halves(), values.halves());
            let low = vmlal_s16(self.0, vget_low_s16(w), vget_low_s16(x));
            let high = vmlal_high_s16(self.1, w, x);
            Self(vmlal_s16(low, vget_low_s16(w_after), vget_low_s16(x_after)), vmlal_high_s16(high, w_after, x_after))
        }
    }
    #[inline(always)]
    unsafe fn floats(self) -> Self::Floats {
        unsafe { simd::Neon(vcvtq_f32_s32(self.0), vcvtq_f32_s32(self.1)) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const i8) {
        // SAFETY: a hint, which reads nothing.
        unsafe { std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
}
