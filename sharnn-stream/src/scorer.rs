//! What bytes cost: the log-probability of each, before the model reads it.
//!
//! ```text
//! cost of a byte = -ln p(byte | the bytes before it) = ln Σ exp(logits) - logit of the byte       [nats]
//! bits per byte  = mean cost / ln 2
//! ```

use sharnn_mixing::Mixer;

use crate::adaptive::Adaptive;
use crate::{StateError, StreamError, StreamState, Streams, begin, check_tokens, checked};

/// What was scored of a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Bytes scored.
    pub bytes: u64,
    /// What they cost in all, in nats.
    pub nats: f64,
}

impl Tally {
    /// The mean cost in bits per byte; `None` before the first byte.
    pub fn bits_per_byte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.nats / self.bytes as f64 / std::f64::consts::LN_2)
    }
}

/// Scores one stream of bytes, of any length in constant memory: each byte is predicted, scored and read.
///
/// A stream begins after a newline, which is not scored; [`feed`](Self::feed) it something else for another beginning.
/// However the text is divided over calls, a byte costs the same (see [`Streams`]).
///
/// ```
/// # #[cfg(feature = "engine")] {
/// use sharnn_stream::{DecodeEngine, Scorer, WeightFormat};
///
/// let weights = std::fs::read("tests/tiny.safetensors").unwrap();
/// let engine = DecodeEngine::from_weights(&weights, WeightFormat::F32, None).unwrap();
/// let mut scorer = Scorer::new(engine.streams(1)).unwrap();
/// let nats = scorer.score(b"Hello, ").unwrap();
/// assert_eq!(nats.len(), 7);
///
/// // What the next byte may be, and then the byte.
/// let log_probs = scorer.log_probs().unwrap();
/// assert_eq!(log_probs.len(), 256);
/// assert_eq!(scorer.score(b"w").unwrap(), [-log_probs[usize::from(b'w')]]);
///
/// // Of all bytes so far.
/// assert_eq!(scorer.tally().bytes, 8);
///
/// // The stream can be stored, and goes on in any place.
/// let state = scorer.state();
/// let mut other = Scorer::new(engine.streams(1)).unwrap();
/// other.set_state(&state).unwrap();
/// assert_eq!(other.score(b"orld").unwrap(), scorer.score(b"orld").unwrap());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Scorer<S>(BatchScorer<S>);

/// [`Scorer`] for streams side by side, each with a text of its own. An empty text lets its stream wait, at no cost.
///
/// Streams join and leave in the places that there are: [`state`](Self::state) takes one out, [`reset`](Self::reset) begins
/// a new one, [`set_state`](Self::set_state) goes on with another.
///
/// ```
/// # #[cfg(feature = "engine")] {
/// use sharnn_stream::{BatchScorer, DecodeEngine, WeightFormat};
///
/// let weights = std::fs::read("tests/tiny.safetensors").unwrap();
/// let engine = DecodeEngine::from_weights(&weights, WeightFormat::Int8, None).unwrap();
/// let mut scorer = BatchScorer::new(engine.streams(3)).unwrap();
/// let nats = scorer.score(&["one line", "", "another line"]).unwrap();
/// assert_eq!([nats[0].len(), nats[1].len(), nats[2].len()], [8, 0, 12]);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BatchScorer<S> {
    streams: S,
    tallies: Vec<Tally>,
    adaptive: Option<Adaptive>,
}

impl<S: Streams> Scorer<S> {
    /// A scorer of streams that are one.
    ///
    /// # Errors
    /// If the model's tokens are not bytes.
    ///
    /// # Panics
    /// If there are more streams.
    pub fn new(streams: S) -> Result<Self, StreamError> {
        assert_eq!(streams.n_streams(), 1, "{} streams for a scorer of one: use BatchScorer", streams.n_streams());
        BatchScorer::new(streams).map(Self)
    }

    /// A scorer whose predictions are the model's mixed with what was read: see [`Mixer`]. Scores are those of another model than without, and
    /// are to be named so. What the mixer knows is part of the state.
    ///
    /// ```
    /// # #[cfg(feature = "engine")] {
    /// use sharnn_stream::{DecodeEngine, Mixer, MixerConfig, Scorer, WeightFormat};
    ///
    /// let weights = std::fs::read("tests/tiny.safetensors").unwrap();
    /// let streams = DecodeEngine::from_weights(&weights, WeightFormat::F32, None).unwrap().streams(1);
    /// let mut scorer = Scorer::adaptive(streams, Mixer::new(MixerConfig::default(), 1)).unwrap();
    /// let mut cost = |line: &[u8]| scorer.score(line).unwrap().iter().sum::<f64>();
    /// let first = cost(b"Connection from 10.0.0.7 closed\n");
    /// assert!(cost(b"Connection from 10.0.0.7 closed\n") < 0.3 * first);
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the model's tokens are not bytes.
    ///
    /// # Panics
    /// If there are more streams, or the mixer has more lanes.
    pub fn adaptive(streams: S, mixer: Mixer) -> Result<Self, StreamError> {
        Ok(Self(Self::new(streams)?.0.with_mixer(mixer)))
    }

