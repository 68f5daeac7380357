//! Bytes in lanes that move in step: what a block's text is to the model and to the mixer.
//!
//! A text of n bytes is divided into L lanes of ⌈n / L⌉ bytes, of which the last may be shorter, or not be there. Every lane's stream reads a
//! newline first. Then all lanes' first bytes are coded, in the order of the lanes, then all their second bytes, and so on: each by what
//! the model says after the lane's bytes before, mixed with what was learned from every byte that was coded before it.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sharnn_kernels::team::{self, Turns};
use sharnn_mixing::{ByteDistribution, Mixer, MixerConfig};
use sharnn_stream::{DecodeEngine, DecodeStreams, Streams};

use crate::arithmetic::{Decoder, Encoder};

/// Bytes between two looks at whoever watches.
const STRETCH: usize = 1 << 14;
/// What streams begin after.
const START: &[u8] = b"\n";

/// How a text lies in lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Bytes of a lane.
    pub rows: usize,
    /// Lanes that have a byte.
    pub lanes: usize,
    bytes: usize,
}

impl Layout {
    /// Of so many bytes in so many lanes, at most.
    pub fn new(bytes: usize, lanes: usize) -> Self {
        let rows = bytes.div_ceil(lanes.max(1)).max(1);
        Self { rows, lanes: bytes.div_ceil(rows), bytes }
    }

    /// Where a lane's byte lies in the text.
    pub fn place(self, row: usize, lane: usize) -> Option<usize> {
        let place = lane * self.rows + row;
        (row < self.rows && place < self.bytes).then_some(place)
    }

    /// Bytes in so many rows.
    fn done(self, rows: usize) -> usize {
        let whole = self.lanes.saturating_sub(1);
        whole * rows + rows.min(self.bytes - whole * self.rows)
    }
}

/// What predicts bytes: streams of the model, and what mixes them with the past.
///
/// The lanes are in groups, one a thread. While a group's bytes are coded and learned, which is done for one lane after the other, the
/// others' streams read theirs.
pub(crate) struct Predictor {
    groups: Vec<Mutex<Group>>,
    mixer: Option<Mixer>,
}

/// Neighbouring lanes.
struct Group {
    lanes: Range<usize>,
    streams: DecodeStreams,
    /// What the model says of each lane's next byte.
    predicted: Vec<ByteDistribution>,
    newest: Vec<u8>,
}

impl Group {
    fn new(lanes: Range<usize>, streams: DecodeStreams) -> Self {
        let n = lanes.len();
        Self { lanes, streams, predicted: vec![ByteDistribution::uniform(); n], newest: vec![0; n] }
    }

    /// The streams of some of the lanes read: those that `texts` has something for.
    fn read(&mut self, texts: &[&[u8]]) {
        let Self { streams, predicted, .. } = self;
        streams.read(texts, &mut |lane, _, logits| predicted[lane].set_logits(logits));
    }

    /// Codes the next byte of each lane that has one in this row.
    fn code(&mut self, row: usize, layout: Layout, mixer: &mut Option<Mixer>, coder: &mut impl Coder) {
        let lanes = self.lanes.clone().zip(&self.predicted).zip(&mut self.newest);
        for ((lane, predicted), newest) in lanes {
            let Some(place) = layout.place(row, lane) else { continue };
            coder.begin(place);
            let decide = |probability: u32| coder.decide(probability);
            *newest = match mixer {
                Some(mixer) => mixer.code(lane, predicted, decide),
                None => predicted.code(decide),
            };
            coder.end(place, *newest);
        }
    }

    /// The lanes' streams read the bytes of a row, where another follows: lanes that have ended, or are not there, read nothing.
    fn go_on(&mut self, row: usize, layout: Layout) {
        let newest = std::mem::take(&mut self.newest);
        let goes_on = |lane: usize| lane < layout.lanes && layout.place(row + 1, lane).is_some();
        let texts = self.lanes.clone().zip(newest.chunks(1)).map(|(lane, byte)| if goes_on(lane) { byte } else { &[] });
        self.read(&texts.collect::<Vec<_>>());
        self.newest = newest;
    }
}

impl Predictor {
    /// For so many lanes; without `memory` the model predicts alone.
    pub fn new(engine: &DecodeEngine, lanes: usize, memory: Option<usize>) -> Self {
        let mixer = memory.map(|memory| Mixer::new(MixerConfig { memory }, lanes));
        let n = team::threads().min(lanes);
        let group = |index: usize| {
            let lanes = team::share(lanes, index, n);
            let streams = engine.streams(lanes.len());
            let mut group = Group::new(lanes, streams);
            group.read(&vec![START; group.lanes.len()]);
            Mutex::new(group)
        };
        Self { groups: (0..n).map(group).collect(), mixer }
    }

    /// Of one lane, which goes on from what its stream has read.
    pub fn primed(stream: DecodeStreams, mixer: Option<Mixer>) -> Self {
        let mut group = Group::new(0..1, stream);
        if let Some(logits) = group.streams.logits(0) {
            group.predicted[0].set_logits(logits);
        }
        Self { groups: vec![Mutex::new(group)], mixer }
    }

