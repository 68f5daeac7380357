//! Short messages, each of which can be decompressed alone.

use sharnn_mixing::{Mixer, MixerConfig};
use sharnn_stream::{DecodeEngine, DecodeStreams, StreamState, Streams};

use crate::CodecError;
use crate::codec::check;
use crate::lanes::{Layout, Predictor};

/// Compresses short messages, each alone, by what a model and a state know: that of a stream that has read messages like them.
///
/// A compressed message has its length, a byte to check it by, and its code: 2 to 4 bytes more than what it costs. It does not
/// say by which model and state it was made, which whoever keeps it has to know.
///
/// ```
/// use burn::backend::Flex;
/// use sharnn_codec::Records;
/// use sharnn_core::{Mixer, MixerConfig, Scorer, ShaRnnConfig, WeightFormat};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let model = ShaRnnConfig { d_model: 16, d_ff: 16, ..ShaRnnConfig::xs() }.init_seeded::<Flex>(1, &Default::default());
/// let engine = model.engine(WeightFormat::Exact);
/// let mixer = Mixer::new(MixerConfig { memory: 1 << 20 }, 1);
/// let mut scorer = Scorer::adaptive(engine.streams(1), mixer)?;
/// for hour in 0..20 {
///     scorer.score(format!("{{\"hour\":{hour},\"event\":\"login\",\"user\":\"anna\"}}\n").as_bytes())?;
/// }
/// let records = Records::new(engine, Some(&scorer.state()), Some(1 << 20))?;
/// let message = br#"{"hour":21,"event":"login","user":"anna"}"#;
/// let small = records.compress(message)?;
/// assert!(small.len() < message.len() / 2);
/// assert_eq!(records.decompress(&small)?, message);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Records {
    streams: DecodeStreams,
    mixer: Option<Mixer>,
}

impl Records {
    /// Bytes of the longest message. What a compressed one says of its length costs whoever decompresses it time, whoever made it.
    pub const LONGEST: usize = 1 << 16;

    /// Of a model, and of a stream that has read something. Without `memory` the model predicts alone.
    ///
    /// # Errors
    /// [`CodecError::NotExact`], [`CodecError::Vocabulary`] or [`CodecError::Option`], or [`CodecError::State`] if the state is not one of
    /// the model, or holds no memory of that size.
    pub fn new(engine: DecodeEngine, state: Option<&StreamState>, memory: Option<usize>) -> Result<Self, CodecError> {
        check(&engine)?;
        let mut streams = engine.streams(1);
        if let Some(found) = memory.filter(|memory| !MixerConfig::MEMORY.contains(memory)) {
            let expected = format!("{} to {}", MixerConfig::MEMORY.start(), MixerConfig::MEMORY.end());
            return Err(CodecError::Option { option: "memory", found, expected });
        }
        let mut mixer = memory.map(|memory| Mixer::new(MixerConfig { memory }, 1));
        match state {
            None => streams.read(&[b"\n"], &mut |_, _, _| {}),
            Some(state) => {
                streams.set_state(0, state)?;
                if let (Some(mixer), Some(known)) = (&mut mixer, state.adaptive()) {
                    mixer.set_bytes(known).map_err(sharnn_stream::StateError::from)?;
                }
            }
        }
        Ok(Self { streams, mixer })
    }

    fn predictor(&self) -> Predictor {
        Predictor::primed(self.streams.clone(), self.mixer.clone())
    }

    /// Compresses a message.
    ///
    /// # Errors
    /// [`CodecError::Long`] if it has more than [`LONGEST`](Self::LONGEST) bytes.
    pub fn compress(&self, text: &[u8]) -> Result<Vec<u8>, CodecError> {
        if text.len() > Self::LONGEST {
            return Err(CodecError::Long { bytes: text.len() });
        }
        let coded = self.predictor().encode(text, Layout::new(text.len(), 1), |_| true);
        let (code, _) = coded.expect("nothing stops it");
        let is_stored = code.len() >= text.len();
        let mut record = Vec::new();
        let mut number = text.len() << 1 | usize::from(is_stored);
        while number >= 0x80 {
            record.push(number as u8 | 0x80);
            number >>= 7;
        }
        record.push(number as u8);
        record.push(crc32fast::hash(text) as u8);
        record.extend(if is_stored { text } else { &code[..] });
        Ok(record)
    }

    /// Decompresses a message.
    ///
    /// # Errors
    /// [`CodecError::Record`], where that shows: of damaged ones, or those of another model or state, all but one in 256.
    pub fn decompress(&self, record: &[u8]) -> Result<Vec<u8>, CodecError> {
        let damaged = || CodecError::Record { bytes: record.len() };
        let (mut number, mut rest) = (0, record);
        for shift in (0..).step_by(7) {
            let byte = *rest.split_off_first().filter(|_| shift <= 21).ok_or_else(damaged)?;
            number |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        let sum = *rest.split_off_first().ok_or_else(damaged)?;
        let len = number >> 1;
        if len > Self::LONGEST || (number & 1 == 1 && rest.len() != len) || rest.len() > len {
            return Err(damaged());
        }
        let text = if number & 1 == 1 {
            rest.to_vec()
        } else {
            let decoded = self.predictor().decode(rest, Layout::new(len, 1), |_| true);
            decoded.expect("nothing stops it").0
        };
        if crc32fast::hash(&text) as u8 == sum { Ok(text) } else { Err(damaged()) }
    }
}
