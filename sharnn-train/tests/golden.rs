//! The optimizer and five training steps against values made by running the published model (`fixtures/README.md`).
//!
//! Every `lamb_*` and `train_*` file of `SHARNN_FIXTURES` (by default the repository's `fixtures`) is run, with sizes and
//! options from its metadata. Tolerance: the fixtures were made in f32, and the same model in f64 differs from them by up to
//! 1e-5 of a tensor's largest value; a relative 1e-4 leaves room for another order of summation.
#![cfg(feature = "flex")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::{Autodiff, Flex};
use burn::module::Param;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use sharnn_core::{Attend, AutodiffBackend, Pass, ShaRnnConfig, pytorch_name};
use sharnn_train::{
    FIRST_MOMENT, LambConfig, LambGate, MinTrustLamb, SECOND_MOMENT, collect_params, lamb_update, load_metadata,
    load_weights, save_tensors,
};

const TOLERANCE: f64 = 1e-4;

struct Fixture {
    name: String,
    metadata: BTreeMap<String, String>,
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    ids: BTreeMap<String, ([usize; 2], Vec<i32>)>,
}

impl Fixture {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (mut floats, mut ids) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let shape = view.shape().to_vec();
            match view.dtype() {
                Dtype::F32 => {
                    let data = view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
                    floats.insert(name, (shape, data));
                }
                Dtype::I64 => {
                    let data = view.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as i32).collect();
                    ids.insert(name, (shape.try_into().unwrap(), data));
                }
                other => panic!("{name} in {path:?} is {other}"),
            }
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Self { name, metadata: load_metadata(path).unwrap(), floats, ids }
    }

    fn option<T: DeserializeOwned>(&self, key: &str) -> T {
        let text = self.metadata.get(key).unwrap_or_else(|| panic!("{} has no {key}", self.name));
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{key} of {} is {text}: {error}", self.name))
    }

    fn lamb_config(&self, clip: Option<f64>) -> LambConfig {
        let [beta1, beta2] = self.option("betas");
        let (eps, weight_decay) = (self.option("eps"), self.option("weight_decay"));
        LambConfig { beta1, beta2, eps, weight_decay, min_trust: self.option("min_trust"), clip }
    }

    fn values(&self, name: &str) -> &[f32] {
        &self.floats.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.name)).1
    }

    /// A float tensor with leading dimensions of 1.
    fn tensor<B: burn::tensor::backend::Backend>(&self, name: &str) -> Tensor<B, 3> {
        let (shape, data) = &self.floats[name];
        let shape = [&[1; 3][shape.len()..], shape].concat();
        Tensor::from_data(TensorData::new(data.clone(), shape), &Default::default())
    }

    /// Ids, which the file has time-major, batch-first.
    fn tokens<B: burn::tensor::backend::Backend>(&self, name: &str) -> Tensor<B, 2, Int> {
        let (shape, data) = &self.ids[name];
        Tensor::from_data(TensorData::new(data.clone(), *shape), &Default::default()).swap_dims(0, 1)
    }
}

fn fixtures(prefix: &str) -> Vec<Fixture> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let dir = std::env::var_os("SHARNN_FIXTURES").map_or_else(default, PathBuf::from);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("no fixtures in {dir:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(".safetensors")
    });
    paths.sort();
    assert!(
        !paths.is_empty(),
        "no {prefix}*.safetensors in {dir:?}: set SHARNN_FIXTURES to the directory that has them"
    );
    paths.iter().map(|path| Fixture::read(path)).collect()
}

/// Collects differences and remembers the worst, as a share of what is allowed.
struct Check<'a> {
    fixture: &'a Fixture,
    worst: (f64, String),
}

impl<'a> Check<'a> {
    fn new(fixture: &'a Fixture) -> Self {
        Self { fixture, worst: (0.0, "nothing".into()) }
    }

    /// Compares with the fixture's tensor `name`: `|found - expected| <= 1e-4 |expected| + 1e-4 max |expected|`.
    fn compare(&mut self, name: &str, found: &[f32]) {
        self.compare_values(name, self.fixture.values(name), found);
    }

