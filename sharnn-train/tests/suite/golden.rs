//! The optimizer and five training steps against values made by running the published model (`fixtures/README.md`).
//!
//! Every `lamb_*` and `train_*` file is run, with sizes and options from its metadata.

use std::collections::BTreeMap;

use burn::backend::{Autodiff, Flex};
use burn::module::Param;
use burn::tensor::{Bool, Tensor};
use sharnn_core::ops::LambParam;
use sharnn_core::{AutodiffBackend, Backend, Pass, Precision, pytorch_name};
use sharnn_train::{FIRST_MOMENT, LambConfig, Optimizer, SECOND_MOMENT, collect_params, load_weights, save_tensors};

use crate::support::{Fixture, fixtures, unit_roundoff};

fn lamb_config(fixture: &Fixture, clip: Option<f64>) -> LambConfig {
    let [beta1, beta2] = fixture.option("betas");
    let (eps, weight_decay) = (fixture.option("eps"), fixture.option("weight_decay"));
    LambConfig { beta1, beta2, eps, weight_decay, min_trust: fixture.option("min_trust"), max_trust: None, clip }
}

/// A float tensor of the file, flat: the update does not look at shapes.
fn flat<B: Backend>(fixture: &Fixture, name: &str) -> Tensor<B, 1> {
    Tensor::from_floats(fixture.values(name).1.as_slice(), &Default::default())
}

fn host<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().convert::<f32>().to_vec().unwrap()
}

/// One tensor at a time through the update, whose norms and trust ratio are looked at.
fn run_updates<B: Backend>(fixture: &Fixture) {
    let config = lamb_config(fixture, None);
    let lrs: Vec<f64> = fixture.option("lr");
    for key in keys(fixture).iter().filter(|key| fixture.has(&format!("grad.1.{key}"))) {
        let mut param = flat::<B>(fixture, &format!("init.{key}"));
        let mut moments = None;
        for (step, &lr) in lrs.iter().enumerate().map(|(i, lr)| (i + 1, lr)) {
            let grad = flat(fixture, &format!("grad.{step}.{key}"));
            let finite = Tensor::<B, 1, Bool>::from_data([true], &Default::default());
            let shared = config.step::<B>(lr, Tensor::ones([1], &Default::default()), finite);
            let (mut updates, ratios) = B::lamb(&shared, vec![LambParam { param, grad, moments }]);
            let update = updates.remove(0);
            let compare = |what: &str, found: &Tensor<B, 1>| {
                fixture.check(&format!("{what}.{step}.{key}"), found.clone());
            };
            compare("param", &update.param);
            compare("m", &update.first);
            compare("v", &update.second);
            compare("weight_norm", &ratios.weight_norm);
            compare("adam_norm", &ratios.adam_norm);
            compare("trust_ratio", &ratios.trust_ratio);
            param = update.param;
            moments = Some((update.first, update.second));
        }
    }
}

/// All tensors as one module through the optimizer, the one without gradient among them.
fn run_optimizer<B: AutodiffBackend>(fixture: &Fixture) {
    let keys = keys(fixture);
    let mut module: Vec<Param<Tensor<B, 1>>> =
        keys.iter().map(|key| Param::from_tensor(flat(fixture, &format!("init.{key}")))).collect();
    let mut lamb = Optimizer::<B>::new(lamb_config(fixture, None), None);
    let lrs: Vec<f64> = fixture.option("lr");
    for (step, &lr) in lrs.iter().enumerate().map(|(i, lr)| (i + 1, lr)) {
        // The gradient of sum(p g) in p is g.
        let mut loss = Tensor::<B, 1>::zeros([1], &Default::default());
        for (key, param) in keys.iter().zip(&module) {
            let grad = format!("grad.{step}.{key}");
            if fixture.has(&grad) {
                loss = loss + (param.val() * flat(fixture, &grad)).sum();
            }
        }
        let grads = loss.backward();
        let (next, report) = lamb.step(module, loss.inner(), grads, lr);
        module = next;
        assert!(report.finite.into_scalar_bool());
        for (key, param) in keys.iter().zip(&module) {
            fixture.check(&format!("param.{step}.{key}"), param.val());
        }
        let moments: BTreeMap<_, _> = lamb.moments().into_iter().map(|(name, _, data)| (name, data)).collect();
        for (i, key) in keys.iter().enumerate() {
            for (suffix, what) in [(FIRST_MOMENT, "m"), (SECOND_MOMENT, "v")] {
                let name = format!("{what}.{step}.{key}");
                match moments.get(&format!("{i}{suffix}")) {
                    Some(moment) => fixture.check_values(&name, moment),
                    None => assert!(!fixture.has(&name), "{key} was skipped"),
                }
            }
        }
    }
}

