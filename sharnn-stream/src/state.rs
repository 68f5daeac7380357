//! A stream's state on the host: what it carries from one token to the next.

use crate::{StateError, StreamShape};

/// What a stream carries, as plain values: `h`, `c` and the memory of every block, and what it predicts next.
///
/// [`Streams::state`](crate::Streams::state) takes it out of a batch of streams, and
/// [`Streams::set_state`](crate::Streams::set_state) puts it into any place of another one, computed in another way if need
/// be. [`to_bytes`](Self::to_bytes) makes a safetensors file of it. Its size does not grow once the memory is full. A scorer or generator
/// that mixes adds what its mixer knows.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamState {
    pub(crate) shape: StreamShape,
    pub(crate) values: StreamValues,
    /// A digest of the weights that it was computed with, where somebody noted it.
    pub(crate) weights: Option<[u8; 32]>,
    /// What a mixer learned of the stream, as its bytes.
    pub(crate) adaptive: Option<Vec<u8>>,
}

/// The values of a [`StreamState`], for whoever computes streams.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamValues {
    /// Tokens of the segment that has begun, less than `segment_len`.
    pub position: usize,
    /// Where the oldest row of memory lies in a ring; 0 where there is no ring, or it is not full.
    pub oldest: usize,
    /// What each block carries.
    pub blocks: Vec<BlockValues>,
    /// The newest tokens, oldest first: as many as the shape's context, or as there were.
    pub recent: Vec<usize>,
    /// `[vocab_size]`; `None` before the first token.
    pub logits: Option<Vec<f32>>,
}

/// What a block carries.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockValues {
    /// `[d_model]`
    pub h: Vec<f32>,
    /// `[d_model]`
    pub c: Vec<f32>,
    /// `[rows, d_model]`, oldest row first; as many rows as in every other block that attends, none in one that does not.
    pub memory: Vec<f32>,
}

impl StreamState {
    /// The state before the first token.
    pub fn start(shape: &StreamShape) -> Self {
        let zeros = || vec![0.0; shape.d_model];
        let block = || BlockValues { h: zeros(), c: zeros(), memory: Vec::new() };
        let blocks = (0..shape.n_layers()).map(|_| block()).collect();
        let values = StreamValues { position: 0, oldest: 0, blocks, recent: Vec::new(), logits: None };
        Self::new(shape.clone(), values)
    }

    /// Of streams of this shape.
    pub fn new(shape: StreamShape, values: StreamValues) -> Self {
        Self { shape, values, weights: None, adaptive: None }
    }

    /// Its values.
    pub fn values(&self) -> &StreamValues {
        &self.values
    }

    /// The same with a note of the weights that it was computed with: a digest of them, of whatever kind. It is part of the file.
    /// Streams know nothing of it: they neither note nor compare it.
    pub fn of_weights(self, digest: [u8; 32]) -> Self {
        Self { weights: Some(digest), ..self }
    }

    /// The digest of the weights that it was computed with, where it was noted.
    pub fn weights(&self) -> Option<&[u8; 32]> {
        self.weights.as_ref()
    }

    /// What the mixer knew that read the stream, as [`Mixer::to_bytes`](sharnn_mixing::Mixer::to_bytes) makes it, where one did. Scorers and generators
    /// that mix go on with it; others leave it aside.
    pub fn adaptive(&self) -> Option<&[u8]> {
        self.adaptive.as_deref()
    }

    pub(crate) fn with_adaptive(self, mixer: Vec<u8>) -> Self {
        Self { adaptive: Some(mixer), ..self }
    }

    /// The sizes of the streams that it is of.
    pub fn shape(&self) -> &StreamShape {
        &self.shape
    }

    /// Whether it is that before the first token.
    pub fn is_start(&self) -> bool {
        self.values.logits.is_none()
    }

    /// Tokens of the segment that has begun; 0 between two segments.
    pub fn position(&self) -> usize {
        self.values.position
    }

    /// Rows of memory, at most `mem_len`. (Where that is 0, those of the segment that has begun.)
    pub fn memory_rows(&self) -> usize {
        self.values.blocks.iter().map(|block| block.memory.len() / self.shape.d_model).max().unwrap_or(0)
    }

    /// Size of the values in bytes.
    pub fn size_bytes(&self) -> usize {
        let block = |block: &BlockValues| block.h.len() + block.c.len() + block.memory.len();
        let adaptive = self.adaptive.as_ref().map_or(0, Vec::len);
        4 * (self.values.blocks.iter().map(block).sum::<usize>()
            + self.values.recent.len()
            + self.values.logits.as_ref().map_or(0, Vec::len))
            + adaptive
    }

    /// Ends the segment that has begun, so that streams with segments of any other length can go on from here.
    pub fn end_segment(mut self) -> Self {
        self.values.position = 0;
        if self.shape.mem_len == 0 {
            self.values.blocks.iter_mut().for_each(|block| block.memory.clear());
        }
        self
    }

    /// Whether streams of another shape can go on from it.
    ///
    /// # Errors
    /// The first thing that differs.
    pub fn fits(&self, streams: &StreamShape) -> Result<(), StateError> {
        for ((field, found), (_, expected)) in fields(&self.shape).into_iter().zip(fields(streams)) {
            if found != expected {
                return Err(StateError::Shape { field, expected, found });
            }
        }
        let (found, expected) = (self.shape.segment_len, streams.segment_len);
        if self.values.position != 0 && found != expected {
            return Err(StateError::Segment { position: self.values.position, expected, found });
        }
        Ok(())
    }
}

/// The fields of a shape that have to be the same, as text.
pub(crate) fn fields(shape: &StreamShape) -> [(&'static str, String); 5] {
    let attends = shape.attends.iter().map(|&attends| if attends { '1' } else { '0' });
    [
        ("vocab_size", shape.vocab_size.to_string()),
        ("d_model", shape.d_model.to_string()),
        ("mem_len", shape.mem_len.to_string()),
        ("attends", attends.collect()),
        ("context", shape.context.to_string()),
    ]
}
