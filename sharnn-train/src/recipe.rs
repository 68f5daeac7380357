//! The recipe as data: batches, learning rates, optimizer, evaluation. [`Recipe::paper`] is that of Merity 2019,
//! [`Recipe::budget`] what scored best for little data or time.
//!
//! Here lives what decides the mathematics of a run, and what of it can be used; nothing here computes.
//! It may use the options of optim and eval; run and trainer may use it.

use serde::{Deserialize, Serialize};
use sharnn_core::{AutodiffBackend, Precision, ShaRnnConfig};
use sharnn_data::{DataError, SegmentLengths};

use crate::eval::EvalConfig;
use crate::optim::{AdagradConfig, LambConfig, MuonConfig, Optimizer, OptimizerConfigError};

/// Everything that decides what a training run computes, but for the model and the data.
///
/// A run is a list of phases. Every phase after the first starts from the weights of the best validation so far, with
/// a fresh optimizer.
///
/// ```
/// use sharnn_train::Recipe;
///
/// let recipe = Recipe::paper().with_batch_size(8);
/// assert!(recipe.validate().is_ok());
/// let error = recipe.with_batch_size(0).validate().unwrap_err();
/// assert!(error.to_string().starts_with("batch_size = 0 cannot be used"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Lanes of the training data: rows of a batch. The paper uses 16.
    pub batch_size: usize,
    /// Lengths of the segments in bytes. The paper draws them around 1024 and, in one of twenty, around 512.
    pub segments: SegmentLengths,
    /// The phases, in their order; at least one.
    pub phases: Vec<Phase>,
    /// The optimizer.
    pub lamb: LambConfig,
    /// Muon for the matrices inside blocks and the maps of n-grams, in place of that optimizer; `None` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonConfig>,
    /// Adagrad for the rows of n-grams, where the model has a memory of them.
    #[serde(default)]
    pub adagrad: AdagradConfig,
    /// Precision of matrix products in training, those of Muon among them; evaluation has its own.
    pub precision: Precision,
    /// Seed of the initial weights, of the segment lengths and of the dropout masks.
    pub seed: u64,
    /// Steps without a finite loss and gradient are skipped; so many in a row end the run. At least 1.
    pub max_skipped_in_a_row: u64,
    /// Steps between validations, beside those at the end of phases and of epochs; `None` for these alone. At the end of an epoch
    /// the split is scored where 100 steps were made since the last time, and as many bytes trained on as are scored: epochs of
    /// small corpora may be as short as a step.
    pub valid_every_steps: Option<u64>,
    /// How the validation split is scored. The paper uses 16 lanes.
    pub valid: EvalConfig,
    /// How the test split is scored. The paper uses 8 lanes.
    pub test: EvalConfig,
}

/// A stretch of training with one optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Learning rate after the warm-up. It does not depend on the length of a segment.
    pub lr: f64,
    /// Steps over which the learning rate rises linearly, from `lr / warmup_steps` to `lr`; 0 for none.
    pub warmup_steps: u64,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// Most passes over the training data. At least 1.
    pub epochs: u64,
    /// Most steps, `None` for no such limit: the phase ends with whichever comes first.
    pub steps: Option<u64>,
}

/// How the learning rate goes on after the warm-up.
///
/// The decaying ones reach zero at the end of the phase. How far a phase has come is the larger of the share of its bytes
/// and the share of its steps, so the rate is a function of the position in the run alone, and resuming is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays. The paper's choice.
    #[default]
    Constant,
    /// It falls along a straight line.
    Linear,
    /// It falls along half a cosine.
    Cosine,
    /// It stays for [seven tenths](LATE_FALL) of the phase, then falls along a straight line.
    Late,
}

/// Where [`Schedule::Late`] begins to fall: the share of the phase before that.
pub const LATE_FALL: f64 = 0.7;

