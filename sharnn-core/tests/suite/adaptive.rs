//! Adaptive mixing on top of streams: scoring, generating, states, streams that share what they learn.

use burn::backend::Flex;
use sharnn_core::{
    BatchGenerator, BatchScorer, DecodeEngine, Generator, Mixer, MixerConfig, ModelStreams, Sampling, Scorer, ShaRnn,
    ShaRnnConfig, StateError, StreamState, Streams, WeightFormat,
};

const SMALL: MixerConfig = MixerConfig { memory: 1 << 20 };

fn mixer(lanes: usize) -> Mixer {
    Mixer::new(SMALL, lanes)
}

fn model() -> ShaRnn<Flex> {
    ShaRnnConfig { d_model: 16, d_ff: 40, ..ShaRnnConfig::xs() }.with_mem_len(20).init_seeded(3, &Default::default())
}

fn engine() -> DecodeEngine {
    model().engine(WeightFormat::F32)
}

fn lines(n: usize, seed: usize) -> Vec<u8> {
    let line = |i| format!("2031-05-{:02} node{} took {} ms\n", 1 + i % 28, i % 7, (i * seed * 37) % 991);
    (0..n).map(line).collect::<String>().into_bytes()
}

#[test]
fn what_was_read_becomes_cheap_and_static_scores_stay_as_they_are() {
    let engine = engine();
    let mut plain = Scorer::new(engine.streams(1)).unwrap();
    let mut adaptive = Scorer::adaptive(engine.streams(1), mixer(1)).unwrap();
    let text = lines(60, 3);
    let before: f64 = plain.score(&text).unwrap().iter().sum();
    let after: f64 = adaptive.score(&text).unwrap().iter().sum();
    assert!(after < 0.4 * before, "{after} {before}");
    assert!((adaptive.tally().nats - after).abs() < 1e-9 && adaptive.tally().bytes == text.len() as u64);
    let mut again = Scorer::new(engine.streams(1)).unwrap();
    assert_eq!(again.score(&text).unwrap().iter().sum::<f64>(), before);
}

#[test]
fn the_distribution_of_each_byte_is_what_it_costs() {
    let text = lines(10, 5);
    let mut one = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    let mut other = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    let nats = one.score(&text).unwrap();
    let mut at = 0;
    other
        .score_with(&text, |offset, log_probs| {
            assert_eq!(offset, at);
            assert_eq!(-log_probs[usize::from(text[offset])], nats[offset]);
            assert!((log_probs.iter().map(|log_prob| log_prob.exp()).sum::<f64>() - 1.0).abs() < 1e-9);
            at += 1;
        })
        .unwrap();
    assert_eq!((at, one.tally()), (text.len(), other.tally()));
    assert_eq!(one.log_probs().unwrap(), other.log_probs().unwrap());
}

#[test]
fn however_a_text_is_divided_and_fed_a_byte_costs_the_same() {
    let text = lines(20, 7);
    let mut whole = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    let expected = whole.score(&text).unwrap();
    let mut parts = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    let mut nats = Vec::new();
    for part in text.chunks(7) {
        nats.extend(parts.score(part).unwrap());
    }
    assert_eq!(nats, expected);
    // What is fed is learned as what is scored is.
    let (fed, scored) = text.split_at(300);
    let mut scorer = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    scorer.score(&fed[..1]).unwrap();
    scorer.feed(&fed[1..]).unwrap();
    assert_eq!(scorer.score(scored).unwrap(), expected[300..]);
}

#[test]
fn a_state_carries_what_was_learned_through_a_file() {
    let (text, rest) = (lines(30, 3), lines(5, 11));
    let mut scorer = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    scorer.score(&text).unwrap();
    let state = scorer.state();
    let bytes = state.to_bytes();
    let read = StreamState::from_bytes(&bytes, scorer.streams().shape()).unwrap();
    assert_eq!(read, state);
    assert!(read.adaptive().is_some() && read.size_bytes() < bytes.len());
    let expected = scorer.score(&rest).unwrap();
    let mut other = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    other.set_state(&read).unwrap();
    assert_eq!(other.score(&rest).unwrap(), expected);
    // A scorer that mixes nothing leaves it aside.
    let mut plain = Scorer::new(engine().streams(1)).unwrap();
    plain.set_state(&read).unwrap();
    assert!(plain.state().adaptive().is_none());
    // A state without it is taken, and the mixer begins anew.
    other.set_state(&plain.state()).unwrap();
    let cost = other.score(&rest).unwrap().iter().sum::<f64>();
    assert!(cost > 1.5 * expected.iter().sum::<f64>());
    // A mixer of another memory is none to go on with; the stream is as before then.
    let mut larger = Scorer::adaptive(engine().streams(1), Mixer::new(MixerConfig { memory: 2 << 20 }, 1)).unwrap();
    larger.score(&text).unwrap();
    let before = larger.state();
    let error = larger.set_state(&read).unwrap_err();
    assert!(matches!(error, StateError::Adaptive(_)) && error.to_string().contains("1048576"), "{error}");
    assert_eq!(larger.state(), before);
}

