//! Starting a run, and resuming one.

use burn::module::Module;
use sharnn_core::{AutodiffBackend, ShaRnnConfig, ShaRnnState};
use sharnn_data::{Lanes, Segments, Splits};

use super::clock::Clock;
use super::{Limits, TrainError, TrainOptions, Trainer};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::run_dir::{RunDir, checkpoints};
use crate::step_log::StepLog;
use crate::{
    BEST_DIR, CorpusIdentity, Metrics, MinTrustLamb, Position, Recipe, RecipeError, Smoothed, Window, load_weights,
};

impl<B: AutodiffBackend> Trainer<B> {
    /// A new run, with weights drawn from the recipe's seed or taken from
    /// [`TrainOptions::initial_weights`].
    ///
    /// # Errors
    /// If a configuration, the data or the initial weights cannot be used, if the run directory has checkpoints already,
    /// or if another process trains in it.
    pub fn new(
        config: ShaRnnConfig,
        recipe: Recipe,
        splits: Splits,
        options: TrainOptions,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        check::<B>(&config, &recipe, &splits, &options, device)?;
        let run_dir = RunDir::open(&options.run_dir)?;
        if let Some((_, newest)) = checkpoints(run_dir.path())?.pop() {
            let checkpoint = newest.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(CheckpointError::Exists { run_dir: options.run_dir, checkpoint }.into());
        }
        let mut model = config.init_seeded::<B>(recipe.seed, device);
        if let Some(path) = &options.initial_weights {
            model = load_weights(model, path)?;
        }
        run_dir.remove_dir(BEST_DIR)?;
        let lanes = Lanes::new(splits.train.clone(), recipe.batch_size)?;
        Ok(Self {
            segments: Segments::new(lanes, recipe.segments, recipe.seed)?,
            corpus: CorpusIdentity::of(&splits),
            optimizer: MinTrustLamb::new(recipe.lamb.clone()),
            state: ShaRnnState::empty(config.n_layers),
            model: Some(model),
            position: Position::default(),
            best: None,
            pending: StepLog::new(),
            window: Window::default(),
            smoothed: Smoothed::default(),
            clock: Clock::at(0.0),
            limits: Limits::default(),
            metrics: Metrics::open(run_dir.path(), 0, 0)?,
            moved: None,
            saved: None,
            save_due: false,
            device: device.clone(),
            config,
            recipe,
            options,
            splits,
            run_dir,
        })
    }

    /// The run of the newest checkpoint in the run directory, with its own configuration and recipe.
    ///
    /// # Errors
    /// If there is no checkpoint or the newest is damaged (the error names the one before it), if the data is not the
    /// run's, or if another process trains there.
    pub fn resume(splits: Splits, options: TrainOptions, device: &B::Device) -> Result<Self, TrainError> {
        Self::resume_as(None, splits, options, device)
    }

    /// Resumes the run of the run directory where there is one, and starts one where there is none.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`resume`](Self::resume), and if the run was started with another configuration or
    /// recipe: the error names the first field that differs, and both values.
    pub fn open(
        config: ShaRnnConfig,
        recipe: Recipe,
        splits: Splits,
        options: TrainOptions,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        if checkpoints(&options.run_dir)?.is_empty() {
            return Self::new(config, recipe, splits, options, device);
        }
        Self::resume_as(Some((&config, &recipe)), splits, options, device)
    }

    fn resume_as(
        expected: Option<(&ShaRnnConfig, &Recipe)>,
        splits: Splits,
        options: TrainOptions,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let run_dir = RunDir::open(&options.run_dir)?;
        let checkpoint = Checkpoint::load_newest(run_dir.path())?;
        let manifest = checkpoint.manifest.clone();
        let corpus = CorpusIdentity::of(&splits);
        manifest.check(&checkpoint.dir, expected, &corpus)?;
        let moved = manifest.moved_to::<B>(device);
        let (config, recipe) = (manifest.config, manifest.recipe);
        check::<B>(&config, &recipe, &splits, &options, device)?;

        let model = checkpoint.model(config.init_seeded::<B>(recipe.seed, device))?;
        let optimizer = checkpoint.moments(MinTrustLamb::new(recipe.lamb.clone()), &model)?;
        let lanes = Lanes::new(splits.train.clone(), recipe.batch_size)?;
        let best = manifest.best.zip(checkpoint.restore_best(&run_dir)?);
        Ok(Self {
            segments: Segments::restore(lanes, recipe.segments, manifest.segments)?,
            state: checkpoint.state(device)?,
            metrics: Metrics::open(run_dir.path(), manifest.position.step, manifest.position.validated)?,
            model: Some(model),
            saved: Some(manifest.position.clone()),
            position: manifest.position,
            pending: StepLog::new(),
            window: manifest.window,
            smoothed: manifest.smoothed,
            clock: Clock::at(manifest.seconds),
            limits: Limits::default(),
            save_due: false,
            device: device.clone(),
            moved,
            optimizer,
            corpus,
            best,
            config,
            recipe,
            options,
            splits,
            run_dir,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ShaRnnConfig {
        &self.config
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Where the run stands.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Number of trained values.
    pub fn num_params(&self) -> usize {
        self.model().num_params()
    }
}

/// Checks everything that can be checked before anything is computed.
fn check<B: AutodiffBackend>(
    config: &ShaRnnConfig,
    recipe: &Recipe,
    splits: &Splits,
    options: &TrainOptions,
    device: &B::Device,
) -> Result<(), TrainError> {
    recipe.validate_for(config)?;
    for (field, zero) in [("log_every", options.log_every == 0), ("keep_checkpoints", options.keep_checkpoints == 0)] {
        if zero {
            let (field, value, hint) = (format!("options.{field}"), "0".into(), "use at least 1".into());
            return Err(RecipeError { field, value, hint }.into());
        }
    }
    for precision in [recipe.precision, recipe.valid.precision, recipe.test.precision] {
        if !precision.is_supported::<B>(device) {
            return Err(TrainError::Precision { precision, backend: B::name(device) });
        }
    }
    for (split, data, lanes) in [
        ("train", &splits.train, recipe.batch_size),
        ("valid", &splits.valid, recipe.valid.lanes),
        ("test", &splits.test, recipe.test.lanes),
    ] {
        Lanes::new(data.clone(), lanes)?;
        let byte = data.iter().copied().max().unwrap_or(0);
        if usize::from(byte) >= config.vocab_size {
            return Err(TrainError::Vocabulary { split, byte, vocab_size: config.vocab_size });
        }
    }
    Ok(())
}