/// A recipe that cannot be followed: which field, what it holds, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value} cannot be used: {hint}")]
pub struct RecipeError {
    /// Path of the field, as `phases[1].lr`.
    pub field: String,
    /// What it holds.
    pub value: String,
    /// What would do.
    pub hint: String,
}

impl Phase {
    /// A phase at a constant learning rate, with the paper's warm-up of 800 steps.
    pub fn constant(lr: f64, epochs: u64) -> Self {
        Self { lr, warmup_steps: 800, schedule: Schedule::Constant, epochs, steps: None }
    }

    /// The learning rate of step `step` (from 0) of this phase: `lr`, times the warm-up, times the decay, which is a
    /// function of `progress`, how far the phase has come before that step, from 0 to 1.
    pub fn lr_at(&self, step: u64, progress: f64) -> f64 {
        let warmup = (step.saturating_add(1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        self.lr * warmup * self.decay(progress)
    }

    fn decay(&self, progress: f64) -> f64 {
        let progress = progress.clamp(0.0, 1.0);
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Late => ((1.0 - progress) / (1.0 - LATE_FALL)).min(1.0),
        }
    }

    /// How far the phase has come after so many steps and so many passes over the data: the larger of the two shares.
    pub(crate) fn progress(&self, steps: u64, epochs: f64) -> f64 {
        let by_steps = self.steps.map_or(0.0, |most| steps as f64 / most as f64);
        (epochs / self.epochs as f64).max(by_steps)
    }
}

impl Recipe {
    /// The recipe of the paper: up to 32 epochs at 2e-3, then up to 5 from the best weights at 1e-3.
    pub fn paper() -> Self {
        Self {
            batch_size: 16,
            segments: SegmentLengths::paper(),
            phases: vec![Phase::constant(2e-3, 32), Phase::constant(1e-3, 5)],
            lamb: LambConfig::default(),
            muon: None,
            adagrad: AdagradConfig::default(),
            precision: Precision::F32,
            seed: 1111,
            max_skipped_in_a_row: 5,
            valid_every_steps: None,
            valid: EvalConfig { lanes: 16, seq_len: 1024, ..EvalConfig::default() },
            test: EvalConfig { lanes: 8, seq_len: 1024, ..EvalConfig::default() },
        }
    }

    /// What scored best when training was limited to some megabytes or to half an hour of two cores: 64 lanes, segments of 64 bytes,
    /// Muon for the matrices inside blocks, a rate that falls at the end of so many steps, or stays where `None` says of no end. The model should drop nothing,
    /// keep a memory of 128 bytes and have one of n-grams (`NGramConfig::default()`). How it was found, and how far: `docs/recipes.md` of the repository.
    pub fn budget(steps: Option<u64>) -> Self {
        let eval = EvalConfig { lanes: 8, seq_len: 64, ..EvalConfig::default() };
        Self {
            batch_size: 64,
            segments: SegmentLengths::Fixed { len: 64 },
            phases: vec![Phase { lr: 2e-3, warmup_steps: 50, schedule: Schedule::Late, epochs: u64::MAX, steps }],
            muon: Some(MuonConfig::default()),
            valid: eval.clone(),
            test: eval,
            ..Self::paper()
        }
    }

    /// The optimizer at the start of a phase.
    ///
    /// # Panics
    /// If its options are invalid; [`validate`](Self::validate) tells without panicking.
    pub fn optimizer<B: AutodiffBackend>(&self) -> Optimizer<B> {
        Optimizer::new(self.lamb.clone(), self.muon).with_adagrad(self.adagrad).with_precision(self.precision)
    }

    /// Sets the number of lanes of the training data.
    pub fn with_batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the segments to the paper's lengths at another scale, `base` in place of 1024, and scores in segments of
    /// `base`.
    pub fn with_segments_around(mut self, base: usize) -> Self {
        self.segments = SegmentLengths::around(base);
        (self.valid.seq_len, self.test.seq_len) = (base, base);
        self
    }

