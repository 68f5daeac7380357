//! Evaluation counts every byte once and sums what the model says of it.

use burn::backend::Flex;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use sharnn_core::{Attend, Precision, ShaRnn, ShaRnnConfig};
use sharnn_data::DataError;
use sharnn_train::{EvalConfig, EvalError, evaluate};

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
        let result = evaluate(&model, &data, &options(lanes, seq_len), &Default::default(), |done, total| {
            calls.push((done, total));
        });
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
        evaluate(&model(config), data, &options, &Default::default(), |_, _| {})
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
    let error = evaluate(&model, &bytes(40), &options(2, 6), &Default::default(), |_, _| {}).unwrap_err();
    assert!(matches!(error, EvalError::NotFinite { offset: 0, .. }), "{error}");
}
