//! A step of all parameters, with a clip by the global norm: min-trust LAMB, the optimizer of the paper's recipe, Muon for
//! the matrices inside blocks and the maps of n-grams where that is asked for, and Adagrad for the rows of n-grams that a step used. These are neither in the
//! norm nor clipped. The formulas of LAMB's and Adagrad's step are in [`sharnn_core::ops`]. Norms, clip and the decision to skip a step
//! stay on the device.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Bool, Int, Shape, Tensor, TensorData};
use sharnn_core::ops::{AdagradStep, LambOptions, LambParam, LambStep, LambUpdate};
use sharnn_core::{AutodiffBackend, Backend, NGramRows, Precision, ShaRnn};

use super::{AdagradConfig, LambConfig, MuonConfig};
use crate::files::{HostTensor, WeightsError, shown};
use crate::group::{Alone, Group};
use crate::params::{MapFloat, VisitFloat, host_values, map_params, param_infos, take_grads, visit_params};

/// Begins the paths of parameters inside blocks.
const BLOCKS: &str = "blocks.";

/// Begins the paths of the parameters of a memory of n-grams.
const NGRAMS: &str = "ngrams.";

/// The path of its table.
const TABLE: &str = "ngrams.table";

/// In the paths of an LSTM's parameters.
const LSTM: &str = ".lstm.";

/// Added to the global norm before the clip divides by it.
const CLIP_EPS: f64 = 1e-6;

/// Ends the name of a parameter's first moment, after the parameter's path.
pub const FIRST_MOMENT: &str = ".first_moment";

/// Ends the name of a parameter's second moment, after the parameter's path.
pub const SECOND_MOMENT: &str = ".second_moment";

/// Ends the name of what Adagrad has added up of a table, after the table's path.
pub const SQUARES: &str = ".squared_gradients";

/// The gradient of some rows of the table of n-grams.
#[derive(Clone, Debug)]
pub struct RowGrads<B: Backend> {
    /// Which rows, `[n]`; one may be there often.
    pub rows: Tensor<B, 1, Int>,
    /// `[n, width]`
    pub grad: Tensor<B, 2>,
}

impl<B: Backend> RowGrads<B> {
    /// That of the rows that a segment used, out of the gradients of its loss; `None` where they are not trained.
    pub fn take<A: AutodiffBackend<InnerBackend = B>>(used: NGramRows<A>, grads: &mut A::Gradients) -> Option<Self> {
        let NGramRows { rows, values } = used;
        Some(Self { rows: rows.inner(), grad: values.grad_remove(grads)? })
    }
}

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

/// What an optimizer keeps of one parameter, flattened, and the parameter's shape.
#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    first: Tensor<B, 1>,
    /// Muon has none.
    second: Option<Tensor<B, 1>>,
    shape: Vec<usize>,
}

/// Min-trust LAMB over the parameters of a module, Muon over some, and Adagrad over the rows of n-grams. Moments are kept by
/// parameter path: Burn's parameter ids are new after every load, which would silently reset them.
#[derive(Clone, Debug)]
pub struct Optimizer<B: AutodiffBackend> {
    lamb: LambConfig,
    muon: Option<MuonConfig>,
    adagrad: AdagradConfig,
    /// That of Muon's matrix products.
    precision: Precision,
    moments: BTreeMap<String, Moments<B::InnerBackend>>,
    /// Sums of squared gradients of the rows of n-grams, `[rows]`; `None` before the first step.
    squares: Option<Tensor<B::InnerBackend, 1>>,
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

impl<B: AutodiffBackend> Optimizer<B> {
    /// An optimizer without moments: LAMB, and where `muon` is given that for every matrix inside a block and every map of n-grams.
    ///
    /// # Panics
    /// If a configuration is invalid; [`LambConfig::validate`] and [`MuonConfig::validate`] tell without panicking.
    pub fn new(lamb: LambConfig, muon: Option<MuonConfig>) -> Self {
        let checked = lamb.validate().and_then(|()| muon.map_or(Ok(()), |muon| muon.validate()));
        if let Err(error) = checked {
            panic!("{error}");
        }
        let (adagrad, precision) = (AdagradConfig::default(), Precision::F32);
        Self { lamb, muon, adagrad, precision, moments: BTreeMap::new(), squares: None }
    }

    /// The same with other options of Adagrad than the defaults.
    ///
    /// # Panics
    /// If they are invalid; [`AdagradConfig::validate`] tells without panicking.
    pub fn with_adagrad(mut self, adagrad: AdagradConfig) -> Self {
        if let Err(error) = adagrad.validate() {
            panic!("{error}");
        }
        self.adagrad = adagrad;
        self
    }

