//! What the model promises beyond its golden values: causality, cutting, memory, initialisation, dropout.

use burn::backend::{Autodiff, Flex};
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use sharnn_core::{Attend, Backend, DropoutStream, Pass, Precision, ShaRnn, ShaRnnConfig, ShaRnnState};

fn tiny(attend: Attend, mem_len: usize) -> ShaRnnConfig {
    ShaRnnConfig { d_model: 16, d_ff: 40, n_layers: 3, ..ShaRnnConfig::xs() }.with_attend(attend).with_mem_len(mem_len)
}

fn bytes(batch_size: usize, seq_len: usize) -> Vec<u8> {
    (0..batch_size * seq_len).map(|i| (i * 37 + i / 7 * 11) as u8).collect()
}

fn tokens<B: Backend>(bytes: &[u8], batch_size: usize) -> Tensor<B, 2, Int> {
    let ids: Vec<i32> = bytes.iter().map(|&b| b.into()).collect();
    let seq_len = ids.len() / batch_size;
    Tensor::from_data(TensorData::new(ids, [batch_size, seq_len]), &B::Device::default())
}

fn model(config: &ShaRnnConfig) -> ShaRnn<Flex> {
    config.init_seeded(3, &Default::default())
}

fn largest_difference(a: Tensor<Flex, 3>, b: Tensor<Flex, 3>) -> f32 {
    (a - b).abs().max().into_scalar()
}

#[test]
fn changing_a_byte_leaves_earlier_logits_alone() {
    for attend in [Attend::None, Attend::SecondLast, Attend::All] {
        let model = model(&tiny(attend, 64));
        let mut data = bytes(2, 12);
        let (before, _) = model.forward(tokens(&data, 2), model.empty_state());
        data[7] ^= 1; // lane 0, place 7
        let (after, _) = model.forward(tokens(&data, 2), model.empty_state());
        let part = |x: &Tensor<Flex, 3>, lane: usize, from: usize, len: usize| {
            x.clone().narrow(0, lane, 1).narrow(1, from, len)
        };
        assert_eq!(part(&before, 0, 0, 7).into_data(), part(&after, 0, 0, 7).into_data());
        assert_eq!(part(&before, 1, 0, 12).into_data(), part(&after, 1, 0, 12).into_data());
        for place in 7..12 {
            assert!(largest_difference(part(&before, 0, place, 1), part(&after, 0, place, 1)) > 1e-7, "place {place}");
        }
    }
}

#[test]
fn a_split_stream_gives_what_the_whole_gives_within_mem_len() {
    for attend in [Attend::None, Attend::SecondLast, Attend::All, Attend::Blocks(vec![0, 2])] {
        let model = model(&tiny(attend, 24));
        let data = tokens(&bytes(2, 24), 2);
        let (whole, whole_state) = model.forward(data.clone(), model.empty_state());
        let mut state = model.empty_state();
        let mut at = 0;
        for len in [1, 5, 10, 8] {
            let (logits, next) = model.forward(data.clone().narrow(1, at, len), state);
            assert!(largest_difference(logits, whole.clone().narrow(1, at, len)) < 1e-4);
            (state, at) = (next, at + len);
        }
        assert_eq!(state.memory_rows(), whole_state.memory_rows());
    }
}

#[test]
fn the_memory_is_cut_to_mem_len_with_this_segment() {
    let model = model(&tiny(Attend::SecondLast, 10));
    let mut state = model.empty_state();
    for (len, rows) in [(4, 4), (4, 8), (4, 10), (10, 10), (1, 10)] {
        state = model.forward(tokens(&bytes(1, len), 1), state).1;
        assert_eq!(state.memory_rows(), rows);
    }
    // What a query at position i sees: the last N - T rows of the memory and the current segment up to itself. So rows
    // older than those change nothing.
    let before = state.clone();
    let (kept, _) = model.forward(tokens(&bytes(1, 4), 1), before.clone());
    let (cut, _) = model.forward(tokens(&bytes(1, 4), 1), before.truncate_memory(6));
    assert_eq!(kept.into_data(), cut.into_data());
}