    fn compare_values(&mut self, name: &str, expected: &[f32], found: &[f32]) {
        assert_eq!(found.len(), expected.len(), "size of {name} in {}", self.fixture.name);
        let largest = expected.iter().fold(0.0_f64, |largest, &x| largest.max(f64::from(x).abs()));
        for (i, (&e, &f)) in expected.iter().zip(found).enumerate() {
            let (e, f) = (f64::from(e), f64::from(f));
            let allowed = TOLERANCE * (e.abs() + largest);
            let error = (f - e).abs();
            assert!(error <= allowed, "{name}[{i}] in {}: found {f}, expected {e} within {allowed}", self.fixture.name);
            if allowed > 0.0 && error / allowed > self.worst.0 {
                self.worst = (error / allowed, format!("{name}[{i}]"));
            }
        }
    }

    fn report(&self, backend: &str) {
        let (share, place) = &self.worst;
        println!("{} on {backend}: worst error {share:.2e} of the tolerance, at {place}", self.fixture.name);
    }
}

fn host<B: burn::tensor::backend::Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().convert::<f32>().to_vec().unwrap()
}

/// One tensor at a time through the update, whose norms and trust ratio are looked at.
fn run_updates<B: burn::tensor::backend::Backend>(fixture: &Fixture, check: &mut Check) {
    let config = fixture.lamb_config(None);
    let lrs: Vec<f64> = fixture.option("lr");
    let flat = |name: &str| fixture.tensor::<B>(name).flatten::<1>(0, 2);
    for key in keys(fixture).iter().filter(|key| fixture.floats.contains_key(&format!("grad.1.{key}"))) {
        let mut param = flat(&format!("init.{key}"));
        let mut moments = None;
        for (step, &lr) in lrs.iter().enumerate().map(|(i, lr)| (i + 1, lr)) {
            let grad = flat(&format!("grad.{step}.{key}"));
            let finite = Tensor::<B, 1, Bool>::from_data([true], &Default::default());
            let gate = LambGate::new(&config, Tensor::ones([1], &Default::default()), finite);
            let update = lamb_update(&config, &gate, lr, param, grad, moments);
            let mut compare = |what: &str, found: &Tensor<B, 1>| {
                check.compare(&format!("{what}.{step}.{key}"), &host(found));
            };
            compare("param", &update.param);
            compare("m", &update.first);
            compare("v", &update.second);
            compare("weight_norm", &update.weight_norm);
            compare("adam_norm", &update.adam_norm);
            compare("trust_ratio", &update.trust_ratio);
            param = update.param;
            moments = Some((update.first, update.second));
        }
    }
}

/// All tensors as one module through the optimizer, the one without gradient among them.
fn run_optimizer<B: AutodiffBackend>(fixture: &Fixture, check: &mut Check) {
    let keys = keys(fixture);
    let mut module: Vec<Param<Tensor<B, 3>>> =
        keys.iter().map(|key| Param::from_tensor(fixture.tensor(&format!("init.{key}")))).collect();
    let mut lamb = MinTrustLamb::<B>::new(fixture.lamb_config(None));
    let lrs: Vec<f64> = fixture.option("lr");
    for (step, &lr) in lrs.iter().enumerate().map(|(i, lr)| (i + 1, lr)) {
        // The gradient of sum(p g) in p is g.
        let mut loss = Tensor::<B, 1>::zeros([1], &Default::default());
        for (key, param) in keys.iter().zip(&module) {
            let grad = format!("grad.{step}.{key}");
            if fixture.floats.contains_key(&grad) {
                loss = loss + (param.val() * fixture.tensor(&grad)).sum();
            }
        }
        let grads = loss.backward();
        let (next, report) = lamb.step(module, loss.inner(), grads, lr);
        module = next;
        assert!(report.finite.into_scalar_bool());
        for (key, param) in keys.iter().zip(&module) {
            check.compare(&format!("param.{step}.{key}"), &host(&param.val()));
        }
        let moments: BTreeMap<_, _> = lamb.moments().into_iter().map(|(name, _, data)| (name, data)).collect();
        for (i, key) in keys.iter().enumerate() {
            for (suffix, what) in [(FIRST_MOMENT, "m"), (SECOND_MOMENT, "v")] {
                match moments.get(&format!("{i}{suffix}")) {
                    Some(moment) => check.compare(&format!("{what}.{step}.{key}"), moment),
                    None => assert!(!fixture.floats.contains_key(&format!("{what}.{step}.{key}")), "{key} was skipped"),
                }
            }
        }
    }
}

