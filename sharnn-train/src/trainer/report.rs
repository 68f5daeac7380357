//! Everything of a run that is not training: reading the device, records, validation, checkpoints, the final test.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;
use sharnn_core::{AutodiffBackend, Backend, ShaRnn, ShaRnnState};
use sharnn_data::{DataError, Split};

use super::lane_state::gather_state;
use super::{Finished, TrainError, Trainer};
use crate::eval::{EvalConfig, EvalError, Evaluation, evaluate_in};
use crate::group::all_ok;
use crate::report::{Event, Observer};
use crate::run::checkpoint::{self, Tensors, load_best};
use crate::run::{
    Best, EvalRecord, FORMAT, FileDigest, Manifest, Position, Record, TrainRecord, Window, checkpoints, step_name,
};

impl<B: AutodiffBackend> Trainer<B> {
    pub(super) fn announce(&mut self, observer: &mut dyn Observer) {
        let (step, parameters, backend) = (self.position.step, self.config.num_params(), B::name(&self.device));
        observer.on(Event::Started { step, parameters, backend: &backend });
        if let Some(moved) = self.moved.take() {
            observer.on(Event::Moved(&moved));
        }
        if !self.run_dir.is_protected() {
            observer.on(Event::NotLocked { run_dir: self.run_dir.path() });
        }
    }

    /// Waits for the device and takes in what the steps left there.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] where too many in a row were skipped.
    pub(super) fn read_steps(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let results = self.pending.read();
        // Before what they may explain: a step that is skipped. Such steps say of the device that it failed, and not of the model
        // that it diverged.
        let notices = B::notices(&self.device);
        notices.iter().for_each(|line| observer.on(Event::Notice(line)));
        for result in results {
            let in_a_row = if result.finite { 0 } else { self.position.skipped_in_a_row + 1 };
            self.position.skipped_in_a_row = in_a_row;
            if !result.finite {
                self.position.skipped += 1;
                observer.on(Event::Skipped { step: result.step, in_a_row });
                if notices.is_empty() && in_a_row >= self.recipe.max_skipped_in_a_row {
                    return Err(self.diverged(result.step));
                }
            }
            self.window.add(&result);
            self.smoothed.add(&result);
        }
        if !notices.is_empty() {
            self.position.skipped_in_a_row = 0;
        }
        self.window.seconds += self.clock.lap();
        Ok(())
    }

    fn diverged(&self, step: u64) -> TrainError {
        // That they cannot be listed must not hide why the run stops.
        let found = checkpoints(self.run_dir.path()).unwrap_or_default();
        // That of the start, of step 0, holds nothing that was learned.
        let names: Vec<_> = found.iter().filter(|(step, _)| *step > 0).map(|(step, _)| step_name(*step)).collect();
        let last_checkpoint = match &names[..] {
            [] => "no checkpoint had been written".into(),
            [newest] => format!("checkpoint {newest} from before is intact"),
            [.., older, newest] => {
                format!("checkpoint {newest} from before is intact, and {older} should that be too late already")
            }
        };
        let (in_a_row, last_bpc) = (self.position.skipped_in_a_row, self.smoothed.bpc);
        TrainError::Diverged { step, in_a_row, last_bpc, last_checkpoint }
    }

    /// Writes a record of the steps since the one before, where there are any.
    pub(super) fn log(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.read_steps(observer)?;
        let window = std::mem::take(&mut self.window);
        if window.steps == 0 {
            return Ok(());
        }
        let Position { step, phase, epoch, bytes, .. } = self.position;
        let record = TrainRecord {
            step,
            phase,
            epoch,
            bytes,
            seconds: self.clock.seconds(),
            train_bpc: window.bpc(),
            lr: window.lr,
            grad_norm: window.grad_norm,
            bytes_per_s: window.bytes_per_s(),
            skipped: window.skipped,
        };
        self.record(Record::Train(record.clone()))?;
        observer.on(Event::Train {
            record: &record,
            smoothed_bpc: self.smoothed.bpc,
            epoch_done: self.segments.position() as f64 / self.segments.epoch_len() as f64,
            remaining_seconds: self.remaining_seconds(&window),
        });
        Ok(())
    }

