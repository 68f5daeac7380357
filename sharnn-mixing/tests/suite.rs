//! A mixer keeps its promises whatever it reads.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharnn_mixing::{ByteDistribution, Mixer, MixerConfig, MixerError};

const SMALL: MixerConfig = MixerConfig { memory: 1 << 20 };

fn mixer() -> Mixer {
    Mixer::new(SMALL, 1)
}

/// A model that says something else at each byte.
struct Model {
    rng: ChaCha8Rng,
    vocab_size: usize,
    distribution: ByteDistribution,
}

impl Model {
    fn new(seed: u64, vocab_size: usize) -> Self {
        let distribution = ByteDistribution::uniform();
        Self { rng: ChaCha8Rng::seed_from_u64(seed), vocab_size, distribution }
    }

    fn next(&mut self) -> &ByteDistribution {
        let scale = self.rng.random_range(0.0..12.0_f32);
        let logits: Vec<f32> = (0..self.vocab_size).map(|_| self.rng.random_range(-1.0..1.0) * scale).collect();
        self.distribution.set_logits(&logits);
        &self.distribution
    }
}

/// Lines of a log in which most of it repeats.
fn log(n: usize, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let line = |i| format!("2031-05-{:02} node{} job {i} took {} ms\n", 1 + i % 28, i % 7, rng.random_range(0..1000));
    (0..n).map(line).collect::<String>().into_bytes()
}

/// Bits per byte of a text after a model that knows nothing.
fn bits(mixer: &mut Mixer, text: &[u8]) -> f64 {
    let model = ByteDistribution::uniform();
    let nats: f64 = text.iter().map(|&byte| mixer.cost(0, &model, byte)).sum();
    nats / text.len() as f64 / std::f64::consts::LN_2
}

#[test]
fn what_repeats_becomes_cheap_and_what_is_new_stays_dear() {
    let mut mixer = mixer();
    let first = bits(&mut mixer, &log(20, 1));
    let later = bits(&mut mixer, &log(1000, 2));
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let noise = bits(&mut mixer, &(0..2000).map(|_| rng.random()).collect::<Vec<u8>>());
    assert!(first > 1.0 && later < 0.6 && (7.9..8.6).contains(&noise), "{first} {later} {noise}");
}

#[test]
fn a_good_model_is_heard() {
    // It gives half of its probability to a byte that is right half of the time; nothing that was read says more.
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut model = ByteDistribution::uniform();
    let mut mixer = mixer();
    let (mut nats, n) = (0.0, 20_000);
    for _ in 0..n {
        let (byte, other): (u8, u8) = (rng.random(), rng.random());
        let mut logits = [0.0; 256];
        logits[usize::from(if rng.random() { byte } else { other })] = 255.0_f32.ln();
        model.set_logits(&logits);
        nats += mixer.cost(0, &model, byte);
    }
    let bits = nats / f64::from(n) / std::f64::consts::LN_2;
    assert!((4.9..5.3).contains(&bits), "{bits}");
}

#[test]
fn the_distribution_is_that_of_the_decisions_sums_to_one_and_is_never_zero() {
    for vocab_size in [256, 255, 129, 128, 100, 3, 1] {
        let mut model = Model::new(vocab_size as u64, vocab_size);
        let mut mixer = mixer();
        for (i, byte) in log(40, 7).into_iter().enumerate() {
            let byte = (usize::from(byte) % vocab_size) as u8;
            let model = model.next();
            if i % 37 == 0 {
                let log_probs = mixer.log_probs(0, model);
                assert_eq!(log_probs.len(), vocab_size);
                let sum: f64 = log_probs.iter().map(|log_prob| log_prob.exp()).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{sum}");
                assert!(log_probs.iter().all(|log_prob| *log_prob > -100.0), "{log_probs:?}");
                let cost = mixer.clone().cost(0, model, byte);
                assert_eq!(cost, -log_probs[usize::from(byte)], "byte {i} of a vocabulary of {vocab_size}");
            }
            mixer.cost(0, model, byte);
        }
    }
}

