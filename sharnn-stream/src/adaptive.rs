//! Adaptive mixing of what streams predict: by a mixer for each stream, or by one for all that move in step.

use sharnn_mixing::{ByteDistribution, Mixer};

use crate::{StateError, StreamState};

/// The mixers of some streams.
#[derive(Clone, Debug)]
pub(crate) enum Adaptive {
    /// One for each stream, all of which began as the same.
    Own { start: Box<Mixer>, mixers: Vec<Mixer> },
    /// One for all of them, with a lane for each.
    Shared(Box<Mixer>),
}

impl Adaptive {
    /// For `n` streams: of a mixer of one lane each gets a copy, one of `n` lanes is shared.
    ///
    /// # Panics
    /// If it has another number of lanes.
    pub fn new(mixer: Mixer, n: usize) -> Self {
        match mixer.n_lanes() {
            1 => Self::Own { mixers: vec![mixer.clone(); n], start: Box::new(mixer) },
            lanes => {
                assert_eq!(lanes, n, "a mixer of {lanes} lanes for {n} streams: use one of 1 or of {n}");
                Self::Shared(Box::new(mixer))
            }
        }
    }

    /// Whether streams have to be read in step.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    fn of(&mut self, stream: usize) -> (&mut Mixer, usize) {
        match self {
            Self::Own { mixers, .. } => (&mut mixers[stream], 0),
            Self::Shared(mixer) => (mixer, stream),
        }
    }

    /// Reads a stream's byte, of which the model gives these logits: what it cost, in nats.
    pub fn read(&mut self, stream: usize, logits: &[f32], byte: u8) -> f64 {
        let (mixer, lane) = self.of(stream);
        mixer.cost(lane, &ByteDistribution::of_logits(logits), byte)
    }

    /// The log-probabilities of a stream's next byte.
    pub fn log_probs(&mut self, stream: usize, logits: &[f32]) -> Vec<f64> {
        let (mixer, lane) = self.of(stream);
        mixer.log_probs(lane, &ByteDistribution::of_logits(logits))
    }

    /// Starts a stream anew: with what its mixer began with, or, of one that is shared, with what it knows by now.
    pub fn reset(&mut self, stream: usize) {
        match self {
            Self::Own { start, mixers } => mixers[stream].clone_from(start),
            Self::Shared(mixer) => mixer.reset(stream),
        }
    }

    /// A state with what the stream's mixer knows, where it has one of its own.
    pub fn save(&self, stream: usize, state: StreamState) -> StreamState {
        match self {
            Self::Own { mixers, .. } => state.with_adaptive(mixers[stream].to_bytes()),
            Self::Shared(_) => state,
        }
    }

    /// What a stream's mixer is to become with a state, where it is another.
    pub fn restored(&self, state: &StreamState) -> Result<Option<Mixer>, StateError> {
        let (Self::Own { start, .. }, Some(bytes)) = (self, state.adaptive()) else { return Ok(None) };
        let mut mixer = Mixer::new(start.config(), 1);
        mixer.set_bytes(bytes)?;
        Ok(Some(mixer))
    }

    /// Lets a stream go on with such a mixer; without one it starts anew.
    pub fn set(&mut self, stream: usize, mixer: Option<Mixer>) {
        match (mixer, &mut *self) {
            (Some(mixer), Self::Own { mixers, .. }) => mixers[stream] = mixer,
            _ => self.reset(stream),
        }
    }
}
