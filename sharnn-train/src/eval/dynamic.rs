//! Dynamic evaluation: the model goes on learning from what it has scored.
//!
//! ```text
//! θ = θ - lr g / (√MS + ε) + min(1, decay R) ⊙ (θ₀ - θ)          R = √MS / mean(√MS)
//! ```
//!
//! with `g` the gradient of the mean loss of the segment that was just scored, θ₀ the weights at first, and MS the mean of squared
//! gradients over segments of the training data: the RMS-scaled form with decay to a global prior of Krause, Kahembwe, Murray and
//! Renals 2018 (arXiv 1709.07432).

use std::collections::BTreeMap;

use burn::tensor::{Tensor, backend::Backend as BurnBackend};
use serde::{Deserialize, Serialize};
use sharnn_core::{AutodiffBackend, Pass, ShaRnn, ShaRnnState};
use sharnn_data::Lanes;

use super::{EvalConfig, EvalError, Evaluation, LossSum, Segment, check, cut, segment};
use crate::interrupt::Interrupt;
use crate::params::{MapFloat, VisitFloat, host_values, map_params, take_grads, visit_params};

/// How the weights follow what is scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicEval {
    /// Learning rate; to be chosen on validation data.
    pub lr: f64,
    /// How strongly weights are drawn back to where they began, a segment.
    pub decay: f64,
    /// Added to the root of the mean squared gradients; above 0.
    pub eps: f64,
    /// Segments of the training data that the mean squared gradients are of; at least 1.
    pub prior_segments: usize,
}

impl Default for DynamicEval {
    /// The values of Krause et al. for character models' decay and ε, and gradients of 100 segments.
    fn default() -> Self {
        Self { lr: 1e-4, decay: 0.02, eps: 2e-3, prior_segments: 100 }
    }
}

/// Gradients, or what belongs to them, by the paths of the parameters, flattened.
type ByPath<B> = BTreeMap<String, Tensor<B, 1>>;

/// Scores `data` as [`evaluate`](super::evaluate) does, and after each segment makes a step on its loss; `train` is what the model
/// was trained on. All lanes share the weights: with more than one, a lane is scored by weights that have seen the
/// lanes after it up to the same place, which a single pass over a file has not. With one lane nothing is seen before it is scored.
///
/// # Errors
/// As [`evaluate`](super::evaluate), an interruption among them, of either data; for rates that are negative or not finite, an `eps` or `prior_segments` of 0.
#[allow(clippy::too_many_arguments, reason = "what is scored, how, and who may stop or watch it")]
pub fn evaluate_dynamic<B: AutodiffBackend>(
    mut model: ShaRnn<B>,
    train: &[u8],
    data: &[u8],
    config: &EvalConfig,
    dynamic: &DynamicEval,
    device: &B::Device,
    interrupt: &Interrupt,
    mut progress: impl FnMut(u64, u64),
) -> Result<Evaluation, EvalError> {
    check(&model, config, device)?;
    let &DynamicEval { lr, decay, eps, prior_segments } = dynamic;
    for (field, value) in [("dynamic.lr", lr), ("dynamic.decay", decay)] {
        if !(value.is_finite() && value >= 0.0) {
            return Err(EvalError::Rate { field, value, expected: "a finite number of at least 0" });
        }
    }
    // A parameter whose gradients were 0 would be divided by nothing else.
    if !(eps.is_finite() && eps > 0.0) {
        return Err(EvalError::Rate { field: "dynamic.eps", value: eps, expected: "a finite number above 0" });
    }
    if prior_segments == 0 {
        return Err(EvalError::Zero { field: "dynamic.prior_segments" });
    }
    let vocab_size = model.vocab_size();
    let of_train = Scored { lanes: &cut(train, config.lanes, vocab_size)?, config, device };
    let scored = Scored { lanes: &cut(data, config.lanes, vocab_size)?, config, device };
    let total = scored.lanes.n_targets() as u64;
    let go_on = |done| if interrupt.is_raised() { Err(EvalError::Interrupted { done, total }) } else { Ok(()) };
    let steps = Steps::new(&model, mean_squares(&model, &of_train, prior_segments, || go_on(0))?, dynamic);

    let mut sum = LossSum::new();
    let mut state = model.empty_state();
    for (start, end) in scored.segments() {
        go_on(sum.bytes)?;
        let (loss, after, grads) = scored.gradients(&model, start, end, state);
        state = after;
        Segment { loss, offset: start, bytes: scored.bytes(start, end) }.read(&mut sum)?;
        progress(sum.bytes, total);
        model = map_params(model, &mut Step { steps: &steps, grads });
    }
    Ok(sum.evaluation())
}

/// Lanes that are gone through in segments.
struct Scored<'a, B: AutodiffBackend> {
    lanes: &'a Lanes<&'a [u8]>,
    config: &'a EvalConfig,
    device: &'a B::Device,
}