    /// The same with another precision of Muon's matrix products than f32.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// One step of all parameters, without rows of n-grams: see [`step_in`](Self::step_in). Where `loss` or the norm of the gradients is not finite, weights and moments stay as they are, bit for bit;
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
        self.step_in(&Alone, &mut [], module, loss, (grads, None), lr)
    }

    /// [`step`](Self::step) of a process in a group: all make the step of the averaged loss and gradients, so that one that is
    /// not finite anywhere changes nothing anywhere. Beside the gradients of parameters there are those of rows of n-grams. `flags` are added up over the processes on the way.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub fn step_in<M: Module<B>>(
        &mut self,
        group: &dyn Group,
        flags: &mut [f32],
        module: M,
        loss: Tensor<B::InnerBackend, 1>,
        (grads, rows): (B::Gradients, Option<RowGrads<B::InnerBackend>>),
        lr: f64,
    ) -> (M, StepReport<B::InnerBackend>) {
        assert!(lr >= 0.0 && lr.is_finite(), "the learning rate is {lr}: it must be a finite number of at least 0");
        let mut grads = take_grads(&module, grads);
        let loss = average(group, loss, &mut grads, flags);
        let rows = rows.map(|rows| all_rows(group, rows));

        let grad_norm = match grads.is_empty() {
            true => loss.zeros_like(),
            false => B::InnerBackend::squared_norm(grads.values().cloned().collect()).sqrt(),
        };
        let mut finite = loss.clone().is_finite().bool_and(grad_norm.clone().is_finite());
        if let Some(RowGrads { grad, .. }) = &rows {
            // Of its squares, which are added up.
            finite = finite.bool_and(grad.clone().square().sum().is_finite());
        }
        if grads.is_empty() {
            return (module, StepReport { loss, grad_norm, finite });
        }
        let takes_table = rows.is_some();
        let mut take = TakeParams { grads, moments: &mut self.moments, taken: Vec::new(), takes_table, table: None };
        let module = map_params(module, &mut take);
        let (taken, table) = (take.taken, take.table);
        let (of_muon, of_lamb) = taken.into_iter().partition(|taken| self.muon_moves(&taken.path, &taken.shape));
        let step = self.lamb.step(lr, grad_norm.clone(), finite.clone());
        let mut params = lamb_params(&step, of_lamb, &mut self.moments);
        if let Some(muon) = &self.muon {
            let skip = finite.clone().bool_not();
            params.extend(muon_params(muon, lr, &step, &skip, self.precision, of_muon, &mut self.moments));
        }
        let table = rows.zip(table).map(|(RowGrads { rows, grad }, table)| {
            let squares = self
                .squares
                .take()
                .unwrap_or_else(|| Tensor::zeros([table.dims()[0]], (&table.device(), table.dtype())));
            let AdagradConfig { rate, eps } = self.adagrad;
            let step = AdagradStep { lr: lr * rate, eps, rows, grad, skip: finite.clone().bool_not() };
            let (table, squares) = B::InnerBackend::adagrad_rows(table, squares, step);
            self.squares = Some(squares);
            table
        });
        let module = map_params(module, &mut PutParams { params, moments: &self.moments, table });
        (module, StepReport { loss, grad_norm, finite })
    }

    /// Lets the table of n-grams begin anew: zeros, of which nothing is known. Its maps stay.
    pub fn forget_rows(&mut self, mut model: ShaRnn<B>) -> ShaRnn<B> {
        self.squares = self.squares.take().map(|squares| squares.zeros_like());
        if let Some(ngrams) = &mut model.ngrams {
            let zeros = |table: Tensor<B, 2>| table.zeros_like().set_require_grad(table.is_require_grad());
            ngrams.table = ngrams.table.clone().map(zeros);
        }
        model
    }

    /// Whether Muon moves this parameter.
    fn muon_moves(&self, path: &str, shape: &[usize]) -> bool {
        self.muon.is_some() && shape.len() == 2 && [BLOCKS, NGRAMS].iter().any(|part| path.starts_with(part))
    }

    /// Name, shape and values of every moment, by parameter path; for checkpoints. A parameter that never had a gradient
    /// has none, one that Muon moves has a first one, the table of n-grams its squared gradients.
    pub fn moments(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let of_one = |(path, moments): (&String, &Moments<B::InnerBackend>)| {
            let second = moments.second.clone().map(|second| (SECOND_MOMENT, second));
            let all = std::iter::once((FIRST_MOMENT, moments.first.clone())).chain(second);
            let (path, shape) = (path.clone(), moments.shape.clone());
            all.map(move |(suffix, moment)| (format!("{path}{suffix}"), shape.clone(), host_values(moment)))
        };
        let squares = self.squares.clone().map(|x| (format!("{TABLE}{SQUARES}"), x.dims().to_vec(), host_values(x)));
        self.moments.iter().flat_map(of_one).chain(squares).collect()
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
            let suffixes = match self.muon_moves(&param.path, &param.shape) {
                _ if param.path == TABLE => &[SQUARES][..],
                true => &[FIRST_MOMENT],
                false => &[FIRST_MOMENT, SECOND_MOMENT],
            };
            let names = suffixes.iter().map(|suffix| format!("{}{suffix}", param.path));
            let found: Vec<_> = names.map(|name| (tensors.remove(&name), name)).collect();
            // A frozen parameter may have been trained before, or not.
            // No more need a table have been, of which no row was used.
            let may_be_untouched = !param.require_grad || param.path == TABLE;
            if fresh || (may_be_untouched && found.iter().all(|(found, _)| found.is_none())) {
                continue;
            }
            let mut moments = Vec::new();
            for (found, tensor) in found {
                let expected = if param.path == TABLE { vec![param.shape[0]] } else { param.shape.clone() };
                let Some(moment) = found else {
                    return Err(WeightsError::Missing { file: file(), tensor, expected, hint: hint() });
                };
                check_moment(&tensor, &moment, expected, file())?;
                moments.push(moment.data);
            }
            checked.insert(param.path, moments);
        }
        if let Some((tensor, found)) = tensors.pop_first() {
            let (tensor, found) = (shown(&tensor), found.shape);
            return Err(WeightsError::Unexpected { file: file(), tensor, found, hint: hint() });
        }
        let mut upload = Upload { checked, moments: BTreeMap::new(), squares: None };
        visit_params(module, &mut upload);
        (self.moments, self.squares) = (upload.moments, upload.squares);
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
    let is_square = [SECOND_MOMENT, SQUARES].iter().any(|suffix| tensor.ends_with(suffix));
    let negative = |value: f32| is_square && value < 0.0;
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
    let values: usize = grads.values().map(|grad| grad.dims()[0]).sum();
    let mut packed = Vec::with_capacity(flags.len() + 1 + values);
    packed.extend_from_slice(flags);
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