    /// Sets the segments, those that are scored too, to this length, all of them.
    pub fn with_fixed_segments(self, len: usize) -> Self {
        Self { segments: SegmentLengths::Fixed { len }, ..self.with_segments_around(len) }
    }

    /// Replaces the phases by one of so many steps.
    pub fn with_single_phase(mut self, lr: f64, warmup_steps: u64, schedule: Schedule, steps: u64) -> Self {
        self.phases = vec![Phase { lr, warmup_steps, schedule, epochs: u64::MAX, steps: Some(steps) }];
        self
    }

    /// This recipe with what another one says of evaluations, and of steps that are skipped: how splits are scored, in which precision
    /// apart, how often, and how many steps in a row may be skipped. A run that exists may go on with it: no step that was made depends on it.
    pub fn with_evaluations_of(&self, other: &Recipe) -> Self {
        let scored = |own: &EvalConfig, other: &EvalConfig| EvalConfig { precision: own.precision, ..other.clone() };
        Self {
            valid_every_steps: other.valid_every_steps,
            max_skipped_in_a_row: other.max_skipped_in_a_row,
            valid: scored(&self.valid, &other.valid),
            test: scored(&self.test, &other.test),
            ..self.clone()
        }
    }

    /// This recipe with another one's schedules and ends of phases, where neither has made the rate fall yet: no step that was made
    /// depends on them. A run has made `steps` steps of the phase `phase`, and `epochs` passes over the data.
    pub(crate) fn with_falls_of(&self, other: &Recipe, phase: usize, steps: u64, epochs: f64) -> Self {
        let mut recipe = self.clone();
        for (i, (own, other)) in recipe.phases.iter_mut().zip(&other.phases).enumerate().skip(phase) {
            let (steps, epochs) = if i == phase { (steps, epochs) } else { (0, 0.0) };
            let is_level = |phase: &Phase| {
                let progress = phase.progress(steps, epochs);
                progress < 1.0 && phase.decay(progress) == 1.0
            };
            if is_level(own) && is_level(other) {
                *own = Phase { schedule: other.schedule, epochs: other.epochs, steps: other.steps, ..own.clone() };
            }
        }
        recipe
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that cannot be used, with its value and what would do.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let refuse =
            |field: &str, value: String, hint: &str| Err(RecipeError { field: field.into(), value, hint: hint.into() });
        if self.batch_size == 0 {
            return refuse("batch_size", "0".into(), "use at least 1");
        }
        if let Err(error) = self.segments.validate() {
            let DataError::SegmentLengths { field, found, expected } = &error else {
                return refuse("segments", format!("{:?}", self.segments), &error.to_string());
            };
            return refuse(&format!("segments.{field}"), found.clone(), &format!("it {expected}"));
        }
        if self.phases.is_empty() {
            return refuse("phases", "[]".into(), "give at least one phase");
        }
        for (i, phase) in self.phases.iter().enumerate() {
            let field = |name: &str| format!("phases[{i}].{name}");
            if !(phase.lr.is_finite() && phase.lr > 0.0) {
                return refuse(&field("lr"), phase.lr.to_string(), "use a number above 0, as 2e-3");
            }
            if phase.epochs == 0 {
                return refuse(&field("epochs"), "0".into(), "use at least 1, or remove the phase");
            }
            if phase.steps == Some(0) {
                return refuse(&field("steps"), "0".into(), "use at least 1, or null for no limit in steps");
            }
        }
        if self.max_skipped_in_a_row == 0 {
            return refuse("max_skipped_in_a_row", "0".into(), "use at least 1; the paper's recipe here has 5");
        }
        if self.valid_every_steps == Some(0) {
            let hint = "use at least 1, or null to validate at the end of every epoch only";
            return refuse("valid_every_steps", "0".into(), hint);
        }
        self.validate_optimizers()?;
        for (name, eval) in [("valid", &self.valid), ("test", &self.test)] {
            for (field, value) in [("lanes", eval.lanes), ("seq_len", eval.seq_len)] {
                if value == 0 {
                    return refuse(&format!("{name}.{field}"), "0".into(), "use at least 1");
                }
            }
        }
        Ok(())
    }

