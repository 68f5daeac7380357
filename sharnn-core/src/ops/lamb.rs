//! The step of min-trust LAMB on flattened parameters.
//!
//! ```text
//! g = scale g                                                    scale = min(1, clip / ‖all gradients‖), the caller's
//! m = β₁ m + (1 - β₁) g          v = β₂ v + (1 - β₂) g²          no bias correction
//! u = m / (√v + ε) + weight_decay p
//! r = min(‖p‖, 10) / ‖u‖, or 1 if either norm is 0;   r = min(max(r, min_trust), max_trust)
//! p = p - lr r u
//! ```
//!
//! After You et al. 2019 (arXiv 1904.00962, version 1, whose weight norm is clamped), with the floor of the trust ratio that
//! SHA-RNN's author added. A ceiling is not part of either; with floor and ceiling at 1 the step is that of AdamW (Loshchilov and
//! Hutter 2017, arXiv 1711.05101) without its bias correction.

use burn::tensor::{Bool, Tensor};

use super::Backend;

/// The weight norm in the trust ratio is clamped to this.
pub(super) const MAX_WEIGHT_NORM: f64 = 10.0;

/// Options of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LambOptions {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay inside the update.
    pub weight_decay: f64,
    /// Floor of the trust ratio.
    pub min_trust: Option<f64>,
    /// Ceiling of the trust ratio.
    pub max_trust: Option<f64>,
}

impl Default for LambOptions {
    /// The paper's.
    fn default() -> Self {
        Self {
            lr: 2e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 1.2e-6,
            min_trust: Some(0.25),
            max_trust: None,
        }
    }
}

/// What all parameters share in one step: the options, the clip, and whether the step counts at all.
#[derive(Clone, Debug)]
pub struct LambStep<B: Backend> {
    /// The options.
    pub options: LambOptions,
    /// What gradients are multiplied by, 0 where the step does not count, `[1]`.
    pub scale: Tensor<B, 1>,
    /// 1 where the step counts, 0 where it does not, `[1]`.
    pub counts: Tensor<B, 1>,
}

impl<B: Backend> LambStep<B> {
    /// From what gradients are multiplied by, and whether the step counts; where it does not, parameters and moments stay as
    /// they are, bit for bit.
    ///
    /// # Shapes
    /// - `scale` and `finite`: `[1]`
    pub fn new(options: LambOptions, scale: Tensor<B, 1>, finite: Tensor<B, 1, Bool>) -> Self {
        let skip = finite.bool_not();
        Self { options, counts: scale.ones_like().mask_fill(skip.clone(), 0.0), scale: scale.mask_fill(skip, 0.0) }
    }
}

/// One parameter before a step: its values, its gradient and its moments, all flattened.
#[derive(Clone, Debug)]
pub struct LambParam<B: Backend> {
    /// The parameter, `[n]`.
    pub param: Tensor<B, 1>,
    /// Its gradient, `[n]`.
    pub grad: Tensor<B, 1>,
    /// Its first and second moment, `[n]`; zeros where there are none yet.
    pub moments: Option<(Tensor<B, 1>, Tensor<B, 1>)>,
}

/// One parameter after a step.
#[derive(Clone, Debug)]
pub struct LambUpdate<B: Backend> {
    /// The parameter, `[n]`.
    pub param: Tensor<B, 1>,
    /// The first moment, `[n]`.
    pub first: Tensor<B, 1>,
    /// The second moment, `[n]`.
    pub second: Tensor<B, 1>,
}

/// What a step scaled each parameter's update by, in their order. All on the device.
#[derive(Clone, Debug)]
pub struct LambRatios<B: Backend> {
    /// Norms of the parameters before the step, clamped to 10, `[parameters]`.
    pub weight_norm: Tensor<B, 1>,
    /// Norms of the updates `u`, `[parameters]`.
    pub adam_norm: Tensor<B, 1>,
    /// The trust ratios, `[parameters]`.
    pub trust_ratio: Tensor<B, 1>,
}

/// The body of [`Backend::lamb`].
///
/// # Panics
/// If there are no parameters.
pub fn update<B: Backend>(step: &LambStep<B>, params: Vec<LambParam<B>>) -> (Vec<LambUpdate<B>>, LambRatios<B>) {
    let (updates, ratios): (Vec<_>, Vec<_>) = params.into_iter().map(|param| update_one(step, param)).unzip();
    let mut of = [Vec::new(), Vec::new(), Vec::new()];
    for ratio in ratios {
        for (all, one) in of.iter_mut().zip(ratio) {
            all.push(one);
        }
    }
    let [weight_norm, adam_norm, trust_ratio] = of.map(|all| Tensor::cat(all, 0));
    (updates, LambRatios { weight_norm, adam_norm, trust_ratio })
}

/// The step of one parameter, and its two norms and its trust ratio.
///
/// A step that does not count multiplies the moments by exactly 1 and adds -0, which leaves every float as it is, and
/// subtracts +0 from the parameter: only the gradient has to be masked for that.
fn update_one<B: Backend>(step: &LambStep<B>, param: LambParam<B>) -> (LambUpdate<B>, [Tensor<B, 1>; 3]) {
    let LambParam { param, grad, moments } = param;
    let LambOptions { lr, beta1, beta2, eps, weight_decay, min_trust, max_trust } = step.options;
    let scale = &step.scale;
    let skip = step.counts.clone().equal_elem(0.0);
    let keep = |beta: f64| scale.full_like(beta).mask_fill(skip.clone(), 1.0);
    let add_first = scale.clone() * (1.0 - beta1);
    let add_second = scale.clone() * scale.clone() * (1.0 - beta2);
    let (first, second) = moments.unwrap_or_else(|| (param.zeros_like(), param.zeros_like()));

    // x + (-0) is x for every x, -0 included; x + 0 is not.
    let all_skip = skip.clone().expand([param.dims()[0]]);
    let grad = grad.mask_fill(all_skip.clone(), -0.0);
    let first = first * keep(beta1) + grad.clone() * add_first;
    let second = second * keep(beta2) + grad.clone() * grad * add_second;

    let mut update = first.clone() / (second.clone().sqrt() + eps);
    if weight_decay != 0.0 {
        update = update + param.clone() * weight_decay;
    }
    let weight_norm = sum_of_squares(param.clone()).sqrt().clamp_max(MAX_WEIGHT_NORM);
    let adam_norm = sum_of_squares(update.clone()).sqrt();
    let no_ratio = weight_norm.clone().equal_elem(0.0).bool_or(adam_norm.clone().equal_elem(0.0));
    let mut trust_ratio = (weight_norm.clone() / adam_norm.clone()).mask_fill(no_ratio, 1.0);
    if let Some(min_trust) = min_trust {
        trust_ratio = trust_ratio.clamp_min(min_trust);
    }
    if let Some(max_trust) = max_trust {
        trust_ratio = trust_ratio.clamp_max(max_trust);
    }
    let taken = (update * (trust_ratio.clone() * lr)).mask_fill(all_skip, 0.0);
    (LambUpdate { param: param - taken, first, second }, [weight_norm, adam_norm, trust_ratio])
}

fn sum_of_squares<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    (x.clone() * x).sum()
}

/// The body of [`Backend::squared_norm`].
///
/// # Panics
/// If there are no tensors.
pub fn squared_norm<B: Backend>(xs: Vec<Tensor<B, 1>>) -> Tensor<B, 1> {
    Tensor::cat(xs.into_iter().map(sum_of_squares).collect(), 0).sum()
}
