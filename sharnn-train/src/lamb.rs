//! Min-trust LAMB with a clip by the global norm: the optimizer of the paper's recipe.
//!
//! ```text
//! g = g min(1, clip / (‖all gradients‖ + 1e-6))
//! m = β₁ m + (1 - β₁) g          v = β₂ v + (1 - β₂) g²          no bias correction
//! u = m / (√v + ε) + weight_decay p
//! r = min(‖p‖, 10) / ‖u‖, or 1 if either norm is 0;   r = max(r, min_trust), no upper bound
//! p = p - lr r u
//! ```
//!
//! After You et al. 2019 (arXiv 1904.00962, version 1, whose weight norm is clamped), with the floor of the trust ratio that
//! SHA-RNN's author added. Norms, clip and the decision to skip a step stay on the device.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Tensor, TensorData};

use crate::lamb_config::LambConfig;
use crate::params::{MapFloat, VisitFloat, host_values, map_params, param_infos, visit_params};
use crate::tensor_file::{HostTensor, WeightsError};

/// The weight norm in the trust ratio is clamped to this.
const MAX_WEIGHT_NORM: f64 = 10.0;

/// Added to the global norm before the clip divides by it.
const CLIP_EPS: f64 = 1e-6;

/// Ends the name of a parameter's first moment, after the parameter's path.
pub const FIRST_MOMENT: &str = ".first_moment";

/// Ends the name of a parameter's second moment, after the parameter's path.
pub const SECOND_MOMENT: &str = ".second_moment";

/// What one step did, on the device.
#[derive(Clone, Debug)]
pub struct StepReport<B: Backend> {
    /// Global norm of the gradients before the clip, `[1]`.
    pub grad_norm: Tensor<B, 1>,
    /// Whether loss and norm were finite, `[1]`; where not, the step changed nothing.
    pub finite: Tensor<B, 1, Bool>,
}

/// What all parameters share in one step: the clip, and whether the step counts at all.
///
/// A step that does not count multiplies the moments by exactly 1 and adds -0, which leaves every float as it is, and
/// subtracts +0 from the parameter. Only the gradient has to be masked for that, where a select over weights and both
/// moments would be three more passes over memory.
#[derive(Clone, Debug)]
pub struct LambGate<B: Backend> {
    finite: Tensor<B, 1, Bool>,
    keep_first: Tensor<B, 1>,
    keep_second: Tensor<B, 1>,
    add_first: Tensor<B, 1>,
    add_second: Tensor<B, 1>,
}

impl<B: Backend> LambGate<B> {
    /// From the global norm of the gradients and whether the step counts.
    ///
    /// # Shapes
    /// - `grad_norm` and `finite`: `[1]`
    pub fn new(config: &LambConfig, grad_norm: Tensor<B, 1>, finite: Tensor<B, 1, Bool>) -> Self {
        let skip = finite.clone().bool_not();
        let scale = match config.clip {
            None => grad_norm.ones_like(),
            Some(clip) => (grad_norm.full_like(clip) / (grad_norm + CLIP_EPS)).clamp_max(1.0),
        };
        let scale = scale.mask_fill(skip.clone(), 0.0);
        let keep = |beta: f64| scale.full_like(beta).mask_fill(skip.clone(), 1.0);
        Self {
            finite,
            keep_first: keep(config.beta1),
            keep_second: keep(config.beta2),
            add_first: scale.clone() * (1.0 - config.beta1),
            add_second: scale.clone() * scale * (1.0 - config.beta2),
        }
    }
}

/// One parameter after an update, and what the update was scaled by. All on the device.
#[derive(Clone, Debug)]
pub struct LambUpdate<B: Backend> {
    /// The parameter, `[n]`.
    pub param: Tensor<B, 1>,
    /// The first moment, `[n]`.
    pub first: Tensor<B, 1>,
    /// The second moment, `[n]`.
    pub second: Tensor<B, 1>,
    /// Norm of the parameter before the update, clamped to 10, `[1]`.
    pub weight_norm: Tensor<B, 1>,
    /// Norm of the update `u`, `[1]`.
    pub adam_norm: Tensor<B, 1>,
    /// The trust ratio, `[1]`.
    pub trust_ratio: Tensor<B, 1>,
}

