//! The mixer: what a model predicts and what was seen after the same bytes before, as one prediction.

use std::ops::RangeInclusive;

use crate::ByteDistribution;
use crate::adaptive::Learned;
use crate::buckets::Buckets;
use crate::counts::COUNTS;
use crate::logistic::{LEAST, LOGISTIC, ONE};
use crate::past::{self, Past, Place};
use crate::refine::Refinement;
use crate::weights::{UNIT, Weights};

/// How much a [`Mixer`] may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixerConfig {
    /// Memory in bytes, 1 MiB to 1 GiB: what a mixer takes in all is at most that. More remembers what was read longer ago. The default
    /// of 16 MiB is enough for some hundred thousand bytes of prose, and for millions of bytes of a log.
    pub memory: usize,
}

impl Default for MixerConfig {
    fn default() -> Self {
        Self { memory: 16 << 20 }
    }
}

impl MixerConfig {
    /// The memory that can be used.
    pub const MEMORY: RangeInclusive<usize> = 1 << 20..=1 << 30;

    /// How many lanes a mixer may have: 256 bytes of each are remembered at the least.
    pub const fn most_lanes(self) -> usize {
        self.memory >> 12
    }
}

/// Half of the least memory is more than what does not grow with it.
const FIXED: usize = 1 << 19;

/// The orders of the contexts: so many bytes before the next.
const ORDERS: [u32; 4] = [1, 2, 3, 5];
/// The orders; the word that has begun, alone and with the word before it; the byte above with the last two; the bytes before with all
/// digits alike.
const CONTEXTS: usize = ORDERS.len() + 4;
/// Those of which it counts how many are known, to choose weights by.
const COUNTED: usize = CONTEXTS - 1;

/// What is mixed: a constant, the model, the counts without a context, the match, and two of each context; filled up to a multiple of what
/// a vector holds.
const INPUTS: usize = 24;

/// Learned probabilities remember so many events.
const COUNTS_REMEMBER: u32 = 255;
const MATCHES_REMEMBER: u32 = 1023;

/// Contexts of the refinement by the byte before.
const PAIRS: usize = 1 << 12;

/// Improves the predictions of a model of bytes by what it reads, score first: a byte is predicted, then learned.
///
/// A mixer has one or more lanes: texts that are read side by side. They share what is learned, and each has a past of its own. What a
/// lane predicts depends on the order in which lanes read.
#[derive(Clone, Debug)]
pub struct Mixer {
    pub(crate) config: MixerConfig,
    pub(crate) lanes: Vec<Place>,
    /// Bytes that were learned from, of all lanes.
    pub(crate) learned: u64,
    pub(crate) past: Past,
    pub(crate) buckets: Buckets,
    /// Counts without a context, by the bits of the byte so far.
    pub(crate) order0: [u8; 256],
    /// What counts mean: without a context, then for each context.
    pub(crate) meanings: [[Learned; 256]; CONTEXTS + 1],
    /// How sure a match of some length is.
    pub(crate) matches: [Learned; 2 * (past::LONGEST + 1)],
    /// Weights by the bits so far, by the match, by how sure the model is.
    pub(crate) weights: [Weights<INPUTS>; 3],
    /// Weights of what those give.
    pub(crate) last: Weights<3>,
    /// By the bits so far, and by the byte before too.
    pub(crate) refinements: [Refinement; 2],
}

/// What a byte's eight decisions have in common.
struct Contexts {
    hashes: [u32; CONTEXTS],
    /// The byte that a match expects, and which of the learned probabilities is the match's.
    expected: Option<(u8, usize)>,
    /// The byte before.
    before: u8,
    doubt: usize,
}

/// One decision: a bit of a byte.
#[derive(Clone, Copy, Default)]
struct Decision {
    /// The bits before it, with a one in front of them; 0 where there was nothing to decide.
    node: usize,
    inputs: [i16; INPUTS],
    /// The number of the counts in each context.
    counts: [u8; CONTEXTS],
    /// The bit that a match expects.
    expected: Option<bool>,
    sets: [usize; 3],
    mixed: [i16; 3],
    mixed_last: i32,
    refined: [usize; 2],
    /// The probability of a 1, in 65536ths.
    probability: u32,
}

