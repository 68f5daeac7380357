//! What the options of `train` ask for, put together: a model, a recipe, limits, a place.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use indicatif::HumanCount;
use serde_json::Value;

use crate::core::{MemoryEstimate, StepShape};
use crate::data::DataError;
use crate::train::{Limits, Schedule, latest_manifest};
use crate::{Backend, BackendKind, Precision, Recipe, SegmentLengths, ShaRnnConfig, Splits, TrainOptions};

use super::super::machine::fastest;
use super::super::model::{ModelArgs, Trained};
use super::super::options::{refused, typed as as_typed};
use super::super::values::{attend, lanes, precision, preset, recipe, schedule, set_fields};
use super::args::Args;
use super::ends::Ends;
use super::origin::Origin;

/// Seconds that a run without any limit may train.
const QUICK_SECONDS: f64 = 180.0;

/// Steps of the run that nothing was said of: two epochs of the bundled text, less than three minutes on two cores.
const QUICK_STEPS: u64 = 922;

/// Bytes of its segments.
const QUICK_SEGMENT: usize = 32;

/// When to end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Asked {
    /// This call.
    call: Ends,
    /// The run, as it is remembered.
    run: Ends,
}

/// What the command line asks for.
pub struct Plan {
    pub config: ShaRnnConfig,
    pub recipe: Recipe,
    pub limits: Limits,
    /// When the run is to end, this call or a later one.
    pub ends: Ends,
    pub options: TrainOptions,
    /// What the run goes on from, where that is no fresh weights.
    pub origin: Option<Origin>,
    /// Whether the precision was chosen here, and neither by the user nor by the run.
    pub auto_precision: bool,
}

/// What lengths of segments are rounded to. On a GPU matrix products are chosen by size and read whole vectors.
fn suitable_multiple(backend: BackendKind) -> usize {
    match backend {
        BackendKind::Cuda | BackendKind::Wgpu => 8,
        _ => 1,
    }
}

/// A recipe with segments of another length, all of it or around it as before.
fn with_length(recipe: Recipe, len: usize) -> Recipe {
    match recipe.segments {
        SegmentLengths::Fixed { .. } => recipe.with_fixed_segments(len),
        SegmentLengths::Random { .. } => recipe.with_segments_around(len),
    }
}

impl Args {
    /// What the run goes on from, if it does.
    pub fn trained(&self) -> Result<Option<Trained>> {
        self.from.clone().map(|model| ModelArgs::of(model).trained()).transpose()
    }

    /// Puts the options together. A run that exists lends its model and recipe, and the options given now change them: a
    /// change that it cannot take is refused by the trainer by name.
    pub fn plan(&self, run_dir: &Path, splits: &Splits, trained: Option<Trained>) -> Result<Plan> {
        let stored = latest_manifest(run_dir)?.map(|(_, manifest)| manifest);
        let seconds = stored.as_ref().map_or(0.0, |manifest| manifest.seconds);
        let stored = stored.map(|manifest| (manifest.config, manifest.recipe));
        let kept = if self.resume { Ends::kept(run_dir)? } else { None };
        let dir = run_dir.display();
        ensure!(
            stored.is_some() || !self.resume,
            "there is no run in {dir}: leave out --resume to start one, or name another --out"
        );
        ensure!(
            stored.is_none() || self.resume,
            "there is a run in {dir} already: go on with it with --resume, or name another --out"
        );
        let (mut config, mut recipe, of_preset) = match (&self.preset, &self.recipe, stored.clone()) {
            (None, None, Some((config, recipe))) => (config, recipe, false),
            _ => {
                let (config, recipe) = self.preset()?;
                (trained.as_ref().map_or(config, |trained| trained.config.clone()), recipe, true)
            }
        };
        self.change_model(&mut config)?;
        let run = stored.as_ref().map(|(_, recipe)| recipe);
        let Asked { mut call, run: mut ends } = self.ends(kept, seconds)?;
        if of_preset || self.changes_schedule() {
            self.change_schedule(&mut recipe, &call, run)?;
        }
        if of_preset {
            self.fit_segments(&mut recipe, &config);
        }
        self.change_recipe(&mut recipe, of_preset.then_some(splits))?;
        self.change_segments(&mut recipe, run)?;
        let auto_precision = self.change_precision(&mut recipe, run)?;
        // Before fields are set, so that the option is named, and not these.
        recipe.validate().map_err(|error| refused(&error.field, &error.value, &error.hint, &[]))?;
        let (config, recipe) = set_fields(config, recipe, &self.set)?;
        recipe.validate_for(&config).map_err(|error| refused(&error.field, &error.value, &error.hint, &self.set))?;
        if let Some(trained) = &trained {
            self.check_sizes(trained, &config)?;
        }
        if call == Ends::default() && kept.is_none() && !self.has_an_end(&recipe) {
            call.seconds = Some(seconds + QUICK_SECONDS);
            ends = call;
        }
        let origin = match &trained {
            Some(trained) => Some(Origin { model: trained.name.clone() }),
            None if self.resume => Origin::kept(run_dir)?,
            None => None,
        };
        let options = TrainOptions {
            initial_weights: trained.map(|trained| trained.weights),
            score_start: origin.is_some(),
            other_evaluation_data: self.data.valid_bytes.is_some() || self.data.full_eval,
            ..self.options(run_dir)
        };
        Ok(Plan { config, recipe, limits: call.limits(seconds), ends, options, origin, auto_precision })
    }