/// The rows of every process of a group, in the order of processes, and their gradients of the loss averaged over the group.
fn all_rows<B: Backend>(group: &dyn Group, own: RowGrads<B>) -> RowGrads<B> {
    if group.size() == 1 {
        return own;
    }
    let RowGrads { rows, grad } = own;
    let (device, dtype, [_, width]) = (grad.device(), grad.dtype(), grad.dims());
    let share = 1.0 / group.size() as f32;
    let of_rows = rows.into_data().iter::<i64>().flat_map(|row| (row as u32).to_le_bytes()).collect::<Vec<_>>();
    let of_grad = host_values(grad).into_iter().flat_map(|x| (x * share).to_le_bytes()).collect::<Vec<_>>();
    let [rows, grad] = [of_rows, of_grad].map(|own| {
        let mut all = group.gather(&own).concat();
        group.broadcast(&mut all);
        all
    });
    let rows: Vec<i32> = rows.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect();
    let grad: Vec<f32> = grad.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let n = rows.len();
    RowGrads {
        rows: Tensor::from_data(TensorData::new(rows, [n]), &device),
        grad: Tensor::from_data(TensorData::new(grad, [n, width]), (&device, dtype)),
    }
}

/// A parameter that has a gradient, on its way through a step; all flattened but for its shape.
struct Taken<B: Backend> {
    path: String,
    shape: Vec<usize>,
    param: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    moments: Option<Moments<B>>,
}

/// Flattened parameters after a step, by path.
type Stepped<B> = BTreeMap<String, Tensor<B, 1>>;

/// The step of LAMB.
fn lamb_params<B: Backend>(
    step: &LambStep<B>,
    taken: Vec<Taken<B>>,
    all_moments: &mut BTreeMap<String, Moments<B>>,
) -> Stepped<B> {
    if taken.is_empty() {
        return Stepped::new();
    }
    let (places, params): (Vec<_>, Vec<_>) = taken
        .into_iter()
        .map(|taken| {
            let Taken { path, shape, param, grad, moments } = taken;
            let moments = moments.and_then(|moments| Some((moments.first, moments.second?)));
            ((path, shape), LambParam { param, grad, moments })
        })
        .unzip();
    let (updates, _) = B::lamb(step, params);
    let put = |((path, shape), update): ((String, Vec<usize>), LambUpdate<B>)| {
        let LambUpdate { param, first, second } = update;
        all_moments.insert(path.clone(), Moments { first, second: Some(second), shape });
        (path, param)
    };
    places.into_iter().zip(updates).map(put).collect()
}