    fn validate_optimizers(&self) -> Result<(), RecipeError> {
        let refuse = |name: &str, error: OptimizerConfigError| RecipeError {
            field: format!("{name}.{}", error.field),
            value: error.value.to_string(),
            hint: error.hint.into(),
        };
        self.lamb.validate().map_err(|error| refuse("lamb", error))?;
        self.muon.map_or(Ok(()), |muon| muon.validate()).map_err(|error| refuse("muon", error))?;
        self.adagrad.validate().map_err(|error| refuse("adagrad", error))
    }

    /// Checks the recipe, the model's configuration, and the two against each other: where a block attends and keeps a
    /// memory, no segment may be longer than the memory.
    ///
    /// # Errors
    /// The first field that cannot be used, with its value and what would do.
    pub fn validate_for(&self, config: &ShaRnnConfig) -> Result<(), RecipeError> {
        if let Err(error) = config.validate() {
            return Err(RecipeError { field: format!("model.{}", error.field), value: error.value, hint: error.hint });
        }
        self.validate()?;
        if config.n_attending() == 0 || config.mem_len == 0 {
            return Ok(());
        }
        for (field, len) in [
            ("segments.max", self.segments.max()),
            ("valid.seq_len", self.valid.seq_len),
            ("test.seq_len", self.test.seq_len),
        ] {
            if len > config.mem_len {
                let hint = format!(
                    "use at most {}, the length of the model's memory, or a longer memory, or none",
                    config.mem_len
                );
                return Err(RecipeError { field: field.into(), value: len.to_string(), hint });
            }
        }
        Ok(())
    }
}

impl Default for Recipe {
    /// The paper's: [`Recipe::paper`].
    fn default() -> Self {
        Self::paper()
    }
}

#[cfg(test)]
mod tests {
    use sharnn_core::Attend;

    use super::*;

    #[test]
    fn the_papers_recipe_is_valid_for_the_papers_models() {
        for config in [ShaRnnConfig::enwik8(), ShaRnnConfig::enwik8_all()] {
            Recipe::paper().validate_for(&config).unwrap();
        }
    }

    #[test]
    fn the_warm_up_is_linear_and_then_the_rate_stays() {
        let phase = Phase::constant(2e-3, 32);
        for (step, lr) in [(0, 2e-3 / 800.0), (399, 1e-3), (799, 2e-3), (800, 2e-3), (u64::MAX, 2e-3)] {
            assert!((phase.lr_at(step, 0.3) - lr).abs() < 1e-15, "step {step}");
        }
        let cold = Phase { warmup_steps: 0, ..phase };
        assert_eq!(cold.lr_at(0, 0.0), 2e-3);
    }

    #[test]
    fn decaying_schedules_reach_zero_at_the_end_of_the_phase() {
        let phase = |schedule| Phase { warmup_steps: 10, schedule, ..Phase::constant(1.0, 1) };
        // Half a cosine at a quarter of the way: (1 + cos(π / 4)) / 2.
        for (schedule, quarter) in [(Schedule::Linear, 0.75), (Schedule::Cosine, 0.853_553_390_593_273_8)] {
            let phase = phase(schedule);
            assert_eq!(phase.lr_at(10, 0.0), 1.0);
            assert!((phase.lr_at(100, 0.25) - quarter).abs() < 1e-15);
            assert!((phase.lr_at(100, 0.5) - 0.5).abs() < 1e-15);
            assert!(phase.lr_at(100, 1.0).abs() < 1e-15);
            assert!((phase.lr_at(4, 0.5) - 0.25).abs() < 1e-15, "warm-up and decay multiply");
        }
    }