/// The bucket of each context.
type Found = [u32; CONTEXTS];

/// The hash of a context for the last four bits of a byte, after its first four.
#[inline]
fn second_half(hash: u32, node: usize) -> u32 {
    let hash = hash.wrapping_add((node as u32).wrapping_mul(0x9E37_79B1));
    (hash ^ hash >> 15).wrapping_mul(0x85EB_CA6B)
}

/// The place in a bucket of the bits that a node stands for.
#[inline]
fn place(node: usize) -> usize {
    if node < 16 { node } else { 1 << (node.ilog2() - 4) | node & ((1 << (node.ilog2() - 4)) - 1) }
}

impl Mixer {
    /// A mixer that has read nothing.
    ///
    /// # Panics
    /// If the memory is less than 1 MiB or more than 1 GiB, or there is no lane or more than [`MixerConfig::most_lanes`].
    pub fn new(config: MixerConfig, lanes: usize) -> Self {
        let MixerConfig { memory } = config;
        assert!(MixerConfig::MEMORY.contains(&memory), "{memory} bytes, expected {:?}", MixerConfig::MEMORY);
        let most = config.most_lanes();
        assert!((1..=most).contains(&lanes), "{lanes} lanes in {memory} bytes, expected 1 to {most}");
        let meanings: [Learned; 256] = std::array::from_fn(|number| Learned::new(COUNTS.guess(number as u8)));
        let sure = |slot: usize| {
            let length = slot as u32 / 2;
            Learned::new((ONE as u64 * u64::from(length + 1) / u64::from(length + 2)) as u32)
        };
        let mut first = [UNIT / 100 * 15; INPUTS];
        (first[0], first[1]) = (0, UNIT / 100 * 60);
        let free = memory - FIXED;
        Self {
            config,
            lanes: vec![Place::default(); lanes],
            learned: 0,
            past: Past::new(lanes, free / 8, free / 32),
            buckets: Buckets::new(free / 4 * 3),
            order0: [0; 256],
            meanings: [meanings; CONTEXTS + 1],
            matches: std::array::from_fn(sure),
            weights: [256, (past::LONGEST / 4 + 2) * 8, 8 * 8 * 8].map(|sets| Weights::new(sets, first)),
            last: Weights::new(256, [UNIT / 3; 3]),
            refinements: [256, PAIRS].map(Refinement::new),
        }
    }

    /// Its options.
    pub fn config(&self) -> MixerConfig {
        self.config
    }

    /// How many lanes it has.
    pub fn n_lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Bytes that it has learned from, those of all lanes.
    pub fn bytes_read(&self) -> u64 {
        self.learned
    }

