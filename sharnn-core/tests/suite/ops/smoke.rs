//! Every fused operation once, at a small size, forward and backward, beside backend `flex` in the same process: what a new device is
//! tried with first. Each is a test of its own, so that one that fails leaves the others to be tried.

use burn::backend::Flex;

use super::*;
use crate::support::unit_roundoff;

on_backends!(
    affine,
    layer_norm,
    dropped,
    norm_residual,
    lstm,
    attention,
    boom,
    decoder_loss,
    lamb,
    orthogonalize,
    affine_bf16,
    lstm_bf16,
    attention_bf16,
    boom_bf16,
    decoder_loss_bf16
);

type Reference = Autodiff<Flex>;

const BF16: How = How::Fused { recompute: false, precision: Precision::Bf16 };

/// Both round the operands to bf16 the same way. A sum in another order may round a value that is kept in it to its neighbour, 2⁻⁷ of
/// itself away, before the next product takes it: 5 times the unit roundoff of 2⁻⁸ has room for one forward and one backward.
const TOLERANCE_BF16: f64 = 2e-2;

fn tolerance<B: AutodiffBackend>() -> f64 {
    f32_tolerance(unit_roundoff::<B>(Precision::F32))
}

/// The same operation on the same inputs, here and on flex.
fn beside_flex<B: AutodiffBackend>(tolerance: f64, here: Op<B>, flex: Op<Reference>, inputs: &[Vec<f64>]) {
    let ((out, grads), (flex_out, flex_grads)) = (differentiate(here, inputs), differentiate(flex, inputs));
    assert_near("output", &out, &flex_out, tolerance);
    for (i, (grad, flex_grad)) in grads.iter().zip(&flex_grads).enumerate() {
        assert_near(&format!("gradient {i}"), grad, flex_grad, tolerance);
    }
}

/// Whether the device has bf16; where it has not, says so.
fn has_bf16<B: AutodiffBackend>() -> bool {
    let device = Default::default();
    let has = Precision::Bf16.is_supported::<B::InnerBackend>(&device);
    if !has {
        eprintln!("{} has no bf16 on this device", B::name(&device));
    }
    has
}

fn affine<B: AutodiffBackend>() {
    affine_in::<B>(FUSED, tolerance::<B>());
}

fn affine_bf16<B: AutodiffBackend>() {
    if has_bf16::<B>() {
        affine_in::<B>(BF16, TOLERANCE_BF16);
    }
}

fn affine_in<B: AutodiffBackend>(how: How, tolerance: f64) {
    let dims = [48, 16, 64];
    beside_flex::<B>(tolerance, &affine_op(dims, how), &affine_op(dims, how), &inputs(&[48 * 16, 64 * 16, 64]));
}

fn layer_norm<B: AutodiffBackend>() {
    let (rows, d) = (40, 64);
    beside_flex::<B>(
        tolerance::<B>(),
        &layer_norm_op(rows, d, true),
        &layer_norm_op(rows, d, true),
        &inputs(&[rows * d, d, d]),
    );
}

fn dropped<B: AutodiffBackend>() {
    fn op<B: Backend>(x: &[Flat<B>]) -> Flat<B> {
        B::dropout(x[0].clone().reshape([5, 16, 24]), dropout(DropoutSite::Lstm)).reshape([5 * 16 * 24])
    }
    beside_flex::<B>(tolerance::<B>(), &op, &op, &inputs(&[5 * 16 * 24]));
}

fn norm_residual<B: AutodiffBackend>() {
    let dims = [5, 16, 24];
    beside_flex::<B>(
        tolerance::<B>(),
        &residual_op(dims, true, true),
        &residual_op(dims, true, true),
        &inputs(&residual_sizes(dims)),
    );
}

fn lstm<B: AutodiffBackend>() {
    lstm_in::<B>(FUSED, tolerance::<B>());
}

fn lstm_bf16<B: AutodiffBackend>() {
    if has_bf16::<B>() {
        lstm_in::<B>(BF16, TOLERANCE_BF16);
    }
}

/// Two groups of lanes, and a width of several blocks.
fn lstm_in<B: AutodiffBackend>(how: How, tolerance: f64) {
    let dims @ [t, b, d_in, d] = [6, 17, 48, 64];
    beside_flex::<B>(tolerance, &lstm_op(dims, how), &lstm_op(dims, how), &inputs(&lstm_sizes(t, b, d_in, d)));
    #[cfg(feature = "cuda")]
    assert_persistent_if_asked_for::<B::InnerBackend>();
}

