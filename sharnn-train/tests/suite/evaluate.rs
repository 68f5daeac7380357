//! Evaluation counts every byte once and sums what the model says of it, with packed weights too.

use burn::backend::Flex;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use sharnn_core::{Attend, Precision, ShaRnn, ShaRnnConfig, WeightFormat};
use sharnn_data::DataError;
use sharnn_train::{EvalConfig, EvalError, Evaluation, Interrupt, MapFloat, evaluate, evaluate_packed, map_params};

fn config() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 2, mem_len: 6, vocab_size: 32, ..ShaRnnConfig::xs() }
}

fn model(config: &ShaRnnConfig) -> ShaRnn<Flex> {
    config.init_seeded(1, &Default::default())
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * i * 7 + i / 3) % 32) as u8).collect()
}

fn options(lanes: usize, seq_len: usize) -> EvalConfig {
    EvalConfig { lanes, seq_len, precision: Precision::F32 }
}

/// Each lane for itself, log-probabilities looked up byte by byte on the host.
fn by_hand(model: &ShaRnn<Flex>, data: &[u8], lanes: usize, seq_len: usize) -> (f64, u64) {
    let (mut nats, mut count) = (0.0, 0);
    let len = data.len() / lanes;
    for lane in 0..lanes {
        let lane = &data[lane * len..(lane + 1) * len];
        let mut state = model.empty_state();
        let mut at = 0;
        while at < len - 1 {
            let t = seq_len.min(len - 1 - at);
            let ids: Vec<i32> = lane[at..at + t].iter().map(|&b| b.into()).collect();
            let tokens: Tensor<Flex, 2, Int> = Tensor::from_data(TensorData::new(ids, [1, t]), &Default::default());
            let (logits, next) = model.forward(tokens, state);
            state = next;
            let log_probs: Vec<f32> = log_softmax(logits, 2).into_data().to_vec().unwrap();
            for i in 0..t {
                nats -= f64::from(log_probs[i * 32 + usize::from(lane[at + i + 1])]);
                count += 1;
            }
            at += t;
        }
    }
    (nats, count)
}