    /// Reads a text without scoring it: what is known before.
    ///
    /// # Errors
    /// If a byte is outside the model's vocabulary. Nothing is read then.
    pub fn feed(&mut self, text: &[u8]) -> Result<(), StreamError> {
        self.0.feed(&[text])
    }

    /// Scores a text and reads it: the cost of each byte in nats.
    ///
    /// # Errors
    /// If a byte is outside the model's vocabulary: nothing is read then. If the model's logits are not finite: the stream is
    /// of no use then.
    pub fn score(&mut self, text: &[u8]) -> Result<Vec<f64>, StreamError> {
        Ok(self.0.score(&[text])?.remove(0))
    }

    /// [`score`](Self::score), with the whole distribution: `each` gets, before each byte is read, its offset and the
    /// log-probabilities of every byte in its place, `[vocab_size]`, in nats.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn score_with(&mut self, text: &[u8], mut each: impl FnMut(usize, &[f64])) -> Result<(), StreamError> {
        self.0.score_with(&[text], |_, offset, log_probs| each(offset, log_probs))
    }

    /// The log-probabilities of the next byte, `[vocab_size]`, in nats.
    ///
    /// # Errors
    /// If the model's logits are not finite, or the newline before a stream is outside the model's vocabulary.
    pub fn log_probs(&mut self) -> Result<Vec<f64>, StreamError> {
        self.0.log_probs(0)
    }

    /// What was scored since the stream began here.
    pub fn tally(&self) -> Tally {
        self.0.tally(0)
    }

    /// The streams.
    pub fn streams(&self) -> &S {
        self.0.streams()
    }

    /// Starts the stream anew, with what the mixer knew at the start.
    pub fn reset(&mut self) {
        self.0.reset(0);
    }

    /// The stream's state. Its tally is not part of it.
    pub fn state(&self) -> StreamState {
        self.0.state(0)
    }

    /// Goes on from a state, with a new tally.
    ///
    /// # Errors
    /// As [`Streams::set_state`].
    pub fn set_state(&mut self, state: &StreamState) -> Result<(), StateError> {
        self.0.set_state(0, state)
    }
}

impl<S: Streams> BatchScorer<S> {
    /// A scorer of streams.
    ///
    /// # Errors
    /// If the model's tokens are not bytes.
    pub fn new(streams: S) -> Result<Self, StreamError> {
        check_tokens(&streams)?;
        let tallies = vec![Tally::default(); streams.n_streams()];
        Ok(Self { streams, tallies, adaptive: None })
    }

    /// A scorer whose predictions are the model's mixed with what was read, as [`Scorer::adaptive`].
    ///
    /// A mixer of one lane is copied: each stream has one of its own, and a stream that starts anew begins with that copy. One with a lane for
    /// each stream is shared by them: they learn from each other. Then the streams' first bytes are read, in the streams'
    /// order, before their second ones, and what it knows is not part of a stream's state.
    ///
    /// # Errors
    /// If the model's tokens are not bytes.
    ///
    /// # Panics
    /// If the mixer has another number of lanes.
    pub fn adaptive(streams: S, mixer: Mixer) -> Result<Self, StreamError> {
        Ok(Self::new(streams)?.with_mixer(mixer))
    }

    /// The same, mixing.
    pub(crate) fn with_mixer(self, mixer: Mixer) -> Self {
        Self { adaptive: Some(Adaptive::new(mixer, self.streams.n_streams())), ..self }
    }

    /// Reads a text for each stream without scoring it.
    ///
    /// # Errors
    /// If a byte is outside the model's vocabulary. Nothing is read then.
    ///
    /// # Panics
    /// If there are not as many texts as streams.
    pub fn feed(&mut self, texts: &[impl AsRef<[u8]>]) -> Result<(), StreamError> {
        let texts = checked(&self.streams, texts)?;
        if self.adaptive.is_none() {
            self.streams.read(&texts, &mut |_, _, _| {});
            return Ok(());
        }
        // A mixer learns from what was predicted. Of the first byte of a stream nothing is.
        self.each_byte(&texts, |adaptive, stream, _, logits, byte| {
            StreamError::of_logits(stream, logits)?;
            adaptive.as_mut().map(|adaptive| adaptive.read(stream, logits, byte));
            Ok(())
        })
    }