/// Where CUDA's persistent kernel was asked for, the stepwise one in its place must not pass for it.
#[cfg(feature = "cuda")]
fn assert_persistent_if_asked_for<B: Backend>() {
    use sharnn_core::ops::CudaLstm;

    let device = Default::default();
    if B::name(&device).contains("cuda") && CudaLstm::current() == Ok(CudaLstm::Persistent) {
        let notices = B::notices(&device);
        assert!(notices.is_empty() && CudaLstm::persistent_launches() > 0, "{notices:?}");
    }
}

fn attention<B: AutodiffBackend>() {
    attention_in::<B>(FUSED, tolerance::<B>());
}

fn attention_bf16<B: AutodiffBackend>() {
    if has_bf16::<B>() {
        attention_in::<B>(BF16, TOLERANCE_BF16);
    }
}

fn attention_in<B: AutodiffBackend>(how: How, tolerance: f64) {
    let case = AttentionCase { b: 2, t: 9, m: 7, d: 32, heads: 1, dropped: true };
    beside_flex::<B>(tolerance, &case.op(how), &case.op(how), &inputs(&case.sizes()));
}

fn boom<B: AutodiffBackend>() {
    boom_in::<B>(FUSED, tolerance::<B>());
}

fn boom_bf16<B: AutodiffBackend>() {
    if has_bf16::<B>() {
        boom_in::<B>(BF16, TOLERANCE_BF16);
    }
}

fn boom_in<B: AutodiffBackend>(how: How, tolerance: f64) {
    let dims = (7, 3, 16, 64);
    beside_flex::<B>(
        tolerance,
        &boom_op(dims, true, how),
        &boom_op(dims, true, how),
        &inputs(&[7 * 3 * 16, 64 * 16, 64]),
    );
}

fn decoder_loss<B: AutodiffBackend>() {
    decoder_loss_in::<B>(FUSED, tolerance::<B>());
}

fn decoder_loss_bf16<B: AutodiffBackend>() {
    if has_bf16::<B>() {
        decoder_loss_in::<B>(BF16, TOLERANCE_BF16);
    }
}

fn decoder_loss_in<B: AutodiffBackend>(how: How, tolerance: f64) {
    let dims = [20, 16, 256];
    beside_flex::<B>(tolerance, &decoder_op(dims, how), &decoder_op(dims, how), &inputs(&[20 * 16, 256 * 16, 256]));
}

/// A step with moments, a clip and both bounds of the trust ratio, and the norm of its gradients.
fn lamb<B: AutodiffBackend>() {
    fn step<B: Backend>() -> Vec<Vec<f64>> {
        let (sizes, bounds) = ([1, 100, 5000], [Some(0.25), Some(0.5)]);
        let options = LambOptions {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.1,
            min_trust: bounds[0],
            max_trust: bounds[1],
        };
        let step = LambStep::<B>::new(options, upload(&[0.5]), Tensor::from_data([true], &Default::default()));
        let param = |n| {
            let all: Vec<Flat<B>> = inputs(&[n, n, n, n]).iter().map(|x| upload(x)).collect();
            let [param, grad, first, second] = all.try_into().unwrap();
            LambParam { param, grad, moments: Some((first, second.abs())) }
        };
        let grads = sizes.map(|n| param(n).grad).to_vec();
        let (updates, ratios) = B::lamb(&step, sizes.map(param).to_vec());
        let updated = updates.into_iter().flat_map(|update| [update.param, update.first, update.second]);
        let norms = [ratios.weight_norm, ratios.adam_norm, ratios.trust_ratio, B::squared_norm(grads)];
        updated.chain(norms).map(values).collect()
    }
    for (i, (got, want)) in step::<B::InnerBackend>().iter().zip(&step::<Flex>()).enumerate() {
        assert_near(&format!("tensor {i}"), got, want, tolerance::<B>());
    }
}

fn orthogonalize<B: AutodiffBackend>() {
    fn factors<B: Backend>() -> Vec<f64> {
        let x = upload::<B>(&inputs(&[2 * 16 * 24])[0]).reshape([2, 16, 24]);
        values(B::orthogonalize(x, Precision::F32).flatten(0, 2))
    }
    // Five rounds of Burn's own products, each of what the one before it made: ten times the tolerance of one.
    assert_near(
        "factor",
        &factors::<B::InnerBackend>(),
        &factors::<Flex>(),
        10.0 * f32_tolerance(burn_roundoff::<B>()),
    );
}