/// The step of Muon. The weights of an LSTM are those of its four gates.
fn muon_params<B: Backend>(
    muon: &MuonConfig,
    lr: f64,
    step: &LambStep<B>,
    skip: &Tensor<B, 1, Bool>,
    precision: Precision,
    taken: Vec<Taken<B>>,
    all_moments: &mut BTreeMap<String, Moments<B>>,
) -> Stepped<B> {
    let one = |taken: Taken<B>| {
        let Taken { path, shape, param, grad, moments } = taken;
        let matrices = if path.contains(LSTM) { 4 } else { 1 };
        let dims = [matrices, shape[0] / matrices, shape[1]];
        let first = moments.map_or_else(|| param.zeros_like(), |moments| moments.first);
        let all = [param, grad, first].map(|x| x.reshape(dims));
        let [param, first] = muon.step(lr, all, step.scale.clone(), skip.clone(), precision).map(|x| x.flatten(0, 2));
        all_moments.insert(path.clone(), Moments { first, second: None, shape });
        (path, param)
    };
    taken.into_iter().map(one).collect()
}

/// Takes the parameters that have a gradient out of a module, with their moments, so that no second owner keeps the backend
/// from updating them in place. [`PutParams`] must follow.
struct TakeParams<'a, B: AutodiffBackend> {
    grads: BTreeMap<String, Tensor<B::InnerBackend, 1>>,
    moments: &'a mut BTreeMap<String, Moments<B::InnerBackend>>,
    taken: Vec<Taken<B::InnerBackend>>,
    takes_table: bool,
    table: Option<Tensor<B::InnerBackend, 2>>,
}

impl<B: AutodiffBackend> MapFloat<B> for TakeParams<'_, B> {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        if self.takes_table && path == TABLE {
            let placeholder = Tensor::empty([1; D], &tensor.device());
            let [rows, width] = [tensor.dims()[0], tensor.dims()[D - 1]];
            self.table = Some(tensor.inner().reshape([rows, width]));
            return placeholder;
        }
        let Some(grad) = self.grads.remove(path) else { return tensor };
        let (shape, moments) = (tensor.dims().to_vec(), self.moments.remove(path));
        let param = tensor.inner().flatten(0, D - 1);
        let placeholder = Tensor::empty([1; D], &param.device());
        self.taken.push(Taken { path: path.to_string(), shape, param, grad, moments });
        placeholder
    }
}

/// Puts updated parameters where [`TakeParams`] took them from.
struct PutParams<'a, B: AutodiffBackend> {
    params: Stepped<B::InnerBackend>,
    moments: &'a BTreeMap<String, Moments<B::InnerBackend>>,
    table: Option<Tensor<B::InnerBackend, 2>>,
}

impl<B: AutodiffBackend> MapFloat<B> for PutParams<'_, B> {
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
        if path == TABLE
            && let Some(table) = self.table.take()
        {
            let shape = Shape::from(table.dims().to_vec());
            return Tensor::from_inner(table.reshape(shape));
        }
        match self.params.remove(path) {
            None => tensor,
            Some(param) => Tensor::from_inner(param.reshape(Shape::from(self.moments[path].shape.as_slice()))),
        }
    }
}

/// Puts checked moments on the devices of their parameters.
struct Upload<B: Backend> {
    checked: BTreeMap<String, Vec<Vec<f32>>>,
    moments: BTreeMap<String, Moments<B>>,
    squares: Option<Tensor<B, 1>>,
}

impl<B: AutodiffBackend> VisitFloat<B> for Upload<B::InnerBackend> {
    fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
        let Some(moments) = self.checked.remove(path) else { return };
        let tensor = tensor.inner();
        let mut moments = moments.into_iter().map(|data| {
            let n = data.len();
            Tensor::from_data(TensorData::new(data, [n]), (&tensor.device(), tensor.dtype()))
        });
        if path == TABLE {
            self.squares = moments.next();
        } else if let Some(first) = moments.next() {
            let moments = Moments { first, second: moments.next(), shape: tensor.dims().to_vec() };
            self.moments.insert(path.to_string(), moments);
        }
    }
}
