//! Fused operations: the extension trait [`Backend`], its generic bodies and its overrides.
//!
//! Each operation has a plain form (`lstm`), a form for training that also returns what the backward needs
//! (`lstm_forward`), and its own backward (`lstm_backward`); the cheap ones need no second form, their backward starts
//! from the inputs. The bodies in [`generic`] are written in ordinary Burn operations, so that an empty `impl` makes a Burn
//! backend work, and they are the reference that every override is tested against. [`Autodiff`](burn::backend::Autodiff)
//! records ONE node for an operation, whatever its length: a recorded time step would cost O(T²) in the backward. Names
//! that Burn's own module operations already have are avoided, so that `B::affine` needs no qualification.
//!
//! Activations are time-major, `[seq_len, batch_size, d]`, but for attention, which is batch-first.

mod adagrad;
mod attention;
mod autodiff;
mod boom;
#[cfg(feature = "cubecl")]
mod cube;
mod decoder_loss;
mod dropout;
#[cfg(feature = "flex")]
mod flex;
pub mod generic;
mod lamb;
mod layer_norm;
mod linear;
mod lstm;
mod orthogonal;
mod precision;
mod residual;
#[cfg(feature = "tch")]
mod tch;

use burn::tensor::Tensor;
use burn::tensor::backend::ExecutionError;

pub use adagrad::AdagradStep;
pub use attention::{AttentionGrads, AttentionInputs, AttentionKept, AttentionSaved};
pub use boom::{BoomGrads, BoomInputs, BoomSaved};
#[cfg(feature = "cuda")]
pub use cube::{CUDA_LSTM_VARIABLE, CudaLstm, UnknownValue, cuda_tf32};
pub use decoder_loss::{DecoderLossInputs, DecoderLossSaved};
pub(crate) use dropout::drop;
pub use dropout::{Dropout, DropoutKey, DropoutSite, DropoutStream, LaneAxis};
pub use lamb::{LambOptions, LambParam, LambRatios, LambStep, LambUpdate};
pub use layer_norm::LAYER_NORM_EPS;
pub use linear::LinearGrads;
pub use lstm::{LstmGrads, LstmInputs, LstmSaved, LstmWanted};
pub use precision::Precision;
pub use residual::{ResidualGrads, ResidualInputs, ResidualSaved};
#[cfg(feature = "tch")]
pub use tch::libtorch_device;

/// Backend `cuda` without Burn's fusion, whatever Burn's features say.
#[cfg(feature = "cuda")]
pub type UnfusedCuda = burn_cubecl::CubeBackend<burn_cubecl::cubecl::cuda::CudaRuntime, f32, i32, u8>;

/// Backend `wgpu` without it.
#[cfg(feature = "wgpu")]
pub type UnfusedWgpu = burn_cubecl::CubeBackend<burn_cubecl::cubecl::wgpu::WgpuRuntime, f32, i32, u32>;