#[test]
fn mem_len_equal_to_the_segment_sees_no_memory() {
    let model = model(&tiny(Attend::SecondLast, 6));
    let state = model.forward(tokens(&bytes(1, 6), 1), model.empty_state()).1;
    let next = tokens(&bytes(1, 6), 1);
    let (kept, _) = model.forward(next.clone(), state.clone());
    let (dropped, _) = model.forward(next, state.drop_memory());
    assert_eq!(kept.into_data(), dropped.into_data());
}

#[test]
fn without_memory_any_segment_length_runs() {
    let model = model(&tiny(Attend::All, 0));
    let (logits, state) = model.forward(tokens(&bytes(2, 30), 2), model.empty_state());
    assert_eq!(logits.dims(), [2, 30, 256]);
    assert_eq!(state.memory_rows(), 0);
}

#[test]
#[should_panic(expected = "the segment is 11 tokens long, more than mem_len = 10")]
fn a_segment_longer_than_mem_len_is_refused() {
    let model = model(&tiny(Attend::SecondLast, 10));
    model.forward(tokens(&bytes(1, 11), 1), model.empty_state());
}

#[test]
#[should_panic(expected = "the state is of 2 blocks, the model of 3")]
fn a_state_of_another_model_is_refused() {
    let model = model(&tiny(Attend::SecondLast, 10));
    model.forward(tokens(&bytes(1, 2), 1), ShaRnnState::empty(2));
}

#[test]
#[should_panic(expected = "the LSTM state has shape [2, 16]")]
fn a_state_of_another_batch_is_refused() {
    let model = model(&tiny(Attend::SecondLast, 10));
    let state = model.forward(tokens(&bytes(2, 2), 2), model.empty_state()).1;
    model.forward(tokens(&bytes(1, 2), 1), state);
}

#[test]
fn dropping_the_memory_leaves_a_working_model() {
    let model = model(&tiny(Attend::All, 16));
    let state = model.forward(tokens(&bytes(2, 8), 2), model.empty_state()).1;
    assert!(state.size_bytes() > state.clone().drop_memory().size_bytes());
    let (with, _) = model.forward(tokens(&bytes(2, 4), 2), state.clone());
    let (without, after) = model.forward(tokens(&bytes(2, 4), 2), state.drop_memory());
    assert!(largest_difference(with, without.clone()) > 1e-6, "the memory matters");
    assert!(without.is_finite().all().into_scalar());
    assert_eq!(after.memory_rows(), 4);
}

#[test]
fn collapsing_the_value_gate_changes_no_output() {
    let config = ShaRnnConfig { d_model: 32, d_ff: 64, ..tiny(Attend::All, 16) };
    let model = model(&config);
    let (before, _) = model.forward(tokens(&bytes(1, 8), 1), model.empty_state());
    let params = model.num_params();
    let collapsed = model.collapse();
    // Per attending block 2 d² + 2 d parameters go: of the paper's model, d = 1024, that is 2,099,200.
    assert_eq!(params - collapsed.num_params(), 3 * (2 * 32 * 32 + 2 * 32));
    let (after, _) = collapsed.forward(tokens(&bytes(1, 8), 1), collapsed.empty_state());
    assert_eq!(before.into_data(), after.into_data());
}

#[test]
fn a_model_has_the_parameters_its_configuration_counts() {
    for config in [
        tiny(Attend::None, 8),
        tiny(Attend::SecondLast, 8),
        tiny(Attend::All, 8).with_tied(false).with_vocab_size(7),
        ShaRnnConfig::xs(),
        ShaRnnConfig::s(),
    ] {
        assert_eq!(model(&config).num_params(), config.num_params(), "{config:?}");
    }
}

#[test]
fn a_model_tells_its_configuration() {
    for attend in [Attend::SecondLast, Attend::All, Attend::Blocks(vec![0, 2])] {
        let config = tiny(attend, 5).with_heads(2).with_tied(false).with_vocab_size(11);
        let config = ShaRnnConfig { dropout_input: 0.1, dropout_hidden: 0.2, dropout_output: 0.3, ..config };
        assert_eq!(model(&config).config(), config);
        assert_eq!(model(&config).collapse().config(), config);
    }
    assert_eq!(model(&tiny(Attend::None, 0)).config(), tiny(Attend::None, 0));
}

