//! Vectors whose results are the same on every CPU.

use super::Vector;

/// Sixteen f32 in as many vectors as that takes. No product is fused with a sum, so every lane is what IEEE 754 says of single operations,
/// and [`sum`](Vector::sum) adds sixteen lanes in one order: halves first.
#[derive(Clone, Copy)]
pub struct Exact<V, const N: usize>([V; N]);

impl<V: Vector, const N: usize> Exact<V, N> {
    /// How many of the first `n` values are in a vector.
    #[inline(always)]
    fn part(i: usize, n: usize) -> usize {
        n.saturating_sub(i * V::LANES).min(V::LANES)
    }
}

/// Methods that do the same with each vector. Loops are written out: what a closure holds is not compiled for the instructions.
macro_rules! each {
    ($($name:ident($($other:ident),*);)*) => {
        $(
            #[inline(always)]
            unsafe fn $name(self $(, $other: Self)*) -> Self {
                let mut result = self;
                for (i, result) in result.0.iter_mut().enumerate() {
                    *result = unsafe { self.0[i].$name($($other.0[i]),*) };
                }
                result
            }
        )*
    };
}

// SAFETY of the unsafe blocks below: the trait's contract, which is the same for the vectors inside.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
impl<V: Vector, const N: usize> Vector for Exact<V, N> {
    const LANES: usize = {
        assert!(N * V::LANES == 16);
        16
    };
    const TILE_ROWS: usize = V::TILE_ROWS;

    each! {
        add(other);
        sub(other);
        mul(other);
        div(other);
        max(other);
        min(other);
        sqrt();
        round();
        exp2_integral();
        select_if_bits_below(other, yes, no);
        and_bits(other);
        xor_bits(other);
        high_half();
        low_half_up();
        add_bits(other);
        mul_even_bits(other);
        odd_to_even();
        join_even(other);
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self([V::splat(x); N]) }
    }
    #[inline(always)]
    unsafe fn splat_bits(x: u32) -> Self {
        unsafe { Self([V::splat_bits(x); N]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        let mut result = unsafe { Self::splat(0.0) };
        for (i, v) in result.0.iter_mut().enumerate() {
            *v = unsafe { V::load(from.add(i * V::LANES)) };
        }
        result
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, v) in self.0.into_iter().enumerate() {
            unsafe { v.store(to.add(i * V::LANES)) }
        }
    }
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        for (i, v) in self.0.into_iter().enumerate() {
            unsafe { v.store_i16(to.add(i * V::LANES)) }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        unsafe { V::prefetch(at) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        let mut result = unsafe { Self::splat(0.0) };
        for (i, v) in result.0.iter_mut().enumerate() {
            *v = unsafe { V::load_part(from.wrapping_add(i * V::LANES), Self::part(i, n)) };
        }
        result
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        for (i, v) in self.0.into_iter().enumerate() {
            unsafe { v.store_part(to.wrapping_add(i * V::LANES), Self::part(i, n)) }
        }
    }
    /// Two operations, each rounded.
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        unsafe { self.mul(b).add(c) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut sum = self.0[0];
        for v in &self.0[1..] {
            sum = unsafe { sum.add(*v) };
        }
        unsafe { sum.sum() }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut largest = self.0[0];
        for v in &self.0[1..] {
            largest = unsafe { largest.max(*v) };
        }
        unsafe { largest.largest() }
    }
    #[inline(always)]
    unsafe fn interleave(_columns: [Self; 8]) -> [Self; 8] {
        unreachable!("matrices of exact vectors are of whole numbers")
    }
}

/// As [`kernel!`](super::kernel), compiled for [`Exact`] vectors: its results are the same for all instructions.
macro_rules! exact_kernel {
    ($($kernel:tt)*) => {
        $crate::simd::compiled! {
            [
                $crate::simd::Exact<$crate::simd::Portable, 2>,
                $crate::simd::Exact<$crate::simd::Avx2, 2>,
                $crate::simd::Exact<$crate::simd::Avx512, 1>,
                $crate::simd::Exact<$crate::simd::Neon, 2>,
                $crate::simd::Exact<$crate::simd::Simd128, 2>
            ] $($kernel)*
        }
    };
}
pub(crate) use exact_kernel;
