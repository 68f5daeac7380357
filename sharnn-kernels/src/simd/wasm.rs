//! simd128 of WebAssembly.

// SAFETY of the unsafe blocks below: the instructions are there and pointers valid by the trait's contract.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
#![allow(unused_unsafe, reason = "which intrinsics are safe differs between compilers")]

use std::arch::wasm32::*;

use super::Vector;

/// Eight f32 in two registers: the first four, and those after them.
#[derive(Clone, Copy)]
pub struct Simd128(pub(crate) v128, pub(crate) v128);

/// Applies an operation on four lanes to each register.
macro_rules! both {
    ($operation:ident, $a:expr $(, $other:expr)*) => {
        Self($operation($a.0 $(, $other.0)*), $operation($a.1 $(, $other.1)*))
    };
}

/// Products of even lanes, 64 bits wide.
#[inline(always)]
unsafe fn mul_even(a: v128, b: v128) -> v128 {
    unsafe {
        let even = |x| i32x4_shuffle::<0, 2, 0, 2>(x, x);
        u64x2_extmul_low_u32x4(even(a), even(b))
    }
}

/// Four columns of four lines, as the lines.
#[inline(always)]
unsafe fn transpose(columns: [v128; 4]) -> [v128; 4] {
    unsafe {
        let [a, b, c, d] = columns;
        let (ab, ab_high) = (i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<2, 6, 3, 7>(a, b));
        let (cd, cd_high) = (i32x4_shuffle::<0, 4, 1, 5>(c, d), i32x4_shuffle::<2, 6, 3, 7>(c, d));
        [
            i64x2_shuffle::<0, 2>(ab, cd),
            i64x2_shuffle::<1, 3>(ab, cd),
            i64x2_shuffle::<0, 2>(ab_high, cd_high),
            i64x2_shuffle::<1, 3>(ab_high, cd_high),
        ]
    }
}

/// Two to the power of whole numbers.
#[inline(always)]
unsafe fn power_of_two(x: v128) -> v128 {
    unsafe { i32x4_shl(i32x4_add(i32x4_trunc_sat_f32x4(x), i32x4_splat(127)), 23) }
}

/// The first `n` values, zeros after them. Nothing is called, as a copy of some bytes may be: around a call every register is put into memory.
#[inline(always)]
unsafe fn load_below_four(from: *const f32, n: usize) -> v128 {
    unsafe {
        match n {
            0 => f32x4_splat(0.0),
            1 => v128_load32_zero(from.cast()),
            2 => v128_load64_zero(from.cast()),
            _ => v128_load32_lane::<2>(v128_load64_zero(from.cast()), from.add(2).cast()),
        }
    }
}

/// Stores the first `n` values.
#[inline(always)]
unsafe fn store_below_four(x: v128, to: *mut f32, n: usize) {
    unsafe {
        match n {
            0 => {}
            1 => v128_store32_lane::<0>(x, to.cast()),
            2 => v128_store64_lane::<0>(x, to.cast()),
            _ => {
                v128_store64_lane::<0>(x, to.cast());
                v128_store32_lane::<2>(x, to.add(2).cast());
            }
        }
    }
}

impl Vector for Simd128 {
    const LANES: usize = 8;
    // What engines make of it has sixteen registers on x86.
    const TILE_ROWS: usize = 3;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(f32x4_splat(x), f32x4_splat(x)) }
    }
    #[inline(always)]
    unsafe fn splat_bits(x: u32) -> Self {
        unsafe { Self(u32x4_splat(x), u32x4_splat(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(v128_load(from.cast()), v128_load(from.add(4).cast())) }
    }
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        unsafe {
            let whole = |x| i32x4_trunc_sat_f32x4(x);
            v128_store(to.cast(), i16x8_narrow_i32x4(whole(self.0), whole(self.1)));
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            v128_store(to.cast(), self.0);
            v128_store(to.add(4).cast(), self.1);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        debug_assert!(n <= 8);
        unsafe {
            match n {
                0..4 => Self(load_below_four(from, n), f32x4_splat(0.0)),
                4..8 => Self(v128_load(from.cast()), load_below_four(from.add(4), n - 4)),
                _ => Self::load(from),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        debug_assert!(n <= 8);
        unsafe {
            match n {
                0..4 => store_below_four(self.0, to, n),
                4..8 => {
                    v128_store(to.cast(), self.0);
                    store_below_four(self.1, to.add(4), n - 4);
                }
                _ => self.store(to),
            }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { both!(f32x4_add, self, other) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { both!(f32x4_sub, self, other) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { both!(f32x4_mul, self, other) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { both!(f32x4_div, self, other) }
    }
    /// `f32x4_pmax(b, a)` is `b < a ? a : b`.
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { both!(f32x4_pmax, other, self) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { both!(f32x4_pmin, other, self) }
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        unsafe { both!(f32x4_sqrt, self) }
    }
    /// Two operations: the one that is fused is not the same everywhere.
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        unsafe { self.mul(b).add(c) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { both!(f32x4_nearest, self) }
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        unsafe { both!(power_of_two, self) }
    }
    #[inline(always)]
    unsafe fn select_if_bits_below(self, other: Self, yes: Self, no: Self) -> Self {
        unsafe {
            Self(
                v128_bitselect(yes.0, no.0, u32x4_lt(self.0, other.0)),
                v128_bitselect(yes.1, no.1, u32x4_lt(self.1, other.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn and_bits(self, other: Self) -> Self {
        unsafe { both!(v128_and, self, other) }
    }
    #[inline(always)]
    unsafe fn xor_bits(self, other: Self) -> Self {
        unsafe { both!(v128_xor, self, other) }
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        unsafe { Self(u32x4_shr(self.0, 16), u32x4_shr(self.1, 16)) }
    }
    #[inline(always)]
    unsafe fn low_half_up(self) -> Self {
        unsafe { Self(u32x4_shl(self.0, 16), u32x4_shl(self.1, 16)) }
    }
    #[inline(always)]
    unsafe fn add_bits(self, other: Self) -> Self {
        unsafe { both!(u32x4_add, self, other) }
    }
    #[inline(always)]
    unsafe fn mul_even_bits(self, other: Self) -> Self {
        unsafe { both!(mul_even, self, other) }
    }
    #[inline(always)]
    unsafe fn odd_to_even(self) -> Self {
        unsafe { Self(u64x2_shr(self.0, 32), u64x2_shr(self.1, 32)) }
    }
    #[inline(always)]
    unsafe fn join_even(self, other: Self) -> Self {
        unsafe { both!(join_even, self, other) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let half = f32x4_add(self.0, self.1);
            let pair = f32x4_add(half, i64x2_shuffle::<1, 0>(half, half));
            f32x4_extract_lane::<0>(pair) + f32x4_extract_lane::<1>(pair)
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe {
            let half = f32x4_pmax(self.0, self.1);
            let pair = f32x4_pmax(half, i64x2_shuffle::<1, 0>(half, half));
            let [a, b] = [f32x4_extract_lane::<0>(pair), f32x4_extract_lane::<1>(pair)];
            if a < b { b } else { a }
        }
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

/// Even lanes of `a` where they are, those of `b` after them.
#[inline(always)]
unsafe fn join_even(a: v128, b: v128) -> v128 {
    unsafe { i32x4_shuffle::<0, 4, 2, 6>(a, b) }
}
