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
    /// Every precision, and its name.
    pub const ALL: [(Self, &'static str); 2] = [(Self::F32, "f32"), (Self::Bf16, "bf16")];

    /// The name, which is that in a recipe too.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_recipe() {
        for (precision, name) in Precision::ALL {
            assert_eq!(precision.name(), name);
            assert_eq!(serde_json::to_string(&precision).unwrap(), format!("{name:?}"));
        }
    }

    #[test]
    #[cfg(feature = "flex")]
    fn flex_computes_in_every_precision_under_autodiff_too() {
        use burn::backend::{Autodiff, Flex};
        for (precision, name) in Precision::ALL {
            let supported = [
                precision.is_supported::<Flex>(&Default::default()),
                precision.is_supported::<Autodiff<Flex>>(&Default::default()),
            ];
            assert_eq!(supported, [true; 2], "{name}");
        }
    }
}
