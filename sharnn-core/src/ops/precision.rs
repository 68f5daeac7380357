//! Precision of matrix products: an argument of the operations, not a type and not a global.

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::Backend;

/// What the operands of every matrix product are rounded to. Sums, results and all else stay in the backend's float type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Full precision: operands are used as they are.
    #[default]
    F32,
    /// Operands, those of weight gradients too, are rounded to bfloat16; sums and results are f32.
    Bf16,
}

impl Precision {
    /// Whether backend `B` can compute in this precision on `device`.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        match self {
            Precision::F32 => true,
            Precision::Bf16 => B::supports_dtype(device, DType::BF16),
        }
    }

    /// An operand as a matrix product sees it.
    pub fn round<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Precision::F32 => x,
            Precision::Bf16 => {
                let dtype = x.dtype();
                x.cast(DType::BF16).cast(dtype)
            }
        }
    }

    /// A matrix product of rounded operands.
    pub(super) fn matmul<B: Backend, const D: usize>(self, a: Tensor<B, D>, b: Tensor<B, D>) -> Tensor<B, D> {
        self.round(a).matmul(self.round(b))
    }
}
