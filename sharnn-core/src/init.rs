//! Initial weights, from a portable generator.
//!
//! Linear and Embedding weights are N(0, 0.1 / sqrt(d_model)), linear biases 0; LSTM weights and both its biases are
//! U(-1/sqrt(d_model), 1/sqrt(d_model)); norms are 1 and 0; gates 0.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal, Uniform};

/// Draws the parameters of one model, in the order in which they are asked for.
pub(crate) struct Initializer<'a, B: Backend> {
    rng: ChaCha8Rng,
    d_model: usize,
    device: &'a B::Device,
}

impl<'a, B: Backend> Initializer<'a, B> {
    pub(crate) fn new(seed: u64, d_model: usize, device: &'a B::Device) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), d_model, device }
    }

    fn draw<const D: usize>(&mut self, shape: [usize; D], from: impl Distribution<f64>) -> Param<Tensor<B, D>> {
        let values: Vec<f32> = from.sample_iter(&mut self.rng).take(shape.iter().product()).map(|x| x as f32).collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<B, D>> {
        self.draw(shape, Normal::new(0.0, std).expect("a positive, finite standard deviation"))
    }

    /// The weight of a linear map or of the embedding.
    pub(crate) fn weight<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<B, D>> {
        self.normal(shape, 0.1 / (self.d_model as f64).sqrt())
    }

    /// A map of `d_in` values whose results are about as large as they.
    pub(crate) fn map<const D: usize>(&mut self, shape: [usize; D], d_in: usize) -> Param<Tensor<B, D>> {
        self.normal(shape, 1.0 / (d_in as f64).sqrt())
    }

    /// A weight or a bias of the LSTM.
    pub(crate) fn lstm<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<B, D>> {
        let bound = 1.0 / (self.d_model as f64).sqrt();
        self.draw(shape, Uniform::new(-bound, bound).expect("a positive, finite bound"))
    }

    /// A linear bias, a norm's bias or a gate.
    pub(crate) fn zeros<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<B, D>> {
        Param::from_tensor(Tensor::zeros(shape, self.device))
    }

    /// A norm's weight.
    pub(crate) fn ones<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<B, D>> {
        Param::from_tensor(Tensor::ones(shape, self.device))
    }
}