/// Updates one flattened parameter; `moments` are zeros at first.
///
/// # Shapes
/// - `param`, `grad` and both moments: `[n]`
pub fn lamb_update<B: Backend>(
    config: &LambConfig,
    gate: &LambGate<B>,
    lr: f64,
    param: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    moments: Option<(Tensor<B, 1>, Tensor<B, 1>)>,
) -> LambUpdate<B> {
    let skip = gate.finite.clone().expand([param.dims()[0]]).bool_not();
    let (first, second) = moments.unwrap_or_else(|| (param.zeros_like(), param.zeros_like()));

    // x + (-0) is x for every x, -0 included; x + 0 is not.
    let grad = grad.mask_fill(skip.clone(), -0.0);
    let first = first * gate.keep_first.clone() + grad.clone() * gate.add_first.clone();
    let second = second * gate.keep_second.clone() + grad.clone() * grad * gate.add_second.clone();

    let mut update = first.clone() / (second.clone().sqrt() + config.eps);
    if config.weight_decay != 0.0 {
        update = update + param.clone() * config.weight_decay;
    }
    let weight_norm = norm(param.clone()).clamp_max(MAX_WEIGHT_NORM);
    let adam_norm = norm(update.clone());
    let no_ratio = weight_norm.clone().equal_elem(0.0).bool_or(adam_norm.clone().equal_elem(0.0));
    let mut trust_ratio = (weight_norm.clone() / adam_norm.clone()).mask_fill(no_ratio, 1.0);
    if let Some(min_trust) = config.min_trust {
        trust_ratio = trust_ratio.clamp_min(min_trust);
    }
    let step = (update * (trust_ratio.clone() * lr)).mask_fill(skip, 0.0);
    LambUpdate { param: param - step, first, second, weight_norm, adam_norm, trust_ratio }
}

/// Euclidean norm, `[1]`.
fn norm<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    (x.clone() * x).sum().sqrt()
}

/// The two moments of one parameter, flattened, and its shape.
#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    first: Tensor<B, 1>,
    second: Tensor<B, 1>,
    shape: Vec<usize>,
}

/// Min-trust LAMB over the parameters of a module. Moments are kept by parameter path: Burn's parameter ids are new after
/// every load, which would silently reset them.
#[derive(Clone, Debug)]
pub struct MinTrustLamb<B: AutodiffBackend> {
    config: LambConfig,
    moments: BTreeMap<String, Moments<B::InnerBackend>>,
}

impl<B: AutodiffBackend> MinTrustLamb<B> {
    /// An optimizer without moments.
    ///
    /// # Panics
    /// If the configuration is invalid; [`LambConfig::validate`] tells without panicking.
    pub fn new(config: LambConfig) -> Self {
        if let Err(error) = config.validate() {
            panic!("{error}");
        }
        Self { config, moments: BTreeMap::new() }
    }

    /// The options.
    pub fn config(&self) -> &LambConfig {
        &self.config
    }

    /// One step. Where `loss` or the norm of the gradients is not finite, weights and moments stay as they are, bit for bit;
    /// that is decided on the device, and the host does not wait. A parameter without gradient is skipped.
    ///
    /// # Shapes
    /// - `loss`: `[1]`
    ///
    /// # Panics
    /// If `lr` is negative or not finite.
    pub fn step<M: Module<B>>(
        &mut self,
        module: M,
        loss: Tensor<B::InnerBackend, 1>,
        mut grads: B::Gradients,
        lr: f64,
    ) -> (M, StepReport<B::InnerBackend>) {
        assert!(lr >= 0.0 && lr.is_finite(), "the learning rate is {lr}: it must be a finite number of at least 0");
        let mut taken = TakeGrads::<B> { grads: &mut grads, taken: BTreeMap::new() };
        visit_params(&module, &mut taken);
        let grads = taken.taken;

        let grad_norm = global_norm(grads.values()).unwrap_or_else(|| loss.zeros_like());
        let finite = loss.is_finite().bool_and(grad_norm.clone().is_finite());
        let gate = LambGate::new(&self.config, grad_norm.clone(), finite.clone());
        let module = map_params(module, &mut Update { lamb: self, gate, lr, grads });
        (module, StepReport { grad_norm, finite })
    }

    /// Name, shape and values of every moment, by parameter path; for checkpoints. A parameter that never had a gradient
    /// has none.
    pub fn moments(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let both = |(path, moments): (&String, &Moments<B::InnerBackend>)| {
            [(FIRST_MOMENT, moments.first.clone()), (SECOND_MOMENT, moments.second.clone())]
                .map(|(suffix, moment)| (format!("{path}{suffix}"), moments.shape.clone(), host_values(moment)))
        };
        self.moments.iter().flat_map(both).collect()
    }

