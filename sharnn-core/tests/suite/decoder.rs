//! The CPU's decoder against the model itself.

use burn::backend::{Flex, NdArray};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend as BurnBackend};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharnn_core::{
    Attend, Backend, DecodeEngine, DecodeStreams, ShaRnn, ShaRnnConfig, ShaRnnState, Streams, WeightFormat,
};

/// Adds noise to every parameter: gates that start at 0 and norms at 1 would hide mistakes.
struct Noise(ChaCha8Rng);

impl<B: BurnBackend> ModuleMapper<B> for Noise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape = param.dims();
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.0.random_range(-0.4..0.4)).collect();
        let noise = Tensor::from_data(TensorData::new(values, shape), &param.device());
        param.map(|x| x + noise)
    }
}

/// 18 wide, which no vector divides, with Boom's activations in two chunks and a tail.
pub(crate) fn config(attend: Attend, mem_len: usize) -> ShaRnnConfig {
    ShaRnnConfig { vocab_size: 50, d_model: 18, d_ff: 45, n_layers: 3, ..ShaRnnConfig::xs() }
        .with_attend(attend)
        .with_mem_len(mem_len)
}

pub(crate) fn model<B: Backend>(config: &ShaRnnConfig) -> ShaRnn<B> {
    let model = config.init_seeded::<B>(3, &Default::default());
    model.map(&mut Noise(ChaCha8Rng::seed_from_u64(5)))
}

fn token(stream: usize, step: usize) -> u8 {
    ((stream * 17 + step * 7 + step * step / 5) % 50) as u8
}

/// `[n, steps]`
fn tokens<B: Backend>(n: usize, steps: std::ops::Range<usize>) -> Tensor<B, 2, Int> {
    let ids: Vec<i32> = (0..n).flat_map(|i| steps.clone().map(move |t| token(i, t).into())).collect();
    Tensor::from_data(TensorData::new(ids, [n, steps.len()]), &B::Device::default())
}

pub(crate) fn values<B: Backend>(x: Tensor<B, 3>) -> Vec<f32> {
    x.into_data().convert::<f32>().to_vec().unwrap()
}

/// Logits of the model fed token by token, `[steps, n, vocab_size]`, and its state after them.
fn forward<B: Backend>(
    model: &ShaRnn<B>,
    mut state: ShaRnnState<B>,
    n: usize,
    steps: std::ops::Range<usize>,
) -> (Vec<f32>, ShaRnnState<B>) {
    let mut all = Vec::new();
    for t in steps {
        let (logits, next) = model.forward(tokens(n, t..t + 1), state);
        all.extend(values(logits));
        state = next;
    }
    (all, state)
}

/// The same of the decoder.
fn feed(streams: &mut DecodeStreams, steps: std::ops::Range<usize>) -> Vec<f32> {
    let n = streams.n_streams();
    let step = |t: usize| streams.feed(&(0..n).map(|i| token(i, t)).collect::<Vec<_>>()).to_vec();
    steps.flat_map(step).collect()
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |largest, (a, b)| if (a - b).abs() <= largest { largest } else { (a - b).abs() })
}

/// Holds the decoder to the model fed token by token for three times its memory and more.
fn assert_same(config: &ShaRnnConfig, n: usize) {
    let model = model::<Flex>(config);
    let steps = 0..3 * config.mem_len.min(12) + 5;
    let (want, _) = forward(&model, model.empty_state(), n, steps.clone());
    let got = feed(&mut model.engine(WeightFormat::F32).streams(n), steps);
    assert!(want.iter().any(|x| x.abs() > 0.1), "the logits say nothing");
    let difference = largest_difference(&got, &want);
    assert!(difference <= 1e-4, "{config:?}, {n} streams: {difference}");
}

#[test]
fn token_by_token_gives_what_the_model_gives() {
    for attend in [Attend::None, Attend::SecondLast, Attend::All, Attend::Blocks(vec![0])] {
        for mem_len in [0, 1, 2, 12] {
            for n_heads in [1, 2] {
                for n in [1, 3] {
                    assert_same(&config(attend.clone(), mem_len).with_heads(n_heads), n);
                }
            }
        }
    }
}

