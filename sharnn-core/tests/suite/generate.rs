//! Generation repeats itself for a seed, keeps to its options, and takes any bytes.

use std::io::{self, Write};

use burn::backend::Flex;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use sharnn_core::{
    BatchGenerator, DecodeStreams, GenerateError, Generator, ModelStreams, Sampling, ShaRnn, ShaRnnConfig, StreamError,
    Streams, WeightFormat,
};

fn config() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 2, mem_len: 6, ..ShaRnnConfig::xs() }
}

fn model() -> ShaRnn<Flex> {
    let mut model: ShaRnn<Flex> = config().init_seeded(1, &Default::default());
    // Larger than at the start of training, so that the distribution depends on the text.
    model.encoder.weight = model.encoder.weight.map(|weight| weight * 30.0);
    model
}

fn streams(model: &ShaRnn<Flex>) -> DecodeStreams {
    model.engine(WeightFormat::F32).streams(1)
}

fn generated(streams: impl Streams, sampling: Sampling, prompt: &[u8], n: usize) -> Vec<u8> {
    let mut generator = Generator::new(streams, sampling).unwrap();
    generator.feed(prompt).unwrap();
    let mut text = Vec::new();
    generator.generate_to(&mut text, n).unwrap();
    text
}

fn text(model: &ShaRnn<Flex>, sampling: Sampling, prompt: &[u8], n: usize) -> Vec<u8> {
    generated(streams(model), sampling, prompt, n)
}

fn sampling(temperature: f64, seed: u64) -> Sampling {
    Sampling { temperature, seed, ..Sampling::default() }
}

#[test]
fn a_seed_repeats_its_text_and_another_gives_another() {
    let model = model();
    let run = |seed| text(&model, sampling(1.0, seed), b"seed", 40);
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
    assert_eq!(run(3).len(), 40);
}

#[test]
fn one_candidate_is_the_greedy_choice() {
    let model = model();
    let greedy = text(&model, sampling(0.0, 1), b"the prompt", 30);
    assert_eq!(text(&model, Sampling { top_k: Some(1), ..sampling(1.0, 7) }, b"the prompt", 30), greedy);
    assert_eq!(text(&model, Sampling { top_p: Some(1e-9), ..sampling(1.0, 7) }, b"the prompt", 30), greedy);
    assert_eq!(text(&model, sampling(1e-300, 7), b"the prompt", 30), greedy);
}

#[test]
fn generated_bytes_are_those_that_the_models_logits_name() {
    // Byte by byte through the model itself, a greedy choice each time.
    let model = model();
    let mut state = model.empty_state();
    let mut expected = Vec::new();
    // Within the memory, the prompt is one segment for the model, and five for packed weights.
    let mut input: Vec<i32> = b"abcde".iter().map(|&byte| byte.into()).collect();
    for _ in 0..20 {
        let n = input.len();
        let tokens = Tensor::from_data(TensorData::new(input, [1, n]), &Default::default());
        let (logits, next) = model.forward(tokens, state);
        state = next;
        let last: Vec<f32> = logits.narrow(1, n - 1, 1).into_data().to_vec().unwrap();
        let best = (0..256).rev().max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        expected.push(best as u8);
        input = vec![best as i32];
    }
    assert_eq!(text(&model, sampling(0.0, 1), b"abcde", 20), expected);
    assert_eq!(generated(ModelStreams::new(&model, 1, 1).unwrap(), sampling(0.0, 1), b"abcde", 20), expected);
}

#[test]
fn a_stream_that_generates_can_be_fed_again() {
    let model = model();
    let mut generator = Generator::new(streams(&model), sampling(0.0, 1)).unwrap();
    generator.feed(b"abc").unwrap();
    let first: Vec<u8> = (0..9).map(|_| generator.next_byte().unwrap()).collect();
    generator.feed(b"more").unwrap();
    let second: Vec<u8> = (0..9).map(|_| generator.next_byte().unwrap()).collect();

    let mut fed = Generator::new(streams(&model), sampling(0.0, 1)).unwrap();
    fed.feed(b"abc").unwrap();
    first.iter().for_each(|&byte| fed.feed(&[byte]).unwrap());
    fed.feed(b"more").unwrap();
    assert_eq!((0..9).map(|_| fed.next_byte().unwrap()).collect::<Vec<_>>(), second);
}

/// A model whose next byte has a fixed distribution: all but the decoder's bias is 0.
fn fixed(probs: &[f32]) -> ShaRnn<Flex> {
    let config = ShaRnnConfig { vocab_size: probs.len(), ..config() };
    let mut model: ShaRnn<Flex> = config.init_seeded(1, &Default::default());
    model.encoder.weight = model.encoder.weight.map(|weight| weight * 0.0);
    let bias: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
    model.decoder.bias = Param::from_tensor(Tensor::from_data(bias.as_slice(), &Default::default()));
    model
}

