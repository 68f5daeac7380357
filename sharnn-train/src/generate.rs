//! Text from a model, byte by byte.

use std::io::{self, Write};

use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sharnn_core::{Backend, Pass, ShaRnn, ShaRnnState};

/// Longest segment in which a prompt is fed, in bytes: the training length of the paper.
const PROMPT_SEGMENT: usize = 1024;

/// How the next byte is drawn from the model's distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by this. 0 always takes the likeliest byte, 1 samples the model as it is.
    pub temperature: f64,
    /// Draw from this many of the likeliest bytes only.
    pub top_k: Option<usize>,
    /// Draw from the likeliest bytes that together reach this probability only.
    pub top_p: Option<f64>,
    /// Seed of the generator, which is portable: the same seed, model and prompt draw the same numbers everywhere.
    pub seed: u64,
}

impl Default for Sampling {
    /// The model's own distribution, seed 0.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, seed: 0 }
    }
}

/// A sampling option that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} = {value} cannot be used: {hint}")]
pub struct SamplingError {
    /// Name of the option.
    pub field: &'static str,
    /// What it holds.
    pub value: f64,
    /// What would do.
    pub hint: &'static str,
}

impl Sampling {
    /// Checks every option.
    ///
    /// # Errors
    /// The first option that cannot be used.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let refuse = |field, value, hint| Err(SamplingError { field, value, hint });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "use a finite number of at least 0; 0 is greedy");
        }
        if self.top_k == Some(0) {
            return refuse("top_k", 0.0, "use at least 1, or none to draw from every byte");
        }
        match self.top_p {
            Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
                refuse("top_p", top_p, "use a probability above 0 and up to 1, or none to draw from every byte")
            }
            _ => Ok(()),
        }
    }

    /// Draws a token from finite logits.
    fn draw(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // The sort is stable: of equals, the smaller byte comes first.
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if self.temperature == 0.0 {
            return order[0];
        }
        order.truncate(self.top_k.unwrap_or(order.len()));
        let best = f64::from(logits[order[0]]);
        // Of a temperature next to 0, every quotient but the best's is -inf, and its weight 0.
        let weight = |&token: &usize| match f64::from(logits[token]) - best {
            0.0 => 1.0,
            below => (below / self.temperature).exp(),
        };
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if let Some(top_p) = self.top_p {
            let enough = top_p * weights.iter().sum::<f64>();
            let mut reached = 0.0;
            let keep = weights.iter().take_while(|&&weight| {
                let wanted = reached < enough;
                reached += weight;
                wanted
            });
            let keep = keep.count().max(1);
            weights.truncate(keep);
        }
        let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
        for (&token, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding left a crumb: it belongs to the last token that can be drawn.
        order[weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0)]
    }
}