#[test]
fn who_decodes_hears_what_who_encodes_said() {
    let text = log(50, 11);
    let (mut here, mut there) = (mixer(), mixer());
    let (mut models, mut again) = (Model::new(1, 256), Model::new(1, 256));
    for &byte in &text {
        let mut said = Vec::new();
        let mut bits = (0..8).rev().map(|bit| byte >> bit & 1 == 1);
        here.code(0, models.next(), |probability| {
            let bit = bits.next().unwrap();
            said.push((probability, bit));
            bit
        });
        let mut heard = said.into_iter();
        let decoded = there.code(0, again.next(), |probability| {
            let (expected, bit) = heard.next().unwrap();
            assert_eq!(probability, expected);
            bit
        });
        assert_eq!(decoded, byte);
    }
    assert_eq!(here.to_bytes(), there.to_bytes());
}

#[test]
fn hostile_bytes_overflow_nothing_and_take_no_more_memory() {
    // Every pair of bytes once: no context of two or more is met again.
    let de_bruijn = (0..=255_u8).flat_map(|i| std::iter::once(i).chain((i..255).flat_map(move |j| [i, j + 1])));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let texts: [Vec<u8>; 5] = [
        vec![0; 40_000],
        vec![255; 40_000],
        b"\n".repeat(40_000),
        (0..40_000).map(|_| rng.random()).collect(),
        de_bruijn.collect(),
    ];
    let mut mixer = mixer();
    for text in texts {
        let bits = bits(&mut mixer, &text);
        assert!((0.0..9.0).contains(&bits), "{bits}");
        assert!(mixer.to_bytes().len() <= SMALL.memory, "{} bytes", mixer.to_bytes().len());
    }
    // One byte again and again costs next to nothing.
    assert!(bits(&mut mixer, &vec![7; 100_000]) < 0.01);
}

#[test]
fn memory_is_what_was_asked_for() {
    for (memory, lanes) in [(1 << 20, 1), (1 << 20, 256), (3_000_000, 7), (16 << 20, 64)] {
        let info = allocation_counter::measure(|| drop(Mixer::new(MixerConfig { memory }, lanes)));
        assert!(info.bytes_max <= memory as u64, "{} bytes of {memory}, {lanes} lanes", info.bytes_max);
        assert!(info.bytes_max >= memory as u64 / 2, "{} bytes of {memory}, {lanes} lanes", info.bytes_max);
    }
}

#[test]
fn lanes_share_what_is_learned_and_have_a_past_of_their_own() {
    let (first, second) = (log(300, 1), log(300, 2));
    let model = ByteDistribution::uniform();
    let mut together = Mixer::new(SMALL, 2);
    let mut alone = Mixer::new(SMALL, 2);
    let (mut with, mut without) = (0.0, 0.0);
    for (&a, &b) in first.iter().zip(&second) {
        together.cost(0, &model, a);
        with += together.cost(1, &model, b);
        without += alone.cost(1, &model, b);
    }
    assert!(with < 0.95 * without, "{with} {without}");
    // The order of the lanes is all that a mixer depends on.
    let mut again = Mixer::new(SMALL, 2);
    for (&a, &b) in first.iter().zip(&second) {
        again.cost(0, &model, a);
        again.cost(1, &model, b);
    }
    assert_eq!(again.to_bytes(), together.to_bytes());
}

