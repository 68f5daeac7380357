//! How much memory a training step takes: an estimate by part, from the shapes alone.

use std::fmt;

use crate::{Backend, Precision, ShaRnnConfig};

/// Bytes of an f32.
const F32: u64 = 4;

/// What a step's memory depends on, beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Lanes of the batch.
    pub batch_size: usize,
    /// Length of the longest segment.
    pub seq_len: usize,
    /// Whether gates and pre-activations are computed again in the backward pass.
    pub recompute: bool,
    /// Whether the backend keeps the attention's weights for the backward pass
    /// ([`Backend::KEEPS_ATTENTION_WEIGHTS`]), which take the product of segment and memory.
    pub keeps_attention_weights: bool,
    /// Bytes of each of those weights.
    pub attention_weight_bytes: u64,
}

/// Bytes of a training step, by part; see [`ShaRnnConfig::training_memory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Names of the parts and their bytes.
    pub parts: Vec<(&'static str, u64)>,
}

impl MemoryEstimate {
    /// Bytes of all parts.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        write!(f, "about {} MB of tensors: ", mb(self.total()))?;
        for (i, (name, bytes)) in self.parts.iter().filter(|(_, bytes)| *bytes > 0).enumerate() {
            write!(f, "{}{name} {}", if i > 0 { ", " } else { "" }, mb(*bytes))?;
        }
        Ok(())
    }
}

impl StepShape {
    /// For a backend.
    pub fn of<B: Backend>(batch_size: usize, seq_len: usize, recompute: bool, precision: Precision) -> Self {
        let halves = B::HALVES_ATTENTION_WEIGHTS && precision == Precision::Bf16;
        Self {
            batch_size,
            seq_len,
            recompute,
            keeps_attention_weights: B::KEEPS_ATTENTION_WEIGHTS,
            attention_weight_bytes: if halves { F32 / 2 } else { F32 },
        }
    }
}

