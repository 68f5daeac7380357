//! Vectors of f32 that a kernel is generic over, and the macro that compiles it once for each set of instructions.
//!
//! A kernel is an `#[inline(always)]` function over [`Vector`]; `kernel!` makes the safe or unsafe function that runs it
//! compiled for the instructions of [`Isa::current`](crate::Isa::current). Bits that are compared or shifted travel in a
//! `Vector` as well, reinterpreted.

#![allow(clippy::missing_safety_doc, reason = "the one condition is in the trait's documentation")]

mod exact;

pub use exact::Exact;
pub(crate) use exact::exact_kernel;

/// A vector of f32.
///
/// # Safety
/// Methods may be called only where the CPU has the instructions of the implementation, and pointers must be valid for
/// [`LANES`](Self::LANES) (or the stated number of) values. They need no alignment.
pub trait Vector: Copy {
    /// Number of f32.
    const LANES: usize;
    /// Rows of the tile of a matrix product, which is two vectors wide.
    const TILE_ROWS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn splat_bits(x: u32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Stores values that are whole numbers of 16 bits.
    unsafe fn store_i16(self, to: *mut i16);
    /// Brings the cache line of `at`, which may be any address, nearer.
    unsafe fn prefetch(at: *const f32);
    /// The first `n <= LANES` values, zeros after them.
    unsafe fn load_part(from: *const f32, n: usize) -> Self;
    /// Stores the first `n <= LANES` values.
    unsafe fn store_part(self, to: *mut f32, n: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// `self * b + c`, fused where the instructions are.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of integral values in -126..=127.
    unsafe fn exp2_integral(self) -> Self;
    /// `yes` where the unsigned 32-bit integers of `self` are below those of `other`, both below 2³¹.
    unsafe fn select_if_bits_below(self, other: Self, yes: Self, no: Self) -> Self;
    unsafe fn and_bits(self, other: Self) -> Self;
    unsafe fn xor_bits(self, other: Self) -> Self;
    /// Shifts 32-bit integers right by 16.
    unsafe fn high_half(self) -> Self;
    /// Shifts 32-bit integers left by 16.
    unsafe fn low_half_up(self) -> Self;
    /// Wrapping sum of 32-bit integers.
    unsafe fn add_bits(self, other: Self) -> Self;
    /// Products of the unsigned 32-bit integers in even lanes, 64 bits wide: the low word there, the high word after it.
    unsafe fn mul_even_bits(self, other: Self) -> Self;
    /// Each odd lane moved to the even one before it, zeros in its place.
    unsafe fn odd_to_even(self) -> Self;
    /// The even lanes of both: those of `self` where they are, those of `other` after them.
    unsafe fn join_even(self, other: Self) -> Self;
    /// Sum of all lanes, halves first.
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// Columns of lines of eight values, as the lines one after another: value `8 i + k` of the concatenated result is lane
    /// `i` of `columns[k]`.
    unsafe fn interleave(columns: [Self; 8]) -> [Self; 8];

    /// [`load`](Self::load) where there are `n >= LANES` values, [`load_part`](Self::load_part) where there are fewer.
    #[inline(always)]
    unsafe fn load_up_to(from: *const f32, n: usize) -> Self {
        // SAFETY: the caller's.
        unsafe { if n >= Self::LANES { Self::load(from) } else { Self::load_part(from, n) } }
    }
    /// [`store`](Self::store) where there is room for `n >= LANES` values, [`store_part`](Self::store_part) where for fewer.
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut f32, n: usize) {
        // SAFETY: the caller's.
        unsafe { if n >= Self::LANES { self.store(to) } else { self.store_part(to, n) } }
    }
    /// The first `n` lanes, or all where there are fewer; zeros after them.
    #[inline(always)]
    unsafe fn keep_up_to(self, n: usize) -> Self {
        static ONES: [u32; 16] = [u32::MAX; 16];
        // SAFETY: the caller's; no vector is longer than 16 lanes.
        unsafe { if n >= Self::LANES { self } else { self.and_bits(Self::load_part(ONES.as_ptr().cast(), n)) } }
    }
}

/// Eight f32 in an array: the reference, for every CPU and for Miri.
#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

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

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

// SAFETY of the unsafe blocks below: the instructions are there and pointers valid by the trait's contract.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    /// Eight f32 in a register.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    /// All ones in the first `n` lanes of eight.
    static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    impl Avx2 {
        #[inline(always)]
        unsafe fn int(self) -> __m256i {
            unsafe { _mm256_castps_si256(self.0) }
        }
        #[inline(always)]
        unsafe fn of(x: __m256i) -> Self {
            unsafe { Self(_mm256_castsi256_ps(x)) }
        }
        #[inline(always)]
        unsafe fn mask(n: usize) -> __m256i {
            debug_assert!(n <= 8);
            unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()) }
        }
    }

    impl Vector for Avx2 {
        const LANES: usize = 8;
        const TILE_ROWS: usize = 6;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn splat_bits(x: u32) -> Self {
            unsafe { Self::of(_mm256_set1_epi32(x as i32)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store_i16(self, to: *mut i16) {
            unsafe {
                let whole = _mm256_cvtps_epi32(self.0);
                let halves = [_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole)];
                _mm_storeu_si128(to.cast(), _mm_packs_epi32(halves[0], halves[1]));
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, n: usize) -> Self {
            unsafe { Self(_mm256_maskload_ps(from, Self::mask(n))) }
        }
        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, n: usize) {
            unsafe { _mm256_maskstore_ps(to, Self::mask(n), self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            unsafe { Self(_mm256_div_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { Self(_mm256_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            unsafe { Self(_mm256_min_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sqrt(self) -> Self {
            unsafe { Self(_mm256_sqrt_ps(self.0)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            unsafe { Self(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
        }
        #[inline(always)]
        unsafe fn exp2_integral(self) -> Self {
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
                Self::of(_mm256_slli_epi32::<23>(biased))
            }
        }
        #[inline(always)]
        unsafe fn select_if_bits_below(self, other: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let below = _mm256_cmpgt_epi32(other.int(), self.int());
                Self(_mm256_blendv_ps(no.0, yes.0, _mm256_castsi256_ps(below)))
            }
        }
        #[inline(always)]
        unsafe fn and_bits(self, other: Self) -> Self {
            unsafe { Self(_mm256_and_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn xor_bits(self, other: Self) -> Self {
            unsafe { Self(_mm256_xor_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn high_half(self) -> Self {
            unsafe { Self::of(_mm256_srli_epi32::<16>(self.int())) }
        }
        #[inline(always)]
        unsafe fn low_half_up(self) -> Self {
            unsafe { Self::of(_mm256_slli_epi32::<16>(self.int())) }
        }
        #[inline(always)]
        unsafe fn add_bits(self, other: Self) -> Self {
            unsafe { Self::of(_mm256_add_epi32(self.int(), other.int())) }
        }
        #[inline(always)]
        unsafe fn mul_even_bits(self, other: Self) -> Self {
            unsafe { Self::of(_mm256_mul_epu32(self.int(), other.int())) }
        }
        #[inline(always)]
        unsafe fn odd_to_even(self) -> Self {
            unsafe { Self::of(_mm256_srli_epi64::<32>(self.int())) }
        }
        #[inline(always)]
        unsafe fn join_even(self, other: Self) -> Self {
            unsafe {
                let moved = _mm256_slli_epi64::<32>(other.int());
                Self::of(_mm256_blend_epi32::<0b1010_1010>(self.int(), moved))
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let half = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
            }
        }
        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            unsafe {
                let half = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
            }
        }
        #[inline(always)]
        unsafe fn interleave(columns: [Self; 8]) -> [Self; 8] {
            // Pairs of columns, then fours, then all eight; an upper half of a register is four lines further down.
            let [a, b, c, d, e, f, g, h] = columns;
            unsafe {
                let (ab, ab_high) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
                let (cd, cd_high) = (_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
                let (ef, ef_high) = (_mm256_unpacklo_ps(e.0, f.0), _mm256_unpackhi_ps(e.0, f.0));
                let (gh, gh_high) = (_mm256_unpacklo_ps(g.0, h.0), _mm256_unpackhi_ps(g.0, h.0));
                let (left0, right0) = (_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0x44>(ef, gh));
                let (left1, right1) = (_mm256_shuffle_ps::<0xEE>(ab, cd), _mm256_shuffle_ps::<0xEE>(ef, gh));
                let (left2, right2) =
                    (_mm256_shuffle_ps::<0x44>(ab_high, cd_high), _mm256_shuffle_ps::<0x44>(ef_high, gh_high));
                let (left3, right3) =
                    (_mm256_shuffle_ps::<0xEE>(ab_high, cd_high), _mm256_shuffle_ps::<0xEE>(ef_high, gh_high));
                [
                    Self(_mm256_permute2f128_ps::<0x20>(left0, right0)),
                    Self(_mm256_permute2f128_ps::<0x20>(left1, right1)),
                    Self(_mm256_permute2f128_ps::<0x20>(left2, right2)),
                    Self(_mm256_permute2f128_ps::<0x20>(left3, right3)),
                    Self(_mm256_permute2f128_ps::<0x31>(left0, right0)),
                    Self(_mm256_permute2f128_ps::<0x31>(left1, right1)),
                    Self(_mm256_permute2f128_ps::<0x31>(left2, right2)),
                    Self(_mm256_permute2f128_ps::<0x31>(left3, right3)),
                ]
            }
        }
    }

    /// Sixteen f32 in a register.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    impl Avx512 {
        #[inline(always)]
        unsafe fn int(self) -> __m512i {
            unsafe { _mm512_castps_si512(self.0) }
        }
        #[inline(always)]
        unsafe fn of(x: __m512i) -> Self {
            unsafe { Self(_mm512_castsi512_ps(x)) }
        }
        #[inline(always)]
        fn mask(n: usize) -> __mmask16 {
            debug_assert!(n <= 16);
            ((1u32 << n) - 1) as __mmask16
        }
    }

    impl Vector for Avx512 {
        const LANES: usize = 16;
        // With 11 rows or more the compiler keeps the sums in memory.
        const TILE_ROWS: usize = 8;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn splat_bits(x: u32) -> Self {
            unsafe { Self::of(_mm512_set1_epi32(x as i32)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store_i16(self, to: *mut i16) {
            unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(self.0))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, n: usize) -> Self {
            unsafe { Self(_mm512_maskz_loadu_ps(Self::mask(n), from)) }
        }
        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(to, Self::mask(n), self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            unsafe { Self(_mm512_div_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { Self(_mm512_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            unsafe { Self(_mm512_min_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sqrt(self) -> Self {
            unsafe { Self(_mm512_sqrt_ps(self.0)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            unsafe { Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
        }
        #[inline(always)]
        unsafe fn exp2_integral(self) -> Self {
            unsafe {
                let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
                Self::of(_mm512_slli_epi32::<23>(biased))
            }
        }
        #[inline(always)]
        unsafe fn select_if_bits_below(self, other: Self, yes: Self, no: Self) -> Self {
            unsafe {
                let below = _mm512_cmplt_epu32_mask(self.int(), other.int());
                Self(_mm512_mask_blend_ps(below, no.0, yes.0))
            }
        }
        #[inline(always)]
        unsafe fn and_bits(self, other: Self) -> Self {
            unsafe { Self::of(_mm512_and_si512(self.int(), other.int())) }
        }
        #[inline(always)]
        unsafe fn xor_bits(self, other: Self) -> Self {
            unsafe { Self::of(_mm512_xor_si512(self.int(), other.int())) }
        }
        #[inline(always)]
        unsafe fn high_half(self) -> Self {
            unsafe { Self::of(_mm512_srli_epi32::<16>(self.int())) }
        }
        #[inline(always)]
        unsafe fn low_half_up(self) -> Self {
            unsafe { Self::of(_mm512_slli_epi32::<16>(self.int())) }
        }
        #[inline(always)]
        unsafe fn add_bits(self, other: Self) -> Self {
            unsafe { Self::of(_mm512_add_epi32(self.int(), other.int())) }
        }
        #[inline(always)]
        unsafe fn mul_even_bits(self, other: Self) -> Self {
            unsafe { Self::of(_mm512_mul_epu32(self.int(), other.int())) }
        }
        #[inline(always)]
        unsafe fn odd_to_even(self) -> Self {
            unsafe { Self::of(_mm512_srli_epi64::<32>(self.int())) }
        }
        #[inline(always)]
        unsafe fn join_even(self, other: Self) -> Self {
            unsafe {
                let moved = _mm512_slli_epi64::<32>(other.int());
                Self::of(_mm512_mask_blend_epi32(0xAAAA, self.int(), moved))
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let low = _mm512_castps512_ps256(self.0);
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
                Avx2(_mm256_add_ps(low, high)).sum()
            }
        }
        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            unsafe { _mm512_reduce_max_ps(self.0) }
        }
        #[inline(always)]
        unsafe fn interleave(columns: [Self; 8]) -> [Self; 8] {
            unsafe {
                // Halves of eight lines each.
                let (mut low, mut high) = ([Avx2::splat(0.0); 8], [Avx2::splat(0.0); 8]);
                for (k, column) in columns.into_iter().enumerate() {
                    low[k] = Avx2(_mm512_castps512_ps256(column.0));
                    high[k] = Avx2(_mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(column.0))));
                }
                let mut lines = columns;
                for (half, eight) in [Avx2::interleave(low), Avx2::interleave(high)].into_iter().enumerate() {
                    for (pair, out) in lines[4 * half..][..4].iter_mut().enumerate() {
                        let first = _mm512_castps_pd(_mm512_castps256_ps512(eight[2 * pair].0));
                        let second = _mm256_castps_pd(eight[2 * pair + 1].0);
                        *out = Self(_mm512_castpd_ps(_mm512_insertf64x4::<1>(first, second)));
                    }
                }
                lines
            }
        }
    }
}

/// Makes the function that runs a kernel compiled for the instructions of this process.
///
/// `body` must be an `#[inline(always)]` `unsafe fn` generic over [`Vector`] alone.
macro_rules! kernel {
    ($($kernel:tt)*) => {
        $crate::simd::compiled! {
            [$crate::simd::Portable, $crate::simd::Avx2, $crate::simd::Avx512] $($kernel)*
        }
    };
}
pub(crate) use kernel;

/// A kernel compiled for three vectors: those of plain Rust, of AVX2 and of AVX-512.
macro_rules! compiled {
    (
        [$portable:ty, $avx2:ty, $avx512:ty]
        $(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:ident
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel takes what it takes")]
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$avx2>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$avx512>($($arg),*) }
            }
            // SAFETY: the instructions were detected; everything else is the caller's.
            unsafe {
                match $crate::Isa::current().vectors() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Vectors::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Vectors::Avx512 => avx512($($arg),*),
                    _ => $body::<$portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use compiled;