    #[test]
    fn a_late_fall_begins_late_and_reaches_zero_at_the_end() {
        let phase = Phase { warmup_steps: 10, schedule: Schedule::Late, ..Phase::constant(1.0, 1) };
        for (step, progress, lr) in [(4, 0.5, 0.5), (100, 0.5, 1.0), (100, 0.7, 1.0), (100, 0.85, 0.5), (100, 1.0, 0.0)]
        {
            assert!((phase.lr_at(step, progress) - lr).abs() < 1e-12, "step {step} at {progress}");
        }
    }

    #[test]
    fn a_field_that_cannot_be_used_is_refused_by_name() {
        let base = Recipe::paper;
        let with = |change: fn(&mut Recipe)| {
            let mut recipe = base();
            change(&mut recipe);
            recipe.validate().unwrap_err()
        };
        type Case = (fn(&mut Recipe), &'static str, &'static str);
        let cases: [Case; 15] = [
            (|r| r.batch_size = 0, "batch_size", "0"),
            (|r| r.segments = SegmentLengths::Fixed { len: 0 }, "segments.len", "0"),
            (|r| r.phases.clear(), "phases", "[]"),
            (|r| r.phases[1].lr = -1.0, "phases[1].lr", "-1"),
            (|r| r.phases[0].lr = f64::NAN, "phases[0].lr", "NaN"),
            (|r| r.phases[0].epochs = 0, "phases[0].epochs", "0"),
            (|r| r.phases[0].steps = Some(0), "phases[0].steps", "0"),
            (|r| r.max_skipped_in_a_row = 0, "max_skipped_in_a_row", "0"),
            (|r| r.valid_every_steps = Some(0), "valid_every_steps", "0"),
            (|r| r.lamb.beta2 = 1.0, "lamb.beta2", "1"),
            (|r| r.lamb.eps = 0.0, "lamb.eps", "0"),
            (|r| r.lamb.clip = Some(0.0), "lamb.clip", "0"),
            (|r| r.muon = Some(MuonConfig { rate: 0.0, ..MuonConfig::default() }), "muon.rate", "0"),
            (|r| r.valid.lanes = 0, "valid.lanes", "0"),
            (|r| r.test.seq_len = 0, "test.seq_len", "0"),
        ];
        for (change, field, value) in cases {
            let error = with(change);
            assert_eq!((error.field.as_str(), error.value.as_str()), (field, value), "{error}");
        }
    }

    #[test]
    fn segments_longer_than_the_memory_are_refused_where_a_block_attends() {
        let recipe = Recipe::paper();
        let short = ShaRnnConfig::xs().with_mem_len(512);
        let error = recipe.validate_for(&short).unwrap_err();
        assert_eq!((error.field.as_str(), error.value.as_str()), ("segments.max", "1024"));
        assert!(error.hint.contains("512"), "{error}");
        let scored_too_long = Recipe { segments: SegmentLengths::around(512), ..recipe.clone() };
        assert_eq!(scored_too_long.validate_for(&short).unwrap_err().field, "valid.seq_len");
        recipe.validate_for(&short.clone().with_mem_len(0)).unwrap();
        recipe.validate_for(&short.clone().with_attend(Attend::None)).unwrap();
        recipe.clone().with_segments_around(512).validate_for(&short).unwrap();
        let error = recipe.validate_for(&short.with_heads(3)).unwrap_err();
        assert_eq!(error.field, "model.n_heads");
    }

    #[test]
    fn json_round_trips_and_an_unknown_field_is_refused() {
        let json = serde_json::to_string(&Recipe::paper()).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), Recipe::paper());
        let typo = json.replace("\"batch_size\"", "\"batchsize\"");
        let error = serde_json::from_str::<Recipe>(&typo).unwrap_err().to_string();
        assert!(error.contains("batchsize"), "{error}");
        let typo = json.replace("\"warmup_steps\"", "\"warmup\"");
        assert!(serde_json::from_str::<Recipe>(&typo).unwrap_err().to_string().contains("warmup"));
    }
}
