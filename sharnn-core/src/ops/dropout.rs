//! Element-wise dropout from a counter-based generator.
//!
//! A mask is a pure function of a [`DropoutKey`] and of an element's place (global lane, row, column), so no backward
//! pass stores one, every backend drops the same elements, a resumed run draws what the first would have drawn, and a
//! batch that is split over processes drops what the whole batch would.
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). One call yields 128 bits for eight neighbouring columns, 16 bits each.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Backend;

/// Columns served by one call of the generator.
const GROUP: usize = 8;

/// Where in a block a mask is applied. Each site has its own stream of random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum DropoutSite {
    /// The embedding output, before the first block.
    Input = 1,
    /// The last block's output, before the decoder.
    Output = 2,
    /// The LSTM's output.
    Lstm = 3,
    /// The gated query.
    Query = 4,
    /// The gated values, rows of the memory included.
    Value = 5,
    /// The attention weights, after the softmax.
    Weights = 6,
    /// The attention's output, before the residual sum.
    Attention = 7,
    /// The Boom's activations, inside.
    BoomInner = 8,
    /// The Boom's output, before the residual sum.
    BoomOutput = 9,
}

/// The random stream of one training step: from it every mask of that step follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropoutStream {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the training step; a step's number is never used twice.
    pub step: u64,
    /// Global index of the first lane of this batch (0 unless a batch is split over processes).
    pub first_lane: u32,
}

impl DropoutStream {
    /// The key of one site of one block.
    pub fn key(&self, block: usize, site: DropoutSite) -> DropoutKey {
        DropoutKey { stream: *self, block: block as u32, site }
    }
}

/// Names one mask: the step's stream, the block and the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The step's stream.
    pub stream: DropoutStream,
    /// Index of the block (0 for the sites outside the blocks).
    pub block: u32,
    /// The site in the block.
    pub site: DropoutSite,
}

/// Dropout with a probability and the key of its mask; an argument of the operations that drop elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, in `[0, 1)`. It is rounded to a multiple of 2⁻¹⁶.
    pub prob: f64,
    /// Names the mask.
    pub key: DropoutKey,
}

/// Which axis of a three-dimensional tensor counts lanes; the other of the first two counts rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneAxis {
    /// `[lanes, rows, columns]`.
    First,
    /// `[rows, lanes, columns]`: the time-major layout.
    Second,
}

impl Dropout {
    /// Elements whose 16 random bits are below this are dropped.
    pub fn threshold(&self) -> u16 {
        (self.prob * 65536.0).round().clamp(0.0, 65535.0) as u16
    }

    /// What a kept element is multiplied by: the reciprocal of the probability of keeping it.
    pub fn scale(&self) -> f32 {
        65536.0 / (65536.0 - f32::from(self.threshold()))
    }

    /// The mask on the host: 0 where an element is dropped, [`scale`](Self::scale) where it is kept, row-major in `dims`.
    pub fn host_mask(&self, dims: [usize; 3], lane_axis: LaneAxis) -> Vec<f32> {
        let [outer, inner, columns] = dims;
        let (key, step) = self.key.philox_key();
        let (threshold, scale) = (self.threshold(), self.scale());
        let mut mask = vec![0.0; outer * inner * columns];
        if mask.is_empty() {
            return mask;
        }
        mask.par_chunks_mut(inner * columns).enumerate().for_each(|(i, plane)| {
            for (j, line) in plane.chunks_mut(columns).enumerate() {
                let (lane, row) = match lane_axis {
                    LaneAxis::First => (i, j),
                    LaneAxis::Second => (j, i),
                };
                let lane = self.key.stream.first_lane.wrapping_add(lane as u32);
                for (group, out) in line.chunks_mut(GROUP).enumerate() {
                    let words = philox4x32([group as u32, row as u32, lane, step], key);
                    for (k, value) in out.iter_mut().enumerate() {
                        let bits = (words[k / 2] >> (16 * (k % 2))) as u16;
                        *value = if bits < threshold { 0.0 } else { scale };
                    }
                }
            }
        });
        mask
    }

    /// [`host_mask`](Self::host_mask), uploaded to the device of `like` in its type.
    pub fn mask<B: Backend, const D: usize>(
        &self,
        dims: [usize; 3],
        lane_axis: LaneAxis,
        like: &Tensor<B, D>,
    ) -> Tensor<B, 3> {
        Tensor::from_data(TensorData::new(self.host_mask(dims, lane_axis), dims), (&like.device(), like.dtype()))
    }
}