    /// Seconds to the end of the recipe or to the first limit, at the speed of `window`.
    fn remaining_seconds(&self, window: &Window) -> Option<f64> {
        let rate = Some(window.bytes_per_s()).filter(|rate| *rate > 0.0)?;
        let step_bytes = self.position.bytes as f64 / self.position.step as f64;
        let epoch_bytes = self.segments.lanes().n_targets() as f64;
        let Position { step, epoch, phase, phase_step, phase_epoch, .. } = self.position;
        let read = self.segments.position() as f64 / self.segments.epoch_len() as f64;

        let phases = self.recipe.phases.iter().enumerate().skip(phase).map(|(i, p)| {
            let (steps, epochs) = if i == phase { (phase_step, phase_epoch as f64 + read) } else { (0, 0.0) };
            let by_steps = p.steps.map_or(f64::INFINITY, |max| max.saturating_sub(steps) as f64 * step_bytes);
            by_steps.min((p.epochs as f64 - epochs) * epoch_bytes)
        });
        let by_steps = self.limits.max_steps.map(|max| max.saturating_sub(step) as f64 * step_bytes);
        let by_epochs = self.limits.max_epochs.map(|max| (max as f64 - epoch as f64 - read) * epoch_bytes);
        let by_time = self.limits.max_time.map(|max| max.saturating_sub(self.clock.running()).as_secs_f64());
        let bytes = [by_steps, by_epochs].into_iter().flatten().fold(phases.sum::<f64>(), f64::min);
        Some((bytes / rate).min(by_time.unwrap_or(f64::INFINITY)).max(0.0)).filter(|seconds| seconds.is_finite())
    }

    /// Scores the validation split, and keeps the weights if they are the best so far.
    pub(super) fn validate(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.read_steps(observer)?;
        let model = self.model().valid();
        let evaluation = match self.evaluate(&model, "valid", observer) {
            Err(TrainError::Evaluate { source: EvalError::NotFinite { .. }, .. }) => None,
            evaluation => Some(evaluation?),
        };
        let bpc = evaluation.as_ref().map(Evaluation::bpc).filter(|bpc| bpc.is_finite());
        let Position { step, epoch, phase, .. } = self.position;
        let is_best = |bpc: &f64| self.best.as_ref().is_none_or(|(best, _)| *bpc < best.bpc);
        let better = bpc.filter(is_best).map(|bpc| Best { bpc, step, epoch, phase });
        let record = EvalRecord {
            step,
            phase,
            epoch,
            seconds: self.clock.seconds(),
            bpc,
            bytes: evaluation.map_or(0, |evaluation| evaluation.bytes_scored),
            best: better.is_some(),
        };
        if let Some(best) = better {
            let digest = self.save_best(&best, &model)?;
            self.best = Some((best, digest));
        }
        self.position.validated = step;
        self.record(Record::Valid(record.clone()))?;
        observer.on(Event::Valid(&record));
        self.clock.skip_lap();
        Ok(())
    }

    /// Scores the best weights as the next ones will be.
    pub(super) fn score_best_anew(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Some((old, _)) = self.best.clone() else { return Ok(()) };
        self.read_steps(observer)?;
        self.restore_best()?;
        let model = self.best_model::<B::InnerBackend>(&self.device)?;
        let evaluation = self.evaluate(&model, "valid", observer)?;
        let best = Best { bpc: evaluation.bpc(), ..old };
        let Best { bpc, step, epoch, phase } = best;
        let (seconds, bytes) = (self.clock.seconds(), evaluation.bytes_scored);
        let record = EvalRecord { step, phase, epoch, seconds, bpc: Some(bpc), bytes, best: true };
        let digest = self.save_best(&best, &model)?;
        self.best = Some((best, digest));
        // Not before: until then it is still to be done, and the newest checkpoint says so.
        (self.rescore_best, self.saved) = (false, None);
        self.record(Record::Valid(record.clone()))?;
        observer.on(Event::Valid(&record));
        self.clock.skip_lap();
        Ok(())
    }

