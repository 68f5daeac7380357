//! Steps that must change nothing, moments that must survive, states that must be chosen right.

use std::collections::BTreeMap;

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Bool, Tensor, TensorData};
use sharnn_core::{BlockState, LstmState, Pass, ShaRnn, ShaRnnConfig, ShaRnnState};
use sharnn_train::{
    HostTensor, LambConfig, MuonConfig, NamedTensor, Optimizer, StepReport, WeightsError, collect_params, param_infos,
    select_state,
};

type B = Autodiff<Flex>;

fn config() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 2, vocab_size: 11, mem_len: 6, ..ShaRnnConfig::xs() }
}

fn model(seed: u64) -> ShaRnn<B> {
    config().init_seeded(seed, &Default::default())
}

/// LAMB alone, and Muon with it.
fn optimizers() -> [Option<MuonConfig>; 2] {
    [None, Some(MuonConfig::default())]
}

/// One step on fixed tokens; the loss is multiplied by `factor`, so NaN there poisons every gradient.
fn step(lamb: &mut Optimizer<B>, model: ShaRnn<B>, factor: f64, lr: f64) -> (ShaRnn<B>, StepReport<Flex>) {
    let device = Default::default();
    let tokens = Tensor::from_data([[1, 5, 3, 10], [2, 2, 0, 7]], &device);
    let targets = Tensor::from_data([[5, 3, 10, 4], [2, 0, 7, 9]], &device);
    let (loss, _) = model.loss(tokens, targets, model.empty_state(), &Pass::default());
    let loss = loss * factor;
    let grads = loss.backward();
    lamb.step(model, loss.inner(), grads, lr)
}

fn bits(params: &[NamedTensor]) -> Vec<(String, Vec<u32>)> {
    params.iter().map(|param| (param.name.clone(), param.data.iter().map(|x| x.to_bits()).collect())).collect()
}

fn moment_bits(lamb: &Optimizer<B>) -> Vec<(String, Vec<u32>)> {
    lamb.moments().into_iter().map(|(name, _, data)| (name, data.iter().map(|x| x.to_bits()).collect())).collect()
}

fn flag(flag: Tensor<Flex, 1, Bool>) -> bool {
    flag.into_data().iter::<bool>().next().unwrap()
}

fn saved(lamb: &Optimizer<B>) -> BTreeMap<String, HostTensor> {
    lamb.moments().into_iter().map(|(name, shape, data)| (name, HostTensor { shape, data })).collect()
}

