//! The training loop.
//!
//! One step: the next segment of every lane, the mean loss over it, one step of the optimizer, and the state carried on,
//! detached. A step whose loss or gradient is not finite changes nothing; that is decided on the device. Weights of the
//! best validation are kept; a phase after the first starts from them.
//!
//! Here lives what a run does, from its start to its last score; what it does it with is in the other rooms.
//! It may use all of them, and none of them may use it.

mod clock;
mod error;
mod lane_state;
mod open;
mod options;
mod report;
mod select_state;

use burn::tensor::{Int, Tensor, TensorData};
use sharnn_core::{AutodiffBackend, DropoutStream, Pass, SegmentLoss, ShaRnn, ShaRnnConfig, ShaRnnState};
use sharnn_data::{Segment, Segments, Splits};

use clock::Clock;
pub use error::TrainError;
pub use options::{InitialWeights, Limits, Stop, TrainOptions};
pub use select_state::select_state;

use crate::eval::Evaluation;
use crate::group::{SharedGroup, agree, same_weights};
use crate::interrupt::Interrupt;
use crate::optim::{Optimizer, RowGrads};
use crate::params::weights_checksum;
use crate::recipe::{Phase, Recipe};
use crate::report::{Event, Observer};
use crate::run::{
    Best, Checkpoint, CorpusIdentity, FileDigest, Metrics, Moved, PendingStep, Position, RunDir, Smoothed, StepLog,
    Window,
};

/// Steps between the validations at the ends of short epochs.
const STEPS_PER_VALIDATION: u64 = 100;

/// Steps between two comparisons of the weights of many processes.
const WEIGHTS_COMPARED_EVERY: u64 = 100;

/// A training run: a model, and everything that it takes to train it and to go on after an interruption.
///
/// A run that is stopped at any moment, by a limit, by [`Interrupt`] or by the end of the process, and then resumed, gives
/// the losses and weights of a run that never stopped, bit for bit where the backend computes the same twice
/// ([`BackendKind::resumes_bit_exactly`](crate::BackendKind::resumes_bit_exactly)).
///
/// One of these in each process of a [`Group`](crate::Group) trains one run over all of them ([`open_in`](Self::open_in)): each computes
/// some lanes of the batch, and reads, draws and drops what a single process would for these lanes. The losses agree with
/// those of a single process up to rounding, and are the same bits whenever as many processes, placed alike, train. All of them must be
/// able to read the run directory; the first one writes there.
///
/// ```no_run
/// use burn::backend::{Autodiff, Flex};
/// use sharnn_core::ShaRnnConfig;
/// use sharnn_data::{Corpus, Splits};
/// use sharnn_train::{Event, Interrupt, Limits, Recipe, TrainOptions, Trainer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let splits = Splits::by_fractions(Corpus::open("text.txt")?, 0.05, 0.05)?;
/// let (config, recipe) = (ShaRnnConfig::xs(), Recipe::paper());
/// let options = TrainOptions::new("runs/first");
/// let mut trainer = Trainer::<Autodiff<Flex>>::open(config, recipe, splits, options, &Default::default())?;
/// let mut watch = |event: Event<'_>| println!("{event:?}");
/// let limits = Limits { max_steps: Some(1000), ..Limits::default() };
/// trainer.run(&limits, &mut watch, &Interrupt::on_ctrl_c()?)?;
/// println!("{:.3} bits per byte", trainer.finish(&mut watch)?.test.bpc());
/// # Ok(())
/// # }
/// ```
pub struct Trainer<B: AutodiffBackend> {
    config: ShaRnnConfig,
    recipe: Recipe,
    options: TrainOptions,
    splits: Splits,
    corpus: CorpusIdentity,
    group: SharedGroup,
    /// What the processes asked for in the last step.
    asked: Asked,
    /// Who may ask.
    interrupt: Interrupt,
    device: B::Device,
    /// `None` only inside a step.
    model: Option<ShaRnn<B>>,
    optimizer: Optimizer<B>,
    state: ShaRnnState<B>,
    segments: Segments,
    position: Position,
    best: Option<(Best, FileDigest)>,
    pending: StepLog<B::InnerBackend>,
    window: Window,
    smoothed: Smoothed,
    clock: Clock,
    limits: Limits,
    /// `None` in processes that do not write.
    metrics: Option<Metrics>,
    /// What to say of a checkpoint that was computed otherwise, until it was said.
    moved: Option<Moved>,
    /// Whether the best weights were scored otherwise than the next ones will be.
    rescore_best: bool,
    /// The checkpoint with which `best/` is still to agree.
    resumed_from: Option<Checkpoint>,
    /// The position of the newest checkpoint; `None` where the run has other settings, or another best, than that says.
    saved: Option<Position>,
    save_due: bool,
    run_dir: RunDir,
}