impl<B: AutodiffBackend> Scored<'_, B> {
    /// Begin and end of each segment.
    fn segments(&self) -> impl Iterator<Item = (usize, usize)> {
        let (targets, seq_len) = (self.lanes.lane_len() - 1, self.config.seq_len);
        (0..targets).step_by(seq_len).map(move |start| (start, targets.min(start + seq_len)))
    }

    fn bytes(&self, start: usize, end: usize) -> u64 {
        (self.lanes.n_lanes() * (end - start)) as u64
    }

    /// The mean loss of a segment, the state after it, and the gradients.
    fn gradients(
        &self,
        model: &ShaRnn<B>,
        start: usize,
        end: usize,
        state: ShaRnnState<B>,
    ) -> (Tensor<B::InnerBackend, 1>, ShaRnnState<B>, ByPath<B::InnerBackend>) {
        let all = 0..self.lanes.n_lanes();
        let input = segment(self.lanes, &all, start, end, self.device);
        let target = segment(self.lanes, &all, start + 1, end + 1, self.device);
        let pass = Pass { precision: self.config.precision, ..Pass::default() };
        let (loss, state) = model.loss(input, target, state, &pass);
        let grads = take_grads(model, loss.backward());
        (loss.inner(), state.detach(), grads)
    }
}

/// The mean of the squared gradients of the first segments, or of as many as there are; `go_on` is asked before each.
fn mean_squares<B: AutodiffBackend>(
    model: &ShaRnn<B>,
    train: &Scored<'_, B>,
    segments: usize,
    go_on: impl Fn() -> Result<(), EvalError>,
) -> Result<ByPath<B::InnerBackend>, EvalError> {
    let mut sums = ByPath::<B::InnerBackend>::new();
    let (mut state, mut n) = (model.empty_state(), 0);
    for (start, end) in train.segments().take(segments) {
        go_on()?;
        let (loss, after, grads) = train.gradients(model, start, end, state);
        state = after;
        n += 1;
        // A loss that is not finite would spoil every step.
        Segment { loss, offset: start, bytes: train.bytes(start, end) }.read(&mut LossSum::new())?;
        for (path, grad) in grads {
            let square = grad.clone() * grad;
            let sum = match sums.remove(&path) {
                Some(sum) => sum + square,
                None => square,
            };
            sums.insert(path, sum);
        }
    }
    Ok(sums.into_iter().map(|(path, sum)| (path, sum / f64::from(n))).collect())
}

/// What every step needs of each parameter.
struct Steps<B: BurnBackend> {
    /// Where it began.
    first: ByPath<B>,
    /// What its gradient is multiplied by.
    rates: ByPath<B>,
    /// How far it is drawn back to where it began.
    pulls: ByPath<B>,
}

impl<B: BurnBackend> Steps<B> {
    fn new<A: AutodiffBackend<InnerBackend = B>>(
        model: &ShaRnn<A>,
        mean_squares: ByPath<B>,
        dynamic: &DynamicEval,
    ) -> Self {
        let &DynamicEval { lr, decay, eps, .. } = dynamic;
        let roots: ByPath<B> = mean_squares.into_iter().map(|(path, mean)| (path, mean.sqrt())).collect();
        let n: usize = roots.values().map(|root| root.dims()[0]).sum();
        let sum: f64 = roots.values().map(|root| f64::from(host_values(root.clone().sum())[0])).sum();
        let mean = sum / n.max(1) as f64;
        // Where no gradient ever was, nothing is drawn back.
        let pull = if mean > 0.0 { decay / mean } else { 0.0 };
        let rates = roots.iter().map(|(path, root)| (path.clone(), (root.clone() + eps).recip() * lr));
        let pulls = roots.iter().map(|(path, root)| (path.clone(), (root.clone() * pull).clamp_max(1.0)));
        let mut first = First::<A>(ByPath::new());
        visit_params(model, &mut first);
        Self { rates: rates.collect(), pulls: pulls.collect(), first: first.0 }
    }
}

/// Copies every parameter.
struct First<B: AutodiffBackend>(ByPath<B::InnerBackend>);

impl<B: AutodiffBackend> VisitFloat<B> for First<B> {
    fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
        self.0.insert(path.to_string(), tensor.inner().flatten(0, D - 1));
    }
}

/// One step of every parameter that has a gradient.
struct Step<'a, B: AutodiffBackend> {
    steps: &'a Steps<B::InnerBackend>,
    grads: ByPath<B::InnerBackend>,
}

impl<B: AutodiffBackend> MapFloat<B> for Step<'_, B> {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        let Steps { first, rates, pulls } = self.steps;
        let (Some(grad), Some(rate), Some(pull)) = (self.grads.remove(path), rates.get(path), pulls.get(path)) else {
            return tensor;
        };
        let shape = tensor.dims();
        let param = tensor.inner().flatten(0, D - 1);
        let back = (first[path].clone() - param.clone()) * pull.clone();
        Tensor::from_inner((param - grad * rate.clone() + back).reshape(shape))
    }
}
