//! Golden tensors: reading them, putting them into modules, comparing with them.

#![allow(dead_code)] // each test binary uses its own part

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor, TensorData, backend::AutodiffBackend, backend::Backend as BurnBackend};
use sharnn_core::{Attend, Precision, ShaRnnConfig, pytorch_name};

/// Runs generic tests on `Autodiff` of every backend that is compiled in. Those of CUDA need a GPU, those of wgpu a device that
/// may be one in software.
#[allow(unused_macros)]
macro_rules! on_backends {
    ($($test:ident),*) => {
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $test() { super::$test::<burn::backend::Autodiff<burn::backend::Flex>>(); })*
        }
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $test() { super::$test::<burn::backend::Autodiff<burn::backend::NdArray<f32>>>(); })*
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $test() { super::$test::<burn::backend::Autodiff<sharnn_core::UnfusedCuda>>(); })*
        }
        #[cfg(feature = "cuda")]
        mod cuda_fusion {
            $(#[test] fn $test() { super::$test::<burn::backend::Autodiff<burn_fusion::Fusion<sharnn_core::UnfusedCuda>>>(); })*
        }
        #[cfg(feature = "wgpu")]
        mod wgpu {
            $(#[test] fn $test() { super::$test::<burn::backend::Autodiff<sharnn_core::UnfusedWgpu>>(); })*
        }
        #[cfg(feature = "wgpu")]
        mod fusion {
            $(#[test] fn $test() { super::$test::<burn::backend::Autodiff<burn_fusion::Fusion<sharnn_core::UnfusedWgpu>>>(); })*
        }
        #[cfg(feature = "tch")]
        mod tch {
            $(#[test] fn $test() { super::$test::<burn::backend::Autodiff<burn::backend::LibTorch>>(); })*
        }
    };
}

/// The most that an operand of a matrix product of the fused operations is moved by, relative to itself, before it is multiplied.
///
/// bf16 has 8 significant bits: 2⁻⁸. An f32 is multiplied as it is, unless TF32 was asked for.
pub fn unit_roundoff<B: BurnBackend>(precision: Precision) -> f64 {
    match precision {
        Precision::Bf16 => 2f64.powi(-8),
        Precision::F32 if std::env::var("SHARNN_CUDA_TF32").is_ok_and(|value| value == "1") => burn_roundoff::<B>(),
        Precision::F32 => 0.0,
    }
}

/// The same of Burn's own products of f32, which plain statements are made of: on CUDA tensor cores round to TF32, which has 11 bits.
pub fn burn_roundoff<B: BurnBackend>() -> f64 {
    if B::name(&B::Device::default()).contains("cuda") { 2f64.powi(-11) } else { 0.0 }
}

/// One fixture file.
pub struct Fixture {
    pub name: String,
    /// 0 where products do not round their operands.
    unit_roundoff: f64,
    /// The largest error so far, as it is measured: of a tensor, and of gradients together. They are printed in the end: how near a device
    /// comes to what is allowed.
    worst: Cell<[f64; 2]>,
    /// Squares of the errors and of the values that were compared since the last gradients, where products round.
    squares: Cell<[f64; 2]>,
    bytes: Vec<u8>,
    metadata: BTreeMap<String, serde_json::Value>,
}

/// Every file of the fixtures' directory whose name begins with `prefix`. The directory is the project's own unless
/// `SHARNN_FIXTURES` names another.
pub fn fixtures(prefix: &str) -> Vec<Fixture> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let directory = std::env::var_os("SHARNN_FIXTURES").map_or(own, PathBuf::from);
    let entries =
        std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("no fixtures in {}: {error}", directory.display()));
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with(prefix) && name.ends_with(".safetensors")
        })
        .map(|path| Fixture::read(&path))
        .collect();
    assert!(!found.is_empty(), "no {prefix}*.safetensors in {}", directory.display());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Fixture {
    fn read(path: &std::path::Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap_or_default();
        Self {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            unit_roundoff: 0.0,
            worst: Cell::default(),
            squares: Cell::default(),
            bytes,
            metadata: metadata.into_iter().map(|(k, v)| (k, serde_json::from_str(&v).unwrap())).collect(),
        }
    }

    /// Compared as a model may be whose products round their operands by at most `unit_roundoff` u: by norms,
    /// `‖got - want‖ <= 30 u ‖want‖` for all gradients of a segment together, and twice that for each tensor alone.
    ///
    /// Rounding moves an operand by u/√3 in the mean square and a product of two by √(2/3) u; a sum of n products of independent sign has a
    /// spread of √n, and so has its error: every product adds about 0.8 u to the relative error of its result, whatever n is. A block has
    /// eight in a row (the LSTM's input and the recurrence, whose gates forget, four of the attention, Boom), four blocks 32, back again
    /// twice as many: √96 · 0.8 u is 8 u. What is a sum of terms that cancel, as a norm's gradient is, moves by more of itself: flex in bf16,
    /// which rounds the same operands, comes to 18 u and 38 u where all blocks attend, and half as much again is allowed.
    pub fn within(mut self, unit_roundoff: f64) -> Self {
        self.unit_roundoff = unit_roundoff;
        self
    }

    fn rounds(&self) -> bool {
        self.unit_roundoff > 0.0
    }

    pub fn get(&self, key: &str) -> &serde_json::Value {
        self.metadata.get(key).unwrap_or_else(|| panic!("{}: no metadata {key}", self.name))
    }

    pub fn has_metadata(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// The metadata's `key`, read as a `T`.
    pub fn option<T: serde::de::DeserializeOwned>(&self, key: &str) -> T {
        let value = self.get(key);
        T::deserialize(value).unwrap_or_else(|error| panic!("{}: {key} is {value}: {error}", self.name))
    }

    pub fn usize(&self, key: &str) -> usize {
        self.option(key)
    }

    pub fn bool(&self, key: &str) -> bool {
        self.option(key)
    }

    /// The configuration that the model was made with.
    pub fn config(&self) -> ShaRnnConfig {
        ShaRnnConfig {
            vocab_size: self.usize("vocab"),
            d_model: self.usize("emsize"),
            d_ff: self.usize("nhid"),
            n_layers: self.usize("nlayers"),
            n_heads: self.usize("heads"),
            attend: match self.get("attn").as_str().unwrap() {
                "none" => Attend::None,
                "one" => Attend::SecondLast,
                "all" => Attend::All,
                other => panic!("{}: attn {other}", self.name),
            },
            mem_len: self.usize("num_max_positions"),
            tied: self.bool("tied"),
            ..ShaRnnConfig::xs()
        }
    }

    pub fn names(&self) -> Vec<String> {
        safetensors::SafeTensors::deserialize(&self.bytes).unwrap().names().into_iter().map(String::from).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.names().iter().any(|n| n == name)
    }

    /// Shape and values of a float tensor.
    pub fn values(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let all = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        let view = all.tensor(name).unwrap_or_else(|_| panic!("{}: no tensor {name}", self.name));
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (view.shape().to_vec(), values)
    }

    pub fn tensor<B: BurnBackend, const D: usize>(&self, name: &str) -> Tensor<B, D> {
        let (shape, values) = self.values(name);
        assert_eq!(shape.len(), D, "{}: rank of {name}", self.name);
        Tensor::from_data(TensorData::new(values, shape), &B::Device::default())
    }

    pub fn ids<B: BurnBackend>(&self, name: &str) -> Tensor<B, 2, Int> {
        let all = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        let view = all.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::I64, "{name}");
        let ids: Vec<i64> = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        Tensor::from_data(TensorData::new(ids, view.shape().to_vec()), &B::Device::default())
    }

    /// rtol 1e-4 and atol 1e-4 times the tensor's largest value, where products do not round: the fixtures' measured f32 noise is
    /// below 1e-5 of it. Else as [`within`](Self::within) says.
    pub fn check<B: BurnBackend, const D: usize>(&self, name: &str, got: Tensor<B, D>) {
        self.check_values(name, &got.into_data().convert::<f32>().to_vec::<f32>().unwrap());
    }

    pub fn check_values(&self, name: &str, got: &[f32]) {
        let (shape, want) = self.values(name);
        assert_eq!(got.len(), want.len(), "{} {name}: got {} values for {shape:?}", self.name, got.len());
        if self.rounds() {
            let (mut error, mut size) = (0.0, 0.0);
            for (g, w) in got.iter().zip(&want) {
                error += f64::from(g - w).powi(2);
                size += f64::from(*w).powi(2);
            }
            let [errors, sizes] = self.squares.get();
            self.squares.set([errors + error, sizes + size]);
            return self.check_norms(name, 0, 60.0, error, size);
        }
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let (error, size) = (f64::from((g - w).abs()), f64::from(w.abs() + largest));
            self.note(0, error / size.max(f64::MIN_POSITIVE));
            assert!(error <= 1e-4 * size, "{} {name}[{i}]: got {g}, want {w} (largest {largest})", self.name);
        }
    }

    fn note(&self, which: usize, error: f64) {
        let mut worst = self.worst.get();
        worst[which] = worst[which].max(error);
        self.worst.set(worst);
    }

    /// Squares of an error's norm and of that of the values: `times` the unit roundoff is allowed.
    fn check_norms(&self, name: &str, which: usize, times: f64, error: f64, size: f64) {
        let (error, size) = (error.sqrt(), size.sqrt());
        self.note(which, error / size.max(f64::MIN_POSITIVE));
        let allowed = times * self.unit_roundoff;
        assert!(error <= allowed * size, "{} {name}: off by {error} of {size}, allowed {allowed:.1e} of it", self.name);
    }

    /// Puts `prefix` + name into every parameter of a module.
    pub fn load<B: BurnBackend, M: Module<B>>(&self, module: M, prefix: &str, place: Place) -> M {
        module.map(&mut Loader { fixture: self, prefix: prefix.into(), path: Path::new(place) })
    }

    /// Compares every parameter's gradient with `prefix` + name. A parameter that is not in the file must have none, and
    /// every gradient in the file must be of a parameter.
    pub fn check_grads<B: AutodiffBackend, M: Module<B>>(
        &self,
        module: &M,
        grads: &B::Gradients,
        prefix: &str,
        place: Place,
    ) {
        let mut visitor =
            GradChecker::<B> { fixture: self, prefix: prefix.into(), path: Path::new(place), grads, seen: vec![] };
        self.squares.take();
        module.visit(&mut visitor);
        if self.rounds() {
            let [error, size] = self.squares.take();
            self.check_norms(&format!("{prefix} together"), 1, 30.0, error, size);
        }
        let mut seen = visitor.seen;
        let mut stored: Vec<_> = self.names().into_iter().filter(|name| name.starts_with(prefix)).collect();
        seen.sort();
        stored.sort();
        assert_eq!(seen, stored, "{}: gradients in the file and in the module differ", self.name);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let [tensor, gradients] = self.worst.get();
        let together = if self.rounds() { format!(", gradients together {gradients:.1e}") } else { String::new() };
        eprintln!("{}: worst error of a tensor {tensor:.1e}{together}", self.name);
    }
}