/// What processes may ask of each other while they train. Of time only the first one knows.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    interrupt: bool,
    time_is_up: bool,
    checkpoint: bool,
    /// A checkpoint, should the epoch end now.
    checkpoint_at_end: bool,
}

impl Asked {
    /// As numbers that can be added up over a group.
    fn flags(self) -> [f32; 4] {
        [self.interrupt, self.time_is_up, self.checkpoint, self.checkpoint_at_end]
            .map(|asked| f32::from(u8::from(asked)))
    }

    fn from_flags(flags: [f32; 4]) -> Self {
        let [interrupt, time_is_up, checkpoint, checkpoint_at_end] = flags.map(|sum| sum > 0.0);
        Self { interrupt, time_is_up, checkpoint, checkpoint_at_end }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Finished<B: AutodiffBackend> {
    /// The best validation.
    pub best: Best,
    /// The score of the test split with its weights.
    pub test: Evaluation,
    /// The model with these weights, without gradients.
    pub model: ShaRnn<B::InnerBackend>,
}

impl<B: AutodiffBackend> Trainer<B> {
    /// Leaves the checkpoint that [`run`](Self::run) leaves before anything else, where it is due: of a new run, or of one that goes on
    /// with other evaluations or evaluation data than its newest checkpoint says. Whoever keeps something beside it does so then.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn save_start(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        // It is worth no word: nothing was trained since the one before.
        let mut but_for_that = |event: Event<'_>| {
            if !matches!(event, Event::Checkpoint { .. }) {
                observer.on(event);
            }
        };
        if self.saved.is_none() { self.checkpoint(&mut but_for_that) } else { Ok(()) }
    }

    /// Trains until the recipe is done, a limit is reached or somebody interrupts, and leaves a checkpoint. A run that is
    /// done comes back at once.
    ///
    /// A new run leaves a checkpoint before its first step, so that it can be resumed from then on. An interruption is seen between
    /// two steps, and between two segments of an evaluation, which whoever resumes begins anew. Where somebody
    /// [presses](Interrupt::is_pressing), and one process trains alone, the step under way is given up: what is kept is the run before
    /// it.
    ///
    /// # Errors
    /// If too many steps in a row are not finite, or if the disk or the data fails. Checkpoints written before stay intact.
    pub fn run(
        &mut self,
        limits: &Limits,
        observer: &mut dyn Observer,
        interrupt: &Interrupt,
    ) -> Result<Stop, TrainError> {
        self.limits = *limits;
        self.interrupt = interrupt.clone();
        agree(self.group.as_ref(), &limits.of_position())?;
        self.clock.start();
        self.announce(observer);
        self.save_start(observer)?;
        // Later it is told with the gradients.
        let mut flags = self.asks().flags();
        self.group.sum(&mut flags);
        self.asked = Asked::from_flags(flags);
        loop {
            if self.group.size() == 1 {
                self.asked = self.asks();
            }
            if let Some(stop) = self.stop() {
                self.checkpoint(observer)?;
                self.clock.stop();
                return Ok(stop);
            }
            self.go_on()?;
            let scored = self.score_what_is_due(observer);
            match scored {
                Err(error) if error.is_interrupted() => {
                    self.asked.interrupt = true;
                    continue;
                }
                scored => scored?,
            }
            if self.epoch_has_ended() {
                self.next_epoch(observer)?;
                continue;
            }
            if self.checkpoint_is_due() {
                self.checkpoint(observer)?;
            }
            let before = self.segments.clone();
            let segment = self.next_segment(observer)?;
            if !self.step(&segment) {
                self.segments = before;
                continue;
            }
            if self.position.step.is_multiple_of(WEIGHTS_COMPARED_EVERY) {
                self.compare_weights()?;
            }
            if self.position.step.is_multiple_of(self.options.log_every) {
                self.log(observer)?;
            } else if self.pending.is_full() {
                self.read_steps(observer)?;
            }
        }
    }

    /// Scores the best weights anew, and the validation split, where either is due.
    fn score_what_is_due(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if self.rescore_best {
            self.score_best_anew(observer)?;
        }
        if self.validation_is_due() {
            self.checkpoint_before_evaluation(observer)?;
            self.validate(observer)?;
        }
        Ok(())
    }

    /// The next segment, unless the file has lost bytes meanwhile: then what was trained before is saved.
    fn next_segment(&mut self, observer: &mut dyn Observer) -> Result<Segment, TrainError> {
        let before = self.segments.clone();
        let segment = self.segments.next_segment().expect("the epoch has not ended");
        let Err(error) = self.splits.train.corpus().check() else { return Ok(segment) };
        self.segments = before;
        // The other processes of a group may not have seen it.
        if self.group.size() == 1 {
            self.checkpoint(observer)?;
        }
        Err(error.into())
    }