impl DropoutKey {
    /// The generator's key, which mixes seed, block, site and the step's high half, and its last counter word.
    pub(super) fn philox_key(&self) -> ([u32; 2], u32) {
        let place = u64::from(self.block) << 8 | self.site as u64;
        let mut mixed = split_mix(self.stream.seed ^ split_mix(place));
        mixed = split_mix(mixed ^ (self.stream.step >> 32));
        ([mixed as u32, (mixed >> 32) as u32], self.stream.step as u32)
    }
}

/// SplitMix64's output function: a bijection that scatters neighbouring integers.
fn split_mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Philox4x32-10.
#[inline]
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    for _ in 0..10 {
        let p0 = M0 * u64::from(counter[0]);
        let p1 = M1 * u64::from(counter[2]);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// The body of [`Backend::dropout`]: multiply by the uploaded mask. It is its own backward, applied to the gradient.
///
/// # Shapes
/// - `x` and the result: `[seq_len, batch_size, d]`
pub fn apply<B: Backend>(x: Tensor<B, 3>, dropout: Dropout) -> Tensor<B, 3> {
    let mask = dropout.mask(x.dims(), LaneAxis::Second, &x);
    x * mask
}

/// [`Backend::dropout`] where there is one.
pub(crate) fn drop<B: Backend>(x: Tensor<B, 3>, dropout: Option<Dropout>) -> Tensor<B, 3> {
    match dropout {
        Some(dropout) => B::dropout(x, dropout),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropout(prob: f64, step: u64, first_lane: u32) -> Dropout {
        let stream = DropoutStream { seed: 7, step, first_lane };
        Dropout { prob, key: stream.key(1, DropoutSite::Lstm) }
    }

    /// Known answers published with Random123.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn a_mask_keeps_the_expected_share_and_the_mean() {
        for prob in [0.0, 0.1, 0.5] {
            let d = dropout(prob, 3, 0);
            let mask = d.host_mask([64, 16, 100], LaneAxis::Second);
            let dropped = mask.iter().filter(|&&m| m == 0.0).count() as f64 / mask.len() as f64;
            // 102,400 draws: five standard deviations are below 0.008.
            assert!((dropped - prob).abs() < 0.008, "{prob}: dropped {dropped}");
            let mean = mask.iter().map(|&m| f64::from(m)).sum::<f64>() / mask.len() as f64;
            assert!((mean - 1.0).abs() < 0.016, "{prob}: mean {mean}");
        }
    }

    #[test]
    fn masks_differ_by_step_block_site_and_seed() {
        let dims = [4, 3, 16];
        let base = dropout(0.5, 1, 0);
        let mask = base.host_mask(dims, LaneAxis::Second);
        let stream = base.key.stream;
        let others = [
            DropoutStream { step: 2, ..stream }.key(1, DropoutSite::Lstm),
            DropoutStream { step: 1 + (1 << 32), ..stream }.key(1, DropoutSite::Lstm),
            DropoutStream { seed: 8, ..stream }.key(1, DropoutSite::Lstm),
            stream.key(2, DropoutSite::Lstm),
            stream.key(1, DropoutSite::Query),
        ];
        for key in others {
            assert_ne!(Dropout { key, ..base }.host_mask(dims, LaneAxis::Second), mask, "{key:?}");
        }
    }

    #[test]
    fn a_split_batch_drops_what_the_whole_batch_drops() {
        let whole = dropout(0.5, 5, 0).host_mask([6, 6, 20], LaneAxis::First);
        let tail = dropout(0.5, 5, 4).host_mask([2, 6, 20], LaneAxis::First);
        assert_eq!(whole[4 * 120..], tail[..]);
    }

    #[test]
    fn both_layouts_name_the_same_elements() {
        let (rows, lanes, columns) = (5, 3, 11);
        let time_major = dropout(0.5, 9, 0).host_mask([rows, lanes, columns], LaneAxis::Second);
        let lane_major = dropout(0.5, 9, 0).host_mask([lanes, rows, columns], LaneAxis::First);
        for row in 0..rows {
            for lane in 0..lanes {
                let a = (row * lanes + lane) * columns;
                let b = (lane * rows + row) * columns;
                assert_eq!(time_major[a..a + columns], lane_major[b..b + columns]);
            }
        }
    }

    #[test]
    fn the_first_elements_of_a_key_are_pinned() {
        let mask = dropout(0.5, 1, 0).host_mask([1, 1, 16], LaneAxis::Second);
        let kept: String = mask.iter().map(|&m| if m == 0.0 { '.' } else { 'x' }).collect();
        assert_eq!(kept, "x...xxx..xxxxxxx");
    }
}
