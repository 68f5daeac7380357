//! Starting a run, and resuming one.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use serde::Serialize;
use sharnn_core::{AutodiffBackend, ShaRnnConfig, ShaRnnState};
use sharnn_data::{Lanes, Segments, Splits};

use super::clock::Clock;
use super::{Asked, Limits, TrainError, TrainOptions, Trainer};
use crate::group::{Alone, GroupError, SharedGroup, agree, all_ok};
use crate::interrupt::Interrupt;
use crate::recipe::{Recipe, RecipeError};
use crate::run::{
    BEST_DIR, Checkpoint, CheckpointError, CorpusIdentity, METRICS_FILE, Metrics, Position, RunDir, Smoothed, StepLog,
    Window, checkpoints,
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
        Start::<B> { splits, options, group: Arc::new(Alone), device }.new_run(config, recipe)
    }

    /// The run of the newest checkpoint in the run directory, with its own configuration and recipe.
    ///
    /// # Errors
    /// If there is no checkpoint or the newest is damaged (the error names the one before it), if the data is not the
    /// run's, or if another process trains there.
    pub fn resume(splits: Splits, options: TrainOptions, device: &B::Device) -> Result<Self, TrainError> {
        Start::<B> { splits, options, group: Arc::new(Alone), device }.resume()
    }

    /// Resumes the run of the run directory where there is one, and starts one where there is none.
    ///
    /// A run that exists may go on with what changes nothing of its past. It may have other evaluations ([`Recipe::with_evaluations_of`]):
    /// where validations differ, its best weights are scored anew, so that the next ones are compared with what they can be. And as long
    /// as its rate has not begun to fall, the phase may have another schedule, or end at another step or epoch, if the rate would not
    /// have begun to fall by that either: so a run at a constant rate is given its end.
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
        Self::open_in(Arc::new(Alone), config, recipe, splits, options, device)
    }

    /// [`open`](Self::open) by every process of a group, whose number divides the recipe's batch size. A run that so many
    /// processes saved is resumed by as many or by others.
    ///
    /// An error that comes later than here, in [`run`](Self::run) or [`finish`](Self::finish), may be that of one process
    /// alone: its program must then say so and [`abort`](crate::Group::abort) the group, which would wait for it.
    ///
    /// # Errors
    /// As [`open`](Self::open), in all processes, the first of which names the one that failed; and
    /// [`TrainError::Group`] where they were not started alike.
    pub fn open_in(
        group: SharedGroup,
        config: ShaRnnConfig,
        recipe: Recipe,
        splits: Splits,
        options: TrainOptions,
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let start = Start::<B> { splits, options, group: group.clone(), device };
        let found = all_ok(group.as_ref(), start.look(&config, &recipe))?;
        if group.size() > 1 {
            agree(group.as_ref(), &start.setup(&config, &recipe, found))?;
        }
        // The first process locks and cleans the directory before the others look into it.
        let opened = match group.is_first() {
            true => start.lock().map(Some),
            false => Ok(None),
        };
        let run_dir = all_ok(group.as_ref(), opened)?;
        if group.size() > 1 {
            let marked = run_dir.as_ref().map_or(Ok(Vec::new()), RunDir::mark).map_err(TrainError::from);
            let mut sign = all_ok(group.as_ref(), marked)?;
            group.broadcast(&mut sign);
            all_ok(group.as_ref(), start.sees_run_dir(&sign))?;
        }
        let trainer = match found {
            true => start.resume_in(run_dir, Some((&config, &recipe))),
            false => start.new_in(run_dir, config, recipe),
        };
        let trainer = all_ok(group.as_ref(), trainer)?;
        trainer.compare_weights()?;
        Ok(trainer)
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

/// What a run is started or resumed with, beside its configuration and recipe.
struct Start<'a, B: AutodiffBackend> {
    splits: Splits,
    options: TrainOptions,
    group: SharedGroup,
    device: &'a B::Device,
}

/// What all processes of a group must have alike.
#[derive(Serialize)]
struct Setup<'a> {
    program: &'static str,
    config: &'a ShaRnnConfig,
    recipe: &'a Recipe,
    corpus: CorpusIdentity,
    backend: String,
    instructions: Option<&'static str>,
    log_every: u64,
    checkpoint_every: u64,
    recompute: bool,
    score_start: bool,
    has_checkpoint: bool,
}