    /// One step of the recipe. The host does not wait for the device, unless it has to share the gradients with other
    /// processes. Returns whether it was made: where somebody presses it is given up, and nothing is changed.
    fn step(&mut self, segment: &Segment) -> bool {
        let lr = self.lr(segment);
        let (precision, recompute) = (self.recipe.precision, self.options.recompute);
        let pass = Pass { precision, dropout: self.dropout(segment), recompute };
        let old = self.state.clone();
        let mut model = self.model.take().expect("a model between two steps");
        // What was known before, should the step be given up.
        let known = self.forgets(segment).then(|| (model.clone(), self.optimizer.clone()));
        if known.is_some() {
            model = self.optimizer.forget_rows(model);
        }

        let [tokens, targets] = [&segment.inputs, &segment.targets].map(|bytes| self.upload(segment, bytes));
        let SegmentLoss { loss, state: new, rows } = model.segment_loss(tokens, targets, old.clone(), &pass);
        let grads = (!self.gives_up()).then(|| loss.backward()).filter(|_| !self.gives_up());
        let Some(mut grads) = grads else {
            self.model = Some(match known {
                None => model,
                Some((known, optimizer)) => {
                    self.optimizer = optimizer;
                    known
                }
            });
            return false;
        };
        // What has two owners is not changed in place.
        drop(known);
        let rows = rows.and_then(|rows| RowGrads::take(rows, &mut grads));
        let mut flags = self.asks().flags();
        let (group, grads) = (self.group.as_ref(), (grads, rows));
        let (model, report) = self.optimizer.step_in(group, &mut flags, model, loss.inner(), grads, lr);
        self.asked = Asked::from_flags(flags);
        self.state = select_state(Tensor::from_inner(report.finite.clone()), new.detach(), old).detach();

        self.model = Some(model);
        self.position.step += 1;
        self.position.phase_step += 1;
        let bytes = (segment.len * self.recipe.batch_size) as u64;
        self.position.bytes += bytes;
        let (step, loss, grad_norm, finite) = (self.position.step, report.loss, report.grad_norm, report.finite);
        self.pending.push(PendingStep { step, bytes, lr, loss, grad_norm, finite });
        true
    }

    /// Whether the table of n-grams begins anew with this segment: where an epoch begins that is not the first, unless the phase ends before
    /// half of it. A row that has seen a text before knows it by heart, and the model would learn to trust it; one that has seen too little
    /// says nothing. (Rows of a model that the run goes on from stay, for they are of another text.)
    fn forgets(&self, segment: &Segment) -> bool {
        let Position { step, phase, phase_step, phase_epoch, bytes, .. } = self.position;
        if self.config.ngrams.is_none() || segment.start > 0 || (phase, phase_epoch) == (0, 0) {
            return false;
        }
        let left = self.phase().and_then(|phase| phase.steps).map(|steps| steps.saturating_sub(phase_step));
        // By the bytes of a lane that a step has taken on average.
        let left = left.map(|left| u128::from(left) * u128::from(bytes) / u128::from(step.max(1)));
        let half = (self.segments.epoch_len() as u128 * self.recipe.batch_size as u128).div_ceil(2);
        left.is_none_or(|left| left >= half)
    }

    /// Whether the step under way is given up. The processes of a group make it together or wait for each other.
    fn gives_up(&self) -> bool {
        self.group.size() == 1 && self.interrupt.is_pressing()
    }

    fn upload(&self, segment: &Segment, bytes: &[u8]) -> Tensor<B, 2, Int> {
        let tokens: Vec<i32> = bytes.iter().map(|&byte| byte.into()).collect();
        Tensor::from_data(TensorData::new(tokens, [segment.n_lanes, segment.len]), &self.device)
    }

    fn dropout(&self, segment: &Segment) -> Option<DropoutStream> {
        let ShaRnnConfig { dropout_input, dropout_hidden, dropout_output, .. } = self.config;
        let drops = [dropout_input, dropout_hidden, dropout_output].iter().any(|&prob| prob > 0.0);
        let (seed, step, first_lane) = (self.recipe.seed, self.position.step, segment.first_lane as u32);
        drops.then_some(DropoutStream { seed, step, first_lane })
    }

    /// The current phase; `None` at the end of the run.
    fn phase(&self) -> Option<&Phase> {
        self.recipe.phases.get(self.position.phase)
    }

    /// The learning rate before `segment`: a function of the position in the run alone.
    fn lr(&self, segment: &Segment) -> f64 {
        let phase = self.phase().expect("a run that is done makes no steps");
        let Position { phase_step, phase_epoch, .. } = self.position;
        let epochs = phase_epoch as f64 + segment.start as f64 / self.segments.epoch_len() as f64;
        phase.lr_at(phase_step, phase.progress(phase_step, epochs))
    }

