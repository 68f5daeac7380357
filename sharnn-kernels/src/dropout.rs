//! Dropout masks from a counter-based generator: an element's fate follows from a key and from its place alone.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) with the counter `(column / 8, row, lane, step)`. Its 128 bits serve
//! eight neighbouring columns, 16 bits each, the lowest first; an element is dropped where they are below the threshold.

use crate::blocks::for_each_block;
use crate::buffer::Shared;
use crate::simd::{Vector, kernel};

/// Columns served by one call of the generator.
const GROUP: usize = 8;

/// As many as the longest vector has lanes.
static LANE_NUMBERS: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Names one mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// The generator's key.
    pub key: [u32; 2],
    /// The counter's last word.
    pub step: u32,
    /// Number of lane 0.
    pub first_lane: u32,
    /// Elements whose 16 bits are below it are dropped.
    pub threshold: u16,
}

impl Mask {
    /// What a kept element is multiplied by: the reciprocal of the probability of keeping it.
    pub fn scale(&self) -> f32 {
        65536.0 / (65536.0 - f32::from(self.threshold))
    }

    /// Multiplies columns `first_col .. first_col + n` of one row by the mask, 0 or [`scale`](Self::scale).
    /// `first_col` is a multiple of 8.
    ///
    /// # Safety
    /// As [`Vector`]'s; `x` is valid for `n` values.
    #[inline(always)]
    pub(crate) unsafe fn apply<V: Vector>(&self, lane: usize, row: usize, first_col: usize, x: *mut f32, n: usize) {
        debug_assert!(first_col.is_multiple_of(GROUP));
        let lane = self.first_lane.wrapping_add(lane as u32);
        // SAFETY: no vector is longer than the lanes' numbers; `x` is the caller's.
        unsafe {
            let (threshold, zero, scale) =
                (V::splat_bits(self.threshold.into()), V::splat(0.0), V::splat(self.scale()));
            let (low_half, lane_numbers) = (V::splat_bits(0xFFFF), V::load(LANE_NUMBERS.as_ptr().cast()));
            for done in (0..n).step_by(GROUP * V::LANES) {
                let first_group = ((first_col + done) / GROUP) as u32;
                let counter = [
                    V::splat_bits(first_group).add_bits(lane_numbers),
                    V::splat_bits(row as u32),
                    V::splat_bits(lane),
                    V::splat_bits(self.step),
                ];
                let mut columns = [zero; GROUP];
                for (w, word) in philox(counter, self.key).into_iter().enumerate() {
                    columns[2 * w] = word.and_bits(low_half).select_if_bits_below(threshold, zero, scale);
                    columns[2 * w + 1] = word.high_half().select_if_bits_below(threshold, zero, scale);
                }
                for (i, multipliers) in V::interleave(columns).into_iter().enumerate() {
                    let from = done + i * V::LANES;
                    if from < n {
                        let (x, left) = (x.add(from), n - from);
                        V::load_up_to(x, left).mul(multipliers).store_up_to(x, left);
                    }
                }
            }
        }
    }

    /// [`apply`](Self::apply) to row `row` of a time-major tensor `[rows, lanes, _]`, lanes counted as rows.
    ///
    /// # Safety
    /// As [`apply`](Self::apply)'s.
    #[inline(always)]
    pub(crate) unsafe fn apply_time_major<V: Vector>(
        &self,
        row: usize,
        lanes: usize,
        first_col: usize,
        x: *mut f32,
        n: usize,
    ) {
        // SAFETY: the caller's.
        unsafe { self.apply::<V>(row % lanes, row / lanes, first_col, x, n) }
    }
}

/// Ten rounds on as many counters as a vector has lanes.
///
/// Even and odd lanes are kept in vectors of their own, as even lanes: that is how products of 64 bits come and go. What
/// is in between is of no account.
#[inline(always)]
unsafe fn philox<V: Vector>(counter: [V; 4], mut key: [u32; 2]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        let (m0, m1) = (V::splat_bits(0xD251_1F53), V::splat_bits(0xCD9E_8D57));
        let [c0, c1, c2, c3] = counter;
        let mut halves = [counter, [c0.odd_to_even(), c1.odd_to_even(), c2.odd_to_even(), c3.odd_to_even()]];
        for _ in 0..10 {
            let (k0, k1) = (V::splat_bits(key[0]), V::splat_bits(key[1]));
            for half in &mut halves {
                let (product0, product1) = (half[0].mul_even_bits(m0), half[2].mul_even_bits(m1));
                *half = [
                    product1.odd_to_even().xor_bits(half[1].xor_bits(k0)),
                    product1,
                    product0.odd_to_even().xor_bits(half[3].xor_bits(k1)),
                    product0,
                ];
            }
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let [[e0, e1, e2, e3], [o0, o1, o2, o3]] = halves;
        [e0.join_even(o0), e1.join_even(o1), e2.join_even(o2), e3.join_even(o3)]
    }
}