impl<B: AutodiffBackend> Start<'_, B> {
    /// Whether there is a run to go on with, once all is checked that a new one needs. (A run that exists checks it
    /// after comparing what it was started with.)
    fn look(&self, config: &ShaRnnConfig, recipe: &Recipe) -> Result<bool, TrainError> {
        let found = !checkpoints(&self.options.run_dir)?.is_empty();
        if !found {
            refuse_to_replace(&self.options.run_dir)?;
            self.check(config, recipe)?;
        }
        let (batch_size, size) = (recipe.batch_size, self.group.size());
        if !batch_size.is_multiple_of(size) {
            return Err(GroupError::Batch { batch_size, size }.into());
        }
        Ok(found)
    }

    fn check(&self, config: &ShaRnnConfig, recipe: &Recipe) -> Result<(), TrainError> {
        check::<B>(config, recipe, &self.splits, &self.options, self.device)
    }

    /// That this process can read the directory in which the first one has left a sign.
    fn sees_run_dir(&self, sign: &[u8]) -> Result<(), TrainError> {
        match RunDir::is_marked(&self.options.run_dir, sign) {
            true => Ok(()),
            false => Err(GroupError::RunDir { run_dir: self.options.run_dir.clone() }.into()),
        }
    }

    fn setup<'a>(&self, config: &'a ShaRnnConfig, recipe: &'a Recipe, has_checkpoint: bool) -> Setup<'a> {
        Setup {
            program: env!("CARGO_PKG_VERSION"),
            config,
            recipe,
            // Each machine may have the file in a place of its own.
            corpus: CorpusIdentity { path: None, ..CorpusIdentity::of(&self.splits) },
            backend: B::name(self.device),
            instructions: B::instructions(),
            log_every: self.options.log_every,
            checkpoint_every: self.options.checkpoint_every,
            recompute: self.options.recompute,
            score_start: self.options.score_start,
            has_checkpoint,
        }
    }

    fn lock(&self) -> Result<RunDir, TrainError> {
        Ok(RunDir::open(&self.options.run_dir)?)
    }

    fn new_run(self, config: ShaRnnConfig, recipe: Recipe) -> Result<Trainer<B>, TrainError> {
        if checkpoints(&self.options.run_dir)?.is_empty() {
            refuse_to_replace(&self.options.run_dir)?;
        }
        self.check(&config, &recipe)?;
        let run_dir = self.lock()?;
        self.new_in(Some(run_dir), config, recipe)
    }

    fn resume(self) -> Result<Trainer<B>, TrainError> {
        let run_dir = self.lock()?;
        self.resume_in(Some(run_dir), None)
    }

    /// `run_dir` is locked in the first process; the others have none.
    fn new_in(self, run_dir: Option<RunDir>, config: ShaRnnConfig, recipe: Recipe) -> Result<Trainer<B>, TrainError> {
        let Self { splits, options, group, device } = self;
        if let Some((_, newest)) = checkpoints(&options.run_dir)?.pop() {
            let checkpoint = newest.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(CheckpointError::Exists { run_dir: options.run_dir, checkpoint }.into());
        }
        let mut model = config.init_seeded::<B>(recipe.seed, device);
        if let Some(weights) = &options.initial_weights {
            model = weights.load(model)?;
        }
        let metrics = match &run_dir {
            Some(run_dir) => {
                // Again, now that nobody else begins here.
                refuse_to_replace(run_dir.path())?;
                Some(Metrics::open(run_dir.path(), 0, 0)?)
            }
            None => None,
        };
        let lanes = Lanes::new(splits.train.clone(), recipe.batch_size)?;
        let share = group.share(recipe.batch_size);
        Ok(Trainer {
            segments: Segments::new(lanes, recipe.segments, recipe.seed)?.select_lanes(share)?,
            corpus: CorpusIdentity::of(&splits),
            optimizer: recipe.optimizer(),
            state: ShaRnnState::empty(config.n_layers),
            model: Some(model),
            position: Position::default(),
            best: None,
            pending: StepLog::new(),
            window: Window::default(),
            smoothed: Smoothed::default(),
            clock: Clock::at(0.0),
            limits: Limits::default(),
            asked: Asked::default(),
            interrupt: Interrupt::default(),
            moved: None,
            rescore_best: false,
            resumed_from: None,
            saved: None,
            save_due: false,
            device: device.clone(),
            run_dir: run_dir.unwrap_or_else(|| RunDir::of_group(&options.run_dir)),
            metrics,
            group,
            config,
            recipe,
            options,
            splits,
        })
    }

    /// `run_dir` is locked in the first process; the others have none.
    fn resume_in(
        self,
        run_dir: Option<RunDir>,
        expected: Option<(&ShaRnnConfig, &Recipe)>,
    ) -> Result<Trainer<B>, TrainError> {
        let Self { splits, options, group, device } = self;
        let checkpoint = Checkpoint::load_newest(&options.run_dir)?;
        let mut manifest = checkpoint.manifest.clone();
        if let Some((_, recipe)) = expected {
            manifest.take_changes(recipe);
        }
        if options.other_evaluation_data {
            let given = CorpusIdentity::of(&splits);
            (manifest.corpus.valid, manifest.corpus.test) = (given.valid, given.test);
        }
        let before = &checkpoint.manifest;
        let otherwise = manifest.recipe.valid != before.recipe.valid || manifest.corpus.valid != before.corpus.valid;
        manifest.rescore_best = manifest.best.is_some() && (otherwise || before.rescore_best);
        // What the run goes on with, its newest checkpoint has to say: whoever resumes it next compares with that.
        let is_as_saved = manifest == *before;
        manifest.check(&checkpoint.dir, expected, &splits)?;
        // Under its name and path of today, with the digests that it has.
        let corpus = manifest.corpus.clone().named_as(&splits);
        let moved = manifest.moved_to::<B>(device);
        let (config, recipe) = (manifest.config, manifest.recipe);
        check::<B>(&config, &recipe, &splits, &options, device)?;

        let model = checkpoint.model::<B>(device)?;
        let optimizer = checkpoint.moments(recipe.optimizer(), &model)?;
        let lanes = Lanes::new(splits.train.clone(), recipe.batch_size)?;
        let share = group.share(recipe.batch_size);
        let (step, validated) = (manifest.position.step, manifest.position.validated);
        let metrics = run_dir.as_ref().map(|run_dir| Metrics::open(run_dir.path(), step, validated)).transpose()?;
        Ok(Trainer {
            segments: Segments::restore(lanes, recipe.segments, manifest.segments)?.select_lanes(share.clone())?,
            state: checkpoint.state(device)?.lanes(share),
            model: Some(model),
            saved: is_as_saved.then(|| manifest.position.clone()),
            position: manifest.position,
            pending: StepLog::new(),
            window: manifest.window,
            smoothed: manifest.smoothed,
            clock: Clock::at(manifest.seconds),
            limits: Limits::default(),
            asked: Asked::default(),
            interrupt: Interrupt::default(),
            save_due: false,
            device: device.clone(),
            best: manifest.best.zip(checkpoint.best_digest()),
            run_dir: run_dir.unwrap_or_else(|| RunDir::of_group(&options.run_dir)),
            metrics,
            moved,
            rescore_best: manifest.rescore_best,
            resumed_from: Some(checkpoint),
            optimizer,
            corpus,
            group,
            config,
            recipe,
            options,
            splits,
        })
    }
}

/// Refuses a directory without a run that has best weights or metrics all the same: a new run would write its own in their place. A
/// start that was killed leaves no more than an empty file.
fn refuse_to_replace(run_dir: &Path) -> Result<(), CheckpointError> {
    let (best, metrics) = (run_dir.join(BEST_DIR), run_dir.join(METRICS_FILE));
    let is_filled = |path: &Path| fs::metadata(path).is_ok_and(|it| !it.is_file() || it.len() > 0);
    match [best, metrics].into_iter().find(|path| is_filled(path)) {
        Some(path) => Err(CheckpointError::Occupied { path }),
        None => Ok(()),
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
        // Every byte is a token of most models, and data may be large.
        if config.vocab_size > usize::from(u8::MAX) {
            continue;
        }
        let byte = data.iter().copied().max().unwrap_or(0);
        if usize::from(byte) >= config.vocab_size {
            return Err(TrainError::Vocabulary { split, byte, vocab_size: config.vocab_size });
        }
    }
    Ok(())
}
