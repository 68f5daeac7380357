//! Drawing the next byte from a model's distribution.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

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
}

/// [`Sampling`] and its generator of random numbers.
///
/// ```
/// use sharnn_stream::{Sampler, Sampling};
///
/// let sampling = Sampling { top_k: Some(2), ..Sampling::default() };
/// let mut sampler = Sampler::new(sampling).unwrap();
/// assert_ne!(sampler.draw(&[1.0, 0.0, 2.0]), 1);
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A generator at its beginning.
    ///
    /// # Errors
    /// If an option cannot be used.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        sampling.validate()?;
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, rng })
    }

    /// Draws from numbers of its own: those of the same seed in another of 2^64 sequences. It begins in number 0.
    pub(crate) fn in_sequence(mut self, number: u64) -> Self {
        self.rng.set_stream(number);
        self
    }

    /// Draws a token from logits, `[vocab_size]`, which have to be finite.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn draw(&mut self, logits: &[f32]) -> usize {
        let Self { sampling, rng } = self;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // The sort is stable: of equals, the smaller byte comes first.
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if sampling.temperature == 0.0 {
            return order[0];
        }
        order.truncate(sampling.top_k.unwrap_or(order.len()));
        let best = f64::from(logits[order[0]]);
        // Of a temperature next to 0, every quotient but the best's is -inf, and its weight 0.
        let weight = |&token: &usize| match f64::from(logits[token]) - best {
            0.0 => 1.0,
            below => (below / sampling.temperature).exp(),
        };
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if let Some(top_p) = sampling.top_p {
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
