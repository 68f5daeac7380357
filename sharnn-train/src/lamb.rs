//! Min-trust LAMB with a clip by the global norm: the optimizer of the paper's recipe. The formula of a step is in
//! [`sharnn_core::ops`]. Norms, clip and the decision to skip a step stay on the device.

use std::collections::{BTreeMap, VecDeque};

use burn::module::Module;
use burn::tensor::{Bool, Shape, Tensor, TensorData};
use sharnn_core::ops::{LambOptions, LambParam, LambStep, LambUpdate};
use sharnn_core::{AutodiffBackend, Backend};

use crate::group::{Alone, Group};
use crate::lamb_config::LambConfig;
use crate::muon::MuonConfig;
use crate::params::{MapFloat, VisitFloat, host_values, map_params, param_infos, take_grads, visit_params};
use crate::tensor_file::{HostTensor, WeightsError};

/// Added to the global norm before the clip divides by it.
const CLIP_EPS: f64 = 1e-6;

/// Ends the name of a parameter's first moment, after the parameter's path.
pub const FIRST_MOMENT: &str = ".first_moment";

/// Ends the name of a parameter's second moment, after the parameter's path.
pub const SECOND_MOMENT: &str = ".second_moment";

/// What one step did, on the device.
#[derive(Clone, Debug)]
pub struct StepReport<B: Backend> {
    /// The mean loss over all processes, `[1]`.
    pub loss: Tensor<B, 1>,
    /// Global norm of the gradients before the clip, `[1]`.
    pub grad_norm: Tensor<B, 1>,
    /// Whether loss and norm were finite, `[1]`; where not, the step changed nothing.
    pub finite: Tensor<B, 1, Bool>,
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
    muon: Option<MuonConfig>,
    moments: BTreeMap<String, Moments<B::InnerBackend>>,
}