#[test]
fn a_mixer_that_was_kept_goes_on_as_if_it_had_not_stopped() {
    let (text, rest) = (log(500, 4), log(100, 5));
    for lanes in [1, 3] {
        let mut mixer = Mixer::new(SMALL, lanes);
        let mut models = Model::new(9, 256);
        for (i, &byte) in text.iter().enumerate() {
            mixer.cost(i % lanes, models.next(), byte);
        }
        let bytes = mixer.to_bytes();
        assert_eq!(Mixer::saved_config(&bytes), Ok((SMALL, lanes)));
        let mut other = Mixer::new(SMALL, lanes);
        other.set_bytes(&bytes).unwrap();
        assert_eq!(other.to_bytes(), bytes);
        for &byte in &rest {
            let model = models.next();
            assert_eq!(mixer.cost(0, model, byte).to_bits(), other.cost(0, model, byte).to_bits());
        }
    }
    // What has read little is small.
    let mut mixer = mixer();
    assert!(mixer.to_bytes().len() < 50, "{}", mixer.to_bytes().len());
    bits(&mut mixer, &log(2, 1));
    assert!(mixer.to_bytes().len() < 40_000, "{}", mixer.to_bytes().len());
}

#[test]
fn bytes_that_are_no_mixer_are_refused_by_name_and_change_nothing() {
    let mut mixer = mixer();
    bits(&mut mixer, &log(30, 1));
    let bytes = mixer.to_bytes();
    let mut other = Mixer::new(MixerConfig { memory: 2 << 20 }, 1);
    let before = other.to_bytes();
    assert!(matches!(other.set_bytes(b"nonsense"), Err(MixerError::Format { len: 8 })));
    assert!(matches!(other.set_bytes(&bytes), Err(MixerError::Config { found: 1_048_576, .. })));
    assert_eq!(other.to_bytes(), before);
    for cut in [1, 2, 5, 100, bytes.len() / 2, bytes.len() - 40] {
        let error = mixer.clone().set_bytes(&bytes[..bytes.len() - cut]).unwrap_err();
        assert!(matches!(error, MixerError::Damaged { .. } | MixerError::Format { .. }), "{error}");
    }
    assert!(matches!(mixer.set_bytes(&[&bytes[..], &[0]].concat()), Err(MixerError::Damaged { .. })));
    let huge = [&bytes[..16], &[255; 16], &bytes[32..]].concat();
    assert!(matches!(Mixer::saved_config(&huge), Err(MixerError::Format { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is damaged, a mixer that was taken reads on.
    #[test]
    fn damage_is_refused_or_harmless(at in 0_usize..1_000_000, byte: u8, seed in 0_u64..4) {
        let mut mixer = mixer();
        bits(&mut mixer, &log(20, seed));
        let mut bytes = mixer.to_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if mixer.set_bytes(&bytes).is_ok() {
            let cost = bits(&mut mixer, &log(20, seed + 1));
            prop_assert!(cost.is_finite());
        }
    }

    /// Equal logits up to a constant are the same prediction; larger ones weigh more.
    #[test]
    fn weights_follow_logits(logits in prop::collection::vec(-80.0_f32..80.0, 2..256), byte in 0_usize..256) {
        let byte = byte % logits.len();
        let mut model = ByteDistribution::uniform();
        model.set_logits(&logits);
        let before = mixer().log_probs(0, &model)[byte];
        let mut more = logits.clone();
        more[byte] += 2.0;
        model.set_logits(&more);
        prop_assert!(mixer().log_probs(0, &model)[byte] >= before);
    }
}

/// Lines whose numbers are all new: what follows a number is known by what stood before, whatever its digits were.
#[test]
fn one_number_is_like_another() {
    let mut mixer = Mixer::new(MixerConfig::default(), 1);
    let model = ByteDistribution::uniform();
    let mut state = 1_u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    };
    let mut after = 0.0;
    for line in 0..200 {
        // Numbers of one length, each followed by something else.
        for sign in "abcdefgh".chars() {
            let text = format!("{:08}", number() % 100_000_000);
            for byte in text.bytes() {
                mixer.cost(0, &model, byte);
            }
            let cost = mixer.cost(0, &model, sign as u8);
            after += if line < 100 { 0.0 } else { cost / 800.0 };
        }
    }
    assert!(after < 0.1, "a sign that is certain costs {after} nats");
}