    /// What this process asks for.
    fn asks(&self) -> Asked {
        let is_first = self.group.is_first();
        Asked {
            interrupt: self.interrupt.is_raised(),
            time_is_up: is_first && self.limits.max_time.is_some_and(|max| self.clock.running() >= max),
            checkpoint: is_first && self.checkpoint_time_is_over(),
            checkpoint_at_end: is_first && self.clock.has_earned_a_checkpoint(),
        }
    }

    /// Checks that all processes have the same weights.
    fn compare_weights(&self) -> Result<(), TrainError> {
        if self.group.size() > 1 {
            same_weights(self.group.as_ref(), self.position.step, weights_checksum(self.model()))?;
        }
        Ok(())
    }

    fn stop(&self) -> Option<Stop> {
        let Position { step, epoch, .. } = self.position;
        match self.limits {
            _ if self.phase().is_none() => Some(Stop::Finished),
            _ if self.asked.interrupt => Some(Stop::Interrupted),
            Limits { max_steps: Some(max), .. } if step >= max => Some(Stop::Steps),
            Limits { max_epochs: Some(max), .. } if epoch >= max => Some(Stop::Epochs),
            _ if self.asked.time_is_up => Some(Stop::Time),
            _ => None,
        }
    }

    /// Whether this epoch is over: all of the data was read, or the phase has had its steps.
    fn epoch_has_ended(&self) -> bool {
        let steps_done = self.phase().and_then(|phase| phase.steps).is_some_and(|max| self.position.phase_step >= max);
        steps_done || self.segments.position() == self.segments.epoch_len()
    }

    /// Whether a validation was asked for at this step, or stands at the end of an epoch and is worth its cost, or of a phase, for
    /// the next one begins with the best weights. All of it follows from the position: a run that was resumed does the same.
    fn validation_is_due(&self) -> bool {
        let Position { step, validated, .. } = self.position;
        let every = self.recipe.valid_every_steps.is_some_and(|every| step.is_multiple_of(every));
        let start = step == 0 && self.options.score_start && self.best.is_none();
        let at_end = || self.epoch_has_ended() && (self.phase_ends_with_epoch() || self.validation_is_worth_it());
        start || step > validated && (every || at_end())
    }

    /// Whether the phase has no epoch after this one.
    fn phase_ends_with_epoch(&self) -> bool {
        let Position { phase_step, phase_epoch, .. } = self.position;
        let ends = |p: &Phase| phase_epoch + 1 >= p.epochs || p.steps.is_some_and(|max| phase_step >= max);
        self.phase().is_some_and(ends)
    }

    /// Whether enough was trained since the last validation: so many steps, since weights may have to be written, and as many
    /// bytes as are scored. Epochs of small corpora may be as short as a step.
    fn validation_is_worth_it(&self) -> bool {
        let Position { step, validated, bytes, .. } = self.position;
        let steps = step - validated;
        let trained = u128::from(bytes) * u128::from(steps) / u128::from(step.max(1));
        steps >= STEPS_PER_VALIDATION && trained >= self.splits.valid.len() as u128
    }

    /// Counts the epoch and starts the next one from an empty state; at the end of a phase the next phase.
    fn next_epoch(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if self.segments.position() == self.segments.epoch_len() {
            self.position.epoch += 1;
        }
        self.position.phase_epoch += 1;
        self.segments.start_epoch();
        self.state = self.model().empty_state();
        let Position { phase_step, phase_epoch, .. } = self.position;
        let is_done = |p: &Phase| phase_epoch >= p.epochs || p.steps.is_some_and(|max| phase_step >= max);
        let phase_ends = self.phase().is_some_and(is_done);
        if phase_ends {
            self.next_phase(observer)?;
        }
        if phase_ends || self.asked.checkpoint_at_end {
            self.checkpoint(observer)?;
        }
        Ok(())
    }

    /// Starts the next phase from the best weights, with a fresh optimizer.
    fn next_phase(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Some((best, _)) = self.best.clone() else {
            return Err(TrainError::NoBest { step: self.position.step });
        };
        self.position.phase += 1;
        (self.position.phase_step, self.position.phase_epoch) = (0, 0);
        if self.position.phase < self.recipe.phases.len() {
            self.model = Some(self.best_model(&self.device)?);
            self.optimizer = self.recipe.optimizer();
            observer.on(Event::Phase { phase: self.position.phase, best: &best });
        } else {
            self.log(observer)?;
        }
        Ok(())
    }

    /// The model as it stands.
    pub fn model(&self) -> &ShaRnn<B> {
        self.model.as_ref().expect("a model between two steps")
    }
}
