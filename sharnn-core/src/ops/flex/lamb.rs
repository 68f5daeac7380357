//! Min-trust LAMB on flex.

use burn::tensor::Tensor;
use burn_flex::Flex;
use sharnn_kernels::LambStep as Kernel;

use super::memory::{Values, into_values, is_f32, tensor};
use crate::ops::{LambStep, LambUpdate, lamb as generic};

type Flex1 = Tensor<Flex, 1>;

pub(super) fn update(
    step: &LambStep<Flex>,
    param: Flex1,
    grad: Flex1,
    moments: Option<(Flex1, Flex1)>,
) -> LambUpdate<Flex> {
    let all_f32 = is_f32(&param)
        && is_f32(&grad)
        && moments.as_ref().is_none_or(|(first, second)| is_f32(first) && is_f32(second));
    // On the CPU it is known at once whether the step counts. One that does not is rare.
    let counts = step.finite.to_data().iter::<bool>().next() == Some(true);
    if !(all_f32 && counts) {
        return generic::update(step, param, grad, moments);
    }
    let n = param.dims()[0];
    let kernel = Kernel {
        scale: Values::of(&step.scale)[0].into(),
        beta1: step.beta1,
        beta2: step.beta2,
        eps: step.eps,
        weight_decay: step.weight_decay,
    };
    let (mut first, mut second) = match moments {
        Some((first, second)) => (into_values(first), into_values(second)),
        None => (vec![0.0; n], vec![0.0; n]),
    };
    let mut param = into_values(param);
    let norms = kernel.moments(&param, &Values::of(&grad), &mut first, &mut second);
    let weight_norm = norms.param.sqrt().min(generic::MAX_WEIGHT_NORM);
    let adam_norm = norms.update.sqrt();
    let mut trust_ratio = if weight_norm == 0.0 || adam_norm == 0.0 { 1.0 } else { weight_norm / adam_norm };
    if let Some(min_trust) = step.min_trust {
        trust_ratio = trust_ratio.max(min_trust);
    }
    kernel.apply(step.lr * trust_ratio, &mut param, &first, &second);
    let scalar = |x: f64| tensor(vec![x as f32], [1]);
    LambUpdate {
        param: tensor(param, [n]),
        first: tensor(first, [n]),
        second: tensor(second, [n]),
        weight_norm: scalar(weight_norm),
        adam_norm: scalar(adam_norm),
        trust_ratio: scalar(trust_ratio),
    }
}

pub(super) fn squared_norm(x: Flex1) -> Flex1 {
    match is_f32(&x) {
        true => tensor(vec![sharnn_kernels::squared_norm(&Values::of(&x)) as f32], [1]),
        false => generic::squared_norm(x),
    }
}