trait IntoScalarBool {
    fn into_scalar_bool(self) -> bool;
}

impl<B: burn::tensor::backend::Backend> IntoScalarBool for Tensor<B, 1, Bool> {
    fn into_scalar_bool(self) -> bool {
        self.into_data().iter::<bool>().next().unwrap()
    }
}

fn keys(fixture: &Fixture) -> Vec<String> {
    fixture.floats.keys().filter_map(|name| name.strip_prefix("init.")).map(str::to_string).collect()
}

fn run_training<B: AutodiffBackend>(fixture: &Fixture, check: &mut Check) {
    let attend = match fixture.option::<String>("attn").as_str() {
        "one" => Attend::SecondLast,
        "all" => Attend::All,
        "none" => Attend::None,
        other => panic!("attn {other} in {}", fixture.name),
    };
    let dropout: f64 = fixture.option("dropout");
    assert_eq!(dropout, 0.0, "{} was made with dropout, whose masks cannot be repeated", fixture.name);
    let config = ShaRnnConfig {
        vocab_size: fixture.option("vocab"),
        d_model: fixture.option("emsize"),
        d_ff: fixture.option("nhid"),
        n_layers: fixture.option("nlayers"),
        n_heads: fixture.option("heads"),
        attend,
        mem_len: fixture.option("num_max_positions"),
        tied: fixture.option("tied"),
        ..ShaRnnConfig::xs()
    };
    // Through a file under the published names, as a user's would come.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("init.safetensors");
    let init: Vec<_> = keys(fixture)
        .into_iter()
        .map(|name| {
            let (shape, data) = fixture.floats[&format!("init.{name}")].clone();
            (name, shape, data)
        })
        .collect();
    save_tensors(&path, &init, &BTreeMap::new()).unwrap();
    let mut model = load_weights(config.init_seeded::<B>(0, &Default::default()), &path).unwrap();

    let mut lamb = MinTrustLamb::<B>::new(fixture.lamb_config(Some(fixture.option("clip"))));
    let mut state = model.empty_state();
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (i, &lr) in fixture.values("lrs").iter().enumerate() {
        let step = i + 1;
        if !fixture.option::<bool>("carry_hidden") {
            state = state.drop_hidden();
        }
        if !fixture.option::<bool>("carry_mem") {
            state = state.drop_memory();
        }
        let (tokens, targets) =
            (fixture.tokens(&format!("step{step}.input")), fixture.tokens(&format!("step{step}.target")));
        let (loss, new_state) = model.loss(tokens, targets, state, &Pass::default());
        state = new_state.detach();
        let grads = loss.backward();
        losses.push(host(&loss)[0]);
        let (next, report) = lamb.step(model, loss.inner(), grads, lr.into());
        model = next;
        norms.push(host(&report.grad_norm)[0]);
        assert!(report.finite.into_scalar_bool());
    }
    check.compare("losses", &losses);
    check.compare("grad_norms_before_clip", &norms);
    for param in collect_params(&model) {
        check.compare(&format!("final.{}", pytorch_name(&param.name)), &param.data);
    }
}

fn run_all<B: AutodiffBackend>(backend: &str) {
    for fixture in fixtures("lamb_") {
        let mut check = Check::new(&fixture);
        run_updates::<B::InnerBackend>(&fixture, &mut check);
        run_optimizer::<B>(&fixture, &mut check);
        check.report(backend);
    }
    for fixture in fixtures("train_") {
        let mut check = Check::new(&fixture);
        run_training::<B>(&fixture, &mut check);
        check.report(backend);
    }
}

#[test]
fn flex_agrees_with_the_published_optimizer_and_training() {
    run_all::<Autodiff<Flex>>("flex");
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_agrees_with_the_published_optimizer_and_training() {
    run_all::<Autodiff<burn::backend::NdArray<f32>>>("ndarray");
}