/// Why no byte could be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The sampling options cannot be used.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The model's tokens are not bytes.
    #[error("the model has a vocabulary of {vocab_size}, and only 256 tokens are bytes: use a model of at most 256")]
    NotBytes {
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A byte of the prompt (or the newline that stands for an empty one) is outside the model's vocabulary.
    #[error("byte {byte} at offset {offset} of the prompt is outside the model's vocabulary of {vocab_size}")]
    OutsideVocabulary {
        /// The byte.
        byte: u8,
        /// Its offset in the prompt.
        offset: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The model's logits are not numbers.
    #[error("the logit of byte {byte} is {logit}, expected finite ones: the model has diverged")]
    NotFinite {
        /// The byte.
        byte: usize,
        /// Its logit.
        logit: f32,
    },
    /// The bytes could not be written.
    #[error("cannot write generated bytes")]
    Io(#[from] io::Error),
}

/// Generates bytes from a model: feed it a prompt, then ask for bytes. It also is an endless iterator.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::backend::Flex;
/// use sharnn_core::ShaRnnConfig;
/// use sharnn_train::{Generator, Sampling};
///
/// let model = ShaRnnConfig::xs().with_mem_len(64).init_seeded::<Flex>(1, &Default::default());
/// let mut generator = Generator::new(&model, Sampling::default()).unwrap();
/// generator.feed(b"Once upon a time").unwrap();
/// let mut text = Vec::new();
/// generator.generate_to(&mut text, 3).unwrap();
/// assert_eq!(text.len(), 3);
/// # }
/// ```
#[derive(Debug)]
pub struct Generator<'a, B: Backend> {
    model: &'a ShaRnn<B>,
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// Where the stream stands, but while it is in `packed`.
    state: ShaRnnState<B>,
    /// The stream on packed weights: on flex, where bytes come one at a time.
    #[cfg(feature = "flex")]
    packed: Option<sharnn_core::DecodeStreams>,
    /// Logits after the last byte; `None` before the first.
    logits: Option<Vec<f32>>,
}

impl<'a, B: Backend> Generator<'a, B> {
    /// A generator at the start of a stream. Give it a model without gradients (`model.valid()`), best a collapsed one.
    ///
    /// # Errors
    /// If `sampling` cannot be used, or the model's tokens are not bytes.
    pub fn new(model: &'a ShaRnn<B>, sampling: Sampling) -> Result<Self, GenerateError> {
        sampling.validate()?;
        let vocab_size = model.vocab_size();
        if vocab_size > 256 {
            return Err(GenerateError::NotBytes { vocab_size });
        }
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self {
            model,
            sampling,
            rng,
            state: model.empty_state(),
            #[cfg(feature = "flex")]
            packed: None,
            logits: None,
        })
    }

    /// Reads `prompt` as the text so far, any bytes, valid UTF-8 or not. It goes in segments of 1024 bytes, or of `mem_len`
    /// where that is less; an empty one changes nothing.
    ///
    /// # Errors
    /// If a byte is outside the model's vocabulary. Nothing is read then.
    pub fn feed(&mut self, prompt: &[u8]) -> Result<(), GenerateError> {
        let vocab_size = self.model.vocab_size();
        if let Some(offset) = prompt.iter().position(|&byte| usize::from(byte) >= vocab_size) {
            return Err(GenerateError::OutsideVocabulary { byte: prompt[offset], offset, vocab_size });
        }
        let longest = match self.model.mem_len {
            0 => PROMPT_SEGMENT,
            mem_len => mem_len.min(PROMPT_SEGMENT),
        };
        for segment in prompt.chunks(longest) {
            self.read(segment);
        }
        Ok(())
    }

    /// Draws the next byte and reads it. Without a prompt the text starts after a newline.
    ///
    /// # Errors
    /// If the model's logits are not finite, or an empty prompt's newline is outside its vocabulary.
    pub fn next_byte(&mut self) -> Result<u8, GenerateError> {
        let logits = match self.logits.take() {
            Some(logits) => logits,
            None => {
                self.feed(b"\n")?;
                self.logits.take().expect("feeding a byte leaves logits")
            }
        };
        if let Some(byte) = logits.iter().position(|logit| !logit.is_finite()) {
            let logit = logits[byte];
            self.logits = Some(logits);
            return Err(GenerateError::NotFinite { byte, logit });
        }
        let token = self.sampling.draw(&logits, &mut self.rng);
        let byte = u8::try_from(token).expect("a vocabulary of at most 256 was checked");
        // On the CPU's own backend bytes are decoded with packed weights.
        #[cfg(feature = "flex")]
        if std::any::TypeId::of::<B>() == std::any::TypeId::of::<burn::backend::Flex>() {
            self.read_packed(byte, logits);
            return Ok(byte);
        }
        self.read(&[byte]);
        Ok(byte)
    }

    /// Writes `n` bytes as they come, each flushed.
    ///
    /// # Errors
    /// As [`next_byte`](Self::next_byte), and if `writer` fails; bytes before that are written.
    pub fn generate_to(&mut self, mut writer: impl Write, n: usize) -> Result<(), GenerateError> {
        for _ in 0..n {
            writer.write_all(&[self.next_byte()?])?;
            writer.flush()?;
        }
        Ok(())
    }

    /// Runs a segment that is not empty and keeps its last logits.
    fn read(&mut self, segment: &[u8]) {
        let tokens: Vec<i32> = segment.iter().map(|&byte| byte.into()).collect();
        let device = self.model.encoder.weight.val().device();
        let tokens = Tensor::from_data(TensorData::new(tokens, [1, segment.len()]), &device);
        let pass = Pass::default();
        #[cfg(feature = "flex")]
        if let Some(packed) = self.packed.take() {
            self.state = packed.state(0, &device);
        }
        let state = std::mem::replace(&mut self.state, self.model.empty_state());
        let (h, state) = self.model.hidden(tokens, state, &pass);
        self.state = state.detach();
        let last = h.detach().narrow(1, segment.len() - 1, 1);
        self.logits = Some(crate::params::host_values(self.model.decode(last, &pass).detach().flatten::<1>(0, 2)));
    }

    /// Reads one byte on packed weights, after a first that went through the model; `logits` is room for the new ones.
    #[cfg(feature = "flex")]
    fn read_packed(&mut self, byte: u8, mut logits: Vec<f32>) {
        let packed = self.packed.get_or_insert_with(|| {
            let engine = sharnn_core::DecodeEngine::new(self.model, sharnn_core::WeightFormat::F32);
            engine.streams_from(&self.state)
        });
        logits.copy_from_slice(packed.feed(&[byte]));
        self.logits = Some(logits);
    }
}

impl<B: Backend> Iterator for Generator<'_, B> {
    type Item = Result<u8, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_byte())
    }
}
