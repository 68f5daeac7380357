//! The fused operations as CubeCL kernels: CUDA, and by the same source Vulkan, Metal and ROCm.
//!
//! Matrix products are Burn's, but for the LSTM's recurrent one; what comes before and after them is one kernel. Kernels read
//! and write contiguous f32. Tensors of another type take the generic bodies.

mod attention;
mod boom;
#[cfg(all(test, feature = "cuda"))]
mod cuda_sources;
mod decoder_loss;
mod dropout;
mod fusion;
mod lamb;
mod layer_norm;
mod linear;
mod lstm;
#[cfg(feature = "cuda")]
mod persistent;
mod product;
mod reduce;
#[cfg(feature = "cuda")]
mod variable;

use burn::tensor::backend::ExecutionError;
use burn::tensor::{DType, Shape, Tensor, TensorPrimitive};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::calculate_cube_count_elemwise;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::element::BoolElement;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};
use product::{operand_values, product};

#[cfg(feature = "cuda")]
pub use self::persistent::{CUDA_LSTM_VARIABLE, CudaLstm};
#[cfg(feature = "cuda")]
pub use self::product::cuda_tf32;
#[cfg(feature = "cuda")]
pub use self::variable::UnknownValue;
use super::{
    AttentionGrads, AttentionInputs, AttentionSaved, Backend, BoomGrads, BoomInputs, BoomSaved, DecoderLossInputs,
    DecoderLossSaved, Dropout, LambParam, LambRatios, LambStep, LambUpdate, LinearGrads, LstmGrads, LstmInputs,
    LstmSaved, LstmWanted, Precision, ResidualGrads, ResidualInputs, ResidualSaved,
};

/// Units of a cube, where a kernel does not say otherwise: what every device allows.
const UNITS: u32 = 256;

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

/// A [`CubeBackend`], whatever its types are.
trait OnCube:
    Backend
    + burn::tensor::backend::Backend<
        FloatTensorPrimitive = CubeTensor<Self::Runtime>,
        IntTensorPrimitive = CubeTensor<Self::Runtime>,
    >
{
    type Runtime: CubeRuntime;
}

impl<R, F, I, BT> OnCube for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: burn::tensor::backend::Backend<
            FloatTensorPrimitive = CubeTensor<R>,
            IntTensorPrimitive = CubeTensor<R>,
            Device = R::CubeDevice,
        >,
{
    type Runtime = R;
}

/// A float tensor's contiguous values.
fn values<B: OnCube, const D: usize>(x: Tensor<B, D>) -> CubeTensor<B::Runtime> {
    into_contiguous(x.into_primitive().tensor())
}

/// The reverse of [`values`].
fn tensor<B: OnCube, const D: usize>(x: CubeTensor<B::Runtime>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// Whether a tensor is of f32, as the kernels want it.
fn is_f32<B: OnCube, const D: usize>(x: &Tensor<B, D>) -> bool {
    x.dtype() == DType::F32
}

/// Room for a result of f32, on the device of `like`.
fn room<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>) -> CubeTensor<R> {
    room_of(like, shape, DType::F32)
}

fn room_of<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// An argument of a kernel.
///
/// # Panics
/// If it is not contiguous, as what Burn's own kernels return may not be: the kernel would take its rows from wrong places.
fn arg<R: CubeRuntime>(x: &CubeTensor<R>) -> ArrayArg<R> {
    assert!(x.is_contiguous(), "a kernel is given contiguous tensors, not {x:?}");
    x.clone().into_array_arg()
}

/// Cubes of [`UNITS`] for so many elements.
fn for_elements<R: CubeRuntime>(like: &CubeTensor<R>, n: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS);
    (calculate_cube_count_elemwise(&like.client, n, dim), dim)
}

/// A cube of [`UNITS`] for each row; there may be more cubes than rows.
fn for_rows<R: CubeRuntime>(like: &CubeTensor<R>, rows: usize) -> (CubeCount, CubeDim) {
    (calculate_cube_count_elemwise(&like.client, rows, CubeDim::new_1d(1)), CubeDim::new_1d(UNITS))
}

