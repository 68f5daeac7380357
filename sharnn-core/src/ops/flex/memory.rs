//! The tensors' memory as slices, and slices as tensors.

use std::mem::MaybeUninit;

use burn::tensor::{DType, Shape, Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor, Layout};
use burn_std::{AllocationController, AllocationProperty, Bytes};
use sharnn_kernels::{Buffer, Rows};

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
pub(super) struct Owned(FlexTensor);

impl Owned {
    pub(super) fn of<const D: usize>(x: Tensor<Flex, D>) -> Self {
        // A copy too where it is a part of a larger one.
        Self(x.into_primitive().tensor().to_contiguous())
    }

    pub(super) fn values(&mut self) -> &mut [f32] {
        self.0.storage_mut()
    }

    pub(super) fn tensor<const D: usize>(self) -> Tensor<Flex, D> {
        Tensor::from_primitive(TensorPrimitive::Float(self.0))
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
pub(super) fn tensor<const D: usize>(values: Buffer, shape: [usize; D]) -> Tensor<Flex, D> {
    let len = values.as_bytes().len();
    // SAFETY: all bytes of a buffer are initialised.
    let bytes = unsafe { Bytes::from_controller(Box::new(Pooled(values)), len) };
    let tensor = FlexTensor::new(bytes, Layout::contiguous(Shape::from(shape)), DType::F32);
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// A tensor of one value.
pub(super) fn scalar(x: f64) -> Tensor<Flex, 1> {
    let mut value = Buffer::room(1);
    value[0] = x as f32;
    tensor(value, [1])
}

/// A buffer as the memory of a tensor.
struct Pooled(Buffer);

impl AllocationController for Pooled {
    fn alloc_align(&self) -> usize {
        64
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let bytes = self.0.as_bytes_mut();
        // SAFETY: the same bytes; the caller writes initialised data only.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        let bytes = self.0.as_bytes();
        // SAFETY: initialised bytes may be seen as bytes that may not be.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
    }
}

/// Whether a tensor is of f32, as the kernels are.
pub(super) fn is_f32<const D: usize>(x: &Tensor<Flex, D>) -> bool {
    x.dtype() == DType::F32
}
