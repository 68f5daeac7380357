//! What a page does with one model.

use std::io;

use sharnn_codec::{Codec, CodecError, Options, Progress};
use sharnn_stream::{
    DecodeEngine, DecodeStreams, Generator, Mixer, MixerConfig, Sampling, Scorer, StreamError, WeightFormat,
};

/// Memory of what was read, in bytes: a page's texts are short.
const MEMORY: usize = 1 << 20;
/// Said where one is needed.
const NO_MODEL: &str = "there is no model: load one first";

/// A model, the text that it reads, and the text that it writes.
#[derive(Default)]
pub struct Session {
    engine: Option<DecodeEngine>,
    reading: Option<Reading>,
    writing: Option<Generator<DecodeStreams>>,
}

/// A text that is read.
struct Reading {
    scorer: Scorer<DecodeStreams>,
    is_adaptive: bool,
}

fn mixer() -> Mixer {
    Mixer::new(MixerConfig { memory: MEMORY }, 1)
}

impl Session {
    fn engine(&self) -> Result<&DecodeEngine, String> {
        self.engine.as_ref().ok_or_else(|| NO_MODEL.into())
    }

    /// Takes a model from a weights file. The one that was there stays where the file is refused.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn load(&mut self, weights: &[u8], format: WeightFormat) -> Result<(), String> {
        let engine = DecodeEngine::from_weights(weights, format, None).map_err(|error| error.to_string())?;
        if engine.vocab_size() != 256 {
            return Err(format!(
                "the model has a vocabulary of {}: one of 256, the bytes, is needed",
                engine.vocab_size()
            ));
        }
        *self = Self { engine: Some(engine), reading: None, writing: None };
        Ok(())
    }

    /// The model in a few words.
    ///
    /// # Errors
    /// Without a model.
    pub fn describe(&self) -> Result<String, String> {
        let engine = self.engine()?;
        let shape = engine.shape();
        Ok(format!(
            "{} blocks, {} wide, memory {}, {} bytes of weights",
            shape.n_layers(),
            shape.d_model,
            shape.mem_len,
            engine.weight_bytes()
        ))
    }

    /// Begins a text.
    ///
    /// # Errors
    /// Without a model.
    pub fn begin(&mut self, is_adaptive: bool) -> Result<(), String> {
        let streams = self.engine()?.streams(1);
        let scorer = if is_adaptive { Scorer::adaptive(streams, mixer()) } else { Scorer::new(streams) };
        self.reading = Some(Reading { scorer: scorer.map_err(|error| error.to_string())?, is_adaptive });
        Ok(())
    }

    fn reading(&mut self) -> Result<&mut Reading, String> {
        self.reading.as_mut().ok_or_else(|| NO_MODEL.into())
    }

    /// Reads on: what each byte costs, in bits.
    ///
    /// # Errors
    /// Without a text that has begun, or where the model gives no numbers.
    pub fn read(&mut self, text: &[u8]) -> Result<Vec<f32>, String> {
        let nats = self.reading()?.scorer.score(text).map_err(|error: StreamError| error.to_string())?;
        Ok(nats.into_iter().map(|nats| (nats / std::f64::consts::LN_2) as f32).collect())
    }

    /// The probability of each byte to come next.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn expected(&mut self) -> Result<Vec<f32>, String> {
        let log_probs = self.reading()?.scorer.log_probs().map_err(|error| error.to_string())?;
        Ok(log_probs.into_iter().map(|log_prob| log_prob.exp() as f32).collect())
    }

    /// Where the newest byte looked: the mean weight over the heads, of the oldest byte in memory first. Empty where nothing attends.
    ///
    /// # Errors
    /// Without a text that has begun.
    pub fn look(&mut self) -> Result<Vec<f32>, String> {
        let heads = self.reading()?.scorer.streams().look(0).unwrap_or_default();
        let rows = heads.first().map_or(0, Vec::len);
        let mean = |row: usize| heads.iter().map(|weights| weights[row]).sum::<f32>() / heads.len() as f32;
        Ok((0..rows).map(mean).collect())
    }

    /// Begins to write after what was read.
    ///
    /// # Errors
    /// Without a text that has begun, or for a temperature that cannot be used.
    pub fn begin_to_write(&mut self, temperature: f64, seed: u64) -> Result<(), String> {
        let (streams, sampling) = (self.engine()?.streams(1), Sampling { temperature, seed, ..Sampling::default() });
        let Reading { scorer, is_adaptive } = self.reading()?;
        let made = match is_adaptive {
            true => Generator::adaptive(streams, sampling, mixer()),
            false => Generator::new(streams, sampling),
        };
        let mut generator = made.map_err(|error| error.to_string())?;
        generator.set_state(&scorer.state()).map_err(|error| error.to_string())?;
        self.writing = Some(generator);
        Ok(())
    }

    /// Writes on.
    ///
    /// # Errors
    /// If nothing was begun, or the model gives no numbers.
    pub fn write(&mut self, n: usize) -> Result<Vec<u8>, String> {
        let generator = self.writing.as_mut().ok_or("nothing was begun")?;
        (0..n).map(|_| generator.next_byte().map_err(|error| error.to_string())).collect()
    }

    fn codec(&self) -> Result<Codec, String> {
        Codec::new(self.engine()?.clone()).map_err(|error| error.to_string())
    }

    /// Makes a text smaller, in the same bytes as `sharnn compress` with as many lanes. `watch` gets the bytes of text that are done, and
    /// says whether to go on.
    ///
    /// # Errors
    /// Without a model of format exact, or if it is stopped.
    pub fn compress(&self, text: &[u8], lanes: usize, watch: &mut dyn FnMut(u64) -> bool) -> Result<Vec<u8>, String> {
        let mut small = Vec::new();
        let options = Options { lanes, ..Options::default() };
        let done = self.codec()?.compress(text, &mut small, &options, &mut |Progress { text, .. }| watch(text));
        done.map(|_| small).map_err(|error| error.to_string())
    }

    /// Restores a text.
    ///
    /// # Errors
    /// Without a model of format exact, or of the file's, or if the file is damaged, or if it is stopped.
    pub fn decompress(&self, file: &[u8], watch: &mut dyn FnMut(u64) -> bool) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        let done = self.codec()?.decompress(file, &mut text, &mut |Progress { text, .. }| watch(text));
        match done {
            Ok(_) => Ok(text),
            Err(CodecError::Io(error)) if error.kind() == io::ErrorKind::OutOfMemory => {
                Err("there is no memory for the text".into())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(format: WeightFormat) -> Session {
        let mut session = Session::default();
        session.load(include_bytes!("../../sharnn-stream/tests/tiny.safetensors"), format).unwrap();
        session
    }

    #[test]
    fn a_text_is_read_and_gone_on_with() {
        let mut session = session(WeightFormat::F32);
        for is_adaptive in [false, true] {
            session.begin(is_adaptive).unwrap();
            let whole = session.read(b"The city of Paris").unwrap();
            assert!(whole.len() == 17 && whole.iter().all(|bits| bits.is_finite() && *bits > 0.0));
            session.begin(is_adaptive).unwrap();
            let parts = [session.read(b"The city").unwrap(), session.read(b" of Paris").unwrap()].concat();
            assert_eq!(parts, whole);
            let next = session.expected().unwrap();
            assert!(next.len() == 256 && (next.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            let looked = session.look().unwrap();
            // A newline and the text.
            assert!(looked.len() == 18 && (looked.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{looked:?}");
            session.begin_to_write(0.0, 1).unwrap();
            let text = session.write(5).unwrap();
            session.begin_to_write(0.0, 9).unwrap();
            assert_eq!(session.write(5).unwrap(), text, "the likeliest bytes need no luck");
            assert_eq!(session.read(&text[..1]).unwrap().len(), 1);
        }
        assert!(session.begin_to_write(-1.0, 1).unwrap_err().contains("temperature = -1 cannot be used"));
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let session = session(WeightFormat::Exact);
        let text = b"the same, and the same again; ".repeat(30);
        let small = session.compress(&text, 4, &mut |_| true).unwrap();
        assert!(small.len() < text.len() / 2);
        assert_eq!(session.decompress(&small, &mut |_| true).unwrap(), text);
        assert!(session.decompress(&text, &mut |_| true).unwrap_err().contains("no file of sharnn's codec"));
        assert!(self::session(WeightFormat::F32).compress(&text, 4, &mut |_| true).unwrap_err().contains("exact"));
    }

    #[test]
    fn a_model_is_needed_and_stays_where_another_is_refused() {
        let mut session = Session::default();
        assert_eq!(session.begin(false).unwrap_err(), NO_MODEL);
        assert_eq!(session.read(b"a").unwrap_err(), NO_MODEL);
        let mut session = self::session(WeightFormat::F32);
        let error = session.load(b"no weights", WeightFormat::F32).unwrap_err();
        assert!(error.contains("no weights of a model"), "{error}");
        assert!(session.begin(false).is_ok() && session.describe().unwrap().starts_with("2 blocks, 16 wide"));
    }
}