#[test]
fn other_shapes_and_an_untied_decoder() {
    let base = config(Attend::SecondLast, 7);
    assert_same(&base.clone().with_tied(false), 2);
    for (d_model, d_ff) in [(1, 1), (5, 9), (16, 16), (33, 70), (48, 192)] {
        assert_same(&ShaRnnConfig { d_model, d_ff, ..base.clone() }, 2);
    }
    assert_same(&ShaRnnConfig { n_layers: 1, ..base.clone() }.with_attend(Attend::All), 1);
    assert_same(&base.with_vocab_size(97), 1);
}

#[test]
fn one_segment_gives_the_same_while_it_fits_into_the_memory() {
    // More than one block of the decoder's attention.
    let model = model::<Flex>(&config(Attend::All, 80).with_heads(2));
    let (whole, _) = model.forward(tokens(1, 0..80), model.empty_state());
    let got = feed(&mut model.engine(WeightFormat::F32).streams(1), 0..80);
    assert!(largest_difference(&got, &values(whole)) <= 1e-4);
}

#[test]
fn a_collapsed_model_and_another_backend_give_the_same() {
    let config = config(Attend::All, 6);
    let feed = |engine: DecodeEngine| feed(&mut engine.streams(1), 0..20);
    let model = model::<Flex>(&config);
    let got = feed(model.engine(WeightFormat::F32));
    assert!(largest_difference(&got, &feed(model.collapse().engine(WeightFormat::F32))) <= 1e-5);
    let other = self::model::<NdArray>(&config);
    assert!(largest_difference(&got, &feed(other.engine(WeightFormat::F32))) <= 1e-5);
}

#[test]
fn smaller_weights_stay_near() {
    // 64 wide, as initialised: noise as large as the other tests' would be another model.
    let config =
        ShaRnnConfig { d_model: 64, d_ff: 256, ..ShaRnnConfig::xs() }.with_mem_len(16).with_attend(Attend::All);
    let model = config.init_seeded::<Flex>(3, &Default::default());
    let (want, _) = forward(&model, model.empty_state(), 1, 0..60);
    let largest = want.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    // A bf16 is off by 2⁻⁹ of itself at most, an integer by 1/254 of its row's largest weight; errors of many weights add
    // up as their root, and blocks repeat them.
    for (format, tolerance) in
        [(WeightFormat::F32, 1e-5), (WeightFormat::Bf16, 1e-2), (WeightFormat::Int8, 3e-2), (WeightFormat::Exact, 3e-2)]
    {
        let got = feed(&mut model.engine(format).streams(1), 0..60);
        let difference = largest_difference(&got, &want) / largest;
        assert!(difference <= tolerance, "{format:?}: {difference}");
        assert!(format == WeightFormat::F32 || difference > 1e-4, "{format:?} rounds nothing: {difference}");
    }
}

#[test]
fn an_engine_goes_to_other_threads() {
    let engine = model::<Flex>(&config(Attend::All, 6)).engine(WeightFormat::Bf16);
    let want = feed(&mut engine.streams(1), 0..30);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut streams = engine.streams(1);
            let want = &want;
            scope.spawn(move || assert_eq!(&feed(&mut streams, 0..30), want));
        }
    });
}

#[test]
#[should_panic(expected = "2 tokens for 1 streams")]
fn more_tokens_than_streams_are_refused() {
    model::<Flex>(&config(Attend::All, 6)).engine(WeightFormat::F32).streams(1).feed(&[1u8, 2]);
}

/// The weights of attention after each token are those of the model, in two heads too, and once the memory is full.
#[test]
fn it_shows_where_a_token_looked() {
    for n_heads in [1, 2] {
        let model = model::<Flex>(&ShaRnnConfig { n_heads, ..config(Attend::SecondLast, 7) });
        let mut streams = model.engine(WeightFormat::F32).streams(2);
        assert_eq!(streams.look(0), None);
        let mut state = model.empty_state();
        for t in 0..12 {
            streams.feed(&[token(1, t), token(0, t)]);
            let looked = model.look(tokens(1, t..t + 1), state);
            state = looked.state;
            let expected = looked.weights[1].clone().unwrap().into_data().to_vec::<f32>().unwrap();
            let heads = streams.look(1).unwrap();
            assert!(heads.len() == n_heads && heads.iter().all(|weights| weights.len() == (t + 1).min(7)));
            let found = heads.concat();
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == expected.len() && difference < 1e-5, "{n_heads} heads, step {t}: {difference}");
        }
    }
    let mut without = model::<Flex>(&config(Attend::None, 7)).engine(WeightFormat::F32).streams(1);
    without.feed(&[1u8]);
    assert_eq!(without.look(0), None);
}
