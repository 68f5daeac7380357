//! Streams: packed weights and the model itself against each other, against `forward`, alone and side by side.

use burn::backend::{Autodiff, Flex, NdArray};
use burn::tensor::{Int, Tensor, TensorData};
use sharnn_core::{
    Attend, Backend, BatchGenerator, BatchScorer, DecodeEngine, DecodeStreams, Generator, ModelStreams, Scorer, ShaRnn,
    ShaRnnConfig, StateError, StreamError, StreamState, Streams, Tally, WeightFormat,
};

use crate::decoder::{config, largest_difference, model, values};

/// Bytes below 50, the vocabulary of the tests' model.
fn text(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((seed * 17 + i * 7 + i * i / 5) % 50) as u8).collect()
}

/// Logits of the model after each byte of one stream that it gets in segments of `segment_len`, `[len, vocab_size]`.
fn forward<B: Backend>(model: &ShaRnn<B>, text: &[u8], segment_len: usize) -> Vec<f32> {
    let mut state = model.empty_state();
    let mut all = Vec::new();
    for segment in text.chunks(segment_len) {
        let ids: Vec<i32> = segment.iter().map(|&byte| byte.into()).collect();
        let tokens: Tensor<B, 2, Int> =
            Tensor::from_data(TensorData::new(ids, [1, segment.len()]), &B::Device::default());
        // The last one may be the beginning of one: its memory is cut as if it were whole.
        let cut = state.truncate_memory(model.mem_len.saturating_sub(segment_len));
        let (logits, next) = model.forward(tokens, cut);
        all.extend(values(logits));
        state = next;
    }
    all
}

/// What streams give after each byte of their texts, which they get in parts.
fn read(streams: &mut impl Streams, texts: &[Vec<u8>], mut part: impl FnMut(usize) -> usize) -> Vec<Vec<f32>> {
    let mut all = vec![Vec::new(); texts.len()];
    let mut done = vec![0; texts.len()];
    let vocab_size = streams.shape().vocab_size;
    while done.iter().zip(texts).any(|(&done, text)| done < text.len()) {
        let parts: Vec<&[u8]> =
            (0..texts.len()).map(|i| &texts[i][done[i]..(done[i] + part(i)).min(texts[i].len())]).collect();
        let mut next = vec![0; texts.len()];
        streams.read(&parts, &mut |stream, offset, logits| {
            assert_eq!(offset, next[stream], "a stream's bytes are in order");
            next[stream] += 1;
            all[stream].extend(logits);
        });
        for (stream, part) in parts.iter().enumerate() {
            assert_eq!(next[stream], part.len());
            done[stream] += part.len();
            if !part.is_empty() {
                assert_eq!(streams.logits(stream), all[stream].rchunks(vocab_size).next());
            }
        }
    }
    all
}

/// Lengths of parts that follow no pattern; at times 0.
fn uneven() -> impl FnMut(usize) -> usize {
    let mut turn = 0;
    move |stream| {
        turn += 1;
        (turn * 5 + stream * 3 + turn * turn / 7) % 9
    }
}

fn assert_near(got: &[f32], want: &[f32], what: &str) {
    let difference = largest_difference(got, want);
    assert!(difference <= 1e-4, "{what}: {difference}");
}

#[test]
fn segments_are_those_of_the_model_however_the_bytes_come() {
    for attend in [Attend::None, Attend::SecondLast, Attend::All] {
        for (mem_len, segment_len) in [(0, 1), (0, 5), (1, 1), (12, 1), (12, 5), (12, 12), (40, 3), (100, 9)] {
            let model = model::<Flex>(&config(attend.clone(), mem_len));
            let text = text(1, 60);
            let want = forward(&model, &text, segment_len);
            let what = format!("{attend:?}, memory {mem_len}, segments of {segment_len}");
            for (by, mut part) in [
                ("at once", Box::new(|_| 60_usize) as Box<dyn FnMut(usize) -> usize>),
                ("byte by byte", Box::new(|_| 1)),
                ("in parts", Box::new(uneven())),
            ] {
                let mut streams = ModelStreams::new(&model, 1, segment_len).unwrap();
                let got = read(&mut streams, std::slice::from_ref(&text), &mut part);
                assert_near(&got[0], &want, &format!("{what}, {by}"));
            }
            if segment_len == 1 {
                let mut streams = model.engine(WeightFormat::F32).streams(1);
                assert_near(&read(&mut streams, &[text], uneven())[0], &want, &what);
            }
        }
    }
}