/// Where a module stands in the model: its path there, and what of the PyTorch name the fixture leaves out.
#[derive(Clone, Copy)]
pub struct Place {
    pub path: &'static str,
    pub strip: &'static str,
}

pub const WHOLE: Place = Place { path: "", strip: "" };

struct Path {
    place: Place,
    parts: Vec<String>,
}

impl Path {
    fn new(place: Place) -> Self {
        Self { place, parts: vec![] }
    }

    fn name(&self) -> String {
        let name = pytorch_name(&format!("{}{}", self.place.path, self.parts.join(".")));
        name.strip_prefix(self.place.strip).unwrap_or_else(|| panic!("{name}")).to_string()
    }
}

struct Loader<'a> {
    fixture: &'a Fixture,
    prefix: String,
    path: Path,
}

impl<B: BurnBackend> ModuleMapper<B> for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.parts.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.parts.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = format!("{}{}", self.prefix, self.path.name());
        let (_, values) = self.fixture.values(&name);
        let shape = param.dims();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let device = param.device();
        param.map(|_| Tensor::from_data(TensorData::new(values, shape), &device).require_grad())
    }
}

struct GradChecker<'a, B: AutodiffBackend> {
    fixture: &'a Fixture,
    prefix: String,
    path: Path,
    grads: &'a B::Gradients,
    seen: Vec<String>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for GradChecker<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.parts.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.parts.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = format!("{}{}", self.prefix, self.path.name());
        let grad = param.val().grad(self.grads);
        assert_eq!(grad.is_some(), self.fixture.has(&name), "{}: gradient of {name}", self.fixture.name);
        if let Some(grad) = grad {
            self.fixture.check(&name, grad);
            self.seen.push(name);
        }
    }
}

/// Swaps the first two dimensions: time-major <-> batch-first.
pub fn swap<B: BurnBackend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.swap_dims(0, 1)
}
