//! A model with a memory of n-grams: which rows a step moves, exact resume, many processes, files.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::threads::in_group;
use crate::common::*;
use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};
use sharnn_core::{NGramConfig, NGramSite, Pass, SegmentLoss, ShaRnn, ShaRnnConfig};
use sharnn_data::SegmentLengths;
use sharnn_train::{
    CONFIG_KEY, HostTensor, ImportOptions, Interrupt, LambConfig, Limits, MuonConfig, Optimizer, Recipe, Record,
    RowGrads, SharedGroup, StepReport, Trainer, Vocabulary, collect_params, import_weights, load_metadata,
    load_tensors, read_config, save_tensors, save_weights,
};

fn with_ngrams() -> ShaRnnConfig {
    config().with_ngrams(NGramConfig { orders: vec![2, 3, 5], rows: 50, width: 4, at: NGramSite::Both })
}

fn open(group: SharedGroup, dir: &Path) -> Trainer<B> {
    let recipe = Recipe { muon: Some(MuonConfig::default()), ..recipe() };
    Trainer::open_in(group, with_ngrams(), recipe, splits(), options(dir), &Default::default()).unwrap()
}

fn alone() -> SharedGroup {
    std::sync::Arc::new(sharnn_train::Alone)
}

/// The run, stopped and resumed after these steps, by so many processes.
fn run(size: usize, stops: &[u64]) -> Trace {
    let dir = tempfile::tempdir().unwrap();
    for limits in stops.iter().map(|&stop| steps(stop)).chain([Limits::default()]) {
        let weights = in_group(size, |group| {
            let mut trainer = open(group, dir.path());
            trainer.run(&limits, &mut silent, &Interrupt::default()).unwrap();
            collect_params(trainer.model())
        });
        assert!(weights.iter().all(|of_one| *of_one == weights[0]), "weights differ between processes");
    }
    trace(&open(alone(), dir.path()), dir.path())
}

#[test]
fn stopping_and_resuming_changes_nothing() {
    let reference = run(1, &[]);
    for stops in [&[1][..], &[9, 41], &[40]] {
        assert!(run(1, stops) == reference, "stopped at {stops:?}");
    }
}

#[test]
fn many_processes_compute_what_one_does_up_to_rounding() {
    let scores = |trace: &Trace| {
        let score = |record: &Record| match record {
            Record::Train(record) => record.train_bpc,
            Record::Valid(record) | Record::Test(record) => record.bpc,
        };
        trace.records.iter().filter_map(score).collect::<Vec<_>>()
    };
    let reference = scores(&run(1, &[]));
    let twice = [&[][..], &[13]].map(|stops| run(2, stops));
    assert!(twice[0] == twice[1], "two processes that stopped");
    let got = scores(&twice[0]);
    assert_eq!(got.len(), reference.len());
    for (i, (got, want)) in got.iter().zip(&reference).enumerate() {
        assert!((got - want).abs() < 1e-3 * want, "record {i}: {got} and {want}");
    }
}

/// An epoch begins with rows that know nothing, and what was trained before is scored with those that do.
#[test]
fn rows_begin_anew_with_each_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let used =
        |trainer: &Trainer<B>| table(trainer.model()).chunks(4).filter(|row| row.iter().any(|&x| x != 0.0)).count();
    let mut trainer = open(alone(), dir.path());
    let one_epoch = Limits { max_epochs: Some(1), ..Limits::default() };
    trainer.run(&one_epoch, &mut silent, &Interrupt::default()).unwrap();
    let after_an_epoch = used(&trainer);
    let next = trainer.position().step + 1;
    trainer.run(&steps(next), &mut silent, &Interrupt::default()).unwrap();
    let after_a_step = used(&trainer);
    assert!(after_a_step > 0 && 2 * after_a_step < after_an_epoch, "{after_a_step} of {after_an_epoch} rows");
}

/// The step that is given up is the first of an epoch as well: what was known before is kept, and the run is what it would have been.
#[test]
fn who_presses_at_the_start_of_an_epoch_loses_nothing() {
    let reference = run(1, &[]);
    let dir = tempfile::tempdir().unwrap();
    let boundary = {
        let mut trainer = open(alone(), dir.path());
        trainer.run(&Limits { max_epochs: Some(1), ..Limits::default() }, &mut silent, &Interrupt::default()).unwrap();
        trainer.position().step
    };
    let before = table(open(alone(), dir.path()).model());
    assert!(before.iter().any(|&x| x != 0.0));
    for milliseconds in [0, 1, 2, 3] {
        let mut trainer = open(alone(), dir.path());
        press_after(milliseconds, &mut trainer);
        if trainer.position().step == boundary {
            assert_eq!(table(trainer.model()), before, "{milliseconds} ms");
        }
    }
    let mut trainer = open(alone(), dir.path());
    complete(&mut trainer);
    assert!(trace(&trainer, dir.path()) == reference);
}

