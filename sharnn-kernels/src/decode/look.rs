//! Where a stream's newest token looked: for looking at, in plain Rust.

use super::kernels::EPS;
use super::{DecodeModel, Streams};

impl DecodeModel {
    /// The weights of the last block that attends, as the step before had them: for each head those over the rows of memory, oldest first,
    /// the newest token's own last; they sum to 1. `None` where no block attends or no memory is kept, or before the first
    /// step.
    ///
    /// # Panics
    /// If the streams are another model's, or there is no such stream.
    pub fn look(&self, streams: &Streams, stream: usize) -> Option<Vec<Vec<f32>>> {
        assert!(streams.fit(self), "these streams are not of this model");
        let (block, attention) =
            self.blocks.iter().enumerate().rev().find_map(|(i, block)| Some((i, block.attention.as_ref()?)))?;
        let rows = streams.memory(block, stream).concat();
        if rows.is_empty() {
            return None;
        }
        let d = self.d;
        let query = &streams.room.query[stream * d..][..d];
        let mean = query.iter().sum::<f32>() / d as f32;
        let variance = query.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / d as f32;
        let by = &attention.query_norm;
        let scaled = |i: usize| (query[i] - mean) / (variance + EPS).sqrt() * by.weight[i] + by.bias[i];
        let query: Vec<f32> = (0..d).map(scaled).collect();
        let d_head = d / attention.n_heads;
        let of_head = |head: usize| {
            let columns = head * d_head..(head + 1) * d_head;
            let score =
                |row: &[f32]| row[columns.clone()].iter().zip(&query[columns.clone()]).map(|(k, q)| k * q).sum();
            let scores: Vec<f32> = rows.chunks_exact(d).map(score).collect();
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f32 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / total).collect()
        };
        Some((0..attention.n_heads).map(of_head).collect())
    }
}
