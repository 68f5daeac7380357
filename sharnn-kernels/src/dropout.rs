//! Dropout masks from a counter-based generator: an element's fate follows from a key and from its place alone.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) with the counter `(column / 8, row, lane, step)`. Its 128 bits serve
//! eight neighbouring columns, 16 bits each, the lowest first; an element is dropped where they are below the threshold.

use crate::simd::Vector;

/// Columns served by one call of the generator.
const GROUP: usize = 8;

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
        let mut counters = [0u32; 16];
        let mut multipliers = [[0.0f32; 16]; GROUP];
        // SAFETY: the arrays are long enough for every vector; `x` is the caller's.
        unsafe {
            let (threshold, zero, scale) =
                (V::splat_bits(self.threshold.into()), V::splat(0.0), V::splat(self.scale()));
            let low_half = V::splat_bits(0xFFFF);
            for done in (0..n).step_by(GROUP * V::LANES) {
                let first_group = ((first_col + done) / GROUP) as u32;
                for (i, counter) in counters[..V::LANES].iter_mut().enumerate() {
                    *counter = first_group + i as u32;
                }
                let counter = [
                    V::load(counters.as_ptr().cast()),
                    V::splat_bits(row as u32),
                    V::splat_bits(lane),
                    V::splat_bits(self.step),
                ];
                let words = philox(counter, self.key);
                for (w, word) in words.into_iter().enumerate() {
                    for (half, bits) in [word.and_bits(low_half), word.high_half()].into_iter().enumerate() {
                        bits.select_if_bits_below(threshold, zero, scale).store(multipliers[2 * w + half].as_mut_ptr());
                    }
                }
                let count = (n - done).min(GROUP * V::LANES);
                for group in 0..count.div_ceil(GROUP) {
                    let line: [f32; GROUP] = std::array::from_fn(|k| multipliers[k][group]);
                    let at = x.add(done + group * GROUP);
                    for (k, multiplier) in line.into_iter().enumerate().take(count - group * GROUP) {
                        *at.add(k) *= multiplier;
                    }
                }
            }
        }
    }
}

/// Ten rounds on as many counters as a vector has lanes.
#[inline(always)]
unsafe fn philox<V: Vector>(mut counter: [V; 4], mut key: [u32; 2]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        let (m0, m1) = (V::splat_bits(0xD251_1F53), V::splat_bits(0xCD9E_8D57));
        for _ in 0..10 {
            let (high0, low0) = counter[0].mul_wide_bits(m0);
            let (high1, low1) = counter[2].mul_wide_bits(m1);
            counter = [
                high1.xor_bits(counter[1]).xor_bits(V::splat_bits(key[0])),
                low1,
                high0.xor_bits(counter[3]).xor_bits(V::splat_bits(key[1])),
                low0,
            ];
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        counter
    }
}
