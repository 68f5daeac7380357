//! How long the segments are into which a stream is cut: all alike, or drawn at random around one of two lengths.

use rand::{Rng, RngExt};
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// The lengths, in bytes, of the segments of a stream. The last segment of an epoch is whatever is left.
///
/// Written with a tag, `{"kind": "fixed", "len": 1024}` or `{"kind": "random", ...}`; unknown fields are refused.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SegmentLengths {
    /// Every segment has the same length, as in evaluation.
    Fixed {
        /// The length in bytes, at least 1.
        len: usize,
    },
    /// `clamp(trunc(Normal(b, std_dev)), min, max)`, where b is `short_base` with `short_probability` and `base`
    /// otherwise, as in training: the model then learns nothing from where segments happen to end. Where there is a
    /// `multiple`, the nearest one from `min` to `max` is taken.
    Random {
        /// The usual length in bytes, from `min` to `max`.
        base: usize,
        /// The other length in bytes, from `min` to `max`.
        short_base: usize,
        /// How often the other length is used, from 0 to 1.
        short_probability: f64,
        /// Standard deviation around either, in bytes; 0 for none.
        std_dev: f64,
        /// No segment is shorter, in bytes, but for the last one of an epoch. At least 1.
        min: usize,
        /// No segment is longer, in bytes: what decides how much memory a training step takes.
        max: usize,
        /// Lengths are multiples of it, but for the last one of an epoch: few different ones suit the kernels of GPUs,
        /// which are chosen and timed by size. 1 for any length.
        #[serde(default = "any_length")]
        multiple: usize,
    },
}

fn any_length() -> usize {
    1
}

impl SegmentLengths {
    /// The lengths that the paper trains with: Normal(1024, 5), in one of twenty segments Normal(512, 5), at least 5
    /// and at most 1024.
    pub fn paper() -> Self {
        Self::around(1024)
    }

    /// The paper's lengths at another scale: `base` in place of 1024, half of it in place of 512, `base` as the
    /// maximum. The standard deviation stays 5, and so does the minimum unless half of `base` is less.
    pub fn around(base: usize) -> Self {
        let short_base = (base / 2).max(1);
        let min = short_base.min(5);
        Self::Random { base, short_base, short_probability: 0.05, std_dev: 5.0, min, max: base, multiple: any_length() }
    }

    /// Takes multiples of a length alone where lengths are drawn, as far as there are any; see
    /// [`Random`](Self::Random). `Fixed` stays as it is.
    pub fn with_multiple(self, of: usize) -> Self {
        match self {
            Self::Random { base, short_base, short_probability, std_dev, min, max, .. } => {
                Self::Random { base, short_base, short_probability, std_dev, min, max, multiple: of }
            }
            Self::Fixed { .. } => self,
        }
    }

    /// What lengths are multiples of; the length itself where there is one alone.
    pub fn multiple(&self) -> usize {
        match *self {
            Self::Fixed { len } => len,
            Self::Random { multiple, .. } => multiple,
        }
    }

    /// The longest segment, in bytes, that these lengths can give.
    pub fn max(&self) -> usize {
        match *self {
            Self::Fixed { len } => len,
            Self::Random { max, .. } => max,
        }
    }

    /// Checks that the settings make sense.
    ///
    /// # Errors
    /// Naming the first setting that does not.
    pub fn validate(&self) -> Result<(), DataError> {
        match *self {
            Self::Fixed { len } => check("len", len, len >= 1, || "must be at least 1".into()),
            Self::Random { base, short_base, short_probability, std_dev, min, max, multiple } => {
                let bounds = || format!("must lie from `min` to `max`, {min} to {max}");
                check("min", min, min >= 1, || "must be at least 1".into())?;
                check("max", max, max >= min, || format!("must be at least `min`, {min}"))?;
                check("base", base, (min..=max).contains(&base), bounds)?;
                check("short_base", short_base, (min..=max).contains(&short_base), bounds)?;
                check("short_probability", short_probability, (0.0..=1.0).contains(&short_probability), || {
                    "must lie from 0 to 1".into()
                })?;
                check("std_dev", std_dev, std_dev.is_finite() && std_dev >= 0.0, || {
                    "must be finite and at least 0".into()
                })?;
                let has_one = multiple >= 1 && max / multiple * multiple >= min;
                check("multiple", multiple, has_one, || {
                    format!("must be at least 1 and have a multiple from `min` to `max`, {min} to {max}")
                })
            }
        }
    }

    /// Draws the length of one segment, before it is cut at the end of the epoch. `Fixed` draws nothing.
    ///
    /// The settings must be valid; see [`Self::validate`].
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> usize {
        match *self {
            Self::Fixed { len } => len,
            Self::Random { base, short_base, short_probability, std_dev, min, max, multiple } => {
                let short = rng.random::<f64>() < short_probability;
                let mean = if short { short_base } else { base } as f64;
                let normal = Normal::new(mean, std_dev).expect("a valid standard deviation is finite and not negative");
                // `as` truncates and saturates, like the clamp after it.
                let len = (normal.sample(rng) as usize).clamp(min, max);
                let (least, most) = (min.div_ceil(multiple), max / multiple);
                (len.saturating_add(multiple / 2) / multiple).clamp(least, most) * multiple
            }
        }
    }
}

fn check<T: ToString>(
    field: &'static str,
    found: T,
    ok: bool,
    expected: impl FnOnce() -> String,
) -> Result<(), DataError> {
    if ok {
        return Ok(());
    }
    Err(DataError::SegmentLengths { field, found: found.to_string(), expected: expected() })
}