#[test]
fn a_state_s_mixer_that_is_damaged_is_refused() {
    let mut scorer = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    scorer.score(&lines(5, 1)).unwrap();
    let shape = scorer.streams().shape().clone();
    let bytes = scorer.state().to_bytes();
    for at in (0..bytes.len()).step_by(bytes.len() / 50) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        assert!(StreamState::from_bytes(&damaged, &shape).is_err(), "byte {at}");
    }
    // What says that its mixer is large may be so long; what says nothing may not.
    assert!(StreamState::most_bytes(&bytes[..shape.most_bytes()], &shape) >= bytes.len());
    assert_eq!(StreamState::most_bytes(&[0; 4096], &shape), shape.most_bytes());
    assert!(matches!(StreamState::from_bytes(&vec![0; bytes.len()], &shape), Err(StateError::TooLong { .. })));
}

#[test]
fn streams_have_a_mixer_each_or_share_one() {
    let texts = [lines(20, 3), lines(20, 5), lines(15, 7)];
    let mut own = BatchScorer::adaptive(engine().streams(3), mixer(1)).unwrap();
    let costs = own.score(&texts).unwrap();
    for (text, nats) in texts.iter().zip(&costs) {
        let mut alone = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
        assert_eq!(alone.score(text).unwrap(), *nats);
    }
    let mut shared = BatchScorer::adaptive(engine().streams(3), mixer(3)).unwrap();
    let together = shared.score(&texts).unwrap();
    let sum = |costs: &[Vec<f64>]| costs.iter().flatten().sum::<f64>();
    assert!(sum(&together) < 0.9 * sum(&costs), "{} {}", sum(&together), sum(&costs));
    // In step: it does not matter in how many calls.
    let mut parts = BatchScorer::adaptive(engine().streams(3), mixer(3)).unwrap();
    let mut nats = vec![Vec::new(); 3];
    for start in (0..texts[0].len().max(texts[1].len())).step_by(50) {
        let part = |text: &Vec<u8>| text[start.min(text.len())..(start + 50).min(text.len())].to_vec();
        let parts = parts.score(&texts.each_ref().map(part)).unwrap();
        nats.iter_mut().zip(parts).for_each(|(all, part)| all.extend(part));
    }
    assert_eq!(nats, together);
    // A stream that starts anew: with its own mixer as at the start, with a shared one with what the others know.
    for (mut scorer, is_shared) in [(own, false), (shared, true)] {
        assert_eq!(scorer.state(0).adaptive().is_none(), is_shared);
        scorer.reset(0);
        let empty = Vec::new();
        let again = scorer.score(&[&texts[0], &empty, &empty]).unwrap();
        assert_eq!(again[0] == costs[0], !is_shared);
        assert!(!is_shared || sum(&again) < 0.5 * costs[0].iter().sum::<f64>());
    }
}

#[test]
fn the_model_s_own_streams_mix_as_packed_ones_do() {
    let text = lines(12, 3);
    let mut packed = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    let mut own = Scorer::adaptive(ModelStreams::new(&model(), 1, 1).unwrap(), mixer(1)).unwrap();
    let (expected, found) = (packed.score(&text).unwrap(), own.score(&text).unwrap());
    let difference = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(difference < 0.01, "{difference}");
}

#[test]
fn a_generator_repeats_what_it_was_shown() {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let prompt = b"one two three four five six seven\n".repeat(6);
    let mut generator = Generator::adaptive(engine().streams(1), sampling.clone(), mixer(1)).unwrap();
    generator.feed(&prompt).unwrap();
    let mut text = Vec::new();
    generator.generate_to(&mut text, 40).unwrap();
    assert_eq!(text, b"one two three four five six seven\none tw");
    // Drawn from the distribution that a scorer has there.
    let mut scorer = Scorer::adaptive(engine().streams(1), mixer(1)).unwrap();
    scorer.feed(&prompt).unwrap();
    let log_probs = scorer.log_probs().unwrap();
    let best = (0..256).max_by(|&a, &b| log_probs[a].total_cmp(&log_probs[b])).unwrap();
    assert_eq!(best, usize::from(text[0]));
    // Several, sharing what they read.
    let mut several = BatchGenerator::adaptive(engine().streams(2), sampling, mixer(2)).unwrap();
    several.feed(&[&prompt[..], b"one tw"]).unwrap();
    let next: Vec<u8> = (0..8).map(|_| several.next_bytes(&[1]).unwrap()[0]).collect();
    assert_eq!(next, b"o three ");
}