#[test]
fn texts_longer_than_what_goes_through_the_model_at_once() {
    let model = model::<Flex>(&config(Attend::None, 0));
    let texts = [text(1, 1100), text(2, 1030)];
    let got = read(&mut ModelStreams::new(&model, 2, 1).unwrap(), &texts, |_| 2000);
    for (text, got) in texts.iter().zip(&got) {
        assert_near(got, &forward(&model, text, 2000), "a long text");
    }
}

#[test]
fn packed_streams_give_the_same_bits_however_the_bytes_come_and_whoever_is_beside_them() {
    let model = model::<Flex>(&config(Attend::All, 9));
    for (format, _) in sharnn_core::kernels::WeightFormat::ALL {
        let engine = model.engine(format);
        let texts: Vec<_> = [0, 33, 50, 21].iter().enumerate().map(|(i, &len)| text(i, len)).collect();
        let got = read(&mut engine.streams(4), &texts, uneven());
        for (text, got) in texts.iter().zip(&got) {
            assert_eq!(&read(&mut engine.streams(1), std::slice::from_ref(text), |_| 99)[0], got);
        }
    }
}

#[test]
fn streams_of_a_model_are_what_each_is_alone() {
    for (mem_len, segment_len) in [(0, 4), (9, 1), (9, 4), (30, 1)] {
        let model = model::<Flex>(&config(Attend::SecondLast, mem_len));
        let texts: Vec<_> = [40, 0, 33, 21, 40].iter().enumerate().map(|(i, &len)| text(i, len)).collect();
        for at_once in [true, false] {
            let mut part = uneven();
            let mut streams = ModelStreams::new(&model, 5, segment_len).unwrap();
            let got = read(&mut streams, &texts, |stream| if at_once { 40 } else { part(stream) });
            for (text, got) in texts.iter().zip(&got) {
                assert_near(got, &forward(&model, text, segment_len), "one of five");
            }
        }
    }
}

#[test]
fn streams_leave_join_and_begin_anew() {
    let model = model::<Flex>(&config(Attend::All, 10));
    let engine = model.engine(WeightFormat::F32);
    let packed = |n| -> Box<dyn Streams> { Box::new(engine.streams(n)) };
    let whole = |n| -> Box<dyn Streams> { Box::new(ModelStreams::new(&model, n, 1).unwrap()) };
    let want = [1, 2, 3].map(|seed| forward(&model, &text(seed, 40), 1));
    let ways: [&dyn Fn(usize) -> Box<dyn Streams>; 2] = [&packed, &whole];
    for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let [mut streams, mut other] = [ways[from](2), ways[to](3)];
        let ahead = read(&mut streams, &[text(1, 25), text(2, 13)], uneven());
        assert_near(&ahead[0], &want[0][..25 * 50], "before");
        // Into other places, beside one that begins.
        other.set_state(2, &streams.state(0)).unwrap();
        other.set_state(0, &streams.state(1)).unwrap();
        assert_eq!(other.logits(2), streams.logits(0));
        let rest = [text(2, 40)[13..].to_vec(), text(3, 40), text(1, 40)[25..].to_vec()];
        let got = read(&mut other, &rest, uneven());
        assert_near(&got[0], &want[1][13 * 50..], "the second");
        assert_near(&got[1], &want[2], "the third");
        assert_near(&got[2], &want[0][25 * 50..], "the first");
        // One begins anew; the others stay.
        let stays = other.state(2);
        other.reset(0);
        assert_eq!(other.logits(0), None);
        assert_eq!(other.state(0), StreamState::start(other.shape()));
        assert_eq!(other.state(2), stays);
        let got = read(&mut other, &[text(1, 40), vec![], vec![]], |_| 40);
        assert_near(&got[0], &want[0], "anew");
    }
}

#[test]
fn a_state_goes_on_bit_for_bit() {
    for mem_len in [0, 1, 7, 70] {
        let model = model::<Flex>(&config(Attend::All, mem_len));
        let engine = model.engine(WeightFormat::Bf16);
        let segment_len = if mem_len == 0 { 5 } else { mem_len.min(5) };
        let ways: [Box<dyn Fn() -> Box<dyn Streams>>; 2] = [
            Box::new(|| Box::new(engine.streams(1))),
            Box::new(|| Box::new(ModelStreams::new(&model, 1, segment_len).unwrap())),
        ];
        // From before a segment's end, at it, and with a ring that has rolled over.
        for before in [0, 3, 5, 19, 68, 71, 83] {
            for streams in &ways {
                let mut one = streams();
                read(&mut one, &[text(4, before)], |_| 99);
                let mut other = streams();
                read(&mut other, &[text(9, 11)], |_| 99);
                other.set_state(0, &one.state(0)).unwrap();
                assert_eq!(one.state(0), other.state(0));
                let [want, got] = [&mut one, &mut other].map(|streams| read(streams, &[text(5, 80)], |_| 6));
                assert!(want == got, "memory {mem_len}, after {before} of {one:?}");
                assert_eq!(one.state(0), other.state(0));
            }
        }
    }
}