/// A run that ends soon after an epoch has begun keeps what it knows.
#[test]
fn rows_stay_where_the_end_is_near() {
    let known_after = |steps: u64| {
        let dir = tempfile::tempdir().unwrap();
        let mut recipe = Recipe { muon: Some(MuonConfig::default()), ..recipe() };
        recipe.segments = SegmentLengths::Fixed { len: 12 };
        recipe.phases.truncate(1);
        recipe.phases[0].steps = Some(steps);
        let open = || {
            let dir = options(dir.path());
            Trainer::<B>::open(with_ngrams(), recipe.clone(), splits(), dir, &Default::default()).unwrap()
        };
        let epoch = {
            let mut trainer = open();
            let limits = Limits { max_epochs: Some(1), ..Limits::default() };
            trainer.run(&limits, &mut silent, &Interrupt::default()).unwrap();
            trainer.position().step
        };
        let mut trainer = open();
        trainer.run(&self::steps(epoch + 1), &mut silent, &Interrupt::default()).unwrap();
        (epoch, table(trainer.model()).chunks(4).filter(|row| row.iter().any(|&x| x != 0.0)).count())
    };
    let (epoch, anew) = known_after(1000);
    let [near, far] = [epoch + epoch / 2 - 1, epoch + epoch / 2 + 1].map(|steps| known_after(steps).1);
    assert!(far == anew && near > anew, "{near} rows near the end, {far} far from it, {anew} with no end in sight");
}

/// The newest tokens in a checkpoint are tokens, and are there where the stream has begun.
#[test]
fn newest_tokens_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(alone(), dir.path()).run(&steps(12), &mut silent, &Interrupt::default()).unwrap();
    let step = dir.path().join("step-00000012");
    let good = load_tensors(&step.join("state.safetensors")).unwrap();
    assert_eq!(good["recent"].shape, [4, 4]);
    let changes: [(Change, &str); 5] = [
        (|tensors| drop(tensors.remove("recent")), "recent of shape [4, 4] is missing"),
        (|tensors| tensors.get_mut("recent").unwrap().shape = vec![2, 8], "expects [4, 4]"),
        (|tensors| tensors.get_mut("recent").unwrap().data[5] = 0.5, "0.5 at position 5"),
        (|tensors| tensors.get_mut("recent").unwrap().data[6] = 128.0, "expected tokens below 128"),
        (|tensors| tensors.get_mut("recent").unwrap().data[7] = -2.0, "-2 at position 7"),
    ];
    for (change, told) in changes {
        change_tensors(&step, "state.safetensors", &good, change);
        let resumed = Trainer::<B>::resume(splits(), options(dir.path()), &Default::default());
        let error = resumed.err().unwrap().to_string();
        assert!(error.contains(told) && error.contains("state.safetensors"), "{told}: {error}");
    }
}

/// One step on fixed tokens; the loss is multiplied by `factor`. And the rows that it used.
fn step(optimizer: &mut Optimizer<B>, model: ShaRnn<B>, factor: f64) -> (ShaRnn<B>, StepReport<Flex>, Vec<usize>) {
    let device = Default::default();
    let tokens = Tensor::from_data([[1, 5, 3, 10], [2, 2, 0, 7]], &device);
    let targets = Tensor::from_data([[5, 3, 10, 4], [2, 0, 7, 9]], &device);
    let SegmentLoss { loss, rows, .. } = model.segment_loss(tokens, targets, model.empty_state(), &Pass::default());
    let loss = loss * factor;
    let mut grads = loss.backward();
    let rows = rows.unwrap();
    let used: Vec<usize> = rows.rows.to_data().iter::<i64>().map(|row| row as usize).collect();
    let rows = RowGrads::take(rows, &mut grads);
    let group = sharnn_train::Alone;
    let (model, report) = optimizer.step_in(&group, &mut [], model, loss.inner(), (grads, rows), 1e-2);
    (model, report, used)
}

fn table(model: &ShaRnn<B>) -> Vec<f32> {
    model.ngrams.as_ref().unwrap().table.val().into_data().to_vec().unwrap()
}

fn saved(optimizer: &Optimizer<B>) -> BTreeMap<String, HostTensor> {
    optimizer.moments().into_iter().map(|(name, shape, data)| (name, HostTensor { shape, data })).collect()
}

