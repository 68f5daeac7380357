//! What streams of a model carry, as sizes alone.

/// The sizes of what a stream carries: its model's architecture, and the segments that its tokens are read in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamShape {
    /// Number of distinct tokens.
    pub vocab_size: usize,
    /// Width of the model.
    pub d_model: usize,
    /// Rows of memory kept: what the newest token sees, itself among them.
    pub mem_len: usize,
    /// For each block, whether it attends.
    pub attends: Vec<bool>,
    /// How many of its newest tokens a stream keeps for the model's memory of n-grams; 0 where it has none.
    pub context: usize,
    /// Tokens of a segment, before which the memory is cut so that it fits in.
    pub segment_len: usize,
}

impl StreamShape {
    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.attends.len()
    }

    /// Bytes of the largest [`StreamState`](crate::StreamState) of such streams, as
    /// [`to_bytes`](crate::StreamState::to_bytes) makes it, or a little more; without what a mixer knows.
    pub fn most_bytes(&self) -> usize {
        // Of a segment that has begun, rows are kept even where none are later.
        let rows = self.mem_len.max(self.segment_len);
        let attending = self.attends.iter().filter(|&&attends| attends).count();
        let of_blocks = rows.saturating_mul(attending).saturating_add(2 * self.n_layers());
        let values = self.d_model.saturating_mul(of_blocks).saturating_add(self.vocab_size + self.context);
        values.saturating_mul(4).saturating_add(self.most_header())
    }

    /// Bytes of the largest header: a line for each tensor, and one for the shape.
    pub(crate) fn most_header(&self) -> usize {
        1024 + 256 * (3 * self.n_layers() + 2)
    }
}
