//! What optimizers do, on flex.

use burn::tensor::Tensor;
use burn_flex::Flex;
use sharnn_kernels::{Buffer, LambStep as Kernel, NewtonSchulz};

use super::memory::{Owned, Values, is_f32, scalar, tensor};
use crate::ops::{LambOptions, LambParam, LambRatios, LambStep, LambUpdate, Precision, lamb as generic, orthogonal};

type Flex1 = Tensor<Flex, 1>;

pub(super) fn update(step: &LambStep<Flex>, params: Vec<LambParam<Flex>>) -> (Vec<LambUpdate<Flex>>, LambRatios<Flex>) {
    let all_f32 = |LambParam { param, grad, moments }: &LambParam<Flex>| {
        is_f32(param) && is_f32(grad) && moments.as_ref().is_none_or(|(first, second)| is_f32(first) && is_f32(second))
    };
    // On the CPU it is known at once whether the step counts. One that does not is rare.
    let counts = || Values::of(&step.counts)[0] != 0.0;
    if !(params.iter().all(all_f32) && is_f32(&step.counts) && counts()) {
        return generic::update(step, params);
    }
    let n = params.len();
    let [mut weight_norm, mut adam_norm, mut trust_ratio] = [(); 3].map(|()| Buffer::room(n));
    let updates = params.into_iter().enumerate().map(|(i, param)| {
        let (update, ratios) = update_one(step, param);
        [weight_norm[i], adam_norm[i], trust_ratio[i]] = ratios.map(|x| x as f32);
        update
    });
    let updates = updates.collect();
    let [weight_norm, adam_norm, trust_ratio] = [weight_norm, adam_norm, trust_ratio].map(|x| tensor(x, [n]));
    (updates, LambRatios { weight_norm, adam_norm, trust_ratio })
}

/// One parameter, and its two norms and its trust ratio.
fn update_one(step: &LambStep<Flex>, param: LambParam<Flex>) -> (LambUpdate<Flex>, [f64; 3]) {
    let LambParam { param, grad, moments } = param;
    let n = param.dims()[0];
    let LambOptions { lr, beta1, beta2, eps, weight_decay, min_trust, max_trust } = step.options;
    let kernel = Kernel { scale: Values::of(&step.scale)[0].into(), beta1, beta2, eps, weight_decay };
    let fresh = || tensor(Buffer::zeros(n), [n]);
    let (first, second) = moments.unwrap_or_else(|| (fresh(), fresh()));
    let [mut param, mut first, mut second] = [param, first, second].map(Owned::of);
    let norms = kernel.moments(param.values(), &Values::of(&grad), first.values(), second.values());
    let weight_norm = norms.param.sqrt().min(generic::MAX_WEIGHT_NORM);
    let adam_norm = norms.update.sqrt();
    let mut trust_ratio = if weight_norm == 0.0 || adam_norm == 0.0 { 1.0 } else { weight_norm / adam_norm };
    if let Some(min_trust) = min_trust {
        trust_ratio = trust_ratio.max(min_trust);
    }
    if let Some(max_trust) = max_trust {
        trust_ratio = trust_ratio.min(max_trust);
    }
    kernel.apply(lr * trust_ratio, param.values(), first.values(), second.values());
    let update = LambUpdate { param: param.tensor(), first: first.tensor(), second: second.tensor() };
    (update, [weight_norm, adam_norm, trust_ratio])
}

pub(super) fn squared_norm(xs: Vec<Flex1>) -> Flex1 {
    match xs.iter().all(is_f32) {
        true => scalar(xs.iter().map(|x| sharnn_kernels::squared_norm(&Values::of(x))).sum()),
        false => generic::squared_norm(xs),
    }
}

pub(super) fn orthogonalize(x: Tensor<Flex, 3>, precision: Precision) -> Tensor<Flex, 3> {
    if !is_f32(&x) {
        return orthogonal::orthogonalize(x, precision);
    }
    let [_, rows, cols] = x.dims();
    let mut x = Owned::of(x);
    let how = NewtonSchulz {
        coefficients: orthogonal::COEFFICIENTS.map(|x| x as f32),
        iterations: orthogonal::ITERATIONS,
        eps: orthogonal::EPS,
        operands: precision.into(),
    };
    sharnn_kernels::orthogonalize(x.values(), [rows, cols], how);
    x.tensor()
}