    /// Scores a text for each stream and reads it: the cost of each byte in nats.
    ///
    /// # Errors
    /// If a byte is outside the model's vocabulary: nothing is read then. If a stream's logits are not finite: none of these
    /// streams is of use then, but to be reset or set to a state.
    ///
    /// # Panics
    /// If there are not as many texts as streams.
    pub fn score(&mut self, texts: &[impl AsRef<[u8]>]) -> Result<Vec<Vec<f64>>, StreamError> {
        let texts = self.begun(texts)?;
        let mut nats: Vec<_> = texts.iter().map(|text| Vec::with_capacity(text.len())).collect();
        let mut log_probs = Vec::with_capacity(self.streams.shape().vocab_size);
        self.each_byte(&texts, |adaptive, stream, _, logits, byte| {
            nats[stream].push(match adaptive {
                None => {
                    log_softmax(stream, logits, &mut log_probs)?;
                    -log_probs[usize::from(byte)]
                }
                Some(adaptive) => {
                    StreamError::of_logits(stream, logits)?;
                    adaptive.read(stream, logits, byte)
                }
            });
            Ok(())
        })?;
        for (tally, nats) in self.tallies.iter_mut().zip(&nats) {
            tally.bytes += nats.len() as u64;
            nats.iter().for_each(|nats| tally.nats += nats);
        }
        Ok(nats)
    }

    /// [`score`](Self::score), with the whole distribution: `each` gets the stream, the byte's offset in its text and the
    /// log-probabilities of every byte in its place, `[vocab_size]`, in nats. A stream's bytes come in order, and between
    /// those of others.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    ///
    /// # Panics
    /// As [`score`](Self::score).
    pub fn score_with(
        &mut self,
        texts: &[impl AsRef<[u8]>],
        mut each: impl FnMut(usize, usize, &[f64]),
    ) -> Result<(), StreamError> {
        let texts = self.begun(texts)?;
        let mut tallies = self.tallies.clone();
        let mut log_probs = Vec::with_capacity(self.streams.shape().vocab_size);
        self.each_byte(&texts, |adaptive, stream, offset, logits, byte| {
            match adaptive {
                None => log_softmax(stream, logits, &mut log_probs)?,
                Some(adaptive) => {
                    StreamError::of_logits(stream, logits)?;
                    log_probs = adaptive.log_probs(stream, logits);
                    adaptive.read(stream, logits, byte);
                }
            }
            tallies[stream].bytes += 1;
            tallies[stream].nats -= log_probs[usize::from(byte)];
            each(stream, offset, &log_probs);
            Ok(())
        })?;
        self.tallies = tallies;
        Ok(())
    }

