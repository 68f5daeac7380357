//! Matrix products, by Burn's kernels.

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

/// Whether products of f32 may be computed in TF32 where a CUDA device has it: f32 with 10 bits of its mantissa, several times as
/// fast. So the variable `SHARNN_CUDA_TF32` says, `1` or `0`; it is read once, and without it they may not.
///
/// # Errors
/// If the variable has another value.
#[cfg(feature = "cuda")]
pub fn cuda_tf32() -> Result<bool, super::UnknownValue> {
    const VARIABLE: &str = "SHARNN_CUDA_TF32";
    static ALLOWED: std::sync::OnceLock<Result<bool, super::UnknownValue>> = std::sync::OnceLock::new();
    let known = [(false, "0"), (true, "1")];
    ALLOWED.get_or_init(|| super::variable::choose(VARIABLE, std::env::var_os(VARIABLE), &known)).clone()
}

/// Without CUDA there are no products in TF32.
#[cfg(not(feature = "cuda"))]
fn cuda_tf32() -> Result<bool, std::convert::Infallible> {
    Ok(false)
}

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
    if a.dtype == DType::F32 && rounds_f32(&a.client) && !cuda_tf32().unwrap_or_else(|error| panic!("{error}")) {
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

/// On a Vulkan device.
#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use burn::tensor::Distribution;
    use burn_cubecl::CubeBackend;
    use burn_cubecl::cubecl::wgpu::WgpuRuntime;

    use super::*;
    use crate::ops::cube::{arg, values};

    type B = CubeBackend<WgpuRuntime, f32, i32, u32>;

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
        Tensor::random(shape, Distribution::Default, &Default::default())
    }

    fn numbers(x: Tensor<B, 3>) -> Vec<f32> {
        x.into_data().to_vec().unwrap()
    }

    /// Shapes that no tile divides, whole vectors, and operands that lie the other way round.
    #[test]
    fn products_are_contiguous_and_the_same_in_every_way_of_computing_them() {
        for (n, m, k, l) in [(1, 1, 1, 1), (2, 3, 5, 7), (1, 64, 32, 16), (3, 17, 40, 33), (1, 1, 24, 9), (2, 9, 8, 1)]
        {
            let (a, b) = (random([n, m, k]), random([n, l, k]));
            let (of_a, of_b) = (numbers(a.clone()), numbers(b.clone()));
            let sum = |i: usize, row: usize, column: usize| -> f32 {
                (0..k).map(|e| of_a[(i * m + row) * k + e] * of_b[(i * l + column) * k + e]).sum()
            };
            let wanted: Vec<f32> = (0..n * m * l).map(|at| sum(at / l / m, at / l % m, at % l)).collect();
            let b = b.swap_dims(1, 2);
            let got = product(a.clone(), b.clone(), Precision::F32).into_primitive().tensor();
            assert!(got.is_contiguous());
            let out = room(&got, [n, m, l]);
            exact(a.into_primitive().tensor(), b.into_primitive().tensor(), &out);
            for (way, x) in [("product", tensor::<B, 3>(got)), ("exact", tensor(out))] {
                for (got, wanted) in numbers(x).iter().zip(&wanted) {
                    // Sums of at most 40 numbers below 1, in another order.
                    assert!((got - wanted).abs() < 1e-5, "{way}: {got} and {wanted} of {:?}", (n, m, k, l));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a kernel is given contiguous tensors")]
    fn a_kernel_is_given_contiguous_tensors_alone() {
        let turned = random([4, 8]).transpose();
        arg(&values(turned.clone()));
        arg(&turned.into_primitive().tensor());
    }
}