impl ShaRnnConfig {
    /// An estimate of the memory that tensors take at the peak of a training step, with full segments and a full memory, in
    /// f32. What a backend's allocator holds beyond that, and its programs, are not in it. Gradients come as what was kept for
    /// the backward pass goes, so they count only where they are larger.
    pub fn training_memory(&self, shape: StepShape) -> MemoryEstimate {
        let StepShape { batch_size, seq_len, recompute, keeps_attention_weights, attention_weight_bytes } = shape;
        let [lanes, d, d_ff] = [batch_size, self.d_model, self.d_ff].map(|n| n as u64);
        let rows = lanes * seq_len as u64;
        let keys = self.mem_len.max(seq_len) as u64;
        let blocks = self.n_layers as u64;
        let attending = self.n_attending() as u64;
        let drops = u64::from(self.dropout_hidden > 0.0);
        let kept = u64::from(!recompute);

        let params = self.num_params() as u64 * F32;
        // Of a table no gradient and no moments are kept, but a number for each row.
        let [table, table_rows, width] = self.ngrams.as_ref().map_or([0; 3], |ngrams| {
            [ngrams.table_size(), ngrams.orders.len() * ngrams.rows, ngrams.width_of_all()].map(|n| n as u64)
        });
        let dense = params - table * F32;
        // The rows of a segment and their gradient.
        let ngrams = 2 * rows * width;
        let scores = self.n_heads as u64 * rows * if keeps_attention_weights { keys } else { 1 };
        let scores = |bytes: u64| scores * bytes / F32;
        let weights = scores(attention_weight_bytes);
        // Output and its slice, cells, and the gates.
        let lstm = blocks * rows * d * (3 + 4 * kept);
        let boom = blocks * rows * d_ff * kept;
        // Current rows, query before and after its norm, gate, dropout and scale, all in one layout or the other, and the output.
        let attention = attending * (rows * d * (9 + drops) + weights);
        // Inputs and outputs of the norms, and the residual stream.
        let stream = blocks * rows * d * (4 + 2 * drops);
        let decoder = rows * (self.vocab_size as u64 + d);
        // Of the operation that takes most while it runs backward: gradients of gates, of the Boom's activations, or of scores
        // (in f32, and in the weights' type) with the dropped weights, the rows and the dropped rows.
        let rounded = if attention_weight_bytes < F32 { weights } else { 0 };
        let of_scores = if keeps_attention_weights { scores(F32) + rounded + weights * drops } else { 0 };
        let of_attention = if attending > 0 { of_scores + lanes * keys * d * (1 + drops) } else { 0 };
        let workspace = (rows * 4 * d).max(rows * d_ff).max(of_attention) + 2 * rows * d;
        let passing = (lstm + attention + boom + stream + decoder + ngrams + workspace) * F32;
        MemoryEstimate {
            parts: vec![
                ("weights", params),
                ("moments", 2 * dense + table_rows * F32),
                ("gradients beyond what follows", dense.saturating_sub(passing)),
                // The old one and the new one.
                ("memory", 2 * attending * lanes * self.mem_len as u64 * d * F32),
                ("kept by LSTMs", lstm * F32),
                ("by attention", attention * F32),
                ("by Booms", boom * F32),
                ("by the rest", (stream + decoder + ngrams) * F32),
                ("workspace", workspace * F32),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NGramConfig, NGramSite};

    fn shape(keeps_attention_weights: bool) -> StepShape {
        StepShape {
            batch_size: 16,
            seq_len: 256,
            recompute: false,
            keeps_attention_weights,
            attention_weight_bytes: F32,
        }
    }

    #[test]
    fn the_papers_step_fits_into_12_gb() {
        let paper = StepShape { seq_len: 1024, ..shape(true) };
        let bytes = ShaRnnConfig::enwik8().training_memory(paper).total();
        assert!((6_000_000_000..12_000_000_000).contains(&bytes), "{bytes}");
        let halved = StepShape { attention_weight_bytes: F32 / 2, ..paper };
        let saved = bytes - ShaRnnConfig::enwik8().training_memory(halved).total();
        // Half of the weights, 16 x 1024 x 5000 of them; while running backward the gradients come in both types.
        assert_eq!(saved, 16 * 1024 * 5000 * 2);
    }

    /// Peaks of the whole process on flex without dropout, in MB: docs/performance.md.
    #[test]
    fn the_estimate_is_near_what_flex_was_measured_to_take() {
        for (config, measured) in [(ShaRnnConfig::s(), 381), (ShaRnnConfig::m(), 853), (ShaRnnConfig::enwik8(), 1909)] {
            let bytes = config.with_dropout(0.0).with_mem_len(1280).training_memory(shape(false)).total();
            let ratio = bytes as f64 / (f64::from(measured) * 1e6);
            assert!((0.85..1.15).contains(&ratio), "{bytes} bytes of {measured} MB");
        }
    }

    #[test]
    fn a_table_of_n_grams_has_no_moments_but_a_number_a_row() {
        let plain = ShaRnnConfig::xs();
        let ngrams = NGramConfig { orders: vec![2, 3], rows: 1000, width: 8, at: NGramSite::Decoder };
        let parts = |config: &ShaRnnConfig| config.training_memory(shape(false)).parts;
        let [before, after] = [&plain, &plain.clone().with_ngrams(ngrams)].map(parts);
        let grown = |part: usize| after[part].1 - before[part].1;
        let map = 2 * 8 * 128;
        assert_eq!((after[0].0, grown(0)), ("weights", 4 * (2 * 1000 * 8 + map)));
        assert_eq!((after[1].0, grown(1)), ("moments", 4 * (2 * map + 2 * 1000)));
    }

    #[test]
    fn the_parts_follow_what_they_are_of() {
        let config = ShaRnnConfig::s();
        let part = |config: &ShaRnnConfig, shape, name| {
            let parts = config.training_memory(shape).parts;
            parts.into_iter().find(|&(part, _)| part == name).map(|(_, bytes)| bytes)
        };
        let recompute = StepShape { recompute: true, ..shape(false) };
        assert_eq!(part(&config, recompute, "by Booms"), Some(0));
        let double = StepShape { batch_size: 32, ..shape(true) };
        let of_attention = part(&config, shape(true), "by attention").unwrap();
        assert_eq!(part(&config, double, "by attention"), Some(2 * of_attention));
        assert!(of_attention > part(&config, shape(false), "by attention").unwrap());
        let text = config.training_memory(shape(true)).to_string();
        assert!(text.contains("MB of tensors: weights 14, moments 28, "), "{text}");
    }
}
