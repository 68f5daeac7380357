//! The float parameters of a module by path, in a fixed order.
//!
//! A path joins the names of the fields that lead to a parameter, as in `blocks.2.attending.attention.query.weight`. The
//! order is that of the fields, so it is the same in every run; Burn's own parameter ids are not, and loading renews them.
//!
//! Here lives what goes through parameters, whatever for: weights, moments and gradients are told apart elsewhere.
//! It uses no other room; all may use it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// A tensor on the host with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Path of the parameter.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: Vec<f32>,
}

/// What there is to know of a parameter without reading its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Path of the parameter.
    pub path: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub require_grad: bool,
}

/// Looks at each float parameter; a closure that is generic over the rank.
pub trait VisitFloat<B: Backend> {
    /// Called once a parameter.
    fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>);
}

/// Replaces each float parameter; a closure that is generic over the rank.
pub trait MapFloat<B: Backend> {
    /// Called once a parameter. The result takes the parameter's place; `require_grad` is set again by the caller.
    fn map<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) -> Tensor<B, D>;
}

/// Shows every float parameter of `module` to `visit`.
pub fn visit_params<B: Backend, M: Module<B>>(module: &M, visit: &mut impl VisitFloat<B>) {
    module.visit(&mut Visitor { path: Path::default(), visit });
}

/// Sends every float parameter of `module` through `map`. Ids and `require_grad` stay as they are, so a trained parameter
/// becomes a leaf of a new graph.
pub fn map_params<B: Backend, M: Module<B>>(module: M, map: &mut impl MapFloat<B>) -> M {
    module.map(&mut Mapper { path: Path::default(), map })
}

/// Path, shape and training of every float parameter, in order.
pub fn param_infos<B: Backend, M: Module<B>>(module: &M) -> Vec<ParamInfo> {
    struct Infos(Vec<ParamInfo>);
    impl<B: Backend> VisitFloat<B> for Infos {
        fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
            let (shape, require_grad) = (tensor.dims().to_vec(), tensor.is_require_grad());
            self.0.push(ParamInfo { path: path.to_string(), shape, require_grad });
        }
    }
    let mut infos = Infos(Vec::new());
    visit_params(module, &mut infos);
    infos.0
}

/// Every float parameter of `module` as f32 on the host, in order.
pub fn collect_params<B: Backend, M: Module<B>>(module: &M) -> Vec<NamedTensor> {
    struct Collect(Vec<NamedTensor>);
    impl<B: Backend> VisitFloat<B> for Collect {
        fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
            let shape = tensor.dims().to_vec();
            self.0.push(NamedTensor { name: path.to_string(), shape, data: host_values(tensor) });
        }
    }
    let mut collect = Collect(Vec::new());
    visit_params(module, &mut collect);
    collect.0
}

/// The gradients of a module's parameters, flattened, by path; a parameter without one is left out.
pub(crate) fn take_grads<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    grads: B::Gradients,
) -> BTreeMap<String, Tensor<B::InnerBackend, 1>> {
    struct Take<B: AutodiffBackend> {
        grads: B::Gradients,
        taken: BTreeMap<String, Tensor<B::InnerBackend, 1>>,
    }
    impl<B: AutodiffBackend> VisitFloat<B> for Take<B> {
        fn visit<const D: usize>(&mut self, path: &str, tensor: Tensor<B, D>) {
            if let Some(grad) = tensor.grad_remove(&mut self.grads) {
                self.taken.insert(path.to_string(), grad.flatten(0, D - 1));
            }
        }
    }
    let mut take = Take::<B> { grads, taken: BTreeMap::new() };
    visit_params(module, &mut take);
    take.taken
}

/// A number that the weights of a module determine, the same in every process.
pub(crate) fn weights_checksum<B: Backend, M: Module<B>>(module: &M) -> u64 {
    struct Hash(DefaultHasher);
    impl<B: Backend> VisitFloat<B> for Hash {
        fn visit<const D: usize>(&mut self, _path: &str, tensor: Tensor<B, D>) {
            host_values(tensor).iter().for_each(|x| self.0.write_u32(x.to_bits()));
        }
    }
    let mut hash = Hash(DefaultHasher::new());
    visit_params(module, &mut hash);
    hash.0.finish()
}

/// A tensor's values as f32, row-major.
pub(crate) fn host_values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("data converted to f32 is f32")
}

/// Names of the modules around the current one.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str) {
        self.0.push(name.to_string());
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn join(&self) -> String {
        self.0.join(".")
    }
}

struct Visitor<'a, V> {
    path: Path,
    visit: &'a mut V,
}

impl<B: Backend, V: VisitFloat<B>> ModuleVisitor<B> for Visitor<'_, V> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.visit.visit(&self.path.join(), param.val());
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
}

struct Mapper<'a, F> {
    path: Path,
    map: &'a mut F,
}

impl<B: Backend, F: MapFloat<B>> ModuleMapper<B> for Mapper<'_, F> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let require_grad = tensor.is_require_grad();
        let mapped = self.map.map(&self.path.join(), tensor);
        // The result of an operation must be cut from its graph to become a leaf; a leaf that was handed through is one.
        let leaf = if mapped.is_require_grad() == require_grad {
            mapped
        } else {
            mapped.detach().set_require_grad(require_grad)
        };
        Param::from_mapped_value(id, leaf, mapper)
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use sharnn_core::ShaRnnConfig;

    use super::*;

    type B = Autodiff<Flex>;

    fn config() -> ShaRnnConfig {
        ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 3, vocab_size: 11, ..ShaRnnConfig::xs() }
    }

    struct Double;

    impl MapFloat<B> for Double {
        fn map<const D: usize>(&mut self, _path: &str, tensor: Tensor<B, D>) -> Tensor<B, D> {
            Tensor::from_inner(tensor.inner() * 2.0)
        }
    }

    #[test]
    fn paths_are_the_fields_joined_and_cover_every_parameter() {
        let model = config().init_seeded::<B>(1, &Default::default());
        let infos = param_infos(&model);
        let paths: Vec<_> = infos.iter().map(|info| info.path.as_str()).collect();
        assert_eq!(paths[0], "encoder.weight");
        assert_eq!(*paths.last().unwrap(), "decoder.bias");
        assert!(paths.contains(&"blocks.1.attending.attention.value_gate.linear.weight"), "{paths:?}");
        assert_eq!(infos.iter().map(|info| info.shape.iter().product::<usize>()).sum::<usize>(), config().num_params());
        assert!(infos.iter().all(|info| info.require_grad));
    }

    #[test]
    fn mapping_changes_values_and_keeps_ids_and_training() {
        let model = config().init_seeded::<B>(1, &Default::default());
        let (ids, before) = (burn::module::list_param_ids(&model), collect_params(&model));
        let model = map_params(model, &mut Double);
        assert_eq!(burn::module::list_param_ids(&model), ids);
        assert!(param_infos(&model).iter().all(|info| info.require_grad));
        for (old, new) in before.iter().zip(collect_params(&model)) {
            assert_eq!(new.data, old.data.iter().map(|x| 2.0 * x).collect::<Vec<_>>(), "{}", old.name);
        }
    }
}
