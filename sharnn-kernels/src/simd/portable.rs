//! Plain Rust.

use super::Vector;

/// Eight f32 in an array: the reference, for every CPU and for Miri.
#[derive(Clone, Copy)]
pub struct Portable(pub(crate) [f32; 8]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    #[inline(always)]
    fn zip_bits(self, other: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        self.zip(other, |a, b| f32::from_bits(f(a.to_bits(), b.to_bits())))
    }
}

// SAFETY of the unsafe blocks below: pointers are valid by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
impl Vector for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn splat_bits(x: u32) -> Self {
        Self([f32::from_bits(x); 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn store_i16(self, to: *mut i16) {
        unsafe { to.cast::<[i16; 8]>().write_unaligned(self.0.map(|x| x as i16)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Self {
        Self(std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        for i in 0..n {
            unsafe { *to.add(i) = self.0[i] }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        self.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn select_if_bits_below(self, other: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i].to_bits() < other.0[i].to_bits() { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    unsafe fn and_bits(self, other: Self) -> Self {
        self.zip_bits(other, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn xor_bits(self, other: Self) -> Self {
        self.zip_bits(other, |a, b| a ^ b)
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        self.map(|x| f32::from_bits(x.to_bits() >> 16))
    }
    #[inline(always)]
    unsafe fn low_half_up(self) -> Self {
        self.map(|x| f32::from_bits(x.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn add_bits(self, other: Self) -> Self {
        self.zip_bits(other, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn mul_even_bits(self, other: Self) -> Self {
        let wide = |i: usize| u64::from(self.0[i].to_bits()) * u64::from(other.0[i].to_bits());
        Self(std::array::from_fn(|i| f32::from_bits((wide(i & !1) >> (32 * (i & 1))) as u32)))
    }
    #[inline(always)]
    unsafe fn odd_to_even(self) -> Self {
        Self(std::array::from_fn(|i| if i & 1 == 0 { self.0[i + 1] } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn join_even(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if i & 1 == 0 { self.0[i] } else { other.0[i - 1] }))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let x = self.0;
        let half = [x[0] + x[4], x[1] + x[5], x[2] + x[6], x[3] + x[7]];
        (half[0] + half[2]) + (half[1] + half[3])
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn interleave(columns: [Self; 8]) -> [Self; 8] {
        std::array::from_fn(|line| Self(std::array::from_fn(|k| columns[k].0[line])))
    }
}