    /// That no option asks for other sizes than those of the weights.
    fn check_sizes(&self, trained: &Trained, config: &ShaRnnConfig) -> Result<()> {
        // No tensor depends on memory and dropouts.
        let sizes = |config: &ShaRnnConfig| serde_json::to_value(config.clone().with_mem_len(0).with_dropout(0.0));
        let (own, asked) = (sizes(&trained.config)?, sizes(config)?);
        // A field that is not there is as one of null.
        let fields = [&own, &asked].into_iter().flat_map(|sizes| sizes.as_object().into_iter().flatten());
        let differs = |field: &&String| {
            own.get(field.as_str()).unwrap_or(&Value::Null) != asked.get(field.as_str()).unwrap_or(&Value::Null)
        };
        if let Some(field) = fields.map(|(field, _)| field).find(differs) {
            let own = own.get(field).unwrap_or(&Value::Null);
            let typed = match (&self.attend, &field[..]) {
                (Some(which), "attend") => format!("--attend {which}"),
                _ => format!("--set model.{field}={}", asked[field]),
            };
            bail!(
                "{typed} cannot be used with --from: the sizes are those of {}, where it is {}; leave it out",
                trained.name,
                as_typed(&format!("model.{field}"), &own.to_string())
            );
        }
        Ok(())
    }

    /// The model and the recipe that were named, or those that are used where nothing is said.
    fn preset(&self) -> Result<(ShaRnnConfig, Recipe)> {
        let name = self.preset.as_deref();
        let by_default = if name == Some("paper") { "paper" } else { "budget" };
        let named = self.recipe.as_deref().unwrap_or(by_default);
        let (config, recipe) = recipe(named, name, preset(name)?)?;
        // A first run sees little text, and that more than once: more steps are worth more there than longer segments.
        let is_first = name.is_none() && self.from.is_none() && named == "budget";
        Ok((config, if is_first { recipe.with_fixed_segments(QUICK_SEGMENT) } else { recipe }))
    }

    /// When this call and the run are to end: as the options say, or, of a run that goes on, as they said before.
    fn ends(&self, kept: Option<Ends>, trained: f64) -> Result<Asked> {
        ensure!(self.steps != Some(0), "--steps 0 cannot be used: use at least 1");
        ensure!(self.epochs != Some(0), "--epochs 0 cannot be used: use at least 1");
        let seconds = match self.minutes {
            Some(minutes) if minutes > 0.0 && Duration::try_from_secs_f64(60.0 * minutes + trained).is_ok() => {
                Some(trained + 60.0 * minutes)
            }
            Some(minutes) => {
                bail!("--minutes {minutes} cannot be used: use a number above 0, and not beyond all bounds")
            }
            None => None,
        };
        let given = Ends { steps: self.steps, epochs: self.epochs, seconds };
        Ok(match kept {
            // Minutes are those of this call: a run that was to end otherwise still is.
            Some(kept) if self.steps.is_none() && self.epochs.is_none() => {
                let call = Ends { seconds: seconds.or(kept.seconds), ..kept };
                Asked { call, run: Ends { seconds: kept.seconds.and(call.seconds), ..kept } }
            }
            None if !self.resume && self.preset.is_none() && given == Ends::default() => {
                let quick = Ends { steps: Some(QUICK_STEPS), ..given };
                Asked { call: quick, run: quick }
            }
            _ => Asked { call: given, run: given },
        })
    }