#[test]
fn a_step_moves_every_parameter_and_keeps_it_trained() {
    for muon in optimizers() {
        let before = collect_params(&model(1));
        let (model, report) = step(&mut Optimizer::new(LambConfig::default(), muon), model(1), 1.0, 1e-2);
        assert!(flag(report.finite));
        for (old, new) in before.iter().zip(collect_params(&model)) {
            assert_ne!(old.data, new.data, "{}", old.name);
        }
        assert!(param_infos(&model).iter().all(|info| info.require_grad));
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_no_bit() {
    for muon in optimizers() {
        for poison in [f64::NAN, f64::INFINITY, 1e38] {
            let mut lamb = Optimizer::new(LambConfig::default(), muon);
            let (trained, _) = step(&mut lamb, model(1), 1.0, 1e-2);
            let (weights, moments) = (bits(&collect_params(&trained)), moment_bits(&lamb));
            let (after, report) = step(&mut lamb, trained, poison, 1e-2);
            assert!(!flag(report.finite), "{poison}");
            assert_eq!(bits(&collect_params(&after)), weights, "{poison}");
            assert_eq!(moment_bits(&lamb), moments, "{poison}");
            let (_, report) = step(&mut lamb, after, 1.0, 1e-2);
            assert!(flag(report.finite), "the step after {poison}");
        }
    }
}

#[test]
fn a_first_step_that_is_not_finite_leaves_a_fresh_optimizer() {
    for muon in optimizers() {
        let mut poisoned = Optimizer::new(LambConfig::default(), muon);
        let (after, _) = step(&mut poisoned, model(1), f64::NAN, 1e-2);
        let mut fresh = Optimizer::new(LambConfig::default(), muon);
        let (a, _) = step(&mut poisoned, after, 1.0, 1e-2);
        let (b, _) = step(&mut fresh, model(1), 1.0, 1e-2);
        assert_eq!(bits(&collect_params(&a)), bits(&collect_params(&b)));
        assert_eq!(moment_bits(&poisoned), moment_bits(&fresh));
    }
}

#[test]
fn a_loss_that_is_not_finite_changes_no_bit_though_the_gradients_are_finite() {
    for muon in optimizers() {
        let mut lamb = Optimizer::<B>::new(LambConfig::default(), muon);
        let model = model(1);
        let before = bits(&collect_params(&model));
        let grads = model.encoder.weight.val().sum().backward();
        let (after, report) = lamb.step(model, Tensor::from_data([f32::NAN], &Default::default()), grads, 1e-2);
        assert!(!flag(report.finite));
        assert_eq!(bits(&collect_params(&after)), before);
    }
}

#[test]
fn negative_zeros_survive_a_skipped_step() {
    let data = TensorData::from([-0.0_f32, 0.0, 1e-40, -1.5]);
    let module = vec![burn::module::Param::from_tensor(Tensor::<B, 1>::from_data(data, &Default::default()))];
    let before = bits(&collect_params(&module));
    let grads = (module[0].val() * f32::NAN).sum().backward();
    let mut lamb = Optimizer::<B>::new(LambConfig::default(), None);
    let signed = |data: [f32; 4]| HostTensor { shape: vec![4], data: data.to_vec() };
    let moments = BTreeMap::from([
        ("0.first_moment".to_string(), signed([-0.0, 0.0, -1e-41, 2.0])),
        ("0.second_moment".to_string(), signed([0.0, 1e-43, 0.5, 3.0])),
    ]);
    lamb.load_moments(moments, &module).unwrap();
    let moments = moment_bits(&lamb);
    let (after, _) = lamb.step(module, Tensor::zeros([1], &Default::default()), grads, 1e-2);
    assert_eq!(bits(&collect_params(&after)), before);
    assert_eq!(moment_bits(&lamb), moments);
}

#[test]
fn the_reported_norm_is_that_before_the_clip_and_the_clip_bounds_the_moments() {
    let run = |clip| {
        let mut lamb = Optimizer::new(LambConfig { clip, ..LambConfig::default() }, None);
        let (_, report) = step(&mut lamb, model(1), 100.0, 1e-2);
        let first: f64 = lamb.moments().iter().filter(|(name, _, _)| name.ends_with(".first_moment")).map(square).sum();
        (f64::from(report.grad_norm.into_scalar()), first.sqrt() / 0.1)
    };
    fn square((_, _, data): &(String, Vec<usize>, Vec<f32>)) -> f64 {
        data.iter().map(|&x| f64::from(x).powi(2)).sum()
    }
    let ((norm, free), (clipped_norm, clipped)) = (run(None), run(Some(0.25)));
    assert_eq!(norm, clipped_norm);
    assert!(norm > 1.0, "the test needs a gradient that is clipped, its norm is {norm}");
    // A first moment of a first step is (1 - 0.9) g.
    assert!((free / norm - 1.0).abs() < 1e-4, "{free} {norm}");
    assert!((clipped / 0.25 - 1.0).abs() < 1e-4, "{clipped}");
}

#[test]
fn loaded_moments_give_the_bit_identical_next_step() {
    for muon in optimizers() {
        let mut lamb = Optimizer::new(LambConfig::default(), muon);
        let (trained, _) = step(&mut lamb, model(1), 1.0, 1e-2);
        let dir = tempfile::tempdir().unwrap();
        let (weights, moments) = (dir.path().join("model.safetensors"), dir.path().join("moments.safetensors"));
        sharnn_train::save_weights(&trained, &weights).unwrap();
        sharnn_train::save_tensors(&moments, &lamb.moments(), &BTreeMap::new()).unwrap();

        // Another seed, so that nothing is right but what was loaded; parameter ids are new as well.
        let resumed = sharnn_train::load_weights(model(2), &weights).unwrap();
        let mut resumed_lamb = Optimizer::new(LambConfig::default(), muon);
        resumed_lamb.load_moments(sharnn_train::load_tensors(&moments).unwrap(), &resumed).unwrap();

        let (a, _) = step(&mut lamb, trained, 1.0, 1e-2);
        let (b, _) = step(&mut resumed_lamb, resumed, 1.0, 1e-2);
        assert_eq!(bits(&collect_params(&a)), bits(&collect_params(&b)));
        assert_eq!(moment_bits(&lamb), moment_bits(&resumed_lamb));
    }
}

/// One step of both optimizers at once is that of each on its own parameters.
#[test]
fn muon_moves_the_matrices_inside_blocks_and_nothing_else() {
    let is_muons = |param: &NamedTensor| param.shape.len() == 2 && param.name.starts_with("blocks.");
    let stepped = |muon| {
        let mut optimizer = Optimizer::new(LambConfig::default(), muon);
        let (model, _) = step(&mut optimizer, model(1), 1.0, 1e-2);
        (collect_params(&model), optimizer.moments().into_iter().map(|(name, _, _)| name).collect::<Vec<_>>())
    };
    let [(lamb, _), (both, moments)] = optimizers().map(stepped);
    let (before, mut of_muon) = (collect_params(&model(1)), 0);
    for ((before, lamb), both) in before.iter().zip(&lamb).zip(&both) {
        assert_eq!(is_muons(both), lamb.data != both.data, "{}", both.name);
        assert!(moments.contains(&format!("{}.first_moment", both.name)));
        assert_eq!(moments.contains(&format!("{}.second_moment", both.name)), !is_muons(both), "{}", both.name);
        if !is_muons(both) {
            continue;
        }
        of_muon += 1;
        // Singular values near 1 over rows and columns make values of a root mean square near the rate.
        let squares = before.data.iter().zip(&both.data).map(|(a, b)| f64::from(a - b).powi(2));
        let rms = (squares.sum::<f64>() / before.data.len() as f64).sqrt();
        // The value gate's input is one vector: its gradient has one singular value that is not 0, of eight.
        let rank = if both.name.contains("value_gate") { 1.0f64 } else { 8.0 };
        let expected = 1e-2 * 0.4 * (rank / 8.0).sqrt();
        assert!((0.5..1.2).contains(&(rms / expected)), "{}: {rms}", both.name);
    }
    // Two of each LSTM and one of each Boom, and the query's and the value gate's.
    assert_eq!(of_muon, 2 * 3 + 2);
}

#[test]
fn moments_that_do_not_fit_are_refused_and_change_nothing() {
    let mut lamb = Optimizer::new(LambConfig::default(), None);
    let (trained, _) = step(&mut lamb, model(1), 1.0, 1e-2);
    let (good, before) = (saved(&lamb), moment_bits(&lamb));
    let name = "encoder.weight.second_moment".to_string();
    let mut refuse = |change: &dyn Fn(&mut BTreeMap<String, HostTensor>)| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = lamb.load_moments(bad, &trained).unwrap_err();
        assert_eq!(moment_bits(&lamb), before);
        error
    };

    let error = refuse(&|bad| drop(bad.remove(&name)));
    assert!(matches!(&error, WeightsError::Missing { tensor, .. } if *tensor == name), "{error}");
    let error = refuse(&|bad| bad.get_mut(&name).unwrap().shape = vec![8, 11]);
    assert!(matches!(&error, WeightsError::Shape { tensor, .. } if *tensor == name), "{error}");
    let error = refuse(&|bad| bad.get_mut(&name).unwrap().data.truncate(87));
    assert!(matches!(&error, WeightsError::Length { tensor, .. } if *tensor == name), "{error}");
    for value in [f32::NAN, -1.0] {
        let error = refuse(&|bad| bad.get_mut(&name).unwrap().data[3] = value);
        assert!(matches!(&error, WeightsError::BadMoment { tensor, index: 3, .. } if *tensor == name), "{error}");
    }
    let error = refuse(&|bad| {
        let moment = bad[&name].clone();
        bad.insert("blocks.9.lstm.weight_hh.first_moment".into(), moment);
    });
    assert!(matches!(&error, WeightsError::Unexpected { tensor, .. } if tensor.starts_with("blocks.9")), "{error}");

    lamb.load_moments(BTreeMap::new(), &trained).unwrap();
    assert!(lamb.moments().is_empty());
}

#[test]
fn an_option_that_cannot_be_used_is_refused_by_name() {
    let base = LambConfig::default;
    base().validate().unwrap();
    LambConfig { min_trust: None, clip: None, weight_decay: 0.0, beta1: 0.0, ..base() }.validate().unwrap();
    for (config, field) in [
        (LambConfig { beta1: 1.0, ..base() }, "beta1"),
        (LambConfig { beta2: -0.1, ..base() }, "beta2"),
        (LambConfig { beta2: f64::NAN, ..base() }, "beta2"),
        (LambConfig { eps: 0.0, ..base() }, "eps"),
        (LambConfig { weight_decay: f64::INFINITY, ..base() }, "weight_decay"),
        (LambConfig { min_trust: Some(-1.0), ..base() }, "min_trust"),
        (LambConfig { max_trust: Some(0.2), ..base() }, "max_trust"),
        (LambConfig { max_trust: Some(0.0), min_trust: None, ..base() }, "max_trust"),
        (LambConfig { clip: Some(0.0), ..base() }, "clip"),
        (LambConfig { clip: Some(f64::NAN), ..base() }, "clip"),
    ] {
        assert_eq!(config.validate().unwrap_err().field, field);
    }
}

fn filled<const D: usize>(dims: [usize; D], value: f32) -> Tensor<Flex, D> {
    Tensor::full(dims, value, &Default::default())
}

fn state(hidden: Option<f32>, memory: Option<Tensor<Flex, 3>>) -> ShaRnnState<Flex> {
    let lstm = hidden.map(|value| LstmState { h: filled([2, 3], value), c: filled([2, 3], value + 1.0) });
    ShaRnnState { blocks: vec![BlockState { lstm, memory }], recent: None }
}

fn values<const D: usize>(tensor: &Tensor<Flex, D>) -> Vec<f32> {
    tensor.to_data().to_vec().unwrap()
}

#[test]
fn a_finite_step_carries_the_new_state() {
    let finite = Tensor::from_data([true], &Default::default());
    let new = state(Some(5.0), Some(filled([2, 4, 3], 7.0)));
    let chosen = select_state(finite, new, state(Some(1.0), Some(filled([2, 4, 3], 2.0))));
    let BlockState { lstm, memory } = &chosen.blocks[0];
    assert_eq!(values(&lstm.as_ref().unwrap().h), [5.0; 6]);
    assert_eq!(values(&lstm.as_ref().unwrap().c), [6.0; 6]);
    assert_eq!(values(memory.as_ref().unwrap()), [7.0; 24]);
}

#[test]
fn a_skipped_step_carries_the_old_state_or_zeros() {
    let finite = || Tensor::from_data([false], &Default::default());
    let new = || state(Some(f32::NAN), Some(filled([2, 4, 3], f32::NAN)));
    let chosen = select_state(finite(), new(), state(Some(1.0), Some(filled([2, 4, 3], 2.0))));
    let BlockState { lstm, memory } = &chosen.blocks[0];
    assert_eq!(values(&lstm.as_ref().unwrap().h), [1.0; 6]);
    assert_eq!(values(&lstm.as_ref().unwrap().c), [2.0; 6]);
    assert_eq!(values(memory.as_ref().unwrap()), [2.0; 24]);

    let chosen = select_state(finite(), new(), ShaRnnState::empty(1));
    let BlockState { lstm, memory } = &chosen.blocks[0];
    assert_eq!(values(&lstm.as_ref().unwrap().h), [0.0; 6]);
    assert_eq!(values(memory.as_ref().unwrap()), [0.0; 24]);
}

#[test]
fn a_grown_memory_keeps_its_old_rows_and_zeroes_bad_ones() {
    let old = filled([2, 2, 3], 2.0);
    let mut rows = values(&filled([2, 4, 3], 2.0));
    rows[7] = f32::NAN; // lane 0, row 2
    rows[12 + 9] = f32::INFINITY; // lane 1, row 3
    let grown = Tensor::from_data(TensorData::new(rows.clone(), [2, 4, 3]), &Default::default());
    let chosen = select_state(
        Tensor::from_data([false], &Default::default()),
        state(Some(0.0), Some(grown)),
        state(None, Some(old)),
    );
    let mut expected = vec![2.0; 24];
    expected[6..9].fill(0.0);
    expected[21..24].fill(0.0);
    assert_eq!(values(chosen.blocks[0].memory.as_ref().unwrap()), expected);
}