    /// The texts of all streams, which have begun.
    fn begun<'a>(&mut self, texts: &'a [impl AsRef<[u8]>]) -> Result<Vec<&'a [u8]>, StreamError> {
        let texts = checked(&self.streams, texts)?;
        begin(&mut self.streams, |stream| !texts[stream].is_empty())?;
        Ok(texts)
    }

    /// Reads texts. `each` gets, for every byte that something was predicted of, the mixers, the stream, the byte's offset, the logits of
    /// its place and the byte; of streams that share a mixer in step.
    fn each_byte(
        &mut self,
        texts: &[&[u8]],
        mut each: impl FnMut(&mut Option<Adaptive>, usize, usize, &[f32], u8) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let step = if self.adaptive.as_ref().is_some_and(Adaptive::is_shared) { 1 } else { longest.max(1) };
        for start in (0..longest).step_by(step) {
            let part = |len: usize| start.min(len)..(start + step).min(len);
            let parts: Vec<&[u8]> = texts.iter().map(|text| &text[part(text.len())]).collect();
            let Self { streams, adaptive, .. } = self;
            let mut predict = |stream: usize, offset: usize, logits: &[f32]| match parts[stream].get(offset) {
                Some(&byte) => each(adaptive, stream, start + offset, logits, byte),
                None => Ok(()),
            };
            for stream in 0..parts.len() {
                if let Some(logits) = streams.logits(stream) {
                    predict(stream, 0, logits)?;
                }
            }
            let mut first_error = Ok(());
            streams.read(&parts, &mut |stream, offset, logits| {
                if first_error.is_ok() {
                    first_error = predict(stream, offset + 1, logits);
                }
            });
            first_error?;
        }
        Ok(())
    }

    /// The log-probabilities of a stream's next byte, `[vocab_size]`, in nats.
    ///
    /// # Errors
    /// If the model's logits are not finite, or the newline before a stream is outside the model's vocabulary.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn log_probs(&mut self, stream: usize) -> Result<Vec<f64>, StreamError> {
        begin(&mut self.streams, |other| other == stream)?;
        let logits = self.streams.logits(stream).expect("a stream that has begun predicts something");
        let mut log_probs = Vec::with_capacity(logits.len());
        log_softmax(stream, logits, &mut log_probs)?;
        Ok(match &mut self.adaptive {
            None => log_probs,
            Some(adaptive) => adaptive.log_probs(stream, logits),
        })
    }

    /// What the next byte of each of these streams is drawn from: logits, `[vocab_size]`; the model's own where nothing is mixed.
    pub(crate) fn logits(&mut self, of: &[usize]) -> Result<Vec<Vec<f32>>, StreamError> {
        begin(&mut self.streams, |stream| of.contains(&stream))?;
        let Self { streams, adaptive, .. } = self;
        let mut logits = |&stream: &usize| {
            let logits = streams.logits(stream).expect("a stream that has begun predicts something");
            StreamError::of_logits(stream, logits)?;
            Ok(match adaptive {
                None => logits.to_vec(),
                Some(adaptive) => {
                    adaptive.log_probs(stream, logits).into_iter().map(|log_prob| log_prob as f32).collect()
                }
            })
        };
        of.iter().map(&mut logits).collect()
    }

    /// What was scored of a stream since it began here.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn tally(&self, stream: usize) -> Tally {
        self.tallies[stream]
    }

    /// The streams.
    pub fn streams(&self) -> &S {
        &self.streams
    }

    /// Starts a stream anew.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn reset(&mut self, stream: usize) {
        self.streams.reset(stream);
        self.tallies[stream] = Tally::default();
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.reset(stream);
        }
    }

    /// A stream's state. Its tally is not part of it.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn state(&self, stream: usize) -> StreamState {
        let state = self.streams.state(stream);
        match &self.adaptive {
            None => state,
            Some(adaptive) => adaptive.save(stream, state),
        }
    }

    /// Lets a stream go on from a state, with a new tally.
    ///
    /// # Errors
    /// As [`Streams::set_state`].
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn set_state(&mut self, stream: usize, state: &StreamState) -> Result<(), StateError> {
        let mixer = self.adaptive.as_ref().map(|adaptive| adaptive.restored(state)).transpose()?;
        self.streams.set_state(stream, state)?;
        self.tallies[stream] = Tally::default();
        if let (Some(adaptive), Some(mixer)) = (&mut self.adaptive, mixer) {
            adaptive.set(stream, mixer);
        }
        Ok(())
    }
}

/// `logits - ln Σ exp(logits)`.
fn log_softmax(stream: usize, logits: &[f32], log_probs: &mut Vec<f64>) -> Result<(), StreamError> {
    StreamError::of_logits(stream, logits)?;
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    log_probs.clear();
    // Differences first: a sum of large logits and a small logarithm would lose its digits.
    log_probs.extend(logits.iter().map(|&logit| f64::from(logit) - max));
    let sum: f64 = log_probs.iter().map(|below| below.exp()).sum();
    let ln = sum.ln();
    log_probs.iter_mut().for_each(|log_prob| *log_prob -= ln);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_finite_for_large_logits_and_for_those_alone() {
        let mut log_probs = Vec::new();
        log_softmax(0, &[1.0; 4], &mut log_probs).unwrap();
        assert!(log_probs.iter().all(|x| (x + 4.0_f64.ln()).abs() < 1e-12), "{log_probs:?}");
        // ln(1 + e^-2) and 2 more.
        log_softmax(0, &[1000.0, 998.0], &mut log_probs).unwrap();
        assert!((log_probs[0] + 0.126_928_011_042_972_5).abs() < 1e-12, "{log_probs:?}");
        assert!((log_probs[1] + 2.126_928_011_042_972_5).abs() < 1e-12, "{log_probs:?}");
        log_softmax(0, &[f32::MAX, f32::MIN], &mut log_probs).unwrap();
        assert!(log_probs[0] == 0.0 && log_probs[1].is_finite(), "{log_probs:?}");
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = log_softmax(7, &[0.0, broken], &mut log_probs).unwrap_err();
            assert!(matches!(error, StreamError::NotFinite { stream: 7, byte: 1, .. }), "{error}");
        }
    }
}