    fn evaluate(
        &self,
        model: &ShaRnn<B::InnerBackend>,
        split: &'static str,
        observer: &mut dyn Observer,
    ) -> Result<Evaluation, TrainError> {
        let (bytes, config): (&Split, &EvalConfig) = match split {
            "valid" => (&self.splits.valid, &self.recipe.valid),
            _ => (&self.splits.test, &self.recipe.test),
        };
        let progress = |done, total| observer.on(Event::Evaluating { split, done, total });
        let scored = evaluate_in(self.group.as_ref(), model, bytes, config, &self.device, &self.interrupt, progress);
        // Scored or not: of a file that has lost bytes meanwhile it was something else.
        bytes.corpus().check()?;
        scored.map_err(|source| TrainError::Evaluate { split, source })
    }

    pub(super) fn checkpoint_is_due(&self) -> bool {
        let every = self.options.checkpoint_every;
        let by_steps = every > 0 && self.position.step.is_multiple_of(every);
        self.save_due || by_steps || self.asked.checkpoint
    }

    pub(super) fn checkpoint_time_is_over(&self) -> bool {
        self.options.checkpoint_interval.is_some_and(|interval| self.clock.since_saved() >= interval)
    }

    /// Before an evaluation, which may be long: what would be lost with the process is kept. A checkpoint of a moment ago will do, so
    /// that a run of short epochs is not all checkpoints. Time is the first process's, as its decision is.
    pub(super) fn checkpoint_before_evaluation(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let due = self.group.is_first() && self.clock.since_saved() >= Duration::from_secs(1);
        let mut flag = [f32::from(u8::from(due))];
        self.group.sum(&mut flag);
        if flag[0] > 0.0 { self.checkpoint(observer) } else { Ok(()) }
    }

    /// Writes a checkpoint, unless the run stands where the newest one does. While steps are being skipped it is put off: a
    /// checkpoint is only written after a step that counted, so a good one is never lost to a run that has gone wrong.
    pub(super) fn checkpoint(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.read_steps(observer)?;
        let step = self.position.step;
        if self.saved.as_ref() == Some(&self.position) {
            return Ok(());
        }
        self.save_due = self.position.skipped_in_a_row > 0;
        if self.save_due {
            observer.on(Event::NotSaved { step });
            return Ok(());
        }
        let begun = Instant::now();
        self.compare_weights()?;
        // What the other processes hold; only the first one has it all.
        let state = gather_state(self.group.as_ref(), &self.state, &self.device);
        if let Some(state) = state {
            let path = self.write_checkpoint(&state)?;
            // That of the start is worth no word.
            if step > 0 {
                observer.on(Event::Checkpoint { step, path: &path });
            }
        }
        self.saved = Some(self.position.clone());
        self.clock.saved(begun);
        Ok(())
    }

    fn write_checkpoint(&mut self, state: &ShaRnnState<B>) -> Result<PathBuf, TrainError> {
        let corpus = self.splits.train.corpus();
        // What was trained on since the checkpoint before may be neither.
        if corpus.was_written() && corpus.check().is_ok() && self.corpus.difference(&self.splits).is_some() {
            return Err(DataError::Changed { corpus: corpus.name().into() }.into());
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.sync()?;
        }
        let manifest = Manifest {
            format: FORMAT,
            config: self.config.clone(),
            recipe: self.recipe.clone(),
            corpus: self.corpus.clone(),
            backend: B::name(&self.device),
            instructions: B::instructions().map(Into::into),
            position: self.position.clone(),
            segments: self.segments.state(),
            best: self.best.as_ref().map(|(best, _)| best.clone()),
            rescore_best: self.rescore_best,
            window: self.window.clone(),
            smoothed: self.smoothed.clone(),
            seconds: self.clock.seconds(),
            files: Default::default(),
        };
        let best_file = match &self.resumed_from {
            Some(checkpoint) => checkpoint.best_file(),
            None => checkpoint::best_file(&self.run_dir),
        };
        let best = self.best.as_ref().map(|(_, digest)| (digest, best_file));
        let tensors = Tensors { model: self.model(), optimizer: &self.optimizer, state, best };
        let path = checkpoint::save(&self.run_dir, manifest, &tensors)?;
        self.run_dir.prune(self.options.keep_checkpoints)?;
        Ok(path)
    }