    /// Takes over moments that [`moments`](Self::moments) gave, in place of what there is. An empty set is that of a fresh
    /// optimizer.
    ///
    /// # Errors
    /// If a tensor belongs to no parameter of `module`, has another shape than it, holds a value that no moment has, or if a
    /// trained parameter's is missing. The optimizer is then unchanged.
    pub fn load_moments<M: Module<B>>(
        &mut self,
        mut tensors: BTreeMap<String, HostTensor>,
        module: &M,
    ) -> Result<(), WeightsError> {
        let file = || "the optimizer's moments".to_string();
        let hint =
            || "they belong to another model: resume with the configuration that they were saved with".to_string();
        let fresh = tensors.is_empty();
        let mut checked = BTreeMap::new();
        for param in param_infos(module) {
            let names = [FIRST_MOMENT, SECOND_MOMENT].map(|suffix| format!("{}{suffix}", param.path));
            let found = names.clone().map(|name| tensors.remove(&name));
            // A frozen parameter may have been trained before, or not.
            if fresh || (!param.require_grad && found.iter().all(Option::is_none)) {
                continue;
            }
            let mut pair = Vec::new();
            for (tensor, found) in names.into_iter().zip(found) {
                let expected = param.shape.clone();
                let Some(moment) = found else {
                    return Err(WeightsError::Missing { file: file(), tensor, expected, hint: hint() });
                };
                check_moment(&tensor, &moment, expected, file())?;
                pair.push(moment.data);
            }
            checked.insert(param.path, pair);
        }
        if let Some((tensor, found)) = tensors.pop_first() {
            return Err(WeightsError::Unexpected { file: file(), tensor, found: found.shape, hint: hint() });
        }
        let mut upload = Upload { checked, moments: BTreeMap::new() };
        visit_params(module, &mut upload);
        self.moments = upload.moments;
        Ok(())
    }
}

/// Shape, size and values of one moment.
fn check_moment(tensor: &str, moment: &HostTensor, expected: Vec<usize>, file: String) -> Result<(), WeightsError> {
    let tensor = tensor.to_string();
    if moment.shape != expected {
        return Err(WeightsError::Shape { file, tensor, expected, found: moment.shape.clone() });
    }
    let size = expected.iter().product();
    if moment.data.len() != size {
        return Err(WeightsError::Length { file, tensor, shape: expected, expected: size, found: moment.data.len() });
    }
    let negative = |value: f32| tensor.ends_with(SECOND_MOMENT) && value < 0.0;
    match moment.data.iter().position(|&value| !value.is_finite() || negative(value)) {
        None => Ok(()),
        Some(index) => Err(WeightsError::BadMoment { file, tensor, index, value: moment.data[index] }),
    }
}

/// Norm over all gradients, `[1]`; `None` where there are none.
fn global_norm<'a, B: Backend>(grads: impl Iterator<Item = &'a Tensor<B, 1>>) -> Option<Tensor<B, 1>> {
    let squares: Vec<_> = grads.map(|grad| (grad.clone() * grad.clone()).sum()).collect();
    (!squares.is_empty()).then(|| Tensor::cat(squares, 0).sum().sqrt())
}

/// Takes the gradients out of Burn's container, flattened, by path.
struct TakeGrads<'a, B: AutodiffBackend> {
    grads: &'a mut B::Gradients,
    taken: BTreeMap<String, Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> VisitFloat<B> for TakeGrads<'_, B> {
    fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
        if let Some(grad) = tensor.grad_remove(self.grads) {
            self.taken.insert(path.to_string(), grad.flatten(0, D - 1));
        }
    }
}

/// Updates each parameter that has a gradient.
struct Update<'a, B: AutodiffBackend> {
    lamb: &'a mut MinTrustLamb<B>,
    gate: LambGate<B::InnerBackend>,
    lr: f64,
    grads: BTreeMap<String, Tensor<B::InnerBackend, 1>>,
}

impl<B: AutodiffBackend> MapFloat<B> for Update<'_, B> {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        let Some(grad) = self.grads.remove(path) else { return tensor };
        let shape = tensor.dims();
        let param = tensor.inner().flatten(0, D - 1);
        // Taken out, so that no second owner keeps the backend from updating in place.
        let moments = self.lamb.moments.remove(path).map(|moments| (moments.first, moments.second));
        let LambUpdate { param, first, second, .. } =
            lamb_update(&self.lamb.config, &self.gate, self.lr, param, grad, moments);
        self.lamb.moments.insert(path.to_string(), Moments { first, second, shape: shape.to_vec() });
        Tensor::from_inner(param.reshape(shape))
    }
}

/// Puts checked moments on the devices of their parameters.
struct Upload<B: Backend> {
    checked: BTreeMap<String, Vec<Vec<f32>>>,
    moments: BTreeMap<String, Moments<B>>,
}

impl<B: AutodiffBackend> VisitFloat<B> for Upload<B::InnerBackend> {
    fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
        let Some(pair) = self.checked.remove(path) else { return };
        let tensor = tensor.inner();
        let upload = |data: Vec<f32>| {
            let n = data.len();
            Tensor::from_data(TensorData::new(data, [n]), (&tensor.device(), tensor.dtype()))
        };
        let mut pair = pair.into_iter().map(upload);
        if let (Some(first), Some(second)) = (pair.next(), pair.next()) {
            self.moments.insert(path.to_string(), Moments { first, second, shape: tensor.dims().to_vec() });
        }
    }
}