/// As in the published code: Linear and Embedding N(0, 0.1/sqrt(d)); LSTM U(-1/sqrt(d), 1/sqrt(d)), biases too; norms 1/0; the
/// rest 0.
#[test]
fn weights_begin_as_the_paper_says() {
    let d = 128f32;
    let model = model(&ShaRnnConfig::xs().with_attend(Attend::All).with_tied(false));
    let values = |x: Tensor<Flex, 2>| x.into_data().to_vec::<f32>().unwrap();
    let vector = |x: Tensor<Flex, 1>| x.into_data().to_vec::<f32>().unwrap();
    let block = &model.blocks[1];
    let attending = block.attending.as_ref().unwrap();

    let normal = [
        values(model.encoder.weight.val()),
        values(model.decoder.weight.as_ref().unwrap().val()),
        values(block.boom.linear.weight.val()),
        values(attending.attention.query.weight.val()),
        values(attending.attention.value_gate.linear.as_ref().unwrap().weight.val()),
    ];
    for weights in normal {
        let n = weights.len() as f32;
        let mean = weights.iter().sum::<f32>() / n;
        let std = (weights.iter().map(|w| w * w).sum::<f32>() / n).sqrt();
        let want = 0.1 / d.sqrt();
        // Five standard errors of the mean and of the standard deviation.
        assert!(mean.abs() < 5.0 * want / n.sqrt(), "mean {mean}");
        assert!((std / want - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "std {std}, want {want}");
        assert!(weights.iter().any(|w| w.abs() > 3.0 * want), "a normal has tails");
    }

    let bound = 1.0 / d.sqrt();
    for weights in [
        values(block.lstm.weight_ih.val()),
        values(block.lstm.weight_hh.val()),
        vector(block.lstm.bias_ih.val()),
        vector(block.lstm.bias_hh.val()),
    ] {
        let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
        assert!(largest <= bound && largest > 0.98 * bound, "{largest} of {bound}");
    }

    let constant = |x: Tensor<Flex, 1>, value: f32| assert!(vector(x).iter().all(|&v| v == value));
    for norm in [&block.norm_start, &block.norm_ff, &block.norm_xff, &attending.norm_mid, &attending.norm_mem] {
        constant(norm.weight.val(), 1.0);
        constant(norm.bias.val(), 0.0);
    }
    constant(attending.attention.q_gate.val(), 0.0);
    constant(attending.attention.k_gate.val(), 0.0);
    constant(attending.attention.value_gate.gate.val(), 0.0);
    constant(block.boom.linear.bias.val(), 0.0);
    constant(model.decoder.bias.val(), 0.0);
}

#[test]
fn a_seed_names_its_weights() {
    let first = |seed: u64| -> Vec<f32> {
        let model = ShaRnnConfig::xs().init_seeded::<Flex>(seed, &Default::default());
        model.encoder.weight.val().into_data().to_vec::<f32>().unwrap()[..4].to_vec()
    };
    assert_eq!(first(1), first(1));
    assert_ne!(first(1), first(2));
    assert_eq!(first(1), [-0.0020757744, -0.012469985, 0.002943585, -0.009959301]);
}

#[test]
fn dropout_follows_its_key_and_evaluation_has_none() {
    let model = model(&tiny(Attend::All, 32).with_dropout(0.2));
    let run = |pass: &Pass| model.hidden(tokens(&bytes(2, 9), 2), model.empty_state(), pass).0.into_data();
    let stream = |step: u64| Pass::training(DropoutStream { seed: 4, step, first_lane: 0 });
    assert_eq!(run(&stream(1)), run(&stream(1)));
    assert_ne!(run(&stream(1)), run(&stream(2)));
    assert_ne!(run(&stream(1)), run(&Pass::default()));
    assert_eq!(run(&Pass::default()), run(&Pass::default()));
}

/// A batch split over processes computes what the whole batch computes, dropout included.
#[test]
fn the_second_half_of_a_batch_drops_what_it_drops_in_the_whole() {
    let model = model(&tiny(Attend::All, 32).with_dropout(0.2));
    let data = bytes(4, 9);
    let stream = |first_lane: u32| Pass::training(DropoutStream { seed: 4, step: 7, first_lane });
    let (whole, _) = model.hidden(tokens(&data, 4), model.empty_state(), &stream(0));
    let (half, _) = model.hidden(tokens(&data[18..], 2), model.empty_state(), &stream(2));
    assert!(largest_difference(whole.narrow(0, 2, 2), half) < 1e-5);
}

#[test]
fn a_detached_state_carries_no_gradient() {
    type B = Autodiff<Flex>;
    let model = tiny(Attend::All, 32).init_seeded::<B>(3, &Default::default());
    let (loss, state) =
        model.loss(tokens(&bytes(2, 5), 2), tokens(&bytes(2, 5), 2), model.empty_state(), &Pass::default());
    let state = state.detach();
    let grads = loss.backward();
    assert!(model.encoder.weight.val().grad(&grads).is_some());
    let (loss, _) = model.loss(tokens(&bytes(2, 5), 2), tokens(&bytes(2, 5), 2), state.clone(), &Pass::default());
    let grads = loss.backward();
    for block in state.blocks {
        assert!(block.lstm.unwrap().h.grad(&grads).is_none());
        assert!(block.memory.unwrap().grad(&grads).is_none());
    }
}

/// What is looked at is what the model computes with: from the weights follow the logits.
#[test]
fn looking_shows_the_weights_that_made_the_logits() {
    let config = ShaRnnConfig { n_layers: 1, ..tiny(Attend::All, 12) };
    let model = model(&config);
    let data = bytes(2, 20);
    let (_, state) = model.forward(tokens(&data[..20], 2), model.empty_state());
    let segment: Tensor<Flex, 2, Int> = tokens(&data[20..30], 2);
    let looked = model.look(segment.clone(), state.clone());
    let (logits, after) = model.forward(segment.clone(), state.clone());
    assert_eq!(looked.logits.clone().into_data(), logits.into_data());
    assert_eq!(looked.state.memory_rows(), after.memory_rows());

    // Seven rows of memory are left beside a segment of five.
    let weights = looked.weights[0].clone().unwrap();
    assert_eq!(weights.dims(), [2, 1, 5, 12]);
    let weights: Tensor<Flex, 3> = weights.squeeze_dim(1);
    let sums = weights.clone().sum_dim(2).into_data().to_vec::<f32>().unwrap();
    assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{sums:?}");
    for (i, row) in weights.clone().into_data().to_vec::<f32>().unwrap().chunks(12).enumerate() {
        assert!(row[7 + i % 5 + 1..].iter().all(|&weight| weight == 0.0), "a later row was seen");
        assert!(row[..=7 + i % 5].iter().all(|&weight| weight > 0.0));
    }

    let block = &model.blocks[0];
    let attending = block.attending.as_ref().unwrap();
    let state = state.truncate_memory(7).blocks.remove(0);
    let h = burn::tensor::module::embedding(model.encoder.weight.val(), segment);
    let (h, _) = block.lstm.forward(block.norm_start.forward(h), state.lstm, Precision::F32);
    let keys = Tensor::cat(vec![state.memory.unwrap(), attending.norm_mem.forward(h.clone())], 1);
    let values = keys * attending.attention.value_gate.forward(Precision::F32).unsqueeze();
    let h = attending.norm_mid.forward(h) + weights.matmul(values);
    let h = block.norm_ff.forward(h.clone()) + block.boom.forward(block.norm_xff.forward(h), Precision::F32);
    assert!(largest_difference(model.decode(h, &Pass::default()), looked.logits) < 1e-5);

    // Several heads, and blocks that do not attend.
    let heads = tiny(Attend::SecondLast, 12).with_heads(2).init_seeded::<Flex>(3, &Default::default());
    let looked = heads.look(tokens(&data[..10], 2), heads.empty_state());
    let dims = looked.weights.iter().map(|weights| weights.as_ref().map(Tensor::dims)).collect::<Vec<_>>();
    assert_eq!(dims, [None, Some([2, 2, 5, 5]), None]);
}