    /// Starts a lane anew. What was learned stays.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn reset(&mut self, lane: usize) {
        self.lanes[lane] = Place::default();
    }

    /// Reads a byte of a lane: `decide` gets the probability that the next bit is 1, in 65536ths (1 to 65535), and says what it is,
    /// the highest bit first. A bit that cannot be 1, since no byte of the model's vocabulary goes on with it, is 0 without being asked for.
    /// Then the byte is learned.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn code(&mut self, lane: usize, model: &ByteDistribution, mut decide: impl FnMut(u32) -> bool) -> u8 {
        let contexts = self.contexts(lane, model);
        let mut decisions = [Decision::default(); 8];
        let mut node = 1;
        let mut found = self.find(&contexts.hashes);
        let mut halves = contexts.hashes;
        for (i, decision) in decisions.iter_mut().enumerate() {
            if i == 4 {
                halves.iter_mut().for_each(|hash| *hash = second_half(*hash, node));
                found = self.find(&halves);
            }
            let Some(probability) = model.probability(node) else {
                node *= 2;
                continue;
            };
            self.decide(decision, &contexts, &found, node, probability);
            node = 2 * node + usize::from(decide(decision.probability));
        }
        let byte = (node & 255) as u8;
        self.learn(&contexts, &halves, &decisions, byte);
        let Self { past, lanes, .. } = self;
        past.read(lane, &mut lanes[lane], byte);
        byte
    }

    /// Reads a byte of a lane that is known: what it cost in nats, `-ln p(byte)`.
    ///
    /// # Panics
    /// If there is no such lane, or the byte is outside the model's vocabulary.
    pub fn cost(&mut self, lane: usize, model: &ByteDistribution, byte: u8) -> f64 {
        assert!(usize::from(byte) < model.vocab_size(), "byte {byte} of a vocabulary of {}", model.vocab_size());
        let mut whole = 1.0;
        let mut node = 1;
        // Bits that are not asked for are 0, as the byte's are there.
        self.code(lane, model, |probability| {
            while model.probability(node).is_none() {
                node *= 2;
            }
            let bit = byte >> (7 - node.ilog2()) & 1 == 1;
            whole *= of_bit(probability, bit);
            node = 2 * node + usize::from(bit);
            bit
        });
        -f64::ln(whole)
    }

    /// The log-probabilities of a lane's next byte, in nats, `[vocab_size]`. They are exactly those of [`cost`](Self::cost) and
    /// [`code`](Self::code), and nothing is learned.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn log_probs(&self, lane: usize, model: &ByteDistribution) -> Vec<f64> {
        let contexts = self.contexts(lane, model);
        let first = self.find(&contexts.hashes);
        let mut products = [1.0; 512];
        for node in 1..16 {
            self.divide(&contexts, &first, model, node, &mut products);
        }
        for half in 16..32 {
            let found = self.find(&contexts.hashes.map(|hash| second_half(hash, half)));
            for depth in 0..4 {
                for node in half << depth..(half + 1) << depth {
                    self.divide(&contexts, &found, model, node, &mut products);
                }
            }
        }
        products[256..256 + model.vocab_size()].iter().copied().map(f64::ln).collect()
    }

    /// Divides a node's probability.
    fn divide(
        &self,
        contexts: &Contexts,
        found: &Found,
        model: &ByteDistribution,
        node: usize,
        products: &mut [f64; 512],
    ) {
        let (zero, one) = match model.probability(node) {
            None => (1.0, 0.0),
            Some(probability) => {
                let mut decision = Decision::default();
                self.decide(&mut decision, contexts, found, node, probability);
                let Decision { probability, .. } = decision;
                (of_bit(probability, false), of_bit(probability, true))
            }
        };
        (products[2 * node], products[2 * node + 1]) = (products[node] * zero, products[node] * one);
    }

    #[inline]
    fn contexts(&self, lane: usize, model: &ByteDistribution) -> Contexts {
        let place = &self.lanes[lane];
        let mut hashes = [0; CONTEXTS];
        let hash = |value: u64, kind: u64| {
            let mixed = (value ^ kind << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            ((mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32) as u32
        };
        for (slot, order) in hashes.iter_mut().zip(ORDERS) {
            *slot = hash(place.recent & ((1 << (8 * order)) - 1), u64::from(order));
        }
        let word = u64::from(place.word);
        let above = u64::from(self.past.above(lane, place));
        let others = [
            hash(word, 7),
            hash(word | u64::from(place.word_before) << 20, 8),
            hash(above << 16 | place.recent & 0xFFFF, 9),
            hash(self.past.alike(lane, place) >> 8, 10),
        ];
        hashes[ORDERS.len()..].copy_from_slice(&others);
        let slot = 2 * place.length.min(past::LONGEST as u32) as usize + usize::from(place.doubted > 0);
        let expected = self.past.expected(place).map(|byte| (byte, slot));
        Contexts { hashes, expected, before: place.recent as u8, doubt: model.doubt() }
    }

    #[inline]
    fn find(&self, hashes: &[u32; CONTEXTS]) -> Found {
        let mut found = [Buckets::NONE; CONTEXTS];
        for (found, &hash) in found.iter_mut().zip(hashes) {
            *found = self.buckets.find(hash);
        }
        found
    }

    /// Predicts the bit after those that a node stands for.
    #[inline]
    fn decide(&self, decision: &mut Decision, contexts: &Contexts, found: &Found, node: usize, model: u32) {
        let tables = &*LOGISTIC;
        let Decision { inputs, counts, .. } = decision;
        inputs[0] = 256;
        inputs[1] = tables.stretch(model) as i16;
        let alone = self.meanings[0][usize::from(self.order0[node])];
        inputs[2] = tables.stretch(alone.probability()) as i16;
        let (mut known, place) = (0, place(node));
        for (i, found) in found.iter().enumerate() {
            counts[i] = self.buckets.get(*found, place);
            if counts[i] == 0 {
                continue;
            }
            known += usize::from(i < COUNTED);
            let probability = self.meanings[i + 1][usize::from(counts[i])].probability();
            inputs[4 + 2 * i] = tables.stretch(probability) as i16;
            inputs[5 + 2 * i] = ((probability as i32 - ONE as i32 / 2) >> 6) as i16;
        }
        let pair = (u32::from(contexts.before) << 8 | node as u32).wrapping_mul(0x9E37_79B1) >> 8;
        let pair = pair as usize & (PAIRS - 1);
        self.refinements[1].fetch(pair);
        let depth = node.ilog2();
        let mut matched = 0;
        let expected = contexts.expected.and_then(|(byte, slot)| {
            let goes = usize::from(byte) | 256;
            if goes >> (8 - depth) != node {
                return None;
            }
            let bit = goes >> (7 - depth) & 1 == 1;
            let sure = tables.stretch(self.matches[slot].probability()) as i16;
            inputs[3] = if bit { sure } else { -sure };
            matched = 1 + slot / 8;
            Some(bit)
        });
        let sets = [node, 8 * matched + known, (contexts.doubt * 8 + depth as usize) * 8 + known];
        let mixed: [i16; 3] = std::array::from_fn(|i| self.weights[i].mix(sets[i], inputs) as i16);
        let mixed_last = self.last.mix(node, &mixed);
        let refined = [node, pair];
        let [alone, pair] = std::array::from_fn(|i| self.refinements[i].refine(refined[i], mixed_last));
        let probability = (2 * tables.squash(mixed_last) + alone + pair) / 4;
        (decision.node, decision.expected, decision.sets, decision.refined) = (node, expected, sets, refined);
        (decision.mixed, decision.mixed_last) = (mixed, mixed_last);
        decision.probability = probability.clamp(LEAST, ONE - LEAST);
    }

    /// Learns from a byte, after all of its decisions: what they were made with stays as it was until here.
    fn learn(&mut self, contexts: &Contexts, halves: &[u32; CONTEXTS], decisions: &[Decision; 8], byte: u8) {
        let rate = 6 + (24 * 4000 / (4000 + self.learned.min(1 << 20))) as i32;
        self.learned += 1;
        for decision in decisions.iter().filter(|decision| decision.node > 0) {
            let depth = decision.node.ilog2();
            let bit = byte >> (7 - depth) & 1 == 1;
            for i in 0..3 {
                self.weights[i].learn(decision.sets[i], &decision.inputs, i32::from(decision.mixed[i]), bit, rate);
                if i < 2 {
                    self.refinements[i].learn(decision.refined[i], decision.mixed_last, bit);
                }
            }
            self.last.learn(decision.node, &decision.mixed, decision.mixed_last, bit, 2);
            for (meanings, &number) in self.meanings[1..].iter_mut().zip(&decision.counts) {
                meanings[usize::from(number)].learn(bit, COUNTS_REMEMBER);
            }
            let number = &mut self.order0[decision.node];
            self.meanings[0][usize::from(*number)].learn(bit, COUNTS_REMEMBER);
            *number = COUNTS.next(*number, bit);
            if let (Some(expected), Some((_, slot))) = (decision.expected, contexts.expected) {
                self.matches[slot].learn(expected == bit, MATCHES_REMEMBER);
            }
        }
        for (hashes, decisions) in [(&contexts.hashes, &decisions[..4]), (halves, &decisions[4..])] {
            for &hash in hashes {
                let bucket = self.buckets.claim(hash);
                for decision in decisions.iter().filter(|decision| decision.node > 0) {
                    let number = &mut bucket[place(decision.node)];
                    *number = COUNTS.next(*number, byte >> (7 - decision.node.ilog2()) & 1 == 1);
                }
            }
        }
    }
}

/// The probability of a bit.
#[inline]
fn of_bit(probability: u32, bit: bool) -> f64 {
    f64::from(if bit { probability } else { ONE - probability }) / f64::from(ONE)
}