/// A Burn backend with SHA-RNN's fused operations. All have a default body in plain Burn operations.
pub trait Backend: burn::tensor::backend::Backend {
    /// Name of the instructions that these operations are computed with, where they are chosen here: others differ in the
    /// last bits.
    fn instructions() -> Option<&'static str> {
        None
    }

    /// What its user should know of this device since it was asked last, a line each: such as that a kernel could not be used
    /// and another one takes its place. It may wait for the device, so it is to be asked where that is waited for anyway.
    fn notices(_device: &Self::Device) -> Vec<String> {
        Vec::new()
    }

    /// Waits until all work that was asked for has been handed to the device's driver, not until it is done: the host's share of
    /// the time. Backends that compute when they are called have nothing to do.
    ///
    /// # Errors
    /// If a launch failed; it is not told again by `sync`.
    fn flush(_device: &Self::Device) -> Result<(), ExecutionError> {
        Ok(())
    }

    /// Whether [`memory_attention_forward`](Self::memory_attention_forward) keeps the weights, rather than what they can be
    /// computed from again: see [`AttentionKept`].
    const KEEPS_ATTENTION_WEIGHTS: bool = true;

    /// Whether it keeps them in bfloat16 where products are in that.
    const HALVES_ATTENTION_WEIGHTS: bool = false;

    /// `y = x Wᵀ + b`.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_in]`, `weight`: `[d_out, d_in]`, `bias`: `[d_out]`
    /// - result: `[rows, d_out]`
    fn affine(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 1>,
        precision: Precision,
    ) -> Tensor<Self, 2> {
        linear::forward(x, weight, bias, precision)
    }

    /// Gradients of [`affine`](Self::affine) for the wanted ones of `x`, `weight` and `bias`.
    fn affine_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
        wanted: [bool; 3],
        precision: Precision,
    ) -> LinearGrads<Self> {
        linear::backward(x, weight, grad, wanted, precision)
    }

    /// Layer normalisation over the last dimension with [`LAYER_NORM_EPS`].
    ///
    /// # Shapes
    /// - `x` and result: `[rows, d]`, `weight` and `bias`: `[d]`
    fn layer_norm_rows(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, bias: Tensor<Self, 1>) -> Tensor<Self, 2> {
        layer_norm::forward(x, weight, bias)
    }

    /// Gradients of [`layer_norm_rows`](Self::layer_norm_rows) for `x`, `weight` and `bias`.
    fn layer_norm_rows_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>, Tensor<Self, 1>) {
        layer_norm::backward(x, weight, grad)
    }

    /// Drops elements and scales the rest; applied to a gradient it is its own backward.
    ///
    /// # Shapes
    /// - `x` and result: `[seq_len, batch_size, d]`
    fn dropout(x: Tensor<Self, 3>, dropout: Dropout) -> Tensor<Self, 3> {
        dropout::apply(x, dropout)
    }

    /// `LN(h) + dropout(x)`, the sum that ends a block.
    ///
    /// # Shapes
    /// - inputs: see [`ResidualInputs`]
    /// - result: `[seq_len, batch_size, d]`
    fn norm_residual(inputs: ResidualInputs<Self>) -> Tensor<Self, 3> {
        residual::forward(inputs)
    }

    /// Gradients of [`norm_residual`](Self::norm_residual).
    fn norm_residual_backward(saved: ResidualSaved<Self>, grad: Tensor<Self, 3>) -> ResidualGrads<Self> {
        residual::backward(saved, grad)
    }

    /// The LSTM over a segment: `h_1 .. h_T, c_T` packed.
    ///
    /// # Shapes
    /// - inputs: see [`LstmInputs`]
    /// - result: `[seq_len + 1, batch_size, d]`
    fn lstm(inputs: LstmInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        lstm::infer(inputs, precision)
    }

    /// [`lstm`](Self::lstm), and what its backward needs.
    fn lstm_forward(inputs: LstmInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, LstmSaved<Self>) {
        lstm::forward(inputs, precision)
    }

    /// Gradients of [`lstm`](Self::lstm).
    fn lstm_backward(saved: LstmSaved<Self>, grad: Tensor<Self, 3>, wanted: LstmWanted) -> LstmGrads<Self> {
        lstm::backward(saved, grad, wanted)
    }

    /// Attention over one memory that serves as keys and values.
    ///
    /// # Shapes
    /// - inputs: see [`AttentionInputs`]
    /// - result: `[batch_size, seq_len, d_model]`, before the value gate
    fn memory_attention(inputs: AttentionInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        attention::forward(inputs, precision).0
    }

    /// [`memory_attention`](Self::memory_attention), and what its backward needs.
    fn memory_attention_forward(
        inputs: AttentionInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 3>, AttentionSaved<Self>) {
        attention::forward(inputs, precision)
    }

    /// Gradients of [`memory_attention`](Self::memory_attention); that of the memory only where it is wanted.
    fn memory_attention_backward(
        saved: AttentionSaved<Self>,
        grad: Tensor<Self, 3>,
        memory_wanted: bool,
    ) -> AttentionGrads<Self> {
        attention::backward(saved, grad, memory_wanted)
    }

    /// The Boom feed-forward.
    ///
    /// # Shapes
    /// - inputs: see [`BoomInputs`]
    /// - result: `[seq_len, batch_size, d_model]`
    fn boom(inputs: BoomInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        boom::forward(inputs, precision).0
    }

    /// [`boom`](Self::boom), and what its backward needs.
    fn boom_forward(inputs: BoomInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, BoomSaved<Self>) {
        boom::forward(inputs, precision)
    }

    /// Gradients of [`boom`](Self::boom).
    fn boom_backward(saved: BoomSaved<Self>, grad: Tensor<Self, 3>) -> BoomGrads<Self> {
        boom::backward(saved, grad)
    }

    /// Decoder and softmax cross-entropy: the mean negative log-likelihood in nats.
    ///
    /// # Shapes
    /// - inputs: see [`DecoderLossInputs`]
    /// - result: `[1]`
    fn decoder_loss(inputs: DecoderLossInputs<Self>, precision: Precision) -> Tensor<Self, 1> {
        decoder_loss::forward(inputs, precision).0
    }

    /// [`decoder_loss`](Self::decoder_loss), and what its backward needs.
    fn decoder_loss_forward(
        inputs: DecoderLossInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 1>, DecoderLossSaved<Self>) {
        decoder_loss::forward(inputs, precision)
    }

    /// Gradients of [`decoder_loss`](Self::decoder_loss) for the wanted ones of `h`, `weight` and `bias`.
    fn decoder_loss_backward(
        saved: DecoderLossSaved<Self>,
        grad: Tensor<Self, 1>,
        wanted: [bool; 3],
    ) -> LinearGrads<Self> {
        decoder_loss::backward(saved, grad, wanted)
    }

    /// The step of min-trust LAMB on all parameters.
    ///
    /// # Panics
    /// If there are no parameters.
    fn lamb(step: &LambStep<Self>, params: Vec<LambParam<Self>>) -> (Vec<LambUpdate<Self>>, LambRatios<Self>) {
        lamb::update(step, params)
    }

    /// `Σ x²` over the elements of all tensors.
    ///
    /// # Shapes
    /// - each of `xs`: `[n]`, result: `[1]`
    ///
    /// # Panics
    /// If there are no tensors.
    fn squared_norm(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        lamb::squared_norm(xs)
    }

    /// A step of Adagrad on some rows of a table; the table after it, and the sums of squared gradients of its rows.
    ///
    /// # Shapes
    /// - `table`: `[rows of the table, width]`, `squares`: `[rows of the table]`; the results alike
    ///
    /// # Panics
    /// If a row is not in the table, or the shapes do not agree.
    fn adagrad_rows(
        table: Tensor<Self, 2>,
        squares: Tensor<Self, 1>,
        step: AdagradStep<Self>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
        adagrad::rows(table, squares, step)
    }

    /// Each matrix's orthogonal factor, about: the update of Muon.
    ///
    /// # Shapes
    /// - `x` and result: `[matrices, rows, cols]`
    fn orthogonalize(x: Tensor<Self, 3>, precision: Precision) -> Tensor<Self, 3> {
        orthogonal::orthogonalize(x, precision)
    }
}

/// A differentiable [`Backend`] whose inner backend has the fused operations as well.
pub trait AutodiffBackend: Backend + burn::tensor::backend::AutodiffBackend<InnerBackend: Backend> {}

impl<B> AutodiffBackend for B where B: Backend + burn::tensor::backend::AutodiffBackend<InnerBackend: Backend> {}

#[cfg(feature = "ndarray")]
impl Backend for burn_ndarray::NdArray<f32> {}

/// In double precision, for finite differences.
#[cfg(feature = "ndarray")]
impl Backend for burn_ndarray::NdArray<f64> {}
