//! NEON, which every 64-bit ARM has.

// SAFETY of the unsafe blocks below: the instructions are there and pointers valid by the trait's contract.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
// Which intrinsics are safe to call differs between the compilers that build this.
#![allow(unused_unsafe, reason = "as above")]

use std::arch::aarch64::*;

use super::Vector;

/// Eight f32 in two registers: the first four, and those after them.
#[derive(Clone, Copy)]
pub struct Neon(pub(crate) float32x4_t, pub(crate) float32x4_t);

/// Applies an operation on four lanes to each register.
macro_rules! both {
    ($operation:ident, $a:expr $(, $other:expr)*) => {
        Self($operation($a.0 $(, $other.0)*), $operation($a.1 $(, $other.1)*))
    };
}

/// The same on 32-bit integers.
macro_rules! both_ints {
    ($operation:ident, $a:expr $(, $other:expr)*) => {{
        let int = |x| vreinterpretq_u32_f32(x);
        Self(
            vreinterpretq_f32_u32($operation(int($a.0) $(, int($other.0))*)),
            vreinterpretq_f32_u32($operation(int($a.1) $(, int($other.1))*)),
        )
    }};
}

#[inline(always)]
unsafe fn shift_right_16(x: uint32x4_t) -> uint32x4_t {
    unsafe { vshrq_n_u32::<16>(x) }
}

#[inline(always)]
unsafe fn shift_left_16(x: uint32x4_t) -> uint32x4_t {
    unsafe { vshlq_n_u32::<16>(x) }
}

/// Products of even lanes, 64 bits wide.
#[inline(always)]
unsafe fn mul_even(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    unsafe {
        let even = |x| vmovn_u64(vreinterpretq_u64_u32(x));
        vreinterpretq_u32_u64(vmull_u32(even(a), even(b)))
    }
}

#[inline(always)]
unsafe fn odd_to_even(x: uint32x4_t) -> uint32x4_t {
    unsafe { vreinterpretq_u32_u64(vshrq_n_u64::<32>(vreinterpretq_u64_u32(x))) }
}

#[inline(always)]
unsafe fn join_even(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    unsafe { vtrn1q_u32(a, b) }
}

/// Four columns of four lines, as the lines.
#[inline(always)]
unsafe fn transpose(columns: [float32x4_t; 4]) -> [float32x4_t; 4] {
    unsafe {
        let [a, b, c, d] = columns;
        let wide = |x| vreinterpretq_f64_f32(x);
        let narrow = |x| vreinterpretq_f32_f64(x);
        let (ab, ab_odd) = (wide(vtrn1q_f32(a, b)), wide(vtrn2q_f32(a, b)));
        let (cd, cd_odd) = (wide(vtrn1q_f32(c, d)), wide(vtrn2q_f32(c, d)));
        [
            narrow(vtrn1q_f64(ab, cd)),
            narrow(vtrn1q_f64(ab_odd, cd_odd)),
            narrow(vtrn2q_f64(ab, cd)),
            narrow(vtrn2q_f64(ab_odd, cd_odd)),
        ]
    }
}

impl Vector for Neon {
    const LANES: usize = 8;
    // 24 registers of sums, four of the right operand, and one of the left.
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn splat_bits(x: u32) -> Self {
        unsafe { Self::splat(f32::from_bits(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        unsafe {
            let low = vqmovn_s32(vcvtnq_s32_f32(self.0));
            vst1q_s16(to, vqmovn_high_s32(low, vcvtnq_s32_f32(self.1)));
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a hint, which reads nothing.
        unsafe { std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        debug_assert!(n <= 8);
        unsafe {
            let mut values = [0.0f32; 8];
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), n);
            Self::load(values.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        debug_assert!(n <= 8);
        unsafe {
            let mut values = [0.0f32; 8];
            self.store(values.as_mut_ptr());
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, n);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { both!(vaddq_f32, self, other) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { both!(vsubq_f32, self, other) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { both!(vmulq_f32, self, other) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { both!(vdivq_f32, self, other) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe {
            // `fmax` would return NaN where either is.
            let larger = |a, b| vbslq_f32(vcgtq_f32(a, b), a, b);
            Self(larger(self.0, other.0), larger(self.1, other.1))
        }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe {
            let smaller = |a, b| vbslq_f32(vcltq_f32(a, b), a, b);
            Self(smaller(self.0, other.0), smaller(self.1, other.1))
        }
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        unsafe { both!(vsqrtq_f32, self) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        unsafe { Self(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { both!(vrndnq_f32, self) }
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        unsafe {
            let power = |x| {
                let biased = vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            };
            Self(power(self.0), power(self.1))
        }
    }
    #[inline(always)]
    unsafe fn select_if_bits_below(self, other: Self, yes: Self, no: Self) -> Self {
        unsafe {
            let int = |x| vreinterpretq_u32_f32(x);
            Self(
                vbslq_f32(vcltq_u32(int(self.0), int(other.0)), yes.0, no.0),
                vbslq_f32(vcltq_u32(int(self.1), int(other.1)), yes.1, no.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn and_bits(self, other: Self) -> Self {
        unsafe { both_ints!(vandq_u32, self, other) }
    }
    #[inline(always)]
    unsafe fn xor_bits(self, other: Self) -> Self {
        unsafe { both_ints!(veorq_u32, self, other) }
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        unsafe { both_ints!(shift_right_16, self) }
    }
    #[inline(always)]
    unsafe fn low_half_up(self) -> Self {
        unsafe { both_ints!(shift_left_16, self) }
    }
    #[inline(always)]
    unsafe fn add_bits(self, other: Self) -> Self {
        unsafe { both_ints!(vaddq_u32, self, other) }
    }
    #[inline(always)]
    unsafe fn mul_even_bits(self, other: Self) -> Self {
        unsafe { both_ints!(mul_even, self, other) }
    }
    #[inline(always)]
    unsafe fn odd_to_even(self) -> Self {
        unsafe { both_ints!(odd_to_even, self) }
    }
    #[inline(always)]
    unsafe fn join_even(self, other: Self) -> Self {
        unsafe { both_ints!(join_even, self, other) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let half = vaddq_f32(self.0, self.1);
            let pair = vadd_f32(vget_low_f32(half), vget_high_f32(half));
            vget_lane_f32::<0>(pair) + vget_lane_f32::<1>(pair)
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn interleave(columns: [Self; 8]) -> [Self; 8] {
        unsafe {
            let [a, b, c, d, e, f, g, h] = columns;
            let (left, right) = (transpose([a.0, b.0, c.0, d.0]), transpose([e.0, f.0, g.0, h.0]));
            let (left_after, right_after) = (transpose([a.1, b.1, c.1, d.1]), transpose([e.1, f.1, g.1, h.1]));
            [
                Self(left[0], right[0]),
                Self(left[1], right[1]),
                Self(left[2], right[2]),
                Self(left[3], right[3]),
                Self(left_after[0], right_after[0]),
                Self(left_after[1], right_after[1]),
                Self(left_after[2], right_after[2]),
                Self(left_after[3], right_after[3]),
            ]
        }
    }
}
