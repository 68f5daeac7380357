//! What optimizers do, on the recurrent weights of one block: a step of min-trust LAMB, the squared norm that the clip is computed
//! from, Muon's orthogonal factor of each gate's matrix.

mod support;

use burn::tensor::{Bool, Tensor, TensorData};
use criterion::{Criterion, criterion_group, criterion_main};
use sharnn::core::ops::{LambOptions, LambParam, LambStep, LambUpdate};
use sharnn::{AutodiffBackend, Backend, BackendJob, Precision};
use support::Random;

fn options() -> LambOptions {
    LambOptions { lr: 0.1, weight_decay: 0.01, ..LambOptions::default() }
}

/// What the clip multiplies gradients by.
const SCALE: f64 = 0.5;

struct Lamb<'c>(&'c mut Criterion);

impl BackendJob for Lamb<'_> {
    type Output = ();

    fn run<B: AutodiffBackend>(self, device: B::Device) {
        let d = support::config().d_model;
        let n = 4 * d * d;
        let mut random = Random::new();
        let [param, grad, first] = [(); 3].map(|()| random.floats::<B::InnerBackend, 1>([n], &device));
        let second = random.floats::<B::InnerBackend, 1>([n], &device).abs();
        let finite = Tensor::<B::InnerBackend, 1, Bool>::from_data(TensorData::from([true]), &device);
        let scale = Tensor::from_data(TensorData::from([SCALE as f32]), &device);
        let step = LambStep::new(options(), scale, finite);

        let expected = reference([&param, &grad, &first, &second].map(|x| support::values(x.clone())));
        let moments = Some((first.clone(), second.clone()));
        let update = |param, moments| {
            let all = vec![LambParam { param, grad: grad.clone(), moments }];
            let [update]: [LambUpdate<_>; 1] =
                B::InnerBackend::lamb(&step, all).0.try_into().expect("an update for each parameter");
            update
        };
        let first_update = update(param.clone(), moments);
        // What is taken off is far smaller than the parameter.
        let taken = support::values(param.clone() - first_update.param);
        for (what, found, expected) in [
            ("taken", taken, &expected[0]),
            ("first moment", support::values(first_update.first), &expected[1]),
            ("second moment", support::values(first_update.second), &expected[2]),
        ] {
            support::assert_near(what, &found, expected);
        }
        let sum = support::dot(&support::values(grad.clone()), &support::values(grad.clone()));
        let squared_norm = || B::InnerBackend::squared_norm(vec![grad.clone()]);
        support::assert_near("squared norm", &support::values(squared_norm()), &[sum]);

        let mut group = support::group::<B>(self.0, "lamb", Precision::F32, n);
        // A step takes over what the one before it left, as in training.
        let mut state = Some((param, (first, second)));
        support::time::<B, _>(&mut group, "step", &device, || {
            let (param, moments) = state.take().expect("a parameter between two steps");
            let update = update(param, Some(moments));
            state = Some((update.param, (update.first, update.second)));
        });
        support::time::<B, _>(&mut group, "squared_norm", &device, squared_norm);
        let matrices = grad.reshape([4, d, d]);
        support::time::<B, _>(&mut group, "orthogonalize", &device, || {
            B::InnerBackend::orthogonalize(matrices.clone(), Precision::F32)
        });
        group.finish();
    }
}

/// The equations in f64: what is taken off the parameter, and both moments.
fn reference([param, grad, mut first, mut second]: [Vec<f64>; 4]) -> [Vec<f64>; 3] {
    let LambOptions { lr, beta1, beta2, eps, weight_decay, min_trust, .. } = options();
    let mut update = Vec::with_capacity(param.len());
    for k in 0..param.len() {
        let g = SCALE * grad[k];
        first[k] = beta1 * first[k] + (1.0 - beta1) * g;
        second[k] = beta2 * second[k] + (1.0 - beta2) * g * g;
        update.push(first[k] / (second[k].sqrt() + eps) + weight_decay * param[k]);
    }
    let norm = |x: &[f64]| support::dot(x, x).sqrt();
    let trust_ratio = norm(&param).min(10.0) / norm(&update);
    let step = lr * min_trust.map_or(trust_ratio, |min_trust| trust_ratio.max(min_trust));
    [update.iter().map(|u| step * u).collect(), first, second]
}

fn lamb(criterion: &mut Criterion) {
    support::run(Lamb(criterion));
}

criterion_group!(benches, lamb);
criterion_main!(benches);