#[test]
fn a_step_moves_the_rows_that_were_used_and_no_other() {
    for muon in [None, Some(MuonConfig::default())] {
        let mut optimizer = Optimizer::<B>::new(LambConfig::default(), muon);
        let before = with_ngrams().init_seeded(1, &Default::default());
        let old = table(&before);
        let maps = |model: &ShaRnn<B>| {
            collect_params(model).into_iter().filter(|x| x.name.starts_with("ngrams.")).skip(1).collect::<Vec<_>>()
        };
        let old_maps = maps(&before);
        // Rows of zeros give their maps no gradient, so the maps move in the second step.
        let (model, _, used) = step(&mut optimizer, before, 1.0);
        let (model, report, _) = step(&mut optimizer, model, 1.0);
        assert!(report.finite.into_scalar());
        for (row, (new, old)) in table(&model).chunks(4).zip(old.chunks(4)).enumerate() {
            assert_eq!(new != old, used.contains(&row), "row {row}");
        }
        for (new, old) in maps(&model).iter().zip(&old_maps) {
            assert_ne!(new.data, old.data, "{}", new.name);
        }
        // What the optimizer keeps of the table is a number a row.
        let moments = saved(&optimizer);
        assert_eq!(moments["ngrams.table.squared_gradients"].shape, [150]);
        assert!(!moments.contains_key("ngrams.table.first_moment"));

        // A step that is not finite changes no bit.
        let (weights, moments) = (collect_params(&model), optimizer.moments());
        let (model, report, _) = step(&mut optimizer, model, f64::NAN);
        assert!(!report.finite.into_scalar());
        assert_eq!(collect_params(&model), weights);
        assert_eq!(optimizer.moments(), moments);

        // Moments that were saved go on as if they had never been away.
        let mut loaded = Optimizer::<B>::new(LambConfig::default(), muon);
        loaded.load_moments(saved(&optimizer), &model).unwrap();
        let [a, b] = [&mut optimizer, &mut loaded].map(|optimizer| step(optimizer, model.clone(), 1.0).0);
        assert_eq!(collect_params(&a), collect_params(&b));
        let mut bad = saved(&optimizer);
        bad.get_mut("ngrams.table.squared_gradients").unwrap().data[3] = -1.0;
        let error = loaded.load_moments(bad, &a).unwrap_err().to_string();
        assert!(error.contains("ngrams.table.squared_gradients") && error.contains("-1"), "{error}");
    }
}

#[test]
fn files_hold_the_memory_and_know_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut optimizer = Optimizer::<B>::new(LambConfig::default(), None);
    let trained = step(&mut optimizer, with_ngrams().init_seeded(1, &Default::default()), 1.0).0;
    let trained = burn::module::AutodiffModule::valid(&trained);
    save_weights(&trained, &path).unwrap();
    let symbols = Some(Vocabulary::Custom((0..128).collect()));
    let ids =
        || Tensor::<Flex, 2, burn::tensor::Int>::from_data(TensorData::from([[1, 5, 3, 10]]), &Default::default());
    let logits =
        |model: &ShaRnn<Flex>| model.forward(ids(), model.empty_state()).0.into_data().to_vec::<f32>().unwrap();

    let config = ShaRnnConfig { vocab_size: 256, d_model: 16, d_ff: 32, n_layers: 3, ..with_ngrams() };
    let model = config.init_seeded::<Flex>(2, &Default::default());
    let bytes = dir.path().join("bytes.safetensors");
    save_weights(&model, &bytes).unwrap();
    assert_eq!(read_config(&bytes, &ImportOptions::default()).unwrap().ngrams, config.ngrams);
    let loaded = import_weights::<Flex>(&bytes, &ImportOptions::default(), &Default::default()).unwrap();
    assert_eq!(logits(&loaded), logits(&model));

    // Rows are those of symbols, which an import as bytes would renumber.
    let options = ImportOptions { vocabulary: symbols, ..ImportOptions::default() };
    let error = import_weights::<Flex>(&path, &options, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("ngrams") && error.contains("which bytes would renumber"), "{error}");

    // Tables of the same size under other orders.
    let tensors: Vec<_> = load_tensors(&bytes)
        .unwrap()
        .into_iter()
        .map(|(name, HostTensor { shape, data })| (name, shape, data))
        .collect();
    let mut metadata = load_metadata(&bytes).unwrap();
    let other = metadata[CONFIG_KEY].replace("[2,3,5]", "[2,3,4]");
    assert_ne!(metadata.insert(CONFIG_KEY.into(), other.clone()), Some(other));
    save_tensors(&bytes, &tensors, &metadata).unwrap();
    let error = sharnn_train::load_weights(model, &bytes).unwrap_err().to_string();
    assert!(error.contains("ngrams") && error.contains("[2,3,4]") && error.contains("[2,3,5]"), "{error}");
}
