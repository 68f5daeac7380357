//! The tensors' memory as slices, and slices as tensors.

use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};
use burn_flex::{Flex, FlexTensor};
use sharnn_kernels::Rows;

/// A tensor's f32 in row-major order; copied where they lie otherwise.
pub(super) struct Values(FlexTensor);

impl Values {
    pub(super) fn of<const D: usize>(x: &Tensor<Flex, D>) -> Self {
        let x = x.clone().into_primitive().tensor();
        Self(if x.is_contiguous() { x } else { x.to_contiguous() })
    }
}

impl std::ops::Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self.0.as_slice() {
            Some(values) => values,
            None => unreachable!("a contiguous tensor of f32"),
        }
    }
}

/// A tensor's f32 in row-major order, to be overwritten; copied where another tensor shares them.
pub(super) fn into_values<const D: usize>(x: Tensor<Flex, D>) -> Vec<f32> {
    match x.into_data().into_vec() {
        Ok(values) => values,
        Err(error) => unreachable!("a tensor of f32: {error:?}"),
    }
}

/// A tensor `[lanes, rows, d]` of f32 whose rows are contiguous, in whatever order they lie; copied where they are not.
pub(super) struct Lanes(FlexTensor);

impl Lanes {
    pub(super) fn of(x: &Tensor<Flex, 3>) -> Self {
        let x = x.clone().into_primitive().tensor();
        let strides = x.layout().strides();
        let usable = strides[2] == 1 && strides.iter().all(|&stride| stride >= 0);
        Self(if usable { x } else { x.to_contiguous() })
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        let layout = self.0.layout();
        let (dims, strides) = (layout.shape(), layout.strides());
        let values = &self.0.storage::<f32>()[layout.start_offset()..];
        Rows::new(values, [dims[0], dims[1], dims[2]], [strides[0] as usize, strides[1] as usize])
    }
}

/// A tensor that takes over `values`.
pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::from_primitive(TensorPrimitive::Float(FlexTensor::from_data(TensorData::new(values, shape))))
}

/// Whether a tensor is of f32, as the kernels are.
pub(super) fn is_f32<const D: usize>(x: &Tensor<Flex, D>) -> bool {
    x.dtype() == DType::F32
}
