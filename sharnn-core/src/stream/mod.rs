//! Streams of a [`ShaRnn`]: on its backend, or with its weights packed for the CPU. What stands on top of both is sharnn-stream.

mod model;
#[cfg(feature = "flex")]
mod packed;

use burn::tensor::{Tensor, backend::Backend as BurnBackend};
use sharnn_stream::StreamShape;

pub use model::ModelStreams;

use crate::{Backend, NGrams, ShaRnn};

impl<B: Backend> ShaRnn<B> {
    /// The sizes of what a stream carries that is read in segments of `segment_len` tokens.
    pub fn stream_shape(&self, segment_len: usize) -> StreamShape {
        let [vocab_size, d_model] = self.encoder.weight.dims();
        let attends = self.blocks.iter().map(|block| block.attending.is_some()).collect();
        let context = self.ngrams.as_ref().map_or(0, NGrams::context);
        StreamShape { vocab_size, d_model, mem_len: self.mem_len, attends, context, segment_len }
    }
}

/// The values of a tensor on the host, in f32.
fn values<B: BurnBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("was converted to f32")
}