fn counts(sampling: Sampling) -> [usize; 4] {
    let model = fixed(&[0.1, 0.4, 0.2, 0.3]);
    let mut counts = [0; 4];
    for byte in text(&model, sampling, &[0], 2000) {
        counts[usize::from(byte)] += 1;
    }
    counts
}

#[test]
fn options_cut_and_shape_the_distribution() {
    // 2000 draws: a share's standard deviation is at most 0.011, and the seed is fixed.
    let near = |counts: [usize; 4], expected: [f64; 4]| {
        for (count, share) in counts.into_iter().zip(expected) {
            assert!((count as f64 / 2000.0 - share).abs() < 0.04, "{counts:?} for {expected:?}");
            assert_eq!(count == 0, share == 0.0, "{counts:?} for {expected:?}");
        }
    };
    near(counts(sampling(1.0, 5)), [0.1, 0.4, 0.2, 0.3]);
    near(counts(Sampling { top_k: Some(2), ..sampling(1.0, 5) }), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    near(counts(Sampling { top_k: Some(99), ..sampling(1.0, 5) }), [0.1, 0.4, 0.2, 0.3]);
    // 0.4 + 0.3 does not reach 0.75, with 0.2 it does.
    near(counts(Sampling { top_p: Some(0.75), ..sampling(1.0, 5) }), [0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
    near(counts(Sampling { top_p: Some(1.0), ..sampling(1.0, 5) }), [0.1, 0.4, 0.2, 0.3]);
    // Half the temperature squares the probabilities: 1, 16, 4, 9 of 30.
    near(counts(sampling(0.5, 5)), [1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
}

#[test]
fn any_bytes_and_no_bytes_are_prompts() {
    let model = model();
    let every: Vec<u8> = (0..=255).rev().collect();
    assert_eq!(text(&model, sampling(1.0, 2), &every, 5).len(), 5);
    assert_eq!(text(&model, sampling(1.0, 2), b"\xff\xfe\x00\xc3", 5).len(), 5);
    assert_eq!(text(&model, sampling(1.0, 2), b"", 8), text(&model, sampling(1.0, 2), b"\n", 8));
}

#[test]
fn a_prompt_in_parts_is_the_same_prompt() {
    let model = model();
    let packed = || -> Box<dyn Streams> { Box::new(streams(&model)) };
    let whole = || -> Box<dyn Streams> { Box::new(ModelStreams::new(&model, 1, 4).unwrap()) };
    for [in_parts, at_once] in [[packed(), packed()], [whole(), whole()]] {
        let mut generator = Generator::new(in_parts, sampling(0.0, 1)).unwrap();
        generator.feed(b"1234567").unwrap();
        generator.feed(b"89").unwrap();
        let parts: Vec<u8> = generator.take(10).map(Result::unwrap).collect();
        assert_eq!(parts, generated(at_once, sampling(0.0, 1), b"123456789", 10));
    }
}

#[test]
fn streams_side_by_side_write_what_each_writes_alone() {
    let model = model();
    let engine = model.engine(WeightFormat::F32);
    let prompts: [&[u8]; 3] = [b"first", b"", b"the third one"];
    let alone: Vec<_> = (0..3).map(|i| text(&model, sampling(1.0, 11 + i as u64), prompts[i], 20)).collect();
    let mut batch = BatchGenerator::new(engine.streams(3), Sampling::default()).unwrap();
    for stream in 0..3 {
        batch.set_sampling(stream, sampling(1.0, 11 + stream as u64)).unwrap();
    }
    batch.feed(&prompts).unwrap();
    let mut texts = vec![Vec::new(); 3];
    // All, then two of them, and the one that waited.
    for step in 0..30 {
        let go: &[usize] = match step {
            0..10 => &[2, 0, 1],
            10..20 => &[1, 2],
            _ => &[0],
        };
        for (&stream, byte) in go.iter().zip(batch.next_bytes(go).unwrap()) {
            texts[stream].push(byte);
        }
    }
    assert_eq!(texts, alone);

    // One leaves for a place in another batch.
    let want: Vec<_> = (0..9).map(|_| batch.next_bytes(&[2]).unwrap()[0]).collect();
    let mut other = BatchGenerator::new(engine.streams(2), sampling(0.0, 0)).unwrap();
    let mut again = Generator::new(engine.streams(1), sampling(1.0, 13)).unwrap();
    again.feed(prompts[2]).unwrap();
    let _ = again.by_ref().take(20).count();
    other.set_state(1, &again.state()).unwrap();
    assert_eq!(other.state(1), again.state());
    assert_eq!(again.take(9).map(Result::unwrap).collect::<Vec<_>>(), want);
}

#[test]
fn streams_of_one_seed_draw_numbers_of_their_own_and_the_first_those_of_one_alone() {
    let model = model();
    let engine = model.engine(WeightFormat::F32);
    let mut batch = BatchGenerator::new(engine.streams(2), sampling(1.0, 3)).unwrap();
    batch.feed(&["seed", "seed"]).unwrap();
    let bytes: Vec<_> = (0..40).map(|_| batch.next_bytes(&[0, 1]).unwrap()).collect();
    let [first, second] = [0, 1].map(|stream| bytes.iter().map(|bytes| bytes[stream]).collect::<Vec<_>>());
    assert_eq!(first, text(&model, sampling(1.0, 3), b"seed", 40));
    assert_ne!(first, second);
    // Anew, and with numbers from their beginning.
    batch.reset(1);
    batch.set_sampling(1, sampling(1.0, 3)).unwrap();
    batch.feed(&["", "seed"]).unwrap();
    assert_eq!((0..40).map(|_| batch.next_bytes(&[1]).unwrap()[0]).collect::<Vec<_>>(), first);
}

#[test]
#[should_panic(expected = "stream 1 is named twice")]
fn a_stream_cannot_write_two_bytes_at_once() {
    let engine = model().engine(WeightFormat::F32);
    let _ = BatchGenerator::new(engine.streams(2), Sampling::default()).unwrap().next_bytes(&[1, 0, 1]);
}

#[test]
fn an_option_that_cannot_be_used_is_refused_by_name() {
    let model = model();
    for (sampling, field) in [
        (sampling(-1.0, 1), "temperature"),
        (sampling(f64::NAN, 1), "temperature"),
        (sampling(f64::INFINITY, 1), "temperature"),
        (Sampling { top_k: Some(0), ..Sampling::default() }, "top_k"),
        (Sampling { top_p: Some(0.0), ..Sampling::default() }, "top_p"),
        (Sampling { top_p: Some(1.1), ..Sampling::default() }, "top_p"),
        (Sampling { top_p: Some(f64::NAN), ..Sampling::default() }, "top_p"),
    ] {
        let error = Generator::new(streams(&model), sampling).unwrap_err();
        assert!(matches!(&error, GenerateError::Sampling(error) if error.field == field), "{error}");
    }
}

#[test]
fn a_vocabulary_that_does_not_fit_is_refused() {
    let small = fixed(&[0.25; 4]);
    let mut generator = Generator::new(streams(&small), Sampling::default()).unwrap();
    let error = generator.feed(&[1, 2, 4]).unwrap_err();
    assert!(
        matches!(
            error,
            GenerateError::Stream(StreamError::OutsideVocabulary { stream: 0, byte: 4, offset: 2, vocab_size: 4 })
        ),
        "{error}"
    );
    // The newline of an empty prompt is no token of this model.
    let error = generator.next_byte().unwrap_err();
    assert!(matches!(error, GenerateError::Stream(StreamError::OutsideVocabulary { byte: b'\n', .. })), "{error}");
    let large: ShaRnn<Flex> = config().with_vocab_size(257).init_seeded(1, &Default::default());
    let error = Generator::new(streams(&large), Sampling::default()).unwrap_err();
    assert!(matches!(error, GenerateError::Stream(StreamError::NotBytes { vocab_size: 257 })), "{error}");
}

#[test]
fn a_diverged_model_is_an_error() {
    let mut model = model();
    model.decoder.bias = model.decoder.bias.map(|bias| bias * f32::NAN);
    let error = Generator::new(streams(&model), Sampling::default()).unwrap().next_byte().unwrap_err();
    assert!(matches!(error, GenerateError::Stream(StreamError::NotFinite { byte: 0, .. })), "{error}");
}

/// Counts flushes, and fails after a few bytes.
#[derive(Default)]
struct Pipe {
    bytes: usize,
    flushes: usize,
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.bytes == 3 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.bytes += buf.len();
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }
}

#[test]
fn bytes_are_flushed_as_they_come_and_a_closed_pipe_is_an_error() {
    let (model, mut pipe) = (model(), Pipe::default());
    let error = Generator::new(streams(&model), Sampling::default()).unwrap().generate_to(&mut pipe, 9).unwrap_err();
    assert!(matches!(error, GenerateError::Io(_)), "{error}");
    assert_eq!((pipe.bytes, pipe.flushes), (3, 3));
}