#[test]
fn every_byte_but_each_lanes_first_is_scored_once() {
    for (len, lanes, seq_len, scored) in
        [(40, 1, 6, 39), (41, 4, 6, 36), (43, 4, 4, 36), (43, 4, 3, 36), (2, 1, 6, 1), (6, 3, 1, 3), (29, 2, 5, 26)]
    {
        let (model, data) = (model(&config()), bytes(len));
        let mut calls = Vec::new();
        let result = evaluate(
            &model,
            &data,
            &options(lanes, seq_len),
            &Default::default(),
            &Interrupt::default(),
            |done, total| {
                calls.push((done, total));
            },
        );
        let result = result.unwrap();
        let (nats, count) = by_hand(&model, &data, lanes, seq_len);
        assert_eq!((result.bytes_scored, count), (scored, scored), "{len} bytes in {lanes} lanes");
        // Sums of f32 log-probabilities in another order.
        assert!((result.nats - nats).abs() < 1e-5 * nats, "{} and {nats} by hand", result.nats);
        assert!((result.bpc() - nats / scored as f64 / 2.0_f64.ln()).abs() < 1e-4);
        assert_eq!(calls.len(), (len / lanes - 1).div_ceil(seq_len));
        assert_eq!(calls.last(), Some(&(scored, scored)));
        assert!(calls.is_sorted() && calls.iter().all(|call| call.1 == scored));
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let run = |config: &ShaRnnConfig, data: &[u8], options: EvalConfig| {
        evaluate(&model(config), data, &options, &Default::default(), &Interrupt::default(), |_, _| {})
    };
    let base = config();
    let refused = |data: &[u8], options| run(&base, data, options).unwrap_err();
    assert!(matches!(refused(&bytes(40), options(1, 0)), EvalError::Zero { field: "seq_len" }));
    assert!(matches!(refused(&bytes(40), options(1, 7)), EvalError::SegmentTooLong { seq_len: 7, mem_len: 6 }));
    for (len, lanes) in [(40, 0), (7, 4), (0, 1)] {
        let error = refused(&bytes(len), options(lanes, 6));
        assert!(matches!(&error, EvalError::Lanes(DataError::Lanes { n_lanes, .. }) if *n_lanes == lanes), "{error:?}");
    }
    let mut data = bytes(40);
    data[33] = 200;
    let error = refused(&data, options(2, 6));
    let expected = matches!(error, EvalError::OutsideVocabulary { byte: 200, offset: 33, vocab_size: 32 });
    assert!(expected, "{error:?}");
    // Where no segment is bounded by a memory, any length will do.
    run(&base.clone().with_mem_len(0), &bytes(40), options(1, 39)).unwrap();
    run(&base.with_attend(Attend::None), &bytes(40), options(1, 39)).unwrap();
}

#[test]
fn a_diverged_model_is_an_error_and_not_a_score() {
    let mut model = model(&config());
    model.decoder.bias = model.decoder.bias.map(|bias| bias * f32::NAN);
    let error = evaluate(&model, &bytes(40), &options(2, 6), &Default::default(), &Interrupt::default(), |_, _| {})
        .unwrap_err();
    assert!(matches!(error, EvalError::NotFinite { offset: 0, .. }), "{error}");
}

/// Weights large enough that the model is sure of something.
fn loud(config: &ShaRnnConfig) -> ShaRnn<Flex> {
    struct Louder;
    impl MapFloat<Flex> for Louder {
        fn map<const D: usize>(&mut self, _path: &str, tensor: Tensor<Flex, D>) -> Tensor<Flex, D> {
            tensor * 4
        }
    }
    map_params(model(config), &mut Louder)
}

fn packed(model: &ShaRnn<Flex>, format: WeightFormat, data: &[u8], lanes: usize) -> Result<Evaluation, EvalError> {
    evaluate_packed(&model.engine(format), data, lanes, &Interrupt::default(), |_, _| {})
}

#[test]
fn packed_f32_weights_score_as_segments_of_one_byte_do() {
    for (len, lanes, mem_len) in [(40, 1, 6), (43, 4, 6), (61, 3, 0), (6, 3, 6), (80, 2, 1)] {
        let (model, data) = (loud(&config().with_mem_len(mem_len)), bytes(len));
        let want =
            evaluate(&model, &data, &options(lanes, 1), &Default::default(), &Interrupt::default(), |_, _| {}).unwrap();
        let got = packed(&model, WeightFormat::F32, &data, lanes).unwrap();
        assert_eq!(got.bytes_scored, want.bytes_scored, "{len} bytes in {lanes} lanes");
        // Sums of f32 products in another order.
        assert!((got.bpc() - want.bpc()).abs() < 1e-5, "{} and {}", got.bpc(), want.bpc());
    }
    // Any segments do while the memory holds the lane.
    let (model, data) = (loud(&config().with_mem_len(50)), bytes(100));
    let want = evaluate(&model, &data, &options(2, 16), &Default::default(), &Interrupt::default(), |_, _| {}).unwrap();
    let got = packed(&model, WeightFormat::F32, &data, 2).unwrap();
    assert!((got.bpc() - want.bpc()).abs() < 1e-5, "{} and {}", got.bpc(), want.bpc());
}

#[test]
fn narrow_weights_score_close_to_f32_and_not_the_same() {
    let (model, data) = (loud(&config()), bytes(600));
    let bpc = |format| packed(&model, format, &data, 3).unwrap().bpc();
    let full = bpc(WeightFormat::F32);
    assert!((full - 5.0).abs() > 0.5, "the model says nothing: {full}");
    for format in [WeightFormat::Bf16, WeightFormat::Int8] {
        let cost = (bpc(format) - full).abs();
        assert!(cost > 1e-6 && cost < 1e-2 * full, "{format:?} costs {cost} of {full}");
    }
}

#[test]
fn what_cannot_be_scored_with_packed_weights_is_refused() {
    let model = model(&config());
    let refused = |data: &[u8], lanes| packed(&model, WeightFormat::Bf16, data, lanes).unwrap_err();
    for (len, lanes) in [(40, 0), (7, 4), (0, 1)] {
        let error = refused(&bytes(len), lanes);
        assert!(matches!(&error, EvalError::Lanes(DataError::Lanes { n_lanes, .. }) if *n_lanes == lanes), "{error:?}");
    }
    let mut data = bytes(40);
    data[33] = 200;
    let error = refused(&data, 2);
    let expected = matches!(error, EvalError::OutsideVocabulary { byte: 200, offset: 33, vocab_size: 32 });
    assert!(expected, "{error:?}");
    let mut diverged = model;
    diverged.decoder.bias = diverged.decoder.bias.map(|bias| bias * f32::NAN);
    let error = packed(&diverged, WeightFormat::F32, &bytes(40), 2).unwrap_err();
    assert!(matches!(error, EvalError::NotFinite { offset: 0, .. }), "{error}");
}

#[test]
fn scoring_with_packed_weights_is_watched_and_interrupted() {
    let engine = model(&config()).engine(WeightFormat::Bf16);
    let (data, interrupt) = (bytes(2 * 2500), Interrupt::default());
    let mut calls = Vec::new();
    evaluate_packed(&engine, &data, 2, &interrupt, |done, total| calls.push((done, total))).unwrap();
    assert_eq!(calls, [(2048, 4998), (4096, 4998), (4998, 4998)]);
    let error = evaluate_packed(&engine, &data, 2, &interrupt, |_, _| interrupt.raise()).unwrap_err();
    assert!(matches!(error, EvalError::Interrupted { done: 2048, total: 4998 }), "{error}");
}

// --- dynamic ---------------------------------------------------------------------------------------------------------

mod dynamic {
    use burn::backend::Autodiff;
    use sharnn_train::{DynamicEval, evaluate_dynamic};

    use super::*;

    type B = Autodiff<Flex>;

    fn tracked() -> ShaRnn<B> {
        config().init_seeded(1, &Default::default())
    }

    fn score(data: &[u8], lanes: usize, dynamic: &DynamicEval) -> Result<f64, EvalError> {
        let train = bytes(300);
        let result = evaluate_dynamic(
            tracked(),
            &train,
            data,
            &options(lanes, 6),
            dynamic,
            &Default::default(),
            &Interrupt::default(),
            |_, _| {},
        );
        result.map(|evaluation| evaluation.bpc())
    }

    const STILL: DynamicEval = DynamicEval { lr: 0.0, decay: 0.0, eps: 2e-3, prior_segments: 5 };

    #[test]
    fn without_steps_it_is_the_static_evaluation() {
        for lanes in [1, 3] {
            let data = bytes(100);
            let fixed = evaluate(
                &model(&config()),
                &data,
                &options(lanes, 6),
                &Default::default(),
                &Interrupt::default(),
                |_, _| {},
            )
            .unwrap();
            let dynamic = score(&data, lanes, &STILL).unwrap();
            assert!((dynamic - fixed.bpc()).abs() < 1e-6, "{dynamic} and {}", fixed.bpc());
        }
    }

    /// The first segment is scored before anything was learned from it; the rest of a text that repeats itself is learned.
    #[test]
    fn what_was_scored_is_learned_and_only_then() {
        let learns = DynamicEval { lr: 3e-4, ..STILL };
        let once = &bytes(7)[..];
        assert_eq!(score(once, 1, &learns).unwrap(), score(once, 1, &STILL).unwrap());
        let repeated: Vec<u8> = (0..400).map(|i| [3, 9, 27, 1][i % 4]).collect();
        let (fixed, dynamic) = (score(&repeated, 1, &STILL).unwrap(), score(&repeated, 1, &learns).unwrap());
        assert!(dynamic < 0.85 * fixed, "{dynamic} and {fixed}");
    }

    /// A decay of 1 or more draws most weights all the way back, so that little is learned.
    #[test]
    fn the_decay_draws_weights_back() {
        let repeated: Vec<u8> = (0..400).map(|i| [3, 9, 27, 1][i % 4]).collect();
        let free = score(&repeated, 1, &DynamicEval { lr: 3e-4, ..STILL }).unwrap();
        let drawn = score(&repeated, 1, &DynamicEval { lr: 3e-4, decay: 1e9, ..STILL }).unwrap();
        let fixed = score(&repeated, 1, &STILL).unwrap();
        assert!(free < drawn && drawn < fixed, "{free}, {drawn}, {fixed}");
    }

    #[test]
    fn rates_that_cannot_be_used() {
        for (dynamic, expected) in [
            (DynamicEval { lr: -1.0, ..STILL }, "dynamic.lr = -1 cannot be used: use a finite number of at least 0"),
            (DynamicEval { decay: f64::NAN, ..STILL }, "dynamic.decay = NaN cannot be used"),
            (DynamicEval { eps: 0.0, ..STILL }, "dynamic.eps = 0 cannot be used: use a finite number above 0"),
            (DynamicEval { prior_segments: 0, ..STILL }, "dynamic.prior_segments = 0 cannot be used: use at least 1"),
        ] {
            let error = score(&bytes(100), 1, &dynamic).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let endless = DynamicEval { lr: 1e30, ..STILL };
        assert!(matches!(score(&bytes(100), 1, &endless), Err(EvalError::NotFinite { .. })));
    }
}