trait IntoScalarBool {
    fn into_scalar_bool(self) -> bool;
}

impl<B: Backend> IntoScalarBool for Tensor<B, 1, Bool> {
    fn into_scalar_bool(self) -> bool {
        self.into_data().iter::<bool>().next().unwrap()
    }
}

fn keys(fixture: &Fixture) -> Vec<String> {
    fixture.names().iter().filter_map(|name| name.strip_prefix("init.")).map(str::to_string).collect()
}

fn run_training<B: AutodiffBackend>(fixture: &Fixture) {
    let dropout: f64 = fixture.option("dropout");
    assert_eq!(dropout, 0.0, "{} was made with dropout, whose masks cannot be repeated", fixture.name);
    let config = fixture.config();
    // Through a file under the published names, as a user's would come.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("init.safetensors");
    let init: Vec<_> = keys(fixture)
        .into_iter()
        .map(|name| {
            let (shape, data) = fixture.values(&format!("init.{name}"));
            (name, shape, data)
        })
        .collect();
    save_tensors(&path, &init, &BTreeMap::new()).unwrap();
    let mut model = load_weights(config.init_seeded::<B>(0, &Default::default()), &path).unwrap();

    let mut lamb = Optimizer::<B>::new(lamb_config(fixture, Some(fixture.option("clip"))), None);
    let mut state = model.empty_state();
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (i, &lr) in fixture.values("lrs").1.iter().enumerate() {
        let step = i + 1;
        if !fixture.option::<bool>("carry_hidden") {
            state = state.drop_hidden();
        }
        if !fixture.option::<bool>("carry_mem") {
            state = state.drop_memory();
        }
        let ids = |what: &str| fixture.ids(&format!("step{step}.{what}")).swap_dims(0, 1);
        let (tokens, targets) = (ids("input"), ids("target"));
        let (loss, new_state) = model.loss(tokens, targets, state, &Pass::default());
        state = new_state.detach();
        let grads = loss.backward();
        losses.push(host(&loss)[0]);
        let (next, report) = lamb.step(model, loss.inner(), grads, lr.into());
        model = next;
        norms.push(host(&report.grad_norm)[0]);
        assert!(report.finite.into_scalar_bool());
    }
    fixture.check_values("losses", &losses);
    fixture.check_values("grad_norms_before_clip", &norms);
    for param in collect_params(&model) {
        fixture.check_values(&format!("final.{}", pytorch_name(&param.name)), &param.data);
    }
}

fn run_all<B: AutodiffBackend>() {
    for fixture in fixtures("lamb_") {
        run_updates::<B::InnerBackend>(&fixture);
        run_optimizer::<B>(&fixture);
    }
    for fixture in fixtures("train_") {
        run_training::<B>(&fixture.within(unit_roundoff::<B>(Precision::F32)));
    }
}

#[test]
fn flex_agrees_with_the_published_optimizer_and_training() {
    run_all::<Autodiff<Flex>>();
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_agrees_with_the_published_optimizer_and_training() {
    run_all::<Autodiff<burn::backend::NdArray<f32>>>();
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_agrees_with_the_published_optimizer_and_training() {
    run_all::<Autodiff<sharnn_core::UnfusedCuda>>();
}

#[cfg(all(feature = "cuda", feature = "fusion"))]
#[test]
fn cuda_under_fusion_agrees_with_the_published_optimizer_and_training() {
    run_all::<Autodiff<burn::backend::Cuda>>();
}