/// `out = x ⊙ mask`: its own backward, applied to the gradient.
///
/// # Shapes
/// - `x` and `out`: `[rows, lanes, d]`
///
/// # Panics
/// If the shapes do not agree.
pub fn dropout(x: &[f32], lanes: usize, d: usize, mask: &Mask, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "dropout of {} values into {}", x.len(), out.len());
    if x.is_empty() {
        return;
    }
    assert!(lanes > 0 && d > 0 && x.len().is_multiple_of(lanes * d), "{} values are not [_, {lanes}, {d}]", x.len());
    let out = Shared::new(out);
    for_each_block(
        x.len() / d,
        d,
        || (),
        |(), row, rows| {
            // SAFETY: each block is written by one task, and both have as many values.
            unsafe {
                let out = out.slice(row * d, rows * d);
                out.copy_from_slice(&x[row * d..][..rows * d]);
                drop_rows(mask, row, lanes, d, out);
            }
        },
    );
}

#[inline(always)]
unsafe fn drop_rows_body<V: Vector>(mask: &Mask, first_row: usize, lanes: usize, d: usize, x: &mut [f32]) {
    for (i, row) in x.chunks_exact_mut(d).enumerate() {
        // SAFETY: the row is `d` long; the instructions are the caller's.
        unsafe { mask.apply_time_major::<V>(first_row + i, lanes, 0, row.as_mut_ptr(), d) };
    }
}
kernel!(
    /// Masks rows `first_row ..` in place.
    ///
    /// # Safety
    /// None beyond the instructions.
    pub(crate) unsafe fn drop_rows(mask: &Mask, first_row: usize, lanes: usize, d: usize, x: &mut [f32]) => drop_rows_body
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{philox4x32, random, scalar_mask, skip, test_mask};

    /// Known answers published with Random123.
    #[test]
    fn the_scalar_generator_gives_the_published_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[inline(always)]
    unsafe fn generate_body<V: Vector>(counter: [u32; 4], key: [u32; 2], words: &mut [[u32; 16]; 4]) {
        // SAFETY: no vector is longer than 16 lanes; the instructions are the caller's.
        unsafe {
            let all = philox(counter.map(|word| V::splat_bits(word)), key);
            for (to, word) in words.iter_mut().zip(all) {
                word.store(to.as_mut_ptr().cast());
            }
        }
    }
    kernel!(unsafe fn generate(counter: [u32; 4], key: [u32; 2], words: &mut [[u32; 16]; 4]) => generate_body);

    #[test]
    fn the_vector_generator_is_the_scalar_one() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key) in [([0; 4], [0; 2]), ([u32::MAX; 4], [u32::MAX; 2]), (pi, [0xa409_3822, 0x299f_31d0])] {
            let mut words = [[0; 16]; 4];
            // SAFETY: the arrays are as long as the longest vector.
            unsafe { generate(counter, key, &mut words) };
            assert_eq!(words.map(|word| word[0]), philox4x32(counter, key));
            assert_eq!(words.map(|word| word[7]), philox4x32(counter, key));
        }
    }

    #[test]
    fn dropout_multiplies_by_the_scalar_mask() {
        for (rows, lanes, d) in [(1, 1, 1), (3, 2, 5), (2, 5, 16), (17, 1, 33), (5, 3, 130), (30, 4, 257), (0, 3, 7)] {
            if skip(rows * lanes * d) {
                continue;
            }
            let mask = test_mask(1);
            let x = random(rows * lanes * d, 5);
            let mut out = vec![f32::NAN; x.len()];
            dropout(&x, lanes, d, &mask, &mut out);
            let want: Vec<f32> = x.iter().zip(scalar_mask(&mask, rows, lanes, d)).map(|(x, m)| x * m).collect();
            assert_eq!(out, want, "{rows} x {lanes} x {d}");
        }
    }

    #[inline(always)]
    unsafe fn apply_body<V: Vector>(mask: &Mask, lane: usize, row: usize, first_col: usize, x: &mut [f32]) {
        // SAFETY: `x` is as long as is said; the instructions are the caller's.
        unsafe { mask.apply::<V>(lane, row, first_col, x.as_mut_ptr(), x.len()) }
    }
    kernel!(unsafe fn apply(mask: &Mask, lane: usize, row: usize, first_col: usize, x: &mut [f32]) => apply_body);

    #[test]
    fn a_part_of_a_row_gets_its_part_of_the_mask() {
        let mask = Mask { first_lane: u32::MAX, ..test_mask(2) };
        let (rows, lanes, d) = (4, 3, 300);
        let all = scalar_mask(&mask, rows, lanes, d);
        for first_col in [0, 8, 64, 136, 296] {
            for n in [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 164].into_iter().filter(|n| first_col + n <= d) {
                let (lane, row) = (2, 3);
                let mut x = vec![1.0; n];
                // SAFETY: nothing beyond the instructions.
                unsafe { apply(&mask, lane, row, first_col, &mut x) };
                assert_eq!(x, all[(row * lanes + lane) * d + first_col..][..n], "{first_col} + {n}");
            }
        }
    }

    #[test]
    fn nothing_is_dropped_at_threshold_zero_and_nan_stays() {
        let mut out = [0.0; 24];
        dropout(&[f32::NAN; 24], 1, 24, &test_mask(3), &mut out);
        assert!(out.iter().all(|x| x.is_nan()));
        let x = random(24, 1);
        dropout(&x, 1, 24, &Mask { threshold: 0, ..test_mask(3) }, &mut out);
        assert_eq!(x, out);
    }

    #[test]
    #[should_panic(expected = "are not [_, 2, 3]")]
    fn values_must_be_whole_rows_of_all_lanes() {
        dropout(&[0.0; 9], 2, 3, &test_mask(4), &mut [0.0; 9]);
    }
}