impl LambConfig {
    /// A step at learning rate `lr`, given the global norm of the gradients and whether it counts.
    ///
    /// # Shapes
    /// - `grad_norm` and `finite`: `[1]`
    pub fn step<B: Backend>(&self, lr: f64, grad_norm: Tensor<B, 1>, finite: Tensor<B, 1, Bool>) -> LambStep<B> {
        let scale = match self.clip {
            None => grad_norm.ones_like(),
            Some(clip) => (grad_norm.full_like(clip) / (grad_norm + CLIP_EPS)).clamp_max(1.0),
        };
        let &Self { beta1, beta2, eps, weight_decay, min_trust, max_trust, .. } = self;
        LambStep::new(LambOptions { lr, beta1, beta2, eps, weight_decay, min_trust, max_trust }, scale, finite)
    }
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
        Self { config, muon: None, moments: BTreeMap::new() }
    }

    /// Moves the matrices inside blocks by Muon.
    pub fn with_muon(mut self, muon: Option<MuonConfig>) -> Self {
        self.muon = muon;
        self
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
        grads: B::Gradients,
        lr: f64,
    ) -> (M, StepReport<B::InnerBackend>) {
        self.step_in(&Alone, &mut [], module, loss, grads, lr)
    }

    /// [`step`](Self::step) of a process in a group: all make the step of the averaged loss and gradients, so that one that is
    /// not finite anywhere changes nothing anywhere. `flags` are added up over the processes on the way.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub fn step_in<M: Module<B>>(
        &mut self,
        group: &dyn Group,
        flags: &mut [f32],
        module: M,
        loss: Tensor<B::InnerBackend, 1>,
        grads: B::Gradients,
        lr: f64,
    ) -> (M, StepReport<B::InnerBackend>) {
        assert!(lr >= 0.0 && lr.is_finite(), "the learning rate is {lr}: it must be a finite number of at least 0");
        let mut grads = take_grads(&module, grads);
        let loss = average(group, loss, &mut grads, flags);

        let grad_norm = match grads.is_empty() {
            true => loss.zeros_like(),
            false => B::InnerBackend::squared_norm(grads.values().cloned().collect()).sqrt(),
        };
        let finite = loss.clone().is_finite().bool_and(grad_norm.clone().is_finite());
        let step = self.config.step(lr, grad_norm.clone(), finite.clone());
        if grads.is_empty() {
            return (module, StepReport { loss, grad_norm, finite });
        }
        let moments = &mut self.moments;
        let mut take = TakeParams { grads, moments, taken: VecDeque::new(), params: Vec::new() };
        let module = map_params(module, &mut take);
        let TakeParams { taken, params, .. } = take;
        let updates = self.update(&step, &taken, params, lr, finite.clone());
        let mut put = PutParams { moments: &mut self.moments, taken, updates: updates.into_iter() };
        (map_params(module, &mut put), StepReport { loss, grad_norm, finite })
    }

    fn update(
        &self,
        step: &LambStep<B::InnerBackend>,
        taken: &VecDeque<(String, Vec<usize>)>,
        params: Vec<LambParam<B::InnerBackend>>,
        lr: f64,
        finite: Tensor<B::InnerBackend, 1, Bool>,
    ) -> Vec<LambUpdate<B::InnerBackend>> {
        let Some(muon) = &self.muon else { return B::InnerBackend::lamb(step, params).0 };
        let is_matrix = |(path, shape): &(String, Vec<usize>)| shape.len() == 2 && path.starts_with("blocks.");
        let (mut others, mut of_muon) = (Vec::new(), Vec::new());
        for (param, place) in params.into_iter().zip(taken) {
            if !is_matrix(place) {
                others.push(param);
                continue;
            }
            let (path, shape) = place;
            let matrices = if path.contains("lstm") { 4 } else { 1 };
            let dims = [matrices, shape[0] / matrices, shape[1]];
            let LambParam { param, grad, moments } = param;
            let n = param.dims()[0];
            let (first, second) = moments.unwrap_or_else(|| (param.zeros_like(), param.zeros_like()));
            let all = [param, grad, first].map(|x| x.reshape(dims));
            let [param, first] = muon.step(lr, all, step.scale.clone(), finite.clone()).map(|x| x.reshape([n]));
            of_muon.push(LambUpdate { param, first, second });
        }
        let mut of_muon = of_muon.into_iter();
        let mut others = B::InnerBackend::lamb(step, others).0.into_iter();
        taken
            .iter()
            .map(|place| if is_matrix(place) { of_muon.next() } else { others.next() }.expect("one each"))
            .collect()
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

/// Averages loss and gradients over the processes of a group, and adds up `flags`, in one go through the host.
fn average<B: Backend>(
    group: &dyn Group,
    loss: Tensor<B, 1>,
    grads: &mut BTreeMap<String, Tensor<B, 1>>,
    flags: &mut [f32],
) -> Tensor<B, 1> {
    if group.size() == 1 {
        return loss;
    }
    let options = (&loss.device(), loss.dtype());
    let mut packed = flags.to_vec();
    packed.extend(host_values(loss));
    for grad in grads.values() {
        packed.extend(host_values(grad.clone()));
    }
    group.sum(&mut packed);
    let (sums, mut rest) = packed.split_at_mut(flags.len());
    flags.copy_from_slice(sums);
    let share = 1.0 / group.size() as f32;
    rest.iter_mut().for_each(|x| *x *= share);
    let mut take = |n: usize| {
        let values;
        (values, rest) = std::mem::take(&mut rest).split_at_mut(n);
        Tensor::from_data(TensorData::new(values.to_vec(), [n]), options)
    };
    let loss = take(1);
    for grad in grads.values_mut() {
        *grad = take(grad.dims()[0]);
    }
    loss
}

/// Takes the parameters that have a gradient out of a module, with their moments, so that no second owner keeps the backend
/// from updating them in place. [`PutParams`] must follow.
struct TakeParams<'a, B: AutodiffBackend> {
    grads: BTreeMap<String, Tensor<B::InnerBackend, 1>>,
    moments: &'a mut BTreeMap<String, Moments<B::InnerBackend>>,
    taken: VecDeque<(String, Vec<usize>)>,
    params: Vec<LambParam<B::InnerBackend>>,
}

impl<B: AutodiffBackend> MapFloat<B> for TakeParams<'_, B> {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        let Some(grad) = self.grads.remove(path) else { return tensor };
        self.taken.push_back((path.to_string(), tensor.dims().to_vec()));
        let param = tensor.inner().flatten(0, D - 1);
        let moments = self.moments.remove(path).map(|moments| (moments.first, moments.second));
        let placeholder = Tensor::empty([1; D], &param.device());
        self.params.push(LambParam { param, grad, moments });
        placeholder
    }
}

/// Puts updated parameters where [`TakeParams`] took them from.
struct PutParams<'a, B: AutodiffBackend> {
    moments: &'a mut BTreeMap<String, Moments<B::InnerBackend>>,
    taken: VecDeque<(String, Vec<usize>)>,
    updates: std::vec::IntoIter<LambUpdate<B::InnerBackend>>,
}

impl<B: AutodiffBackend> MapFloat<B> for PutParams<'_, B> {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        if self.taken.front().is_none_or(|(taken, _)| taken != path) {
            return tensor;
        }
        let (path, shape) = self.taken.pop_front().expect("it was looked at");
        let LambUpdate { param, first, second } = self.updates.next().expect("an update for each parameter");
        let param = param.reshape(Shape::from(shape.as_slice()));
        self.moments.insert(path, Moments { first, second, shape });
        Tensor::from_inner(param)
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
