//! Options of min-trust LAMB, of Muon and of Adagrad.

use serde::{Deserialize, Serialize};
use sharnn_core::ops::LambOptions;

/// Options of [`Optimizer`](crate::Optimizer); the defaults are the paper's.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct LambConfig {
    /// Decay of the first moment a step, in `[0, 1)`. 0.9.
    pub beta1: f64,
    /// Decay of the second moment a step, in `[0, 1)`. 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; above 0. 1e-6.
    pub eps: f64,
    /// Weight decay inside the update, on every tensor. 1.2e-6.
    pub weight_decay: f64,
    /// Floor of the trust ratio; `None` for none. 0.25.
    pub min_trust: Option<f64>,
    /// Ceiling of the trust ratio; `None` for none, as in the paper. With floor and ceiling at 1 the step is AdamW's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_trust: Option<f64>,
    /// Largest global gradient norm; `None` does not clip. 0.25.
    pub clip: Option<f64>,
}

/// An option that cannot be used: which, what it holds, and what would do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} = {value} cannot be used: {hint}")]
pub struct OptimizerConfigError {
    /// Name of the field.
    pub field: &'static str,
    /// What it holds.
    pub value: f64,
    /// What would do.
    pub hint: &'static str,
}

impl Default for LambConfig {
    fn default() -> Self {
        let LambOptions { beta1, beta2, eps, weight_decay, min_trust, max_trust, .. } = LambOptions::default();
        Self { beta1, beta2, eps, weight_decay, min_trust, max_trust, clip: Some(0.25) }
    }
}

impl LambConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn validate(&self) -> Result<(), OptimizerConfigError> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let decay = |value: f64| (0.0..1.0).contains(&value);
        let checks = [
            ("beta1", self.beta1, decay(self.beta1), "use a decay from 0 up to, but not including, 1"),
            ("beta2", self.beta2, decay(self.beta2), "use a decay from 0 up to, but not including, 1"),
            // In f32 a smaller one vanishes beside nothing but 0, and 0 / 0 is no update.
            ("eps", self.eps, self.eps >= 1e-30 && self.eps.is_finite(), "use a finite value of at least 1e-30"),
            (
                "weight_decay",
                self.weight_decay,
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
                "use 0 or a finite value above it",
            ),
            (
                "min_trust",
                self.min_trust.unwrap_or(1.0),
                self.min_trust.is_none_or(|floor| floor >= 0.0 && floor.is_finite()),
                "use a finite value of at least 0, or none",
            ),
            (
                "max_trust",
                self.max_trust.unwrap_or(1.0),
                self.max_trust.is_none_or(|ceiling| {
                    ceiling.is_finite() && ceiling >= self.min_trust.unwrap_or(0.0) && positive(ceiling)
                }),
                "use a finite value above 0 and of at least the least trust, or none",
            ),
            ("clip", self.clip.unwrap_or(1.0), self.clip.is_none_or(positive), "use a finite norm above 0, or none"),
        ];
        refuse_first(checks)
    }
}

/// Options of Muon.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MuonConfig {
    /// Momentum, in `[0, 1)`. 0.95.
    pub momentum: f64,
    /// The learning rate beside that of the other parameters: the root mean square of an update's values. 0.4: the usual 0.2
    /// is for rates of AdamW, and LAMB's are lower.
    pub rate: f64,
    /// Weight decay, apart from the update. 0.
    pub weight_decay: f64,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self { momentum: 0.95, rate: 0.4, weight_decay: 0.0 }
    }
}

impl MuonConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn validate(&self) -> Result<(), OptimizerConfigError> {
        let checks = [
            (
                "momentum",
                self.momentum,
                (0.0..1.0).contains(&self.momentum),
                "use a value from 0 up to, but not including, 1",
            ),
            ("rate", self.rate, self.rate > 0.0 && self.rate.is_finite(), "use a finite value above 0, as 0.4"),
            (
                "weight_decay",
                self.weight_decay,
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
                "use 0 or a finite value above it",
            ),
        ];
        refuse_first(checks)
    }
}

/// Options of Adagrad, which moves the rows of n-grams.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdagradConfig {
    /// The learning rate beside that of the other parameters. 25.
    pub rate: f64,
    /// Added to the root of the sum of squared gradients; above 0. 1e-8.
    pub eps: f64,
}

impl Default for AdagradConfig {
    fn default() -> Self {
        Self { rate: 25.0, eps: 1e-8 }
    }
}

impl AdagradConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn validate(&self) -> Result<(), OptimizerConfigError> {
        refuse_first([
            ("rate", self.rate, self.rate > 0.0 && self.rate.is_finite(), "use a finite value above 0, as 25"),
            ("eps", self.eps, self.eps >= 1e-30 && self.eps.is_finite(), "use a finite value of at least 1e-30"),
        ])
    }
}

/// The error of the first option that is not usable; of each its name, its value, whether it is usable, and what would be.
fn refuse_first<const N: usize>(
    checks: [(&'static str, f64, bool, &'static str); N],
) -> Result<(), OptimizerConfigError> {
    match checks.into_iter().find(|&(_, _, usable, _)| !usable) {
        None => Ok(()),
        Some((field, value, _, hint)) => Err(OptimizerConfigError { field, value, hint }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_muon_that_cannot_be_used_is_refused_by_name() {
        let base = MuonConfig::default;
        base().validate().unwrap();
        for (config, field) in [
            (MuonConfig { momentum: 1.0, ..base() }, "momentum"),
            (MuonConfig { rate: 0.0, ..base() }, "rate"),
            (MuonConfig { rate: f64::NAN, ..base() }, "rate"),
            (MuonConfig { weight_decay: -1.0, ..base() }, "weight_decay"),
        ] {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }

    #[test]
    fn an_option_of_adagrad_that_cannot_be_used_is_refused_by_name() {
        let base = AdagradConfig::default;
        base().validate().unwrap();
        for (config, field) in [
            (AdagradConfig { rate: -1.0, ..base() }, "rate"),
            (AdagradConfig { eps: 0.0, ..base() }, "eps"),
            (AdagradConfig { eps: f64::INFINITY, ..base() }, "eps"),
        ] {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }
}