#[test]
fn what_a_stream_carries_does_not_grow() {
    let model = model::<Flex>(&config(Attend::All, 8));
    let packed = model.engine(WeightFormat::Int8).streams(1);
    let all: [Box<dyn Streams>; 3] = [
        Box::new(packed),
        Box::new(ModelStreams::new(&model, 1, 1).unwrap()),
        Box::new(ModelStreams::new(&model, 1, 8).unwrap()),
    ];
    for mut streams in all {
        let mut sizes = Vec::new();
        for part in text(1, 80).chunks(8) {
            streams.read(&[part], &mut |_, _, _| {});
            let state = streams.state(0);
            assert_eq!(state.memory_rows(), 8);
            sizes.push((state.size_bytes(), state.to_bytes().len()));
        }
        assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
        // Three blocks of h, c and 8 rows, 18 wide, and 50 logits.
        assert_eq!(sizes[0].0, 4 * (3 * 10 * 18 + 50));
        assert!(sizes[0].1 <= streams.shape().most_bytes());
    }
}

#[test]
#[should_panic(expected = "there is no room for")]
fn a_memory_larger_than_any() {
    // So that the product of its sizes is small again: 112 values.
    let config = ShaRnnConfig { d_model: 112, d_ff: 112, n_layers: 1, attend: Attend::All, ..ShaRnnConfig::xs() };
    let model = config.init_seeded::<Flex>(1, &Default::default()).with_mem_len((1 << 62) + 1);
    model.engine(WeightFormat::F32).streams(1);
}

#[test]
fn what_a_state_does_not_fit() {
    let model = |config: &ShaRnnConfig| ModelStreams::new(&model::<Flex>(config), 1, 3).unwrap();
    let base = config(Attend::SecondLast, 6);
    let mut streams = model(&base);
    streams.read(&[&text(1, 7)], &mut |_, _, _| {});
    let state = streams.state(0);
    assert_eq!((state.position(), state.memory_rows()), (1, 4));
    for (other, field) in [
        (base.clone().with_vocab_size(51), "vocab_size"),
        (ShaRnnConfig { d_model: 12, ..base.clone() }, "d_model"),
        (base.clone().with_mem_len(7), "mem_len"),
        (base.clone().with_attend(Attend::All), "attends"),
        (ShaRnnConfig { n_layers: 4, ..base.clone() }, "attends"),
    ] {
        let mut streams = model(&other);
        let before = streams.state(0);
        let error = streams.set_state(0, &state).unwrap_err();
        assert!(matches!(&error, StateError::Shape { field: found, .. } if *found == field), "{error}");
        assert_eq!(streams.state(0), before);
    }
    // Other weights of the same sizes cannot be told from these.
    let engine = self::model::<Flex>(&base).engine(WeightFormat::F32);
    let mut packed = engine.streams(1);
    let error = packed.set_state(0, &state).unwrap_err();
    assert!(matches!(error, StateError::Segment { position: 1, expected: 1, found: 3 }), "{error}");
    packed.set_state(0, &state.end_segment()).unwrap();
    assert_eq!(packed.state(0).memory_rows(), 4);
    // A memory of no rows has none between two segments.
    let mut none = model(&base.with_mem_len(0));
    none.read(&[&text(1, 5)], &mut |_, _, _| {});
    assert_eq!(none.state(0).memory_rows(), 2);
    assert_eq!(none.state(0).end_segment().memory_rows(), 0);
    none.read(&[&text(1, 1)], &mut |_, _, _| {});
    assert_eq!(none.state(0).memory_rows(), 0);
}

#[test]
fn segments_that_cannot_be() {
    for (mem_len, segment_len) in [(6, 0), (6, 7), (0, 0)] {
        let error = ModelStreams::new(&model::<Flex>(&config(Attend::All, mem_len)), 1, segment_len).unwrap_err();
        assert_eq!(error, StreamError::SegmentLen { segment_len, mem_len });
    }
    // Nothing is cut where nothing attends.
    ModelStreams::new(&model::<Flex>(&config(Attend::None, 6)), 1, 7).unwrap();
}

// --- scorers ---------------------------------------------------------------------------------------------------------

