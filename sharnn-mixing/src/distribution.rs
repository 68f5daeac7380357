//! What a model predicts, as integers: a weight for each byte, and how a byte's eight bits divide them.

use crate::logistic::{LEAST, ONE};

/// What a weight is at the model's most probable byte.
const TOP: f32 = (1 << 22) as f32;

/// A model's distribution over the next byte, in integers.
///
/// The weight of a byte is `2^22 · e^(logit - largest logit)`, rounded, and at least 1. It is computed by IEEE additions and
/// multiplications in a stated order, so that equal logits give equal weights on every machine. A byte is read as eight decisions,
/// the highest bit first; what a decision's sides weigh is the sum of their bytes' weights.
#[derive(Clone, Debug)]
pub struct ByteDistribution {
    /// Sums of weights: node 1 is the root, node n divides into 2n (the bit is 0) and 2n + 1, and node 256 + b is byte b.
    sums: [u64; 512],
    vocab_size: usize,
}

impl ByteDistribution {
    /// That of a model that knows nothing.
    pub fn uniform() -> Self {
        Self::of_logits(&[0.0; 256])
    }

    /// The distribution of a model's logits: see [`set_logits`](Self::set_logits).
    ///
    /// # Panics
    /// As [`set_logits`](Self::set_logits).
    pub fn of_logits(logits: &[f32]) -> Self {
        let mut distribution = Self { sums: [0; 512], vocab_size: 0 };
        distribution.set_logits(logits);
        distribution
    }

    /// Takes the logits of a model, `[vocab_size]`: a vocabulary of less than 256 has its first bytes.
    ///
    /// # Panics
    /// If there are none or more than 256 logits.
    pub fn set_logits(&mut self, logits: &[f32]) {
        assert!((1..=256).contains(&logits.len()), "{} logits, expected 1 to 256", logits.len());
        self.vocab_size = logits.len();
        let largest = largest(logits);
        let mut weights = [0; 256];
        for (weight, &logit) in weights.iter_mut().zip(logits) {
            *weight = weight_below(logit - largest);
        }
        let (nodes, bytes) = self.sums.split_at_mut(256);
        for (sum, weight) in bytes.iter_mut().zip(weights) {
            *sum = u64::from(weight);
        }
        let mut below = &*bytes;
        let mut rest = nodes;
        while rest.len() > 1 {
            let (others, level) = rest.split_at_mut(rest.len() / 2);
            for (sum, &[zero, one]) in level.iter_mut().zip(below.as_chunks().0) {
                *sum = zero + one;
            }
            (below, rest) = (level, others);
        }
    }

    /// Bytes that there are: 256, or those of a smaller vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The probability that the next bit is 1 after those that node stands for, in 65536ths; `None` where no byte goes on with a 1.
    #[inline]
    pub(crate) fn probability(&self, node: usize) -> Option<u32> {
        let [zero, one] = [self.sums[2 * node], self.sums[2 * node + 1]];
        (one > 0).then(|| (((one << 16) / (zero + one)) as u32).clamp(LEAST, ONE - LEAST))
    }

    /// Reads a byte without a mixer: `decide` gets the probability that the next bit is 1, in 65536ths (1 to 65535), and says what it is,
    /// the highest bit first. A bit that cannot be 1 is 0 without being asked for.
    pub fn code(&self, mut decide: impl FnMut(u32) -> bool) -> u8 {
        let mut node = 1;
        while node < 256 {
            node = 2 * node + usize::from(self.probability(node).is_some_and(&mut decide));
        }
        (node & 255) as u8
    }

    /// How sure the model is, from 0 (its best byte has a probability of 0.7 or more) to 7 (less than 0.09).
    pub(crate) fn doubt(&self) -> usize {
        // The best byte weighs 2^22; a step is a factor of the root of 2.
        let sum = self.sums[1] >> 2;
        let steps = [1_482_910_u64, 2_097_152, 2_965_820, 4_194_304, 5_931_641, 8_388_608, 11_863_283];
        steps.partition_point(|&step| step <= sum)
    }
}

/// The largest of some logits.
fn largest(logits: &[f32]) -> f32 {
    // Eight at a time, in one vector.
    let mut most = [f32::MIN; 8];
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        for (most, &logit) in most.iter_mut().zip(chunk) {
            *most = if logit > *most { logit } else { *most };
        }
    }
    most.iter().chain(rest).copied().fold(f32::MIN, f32::max)
}

/// `2^22 · e^x` of an x that is not above 0, rounded; at least 1.
#[inline]
fn weight_below(x: f32) -> u32 {
    // 1.5 · 2^23: adding it leaves the nearest integer in the last bits, of both signs; 2^23 that of a positive number.
    const ROUND: f32 = 12_582_912.0;
    const ROUND_POSITIVE: f32 = 8_388_608.0;
    let scaled = (x * std::f32::consts::LOG2_E).max(-40.0);
    let shifted = scaled + ROUND;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let y = (scaled - (shifted - ROUND)) * std::f32::consts::LN_2;
    // e^y by its series: |y| is at most ln 2 / 2.
    let series = 1.0 + y * (1.0 + y * (0.5 + y * (1.0 / 6.0 + y * (1.0 / 24.0 + y * (1.0 / 120.0)))));
    let weight = f32::from_bits(series.to_bits().wrapping_add(exponent << 23)) * TOP;
    ((weight + ROUND_POSITIVE).to_bits() - ROUND_POSITIVE.to_bits()).max(1)
}
