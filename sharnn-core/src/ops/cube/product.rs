//! Matrix products, by Burn's kernels.

use std::sync::OnceLock;

use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::tf32;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use super::{OnCube, room, tensor};
use crate::ops::Precision;

/// `1` lets f32 products be computed in TF32 where the device has it: f32 with 10 bits of its mantissa, several times as fast.
const TF32_VARIABLE: &str = "SHARNN_CUDA_TF32";

/// A matrix product of f32 whose operands are taken in `precision`, of as many matrices each. It is contiguous, where Burn's
/// own choice on CUDA puts rows at multiples of up to 512 bytes: a kernel would be given a copy.
pub(super) fn product<B: OnCube, const D: usize>(
    a: Tensor<B, D>,
    b: Tensor<B, D>,
    precision: Precision,
) -> Tensor<B, D> {
    let (mut shape, of_b) = (a.dims(), b.dims());
    assert_eq!(shape[..D - 2], of_b[..D - 2], "as many matrices on both sides");
    shape[D - 1] = of_b[D - 1];
    let [a, b] = [a, b].map(|x| operand(x.into_primitive().tensor(), precision));
    let out = room(&a, shape);
    if a.dtype == DType::F32 && rounds_f32(&a.client) && !tf32_is_allowed() {
        exact(a, b, &out);
        return tensor(out);
    }
    let product = matmul(a, b, Some(out), MatmulStrategy::default(), DType::F32);
    tensor(product.expect("a product of checked shapes"))
}

/// The operand of a product.
fn operand<R: CubeRuntime>(x: CubeTensor<R>, precision: Precision) -> CubeTensor<R> {
    match precision {
        Precision::Bf16 if x.dtype != DType::BF16 => cast(x, DType::BF16),
        Precision::Bf16 | Precision::F32 => x,
    }
}

/// The operand of a product in a kernel, contiguous.
pub(super) fn operand_values<B: OnCube, const D: usize>(
    x: Tensor<B, D>,
    precision: Precision,
) -> CubeTensor<B::Runtime> {
    into_contiguous(operand(x.into_primitive().tensor(), precision))
}

/// Whether Burn's products of f32 round their operands to TF32 on this device: they do where its tensor cores have it.
fn rounds_f32<R: CubeRuntime>(client: &ComputeClient<R>) -> bool {
    client.properties().supports_type(tf32::as_type_native_unchecked().storage_type())
}

fn tf32_is_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| std::env::var(TF32_VARIABLE).is_ok_and(|value| value == "1"))
}

/// A product of f32 in f32, into `out`.
fn exact<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, out: &CubeTensor<R>) {
    let f32 = f32::as_type_native_unchecked().storage_type();
    let [a, b] = [a, b].map(|x| InputBinding::new(x.binding(), f32));
    let launch = |strategy: &Strategy, a, b| {
        let mut types = MatmulElems::from_globals(&MatmulGlobalElems { lhs: f32, rhs: f32, out: f32 });
        launch_ref(strategy, &out.client, a, b, out.clone().binding(), &mut types)
    };
    // What no other kernel can do, the naive one does.
    launch(&Strategy::SimpleUnit(Default::default()), a.clone(), b.clone())
        .or_else(|_| launch(&Strategy::Naive, a, b))
        .expect("a product of checked shapes");
}
