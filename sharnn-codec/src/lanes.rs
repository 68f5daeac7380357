//! Bytes in lanes that move in step: what a block's text is to the model and to the mixer.
//!
//! A text of n bytes is divided into L lanes of ⌈n / L⌉ bytes, of which the last may be shorter, or not be there. Every lane's stream reads a
//! newline first. Then all lanes' first bytes are coded, in the order of the lanes, then all their second bytes, and so on: each by what
//! the model says after the lane's bytes before, mixed with what was learned from every byte that was coded before it.

use sharnn_mixing::{ByteDistribution, Mixer, MixerConfig};
use sharnn_stream::{DecodeEngine, DecodeStreams, Streams};

use crate::arithmetic::{Decoder, Encoder};

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
}

/// What a decision costs in bits.
fn cost(probability: u32, bit: bool) -> f64 {
    -(f64::from(if bit { probability } else { 65536 - probability }) / 65536.0).log2()
}

/// What predicts bytes: streams of the model, and what mixes them with the past.
pub(crate) struct Predictor {
    streams: DecodeStreams,
    mixer: Option<Mixer>,
    of_lanes: Vec<ByteDistribution>,
}

impl Predictor {
    /// For so many lanes; without `memory` the model predicts alone.
    pub fn new(engine: &DecodeEngine, lanes: usize, memory: Option<usize>) -> Self {
        let streams = engine.streams(lanes);
        let mixer = memory.map(|memory| Mixer::new(MixerConfig { memory }, lanes));
        Self { streams, mixer, of_lanes: vec![ByteDistribution::uniform(); lanes] }
    }

    /// One that goes on from what was read.
    pub fn primed(streams: DecodeStreams, mixer: Option<Mixer>) -> Self {
        let mut of_lanes = vec![ByteDistribution::uniform(); streams.n_streams()];
        for (lane, distribution) in of_lanes.iter_mut().enumerate() {
            if let Some(logits) = streams.logits(lane) {
                distribution.set_logits(logits);
            }
        }
        Self { streams, mixer, of_lanes }
    }

    /// Lets all lanes begin.
    pub fn begin(&mut self) {
        let Self { streams, of_lanes, .. } = self;
        streams.read(&vec![START; of_lanes.len()], &mut |lane, _, logits| of_lanes[lane].set_logits(logits));
    }

    /// Codes a lane's next byte. `decide` is asked for each decision, given the probability of a 1 in 65536ths.
    fn code(&mut self, lane: usize, decide: impl FnMut(u32) -> bool) -> u8 {
        match &mut self.mixer {
            Some(mixer) => mixer.code(lane, &self.of_lanes[lane], decide),
            None => self.of_lanes[lane].code(decide),
        }
    }

    /// The code of a text, and what it cost in bits; `None` if it was not to go on, which is asked after each row.
    pub fn encode(&mut self, text: &[u8], layout: Layout, go_on: impl FnMut(usize) -> bool) -> Option<(Vec<u8>, f64)> {
        let (mut encoder, mut bits) = (Encoder::default(), 0.0);
        let decide = |place: usize, probability: u32, depth: usize| {
            let bit = text[place] >> (7 - depth) & 1 == 1;
            encoder.write(probability, bit);
            bits += cost(probability, bit);
            bit
        };
        self.run(layout, decide, |_, _| (), go_on).then(|| (encoder.finish(), bits))
    }

    /// The text of a code, and what it cost; `None` as above.
    pub fn decode(&mut self, code: &[u8], layout: Layout, go_on: impl FnMut(usize) -> bool) -> Option<(Vec<u8>, f64)> {
        let (mut decoder, mut bits, mut text) = (Decoder::new(code), 0.0, vec![0; layout.bytes]);
        let decide = |_: usize, probability: u32, _: usize| {
            let bit = decoder.read(probability);
            bits += cost(probability, bit);
            bit
        };
        self.run(layout, decide, |place, byte| text[place] = byte, go_on).then_some((text, bits))
    }

    /// Codes a text, row by row: `decide` says what each decision of the byte at a place is, and `each` takes the byte. It says whether to
    /// go on after a row.
    fn run(
        &mut self,
        layout: Layout,
        mut decide: impl FnMut(usize, u32, usize) -> bool,
        mut each: impl FnMut(usize, u8),
        mut go_on: impl FnMut(usize) -> bool,
    ) -> bool {
        let mut newest = vec![0; layout.lanes];
        for row in 0..layout.rows {
            let mut here = 0;
            for (lane, newest) in newest.iter_mut().enumerate() {
                let Some(place) = layout.place(row, lane) else { continue };
                let mut depth = 0;
                let byte = self.code(lane, |probability| {
                    depth += 1;
                    decide(place, probability, depth - 1)
                });
                each(place, byte);
                *newest = byte;
                here = lane + 1;
            }
            if !go_on(here) {
                return false;
            }
            if row + 1 < layout.rows {
                // Lanes that have ended read nothing more, nor do those that are not there.
                let goes_on = |lane: usize| layout.place(row + 1, lane).is_some();
                let texts: Vec<_> = (0..self.of_lanes.len())
                    .map(|lane| if lane < layout.lanes && goes_on(lane) { &newest[lane..=lane] } else { &[] })
                    .collect();
                let Self { streams, of_lanes, .. } = self;
                streams.read(&texts, &mut |lane, _, logits| of_lanes[lane].set_logits(logits));
            }
        }
        true
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
                for lane in 0..lanes {
                    if let Some(place) = layout.place(row, lane) {
                        assert!(lane < layout.lanes);
                        seen[place] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{bytes} bytes in {lanes} lanes");
        }
    }
}
