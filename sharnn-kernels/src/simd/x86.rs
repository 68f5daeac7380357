//! AVX2 and AVX-512.

// SAFETY of the unsafe blocks below: the instructions are there and pointers valid by the trait's contract.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]

use std::arch::x86_64::*;

use super::Vector;

/// Eight f32 in a register.
#[derive(Clone, Copy)]
pub struct Avx2(pub(crate) __m256);

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
pub struct Avx512(pub(crate) __m512);

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