    /// Has the first process write the best weights, and waits until they are there for all.
    fn save_best(&mut self, best: &Best, model: &ShaRnn<B::InnerBackend>) -> Result<FileDigest, TrainError> {
        let mut digest = Vec::new();
        if self.group.is_first() {
            let written = checkpoint::save_best(&self.run_dir, &self.config, best, model)?;
            digest = serde_json::to_vec(&written).expect("a digest is plain data");
        }
        self.group.broadcast(&mut digest);
        self.resumed_from = None;
        Ok(serde_json::from_slice(&digest).expect("the first process sends a digest"))
    }

    /// Takes away what lies beyond the checkpoint that the run goes on from: now there is something to come in its place.
    pub(super) fn go_on(&mut self) -> Result<(), TrainError> {
        if self.resumed_from.is_none() {
            return Ok(());
        }
        self.restore_best()?;
        match &mut self.metrics {
            Some(metrics) => Ok(metrics.cut()?),
            None => Ok(()),
        }
    }

    /// Makes `best/` agree with that checkpoint, in all processes before any goes on.
    fn restore_best(&mut self) -> Result<(), TrainError> {
        let Some(checkpoint) = self.resumed_from.take() else { return Ok(()) };
        let restored = if self.group.is_first() { checkpoint.restore_best(&self.run_dir) } else { Ok(()) };
        all_ok(self.group.as_ref(), restored.map_err(TrainError::from))
    }

    /// The best weights. Where others are there, somebody else wrote them, or the directory is another machine's own.
    pub(super) fn best_model<I: Backend>(&self, device: &I::Device) -> Result<ShaRnn<I>, TrainError> {
        let run_dir = self.run_dir.path();
        let (model, found) = load_best::<I>(run_dir, device)?;
        match &self.best {
            Some((_, expected)) if *expected != found.weights => {
                let (expected, found) = (expected.sha256.clone(), found.weights.sha256);
                Err(TrainError::OtherBest { run_dir: run_dir.into(), expected, found })
            }
            _ => Ok(model),
        }
    }

    fn record(&mut self, record: Record) -> Result<(), TrainError> {
        match &mut self.metrics {
            Some(metrics) => Ok(metrics.append(&record)?),
            None => Ok(()),
        }
    }

    /// Ends the run here: scores the weights as they stand, unless that was done, and tests the best ones.
    ///
    /// Call it after [`run`](Self::run), whatever that stopped for. A run that was stopped by a limit may still be resumed:
    /// its checkpoint does not know of this scoring. The [`Interrupt`](crate::Interrupt) of the last [`run`](Self::run) breaks it off
    /// between two segments: the checkpoint is there, and who resumes comes back here.
    ///
    /// # Errors
    /// If no validation gave a finite loss, if it was interrupted ([`TrainError::is_interrupted`]), or as [`run`](Self::run).
    pub fn finish(mut self, observer: &mut dyn Observer) -> Result<Finished<B>, TrainError> {
        self.clock.start();
        self.read_steps(observer)?;
        if self.rescore_best {
            self.score_best_anew(observer)?;
            self.checkpoint(observer)?;
        }
        let Position { step, epoch, phase, validated, .. } = self.position;
        if self.best.is_none() || validated != step {
            self.validate(observer)?;
        }
        let Some((best, _)) = self.best.clone() else { return Err(TrainError::NoBest { step }) };
        self.restore_best()?;
        let model = self.best_model::<B::InnerBackend>(&self.device)?;
        let test = self.evaluate(&model, "test", observer)?;
        let (bpc, bytes, seconds) = (Some(test.bpc()), test.bytes_scored, self.clock.seconds());
        let record = EvalRecord { step, phase, epoch, seconds, bpc, bytes, best: true };
        self.record(Record::Test(record.clone()))?;
        if let Some(metrics) = &mut self.metrics {
            metrics.sync()?;
        }
        observer.on(Event::Test(&record));
        Ok(Finished { best, test, model })
    }
}