    /// Whether a recipe ends by itself, and is meant to. A run that is resumed without a word on its end was started by a library.
    fn has_an_end(&self, recipe: &Recipe) -> bool {
        let by_epochs = self.resume || self.preset.as_deref() == Some("paper");
        recipe.phases.iter().all(|phase| phase.steps.is_some() || (by_epochs && phase.epochs != u64::MAX))
    }

    fn change_model(&self, config: &mut ShaRnnConfig) -> Result<()> {
        if let Some(which) = &self.attend {
            config.attend = attend(which)?;
        }
        if let Some(mem_len) = self.mem_len {
            config.mem_len = mem_len;
        }
        if let Some(dropout) = self.dropout {
            *config = config.clone().with_dropout(dropout);
        }
        config.validate().map_err(|error| refused(&format!("model.{}", error.field), &error.value, &error.hint, &[]))
    }

    /// Whether an option says how the learning rate of a run falls that exists.
    fn changes_schedule(&self) -> bool {
        self.schedule.is_some() || self.steps.is_some() || self.epochs.is_some()
    }

    /// Sets the schedule. What falls has to know its end: that of this call, or of the run that goes on.
    fn change_schedule(&self, recipe: &mut Recipe, call: &Ends, run: Option<&Recipe>) -> Result<()> {
        let (steps, epochs) = if run.is_some() { (self.steps, self.epochs) } else { (call.steps, call.epochs) };
        for (i, phase) in recipe.phases.iter_mut().enumerate() {
            let of_run = run.and_then(|run| run.phases.get(i));
            if let Some(kind) = &self.schedule {
                phase.schedule = schedule(kind)?;
            }
            if phase.schedule == Schedule::Constant {
                continue;
            }
            phase.steps = steps.or(phase.steps).or(of_run.and_then(|phase| phase.steps));
            phase.epochs = epochs.or(of_run.map(|phase| phase.epochs)).unwrap_or(phase.epochs);
            if phase.steps.is_none() && phase.epochs == u64::MAX {
                ensure!(
                    self.schedule.is_none(),
                    "--schedule needs an end to fall to zero at: give --steps or --epochs"
                );
                phase.schedule = Schedule::Constant;
            }
        }
        Ok(())
    }

    /// Shortens segments, where nobody asked for theirs, to what fits into the memory that the model was trained with or that was asked
    /// for.
    fn fit_segments(&self, recipe: &mut Recipe, config: &ShaRnnConfig) {
        let most = config.mem_len;
        let is_bounded = config.n_attending() > 0 && most > 0;
        if self.seq_len.is_some() || !is_bounded || recipe.segments.max() <= most {
            return;
        }
        *recipe = with_length(recipe.clone(), most);
    }