/// The cost of each byte of `text` after a newline, from the model's own logits, in nats.
fn costs<B: Backend>(model: &ShaRnn<B>, text: &[u8]) -> Vec<f64> {
    let read = [b"\n", text].concat();
    let logits = forward(model, &read, 1);
    let tokens = TensorData::new(logits, [read.len(), model.vocab_size()]);
    let logits = Tensor::<B, 2>::from_data(tokens, &B::Device::default());
    let log_probs: Vec<f32> =
        burn::tensor::activation::log_softmax(logits, 1).into_data().convert::<f32>().to_vec().unwrap();
    text.iter()
        .zip(log_probs.chunks_exact(model.vocab_size()))
        .map(|(&byte, row)| -f64::from(row[usize::from(byte)]))
        .collect()
}

fn assert_costs(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{what}, byte {i}: {got} for {want}");
    }
}

#[test]
fn a_score_is_the_models_log_softmax() {
    fn check<B: Backend>() {
        for mem_len in [0, 7, 100] {
            let model = model::<B>(&config(Attend::All, mem_len));
            let text = text(1, 30);
            let want = costs(&model, &text);
            let engine = model.engine(WeightFormat::F32);
            let mut packed = Scorer::new(engine.streams(1)).unwrap();
            assert_costs(&packed.score(&text).unwrap(), &want, "packed");
            let mut whole = Scorer::new(ModelStreams::new(&model, 1, 1).unwrap()).unwrap();
            assert_costs(&whole.score(&text).unwrap(), &want, "the model");
            for tally in [packed.tally(), whole.tally()] {
                assert_eq!(tally.bytes, 30);
                let bits = want.iter().sum::<f64>() / 30.0 / 2.0_f64.ln();
                assert!((tally.bits_per_byte().unwrap() - bits).abs() < 1e-5);
            }
        }
    }
    check::<Flex>();
    check::<NdArray>();
}

#[test]
fn scores_in_parts_and_of_many_are_the_same() {
    let model = model::<Flex>(&config(Attend::All, 7));
    let engine = model.engine(WeightFormat::Int8);
    let texts = [text(1, 30), text(2, 0), text(3, 19)];
    let alone = |text: &[u8]| Scorer::new(engine.streams(1)).unwrap().score(text).unwrap();
    let mut batch = BatchScorer::new(engine.streams(3)).unwrap();
    let got = batch.score(&texts).unwrap();
    assert_eq!(got, texts.each_ref().map(|text| alone(text)));
    assert_eq!(batch.tally(1), Tally::default());
    assert_eq!(batch.tally(1).bits_per_byte(), None);
    assert_eq!(batch.tally(2), Tally { bytes: 19, nats: batch.tally(2).nats });
    assert!((batch.tally(2).nats - got[2].iter().sum::<f64>()).abs() < 1e-9);

    let mut parts = Scorer::new(engine.streams(1)).unwrap();
    let mut scores = Vec::new();
    for part in texts[0].chunks(4) {
        scores.extend(parts.score(part).unwrap());
        assert!(parts.score(b"").unwrap().is_empty());
        // To ask changes nothing.
        assert_eq!(parts.log_probs().unwrap(), parts.log_probs().unwrap());
    }
    assert_eq!(scores, got[0]);

    // A stream that begins anew begins after a newline again; one that is fed begins with that.
    batch.reset(0);
    assert_eq!(batch.score(&[&texts[2][..], b"", b""]).unwrap()[0], got[2]);
    assert_eq!(batch.tally(0).bytes, 19);
    batch.reset(0);
    batch.feed(&[&b"\n"[..], b"", b""]).unwrap();
    assert_eq!(batch.score(&[&texts[2][..], b"", b""]).unwrap()[0], got[2]);
    batch.reset(0);
    batch.feed(&[&[1_u8][..], b"", b""]).unwrap();
    assert_ne!(batch.score(&[&texts[2][..], b"", b""]).unwrap()[0][0], got[2][0]);
}