    /// The code of a text, and what it cost in bits; `None` if it was not to go on: `go_on` gets now and then how many bytes are done.
    pub fn encode(&mut self, text: &[u8], layout: Layout, go_on: impl FnMut(usize) -> bool) -> Option<(Vec<u8>, f64)> {
        let writer =
            self.run(layout, Writer { encoder: Encoder::default(), text, rest: 0, cost: Cost::default() }, go_on)?;
        Some((writer.encoder.finish(), writer.cost.bits))
    }

    /// The text of a code, and what it cost; `None` as above.
    pub fn decode(&mut self, code: &[u8], layout: Layout, go_on: impl FnMut(usize) -> bool) -> Option<(Vec<u8>, f64)> {
        let text = vec![0; layout.bytes];
        let reader = self.run(layout, Reader { decoder: Decoder::new(code), text, cost: Cost::default() }, go_on)?;
        Some((reader.text, reader.cost.bits))
    }

    /// Codes a text, row by row, and gives the coder back; `None` if it was not to go on.
    fn run<C: Coder>(&mut self, layout: Layout, coder: C, mut go_on: impl FnMut(usize) -> bool) -> Option<C> {
        let Self { groups, mixer } = self;
        let shared = Mutex::new((mixer, coder));
        let stretch = (STRETCH / layout.lanes.max(1)).max(1);
        for begin in (0..layout.rows).step_by(stretch) {
            let rows = begin..layout.rows.min(begin + stretch);
            let turns = Turns::default();
            team::run(groups.len(), |member| {
                for (turn, row) in rows.clone().enumerate() {
                    for index in member.share(groups.len()) {
                        let mut group = held(&groups[index]);
                        member.in_turn(&turns, turn * groups.len() + index, || {
                            let (mixer, coder) = &mut *held(&shared);
                            group.code(row, layout, mixer, coder);
                        });
                        if row + 1 < layout.rows {
                            group.go_on(row, layout);
                        }
                    }
                }
            });
            if !go_on(layout.done(rows.end)) {
                return None;
            }
        }
        Some(shared.into_inner().unwrap_or_else(PoisonError::into_inner).1)
    }
}

/// What only one thread uses at a time.
fn held<T>(by_turns: &Mutex<T>) -> MutexGuard<'_, T> {
    by_turns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What says of each byte what it is, decision by decision.
trait Coder: Send {
    /// The byte at a place of the text is next.
    fn begin(&mut self, place: usize);

    /// Its next bit, which is 1 with this probability, in 65536ths.
    fn decide(&mut self, probability: u32) -> bool;

    /// Which byte it was.
    fn end(&mut self, place: usize, byte: u8);
}

/// What decisions cost.
struct Cost {
    bits: f64,
    /// The probability of what was decided of this byte.
    whole: f64,
}

impl Default for Cost {
    fn default() -> Self {
        Self { bits: 0.0, whole: 1.0 }
    }
}

impl Cost {
    fn add(&mut self, probability: u32, bit: bool) {
        self.whole *= f64::from(if bit { probability } else { 65536 - probability }) / 65536.0;
    }

    fn end(&mut self) {
        self.bits -= std::mem::replace(&mut self.whole, 1.0).log2();
    }
}

struct Writer<'a> {
    encoder: Encoder,
    text: &'a [u8],
    /// The bits of this byte that are not decided, the next one highest.
    rest: u8,
    cost: Cost,
}

impl Coder for Writer<'_> {
    fn begin(&mut self, place: usize) {
        self.rest = self.text[place];
    }

    fn decide(&mut self, probability: u32) -> bool {
        let bit = self.rest >> 7 == 1;
        self.rest <<= 1;
        self.encoder.write(probability, bit);
        self.cost.add(probability, bit);
        bit
    }

    fn end(&mut self, _: usize, _: u8) {
        self.cost.end();
    }
}

struct Reader<'a> {
    decoder: Decoder<'a>,
    text: Vec<u8>,
    cost: Cost,
}

impl Coder for Reader<'_> {
    fn begin(&mut self, _: usize) {}

    fn decide(&mut self, probability: u32) -> bool {
        let bit = self.decoder.read(probability);
        self.cost.add(probability, bit);
        bit
    }

    fn end(&mut self, place: usize, byte: u8) {
        self.text[place] = byte;
        self.cost.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_lane() {
        for (bytes, lanes) in [(0, 4), (1, 4), (3, 4), (10, 4), (4096, 1), (4097, 64), (5, 5), (6, 5)] {
            let layout = Layout::new(bytes, lanes);
            assert!(layout.lanes <= lanes && (layout.lanes > 0) == (bytes > 0));
            let mut seen = vec![0; bytes];
            for row in 0..layout.rows {
                assert_eq!(layout.done(row), seen.iter().sum::<usize>());
                for lane in 0..lanes {
                    if let Some(place) = layout.place(row, lane) {
                        assert!(lane < layout.lanes);
                        seen[place] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{bytes} bytes in {lanes} lanes");
            assert_eq!(layout.done(layout.rows), bytes);
        }
    }
}