    /// Sets what the options say; the lanes of the evaluations suit the splits, where they are given.
    fn change_recipe(&self, recipe: &mut Recipe, splits: Option<&Splits>) -> Result<()> {
        if let Some(batch) = self.batch {
            recipe.batch_size = batch;
        }
        if let Some(seq_len) = self.seq_len {
            ensure!(seq_len > 0, "--seq-len 0 cannot be used: use at least 1");
            *recipe = with_length(recipe.clone(), seq_len);
        }
        // As many lanes as a tiny file has segments for, where so many were not asked for.
        if let (None, Some(splits)) = (self.batch, splits)
            && splits.train.len() / recipe.batch_size.max(1) < 2
        {
            recipe.batch_size = lanes(recipe.batch_size, splits.train.len(), recipe.segments.max());
        }
        let first_lr = recipe.phases[0].lr;
        for phase in &mut recipe.phases {
            // The paper's second phase has half of the first one's rate, whatever that is. The same rate again changes no bit.
            if let Some(lr) = self.lr.filter(|lr| *lr != first_lr) {
                phase.lr = lr * (phase.lr / first_lr);
            }
            if let Some(warmup) = self.warmup {
                phase.warmup_steps = warmup;
            }
        }
        if let Some(seed) = self.seed {
            recipe.seed = seed;
        }
        if let Some(steps) = self.valid_every {
            ensure!(steps > 0, "--valid-every 0 cannot be used: use at least 1");
            recipe.valid_every_steps = Some(steps);
        }
        match (self.eval_batch, splits) {
            (Some(lanes), _) => (recipe.valid.lanes, recipe.test.lanes) = (lanes, lanes),
            (None, Some(splits)) => {
                for (eval, split) in [(&mut recipe.valid, &splits.valid), (&mut recipe.test, &splits.test)] {
                    eval.lanes = lanes(eval.lanes, split.len(), eval.seq_len);
                }
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Fixes the lengths of segments, or rounds them as was asked for, or as the run does, or as suits the backend.
    fn change_segments(&self, recipe: &mut Recipe, run: Option<&Recipe>) -> Result<()> {
        if self.fixed_segments {
            recipe.segments = SegmentLengths::Fixed { len: recipe.segments.max() };
            return Ok(());
        }
        ensure!(
            self.segment_multiple.is_none() || matches!(recipe.segments, SegmentLengths::Random { .. }),
            "--segment-multiple cannot be used: the segments of this run are all {} bytes long",
            recipe.segments.max()
        );
        let of_run = run.map(|run| run.segments).filter(|segments| matches!(segments, SegmentLengths::Random { .. }));
        let multiple = match (self.segment_multiple, of_run) {
            (Some(multiple), _) => multiple,
            (None, Some(segments)) => segments.multiple(),
            (None, None) => suitable_multiple(self.machine.backend).min(recipe.segments.max()),
        };
        recipe.segments = recipe.segments.with_multiple(multiple);
        // What else is wrong with them the recipe says.
        if let Err(DataError::SegmentLengths { field: "multiple", expected, .. }) = recipe.segments.validate() {
            let given = if self.segment_multiple.is_some() { "--segment-multiple" } else { "a multiple of" };
            bail!("{given} {multiple} cannot be used: it {expected}");
        }
        Ok(())
    }

    /// Sets what was asked for, or what the run has, or what is fastest, and returns whether it was the last.
    fn change_precision(&self, recipe: &mut Recipe, run: Option<&Recipe>) -> Result<bool> {
        let given = self.precision.as_deref().map(precision).transpose()?.flatten();
        let precisions = match (given, run) {
            (Some(precision), _) => [precision; 3],
            (None, Some(run)) => [run.precision, run.valid.precision, run.test.precision],
            (None, None) => [fastest(self.machine.backend); 3],
        };
        [recipe.precision, recipe.valid.precision, recipe.test.precision] = precisions;
        Ok(given.is_none() && run.is_none())
    }

    fn options(&self, run_dir: &Path) -> TrainOptions {
        TrainOptions {
            log_every: self.log_every,
            checkpoint_every: self.checkpoint_every,
            recompute: self.recompute,
            ..TrainOptions::new(run_dir)
        }
    }
}

impl Plan {
    /// One line of what will be trained, on what, for how long.
    pub fn describe(&self, splits: &Splits) -> String {
        let Self { config, recipe, limits, options, .. } = self;
        let stop = match limits {
            Limits { max_time: Some(time), .. } => format!("{:.1} minutes", time.as_secs_f64() / 60.0),
            Limits { max_steps: Some(steps), .. } => format!("{steps} steps"),
            Limits { max_epochs: Some(epochs), .. } => format!("{epochs} epochs"),
            _ => "the whole recipe".into(),
        };
        format!(
            "{} wide, {} blocks, memory {}; matrix products in {}; batches of {} x up to {} bytes of {} ({} bytes, some {} steps an epoch); {stop}; into {}",
            config.d_model,
            config.n_layers,
            config.mem_len,
            self.precision(recipe.precision),
            recipe.batch_size,
            recipe.segments.max(),
            splits.name,
            splits.train.len(),
            HumanCount(self.epoch_steps(splits)),
            options.run_dir.display()
        )
    }

    /// About how many steps an epoch has: lengths of segments vary.
    fn epoch_steps(&self, splits: &Splits) -> u64 {
        let lane = splits.train.len() / self.recipe.batch_size.max(1);
        let len = match self.recipe.segments {
            SegmentLengths::Random { base, short_base, short_probability, .. } => {
                base as f64 + short_probability * (short_base as f64 - base as f64)
            }
            SegmentLengths::Fixed { len } => len as f64,
        };
        (lane.saturating_sub(1) as f64 / len).ceil() as u64
    }

    /// An estimate of what training takes in each of so many processes.
    pub fn memory<B: Backend>(&self, processes: usize) -> MemoryEstimate {
        let Self { config, recipe, options, .. } = self;
        let (batch_size, seq_len) = (recipe.batch_size.div_ceil(processes), recipe.segments.max());
        let shape = StepShape::of::<B>(batch_size, seq_len, options.recompute, recipe.precision);
        let mut estimate = config.training_memory(shape);
        if processes > 1 {
            estimate.parts.push(("gradients sent and received", 2 * 4 * config.num_params() as u64));
        }
        estimate
    }

    fn precision(&self, precision: Precision) -> String {
        let by = if self.auto_precision { " (--precision auto)" } else { "" };
        format!("{}{by}", precision.name())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use clap::Parser;

    use super::super::super::TrainOnly;
    use crate::core::kernels::Operands;
    use crate::data::enwik8;
    use crate::{Attend, NGramConfig};

    use super::*;

    fn args(options: &[&str]) -> Args {
        let parsed = TrainOnly::try_parse_from([&["train"], options].concat());
        parsed.unwrap_or_else(|error| panic!("{error}")).args
    }

    fn plan(options: &[&str]) -> Result<Plan> {
        let args = args(options);
        args.plan(Path::new("nowhere"), &enwik8::sample(), args.trained()?)
    }

    fn precisions(recipe: &Recipe) -> [Precision; 3] {
        [recipe.precision, recipe.valid.precision, recipe.test.precision]
    }

    #[test]
    fn a_new_run_takes_the_fastest_precision_and_says_who_chose() {
        for options in [&[][..], &["--precision", "auto"]] {
            let plan = plan(options).unwrap();
            let fastest = Precision::from(Operands::fastest());
            assert_eq!(precisions(&plan.recipe), [fastest; 3]);
            let said = format!("matrix products in {} (--precision auto)", fastest.name());
            assert!(plan.describe(&enwik8::sample()).contains(&said), "{}", plan.describe(&enwik8::sample()));
        }
        assert_eq!(fastest(BackendKind::NdArray), Precision::F32);
        for (precision, name) in Precision::ALL {
            let plan = plan(&["--precision", name]).unwrap();
            assert_eq!(precisions(&plan.recipe), [precision; 3]);
            assert!(plan.describe(&enwik8::sample()).contains(&format!("products in {name};")));
        }
        let error = plan(&["--precision", "f16"]).err().unwrap().to_string();
        assert_eq!(error, "--precision \"f16\" cannot be used: use auto, f32 or bf16");
    }

    /// What a run was started with stays, even if it is no longer the fastest or differs in scoring.
    #[test]
    fn a_run_that_exists_keeps_its_precision_unless_another_is_asked_for() {
        let mut run = Recipe { precision: Precision::Bf16, ..Recipe::paper() };
        run.test.precision = Precision::Bf16;
        for options in [&["--resume"][..], &["--resume", "--precision", "auto"], &["--resume", "--preset", "xs"]] {
            let mut recipe = Recipe::paper();
            assert!(!args(options).change_precision(&mut recipe, Some(&run)).unwrap());
            assert_eq!(precisions(&recipe), [Precision::Bf16, Precision::F32, Precision::Bf16]);
        }
        let mut recipe = run.clone();
        args(&["--resume", "--precision", "f32"]).change_precision(&mut recipe, Some(&run)).unwrap();
        assert_eq!(precisions(&recipe), [Precision::F32; 3]);
    }

    #[test]
    fn segments_are_rounded_on_a_gpu_or_as_asked_for_or_as_the_run_does() {
        let multiple = |options: &[&str], run: Option<&Recipe>| {
            let mut recipe = Recipe::paper();
            args(options).change_segments(&mut recipe, run).unwrap();
            recipe.segments.multiple()
        };
        assert_eq!(multiple(&[], None), 1);
        assert_eq!(multiple(&["--segment-multiple", "16"], None), 16);
        let mut run = Recipe::paper();
        run.segments = run.segments.with_multiple(4);
        assert_eq!(multiple(&["--resume"], Some(&run)), 4);
        assert_eq!(multiple(&["--resume", "--segment-multiple", "2"], Some(&run)), 2);
        assert_eq!(multiple(&["--fixed-segments"], Some(&run)), 1024);
        let mut fixed = Recipe { segments: SegmentLengths::Fixed { len: 64 }, ..Recipe::paper() };
        let error = args(&["--resume", "--segment-multiple", "2"]).change_segments(&mut fixed, None).unwrap_err();
        assert!(error.to_string().ends_with("the segments of this run are all 64 bytes long"), "{error}");
        assert_eq!([BackendKind::Cuda, BackendKind::Flex].map(suitable_multiple), [8, 1]);
        let error = plan(&["--recipe", "paper", "--segment-multiple", "2000"]).err().unwrap().to_string();
        assert!(error.starts_with("--segment-multiple 2000 cannot be used: "), "{error}");
    }

    #[test]
    fn a_recipe_is_budget_unless_the_paper_is_asked_for() {
        let recipe = |options: &[&str]| plan(options).unwrap().recipe;
        let quick = plan(&[]).unwrap();
        let expected = Recipe::budget(Some(QUICK_STEPS));
        assert_eq!((&quick.recipe.phases, quick.recipe.muon), (&expected.phases, expected.muon));
        assert_eq!(
            (quick.config.mem_len, quick.limits.max_steps, quick.limits.max_time),
            (128, Some(QUICK_STEPS), None)
        );
        let ngrams = |options: &[&str]| plan(options).unwrap().config.ngrams;
        assert_eq!(quick.config.ngrams, Some(NGramConfig::default()));
        for none in [&["--preset", "paper"][..], &["--recipe", "paper"], &["--set", "model.ngrams=null"]] {
            assert_eq!(ngrams(none), None, "{none:?}");
        }
        let longer = recipe(&["--preset", "s", "--steps", "9000"]);
        assert_eq!(longer.phases, Recipe::budget(Some(9000)).phases);
        let from = recipe(&["--from", "bundled", "--steps", "9"]);
        for (recipe, len) in [(&quick.recipe, 32), (&longer, 64), (&from, 64)] {
            assert_eq!((recipe.segments, recipe.valid.seq_len), (SegmentLengths::Fixed { len }, len));
        }
        let paper = plan(&["--preset", "s", "--recipe", "paper"]).unwrap();
        assert_eq!((paper.recipe.muon, paper.recipe.batch_size, paper.config.mem_len), (None, 16, 5000));
        assert_eq!(recipe(&["--preset", "paper"]).phases, Recipe::paper().phases);
        assert!(recipe(&["--preset", "paper", "--recipe", "budget", "--steps", "5"]).muon.is_some());
        let fixed = recipe(&["--seq-len", "48"]);
        assert_eq!((fixed.segments, fixed.valid.seq_len), (SegmentLengths::Fixed { len: 48 }, 48));
        let error = plan(&["--recipe", "adam"]).err().unwrap().to_string();
        assert_eq!(error, "there is no recipe \"adam\": use budget or paper");
    }

    #[test]
    fn a_run_that_goes_on_ends_where_it_was_to() {
        let asked = |options: &[&str], kept| args(options).ends(kept, 100.0).unwrap();
        let ends = |options: &[&str], kept| {
            let Asked { call, run } = asked(options, kept);
            assert_eq!(call, run, "{options:?}");
            run
        };
        let [none, steps] = [None, Some(9000)].map(|steps| Ends { steps, ..Ends::default() });
        let until = |seconds| Ends { seconds: Some(seconds), ..none };
        assert_eq!(ends(&["--steps", "7"], None), Ends { steps: Some(7), ..none });
        assert_eq!(ends(&["--resume"], Some(steps)), steps);
        assert_eq!(ends(&["--resume"], None), none);
        assert_eq!(ends(&["--resume", "--steps", "7"], Some(until(180.0))), Ends { steps: Some(7), ..none });
        assert_eq!(ends(&["--resume", "--minutes", "1.5"], Some(until(180.0))), until(190.0));
        // Minutes of this call: the run still ends where it was to.
        let call = Ends { seconds: Some(190.0), ..steps };
        assert_eq!(asked(&["--resume", "--minutes", "1.5"], Some(steps)), Asked { call, run: steps });
        assert_eq!(asked(&["--resume", "--minutes", "1.5"], Some(none)), Asked { call: until(190.0), run: none });
        assert_eq!(ends(&[], None), Ends { steps: Some(QUICK_STEPS), ..none });
        assert_eq!(ends(&["--preset", "xs"], None), none);
        let left = |seconds| until(190.0).limits(seconds).max_time.unwrap().as_secs_f64();
        assert_eq!((left(100.0), left(190.5)), (90.0, 0.0));
        assert_eq!(plan(&["--preset", "xs"]).unwrap().ends, until(QUICK_SECONDS));
        assert_eq!(plan(&["--preset", "paper"]).unwrap().ends, none);
        assert_eq!(plan(&["--preset", "paper", "--recipe", "budget"]).unwrap().ends, until(QUICK_SECONDS));
        let resumed = |recipe| args(&["--resume"]).has_an_end(&recipe);
        assert!(resumed(Recipe::paper()) && resumed(Recipe::budget(Some(9000))) && !resumed(Recipe::budget(None)));
    }

    /// The same line again, with `--resume`, is the same recipe.
    #[test]
    fn a_recipe_that_is_named_again_is_that_of_the_run() {
        for options in [
            &["--recipe", "paper", "--steps", "500"][..],
            &["--recipe", "budget"],
            &["--preset", "xs", "--steps", "500"],
            &["--preset", "xs", "--minutes", "9"],
        ] {
            let first = plan(options).unwrap();
            let again = args(&[options, &["--resume"]].concat());
            let named: Vec<_> =
                options.chunks(2).filter(|option| !["--steps", "--minutes"].contains(&option[0])).collect();
            let resumed = args(&[&named.concat()[..], &["--resume"]].concat());
            for again in [again, resumed] {
                let (mut config, mut recipe) = again.preset().unwrap();
                again.change_model(&mut config).unwrap();
                let call = again.ends(Some(first.ends), 50.0).unwrap().call;
                again.change_schedule(&mut recipe, &call, Some(&first.recipe)).unwrap();
                again.change_recipe(&mut recipe, Some(&enwik8::sample())).unwrap();
                assert_eq!((&recipe.phases, recipe.valid.lanes), (&first.recipe.phases, first.recipe.valid.lanes));
            }
        }
    }

    #[test]
    fn evaluations_have_the_recipes_lanes_where_the_splits_are_long_enough() {
        let lanes = |options: &[&str]| {
            let Recipe { valid, test, .. } = plan(options).unwrap().recipe;
            (valid.lanes, test.lanes)
        };
        assert_eq!(lanes(&["--preset", "paper"]), (12, 8), "52,385 bytes a split");
        assert_eq!(lanes(&[]), (8, 8));
        assert_eq!(lanes(&["--eval-batch", "3"]), (3, 3));
        let huge = plan(&["--seq-len", "4611686018427387904", "--mem-len", "0"]).unwrap().recipe;
        assert_eq!(huge.valid.lanes, 1);
    }

    #[test]
    fn a_rate_that_is_given_keeps_the_phases_in_proportion() {
        let rates = |options: &[&str]| -> Vec<f64> {
            plan(options).unwrap().recipe.phases.iter().map(|phase| phase.lr).collect()
        };
        assert_eq!(rates(&["--preset", "paper", "--lr", "4e-3"]), [4e-3, 2e-3]);
        assert_eq!(rates(&["--lr", "1.1e-3"]), [1.1e-3], "to the last bit");
        for (options, said) in [
            (&["--lr", "-1"][..], "--lr -1 cannot be used: "),
            (&["--lr", "nan", "--set", "model.d_ff=256"], "--lr NaN cannot be used: "),
            (&["--set", "recipe.phases.0.lr=-1"], "--set recipe.phases.0.lr=-1 cannot be used: "),
            (&["--batch", "0"], "--batch 0 cannot be used: "),
            (&["--eval-batch", "0"], "--eval-batch 0 cannot be used: "),
            (&["--dropout", "2"], "--dropout 2 cannot be used: "),
            (&["--attend", "9"], "--attend 9 cannot be used: "),
            (&["--seq-len", "64", "--mem-len", "32"], "--seq-len 64 cannot be used: "),
            (&["--set", "recipe.lamb.clip=0"], "--set recipe.lamb.clip=0 cannot be used: "),
        ] {
            let error = plan(options).err().unwrap().to_string();
            assert!(error.starts_with(said), "{options:?}: {error}");
        }
        assert_eq!(plan(&["--valid-every", "7"]).unwrap().recipe.valid_every_steps, Some(7));
        assert!(plan(&["--valid-every", "0"]).is_err());
    }

    #[test]
    fn a_run_that_goes_on_from_a_model_has_its_sizes() {
        let plan_of = |options: &[&str]| plan(&[&["--from", "bundled"], options].concat());
        let from = plan_of(&["--mem-len", "100", "--dropout", "0.1", "--steps", "9"]).unwrap();
        let expected = crate::pretrained::LARGE.config().with_mem_len(100).with_dropout(0.1);
        assert_eq!((&from.config, from.recipe.phases), (&expected, Recipe::budget(Some(9)).phases));
        assert_eq!(plan_of(&[]).unwrap().config, crate::pretrained::LARGE.config());
        assert!(from.options.score_start && from.options.initial_weights.is_some());
        assert_eq!(from.origin, Some(Origin { model: "the bundled model".into() }));
        for (options, said) in [
            (
                ["--set", "model.d_model=128"],
                "--set model.d_model=128 cannot be used with --from: the sizes are those of the bundled model",
            ),
            (["--attend", "all"], "--attend all cannot be used with --from"),
        ] {
            let error = plan_of(&options).err().unwrap().to_string();
            assert!(error.starts_with(said), "{error}");
        }
        let error = plan(&["--from", "nowhere"]).err().unwrap().to_string();
        assert!(error.contains("nowhere"), "{error}");
    }

    /// What nobody typed is not refused: a short memory has short segments.
    #[test]
    fn segments_nobody_asked_for_fit_into_the_memory() {
        let of = |options: &[&str]| {
            let Recipe { segments, valid, test, .. } = plan(options).unwrap().recipe;
            (segments, valid.seq_len, test.seq_len)
        };
        let fixed = |len| (SegmentLengths::Fixed { len }, len, len);
        assert_eq!(of(&["--mem-len", "20"]), fixed(20));
        assert_eq!(of(&["--from", "bundled", "--mem-len", "20"]), fixed(20));
        assert_eq!(of(&["--preset", "xs", "--mem-len", "40"]), fixed(40));
        assert_eq!(of(&["--preset", "paper", "--mem-len", "100"]), (SegmentLengths::around(100), 100, 100));
        for unbounded in [&[][..], &["--mem-len", "0"], &["--mem-len", "32"], &["--mem-len", "20", "--attend", "none"]]
        {
            assert_eq!(of(unbounded), fixed(32), "{unbounded:?}");
        }
        assert_eq!(of(&["--mem-len", "20", "--seq-len", "7"]), fixed(7));
        let error = plan(&["--mem-len", "20", "--seq-len", "21"]).err().unwrap().to_string();
        assert!(error.starts_with("--seq-len 21 cannot be used: use at most 20"), "{error}");
    }

    #[test]
    fn a_rate_falls_where_there_is_an_end() {
        let schedule = |options: &[&str]| plan(options).unwrap().recipe.phases[0].schedule;
        assert_eq!(schedule(&["--steps", "100"]), Schedule::Late);
        assert_eq!(schedule(&["--epochs", "1"]), Schedule::Late);
        assert_eq!(schedule(&["--minutes", "1"]), Schedule::Constant);
        assert_eq!(schedule(&["--preset", "xs"]), Schedule::Constant);
        assert_eq!(schedule(&["--recipe", "paper", "--steps", "100"]), Schedule::Constant);
        let error = plan(&["--minutes", "1", "--schedule", "linear"]).err().unwrap().to_string();
        assert_eq!(error, "--schedule needs an end to fall to zero at: give --steps or --epochs");
    }

    #[test]
    fn any_field_can_be_set() {
        let set =
            ["model.d_ff=256", "model.attend=all", "recipe.muon=null", "recipe.lamb.clip=1", "recipe.phases.0.lr=3e-3"];
        let plan_of = |fields: &[&str]| plan(&fields.iter().flat_map(|field| ["--set", field]).collect::<Vec<_>>());
        let Plan { config, recipe, .. } = plan_of(&set).unwrap();
        assert_eq!((config.d_ff, config.attend), (256, Attend::All));
        assert_eq!((recipe.muon, recipe.lamb.clip, recipe.phases[0].lr), (None, Some(1.0), 3e-3));
        for (field, what) in [
            ("model.d_ff", "write FIELD=VALUE"),
            ("modell.d_ff=1", "there is no field \"modell.d_ff\""),
            ("recipe.phases.7.lr=1", "there is no field"),
            ("model.d_fff=1", "unknown field `d_fff`"),
            ("recipe.lamb.clip=much", "expected a number"),
            ("model.d_ff=1", "--set model.d_ff=1 cannot be used"),
        ] {
            let error = format!("{:#}", plan_of(&[field]).err().unwrap());
            assert!(error.contains(what), "{field}: {error}");
        }
    }
}