#[test]
fn whole_distributions_are_what_the_bytes_are_scored_with() {
    let model = model::<Flex>(&config(Attend::SecondLast, 7));
    for segment_len in [1, 4] {
        let mut scorer = Scorer::new(ModelStreams::new(&model, 1, segment_len).unwrap()).unwrap();
        let mut stepwise = scorer.clone();
        let text = text(1, 20);
        let scores = scorer.clone().score(&text).unwrap();
        let mut seen = 0;
        scorer
            .score_with(&text, |offset, log_probs| {
                assert_eq!(offset, seen);
                seen += 1;
                assert_eq!(scores[offset], -log_probs[usize::from(text[offset])]);
                assert!((log_probs.iter().map(|x| x.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
                // The next byte's, asked for before the byte is there.
                let asked = stepwise.log_probs().unwrap();
                assert!(asked.iter().zip(log_probs).all(|(a, b)| (a - b).abs() < 1e-4), "byte {offset}");
                stepwise.score(&text[offset..offset + 1]).unwrap();
            })
            .unwrap();
        assert_eq!(seen, 20);
    }
}

#[test]
fn what_cannot_be_scored() {
    let config = config(Attend::All, 7);
    let engine = model::<Flex>(&config).engine(WeightFormat::F32);
    let mut scorer = BatchScorer::new(engine.streams(2)).unwrap();
    let error = scorer.score(&[&[1, 2, 3][..], &[4, 77]]).unwrap_err();
    assert_eq!(error, StreamError::OutsideVocabulary { stream: 1, byte: 77, offset: 1, vocab_size: 50 });
    assert!(scorer.state(0).is_start() && scorer.state(1).is_start(), "nothing was read");
    assert_eq!(
        scorer.feed(&[&[255_u8][..], b""]).unwrap_err().to_string().split(':').next(),
        Some("byte 255 at offset 0 for stream 0 is outside the model's vocabulary of 50")
    );

    let small = model::<Flex>(&config.clone().with_vocab_size(10));
    let mut scorer = Scorer::new(ModelStreams::new(&small, 1, 1).unwrap()).unwrap();
    let error = scorer.score(&[1]).unwrap_err();
    assert!(matches!(error, StreamError::OutsideVocabulary { byte: b'\n', .. }), "{error}");
    scorer.feed(&[0]).unwrap();
    assert_eq!(scorer.score(&[1]).unwrap().len(), 1);

    let large = model::<Flex>(&config.clone().with_vocab_size(257));
    let error = Scorer::new(large.engine(WeightFormat::F32).streams(1)).unwrap_err();
    assert_eq!(error, StreamError::NotBytes { vocab_size: 257 });

    let mut diverged = model::<Flex>(&config);
    diverged.decoder.bias = diverged.decoder.bias.map(|bias| bias * f32::NAN);
    let error = Scorer::new(ModelStreams::new(&diverged, 1, 1).unwrap()).unwrap().score(&[1, 2]).unwrap_err();
    assert!(matches!(error, StreamError::NotFinite { stream: 0, byte: 0, .. }), "{error}");
}

#[test]
#[should_panic(expected = "1 texts for 2 streams")]
fn a_text_for_each_stream() {
    let engine = model::<Flex>(&config(Attend::All, 7)).engine(WeightFormat::F32);
    let _ = BatchScorer::new(engine.streams(2)).unwrap().score(&["one"]);
}

#[test]
#[should_panic(expected = "2 streams for a scorer of one: use BatchScorer")]
fn a_scorer_is_of_one_stream() {
    let engine = model::<Flex>(&config(Attend::All, 7)).engine(WeightFormat::F32);
    let _ = Scorer::new(engine.streams(2));
}

/// A service keeps them in its own structures and threads.
#[test]
fn all_of_it_is_owned_and_goes_to_other_threads() {
    fn is_send<T: Send + 'static>() {}
    is_send::<DecodeEngine>();
    is_send::<DecodeStreams>();
    is_send::<ModelStreams<Flex>>();
    is_send::<ModelStreams<NdArray>>();
    is_send::<ModelStreams<Autodiff<Flex>>>();
    is_send::<StreamState>();
    is_send::<Scorer<Box<dyn Streams>>>();
    is_send::<BatchScorer<DecodeStreams>>();
    is_send::<Generator<Box<dyn Streams>>>();
    is_send::<BatchGenerator<ModelStreams<Flex>>>();

    let model = model::<Flex>(&config(Attend::All, 7));
    let mut scorer = Scorer::new(ModelStreams::new(&model, 1, 1).unwrap()).unwrap();
    let want = scorer.clone().score(&text(1, 20)).unwrap();
    let got = std::thread::spawn(move || scorer.score(&text(1, 20)).unwrap()).join().unwrap();
    assert_eq!(got, want);
}

/// A model whose gradients are tracked keeps no graph from one call to the next.
#[test]
fn a_model_under_autodiff_gives_the_same() {
    let [plain, tracked] = [
        read(&mut ModelStreams::new(&model::<Flex>(&config(Attend::All, 7)), 1, 2).unwrap(), &[text(1, 30)], uneven()),
        read(
            &mut ModelStreams::new(&model::<Autodiff<Flex>>(&config(Attend::All, 7)), 1, 2).unwrap(),
            &[text(1, 30)],
            uneven(),
        ),
    ];
    assert_near(&tracked[0], &plain[0], "tracked");
}