impl<R, F, I, BT> Backend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: burn::tensor::backend::Backend<
            FloatTensorPrimitive = CubeTensor<R>,
            IntTensorPrimitive = CubeTensor<R>,
            Device = R::CubeDevice,
        >,
{
    const HALVES_ATTENTION_WEIGHTS: bool = true;

    #[cfg(feature = "cuda")]
    fn notices(device: &Self::Device) -> Vec<String> {
        persistent::notices(device)
    }

    fn flush(device: &Self::Device) -> Result<(), ExecutionError> {
        let failed = |error| ExecutionError::WithContext { reason: format!("{error}") };
        R::client(device).flush().map_err(failed)
    }

    fn affine(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 1>,
        precision: Precision,
    ) -> Tensor<Self, 2> {
        linear::forward(x, weight, bias, precision)
    }

    fn affine_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
        wanted: [bool; 3],
        precision: Precision,
    ) -> LinearGrads<Self> {
        linear::backward(x, weight, grad, wanted, precision)
    }

    fn layer_norm_rows(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, bias: Tensor<Self, 1>) -> Tensor<Self, 2> {
        layer_norm::forward(x, weight, bias)
    }

    fn layer_norm_rows_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>, Tensor<Self, 1>) {
        layer_norm::backward(x, weight, grad)
    }

    fn dropout(x: Tensor<Self, 3>, dropout: Dropout) -> Tensor<Self, 3> {
        dropout::apply(x, dropout)
    }

    fn norm_residual(inputs: ResidualInputs<Self>) -> Tensor<Self, 3> {
        layer_norm::residual(inputs)
    }

    fn norm_residual_backward(saved: ResidualSaved<Self>, grad: Tensor<Self, 3>) -> ResidualGrads<Self> {
        layer_norm::residual_backward(saved, grad)
    }

    fn lstm(inputs: LstmInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        lstm::infer(inputs, precision)
    }

    fn lstm_forward(inputs: LstmInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, LstmSaved<Self>) {
        lstm::forward(inputs, precision)
    }

    fn lstm_backward(saved: LstmSaved<Self>, grad: Tensor<Self, 3>, wanted: LstmWanted) -> LstmGrads<Self> {
        lstm::backward(saved, grad, wanted)
    }

    fn memory_attention(inputs: AttentionInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        attention::forward(inputs, precision).0
    }

    fn memory_attention_forward(
        inputs: AttentionInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 3>, AttentionSaved<Self>) {
        attention::forward(inputs, precision)
    }

    fn memory_attention_backward(
        saved: AttentionSaved<Self>,
        grad: Tensor<Self, 3>,
        memory_wanted: bool,
    ) -> AttentionGrads<Self> {
        attention::backward(saved, grad, memory_wanted)
    }

    fn boom(inputs: BoomInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        boom::forward(inputs, precision).0
    }

    fn boom_forward(inputs: BoomInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, BoomSaved<Self>) {
        boom::forward(inputs, precision)
    }

    fn boom_backward(saved: BoomSaved<Self>, grad: Tensor<Self, 3>) -> BoomGrads<Self> {
        boom::backward(saved, grad)
    }

    fn decoder_loss(inputs: DecoderLossInputs<Self>, precision: Precision) -> Tensor<Self, 1> {
        decoder_loss::forward(inputs, precision).0
    }

    fn decoder_loss_forward(
        inputs: DecoderLossInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 1>, DecoderLossSaved<Self>) {
        decoder_loss::forward(inputs, precision)
    }

    fn decoder_loss_backward(
        saved: DecoderLossSaved<Self>,
        grad: Tensor<Self, 1>,
        wanted: [bool; 3],
    ) -> LinearGrads<Self> {
        decoder_loss::backward(saved, grad, wanted)
    }

    fn lamb(step: &LambStep<Self>, params: Vec<LambParam<Self>>) -> (Vec<LambUpdate<Self>>, LambRatios<Self>) {
        lamb::update(step, params)
    }

    fn squared_norm(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        lamb::squared_norm(xs)
    }
}
