//! `train`: a run from its options to its scores.

pub mod args;
mod ends;
mod origin;
mod out;
mod page;
mod plan;
mod refusal;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;

pub use args::Args;
use origin::Origin;
use page::Outcome;
use plan::Plan;

use super::data::DataChoice;
use super::printable::json;
use super::report::Score;
use super::runs::Place;
use super::{in_one_line, life, machine, paths, pipe, processes, report};
use crate::data::order0_entropy;
use crate::data::shell::quoted_path;
use crate::train::{
    Event, Interrupt, Metrics, Observer, Progress, Record, SharedGroup, Stop, TrainError, TrainRecord, Trainer,
    draws_live_lines, latest_manifest,
};
use crate::{AutodiffBackend, Backend, BackendJob, NGramConfig, ShaRnn, ShaRnnConfig, Splits};
#[cfg(feature = "flex")]
use crate::{
    WeightFormat,
    core::{BatchScorer, Mixer, MixerConfig},
    train::{EvalError, evaluate_streams},
};

/// Trains as the options say, in every process of the group.
pub fn run(args: Args, group: SharedGroup) -> Result<ExitCode> {
    let backend = args.machine.backend;
    args.data.check(args.train_bytes)?;
    machine::check_settings()?;
    processes::set_threads(group.as_ref(), &args.machine)?;
    // Before this run has a directory, which would be the latest.
    let trained = args.trained()?;
    if let (Some(out), true) = (&args.out, group.is_first()) {
        let inputs = [("--data", &args.data.data), ("--from", &args.from)];
        out::refuse_inputs(out, inputs.iter().filter_map(|(option, path)| Some((*option, path.as_deref()?))))?;
        if !args.resume {
            out::refuse_others_files(out)?;
        }
    }
    // Each asks what the others answer, in the order that this decides.
    processes::agree_to(group.as_ref(), args.resume, "--resume")?;
    let choose = || Place::choose(args.out.as_deref(), args.resume, group.as_ref());
    let existing = args.resume.then(choose).transpose()?;
    let stored = existing.as_ref().map_or(Ok(None), |place| DataChoice::stored(place.path()))?;
    let speaks = group.is_first() && !args.quiet && !args.json;
    let choice = DataChoice::from_args(&args.data, args.train_bytes, stored, speaks);
    // Should it have to be downloaded, then once on each machine.
    let splits = processes::in_turns(group.as_ref(), || choice.open(&args.data, group.is_first()))?;
    // Until here a signal ends the process at once. Now there is something to lose, first of all a directory that is to be no empty
    // one: the first signal ends the run after the step under way, a second one gives that up, and only a third one ends the
    // process at once.
    let interrupt = life::heed(2);
    if speaks {
        interrupt.set_notice(&notice(None, group.size() == 1));
    }
    let place = existing.map_or_else(choose, Ok)?;
    let plan = args.plan(place.path(), &splits, trained)?;
    let device = group.local_rank();
    backend.dispatch_on(device, Job { args, plan, place, choice, splits, group })?
}

/// The whole job, generic over the backend.
struct Job {
    args: Args,
    plan: Plan,
    place: Place,
    choice: DataChoice,
    splits: Splits,
    group: SharedGroup,
}

/// What `--json` says.
#[derive(Serialize)]
struct Reached<'a> {
    #[serde(serialize_with = "paths::shown")]
    run: &'a Path,
    /// What the run went on from.
    from: Option<String>,
    /// Of the weights that it went on from.
    valid_bpc_before: Option<f64>,
    steps: u64,
    best_step: u64,
    valid_bpc: f64,
    valid_bytes: usize,
    test_bpc: f64,
    test_bytes: usize,
    /// Mixed with what was read, where that takes no more than some seconds.
    valid_bpc_adaptive: Option<f64>,
    test_bpc_adaptive: Option<f64>,
}

impl BackendJob for Job {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, plan, mut place, choice, splits, group } = self;
        let run_dir = plan.options.run_dir.clone();
        let first = group.is_first();
        let speaks = first && !args.quiet && !args.json;
        if speaks {
            tell!("{}", plan.describe(&splits));
            tell!("{}", plan.memory::<B>(group.size()));
        }
        let mut progress = speaks.then(|| match draws_live_lines() {
            true => Progress::new(),
            false => Progress::plain(pipe::stderr()),
        });
        let interrupt = life::interrupt();
        let mut watch = |event: Event<'_>| {
            if let (true, Event::Train { record, .. }) = (speaks, &event) {
                interrupt.set_notice(&notice(Some(record), group.size() == 1));
            }
            if let Some(progress) = &mut progress {
                progress.on(event);
            }
        };
        let Plan { config, recipe, options, limits, ends, origin, .. } = plan;
        let (seed, vocab_size) = (recipe.seed, config.vocab_size);
        let told = |error: TrainError| args.told(error, &run_dir, &recipe, &splits, &choice);
        let opened = Trainer::<B>::open_in(group.clone(), config, recipe.clone(), splits.clone(), options, &device);
        let mut trainer = opened.map_err(told)?;
        let keep = || -> Result<()> {
            choice.store(&run_dir)?;
            ends.keep(&run_dir)?;
            match &origin {
                Some(origin) => origin.keep(&run_dir),
                // That of a start in this directory that was killed.
                None => Origin::forget(&run_dir),
            }
        };
        // A new run cannot go on without them. One that goes on must not be said to read what its checkpoint does not know of.
        if first && !args.resume {
            keep()?;
        }
        trainer.save_start(&mut watch).map_err(told)?;
        if first && args.resume {
            keep()?;
        }
        place.keep();
        let begun = trainer.position().step;
        let stop = trainer.run(&limits, &mut watch, interrupt).map_err(told)?;
        let steps = trainer.position().step;
        let stopped = |progress: Option<Progress>| {
            drop(progress);
            if first {
                // What the run is to be resumed from is written.
                if let Err(error) = page::write(&run_dir, &splits, None) {
                    tell!("{}", in_one_line(&error));
                }
                tell!("stopped after step {steps}; go on with: --resume --out {}", quoted_path(&run_dir));
            }
            Ok(life::stopped())
        };
        if stop == Stop::Interrupted {
            return stopped(progress);
        }
        if speaks {
            interrupt.set_notice("stopping; what was trained is saved");
        }
        if speaks && args.resume && steps == begun {
            tell!("{}", refusal::at_its_end(stop, trainer.recipe(), &run_dir));
        }
        let finished = match trainer.finish(&mut watch) {
            Err(error) if error.is_interrupted() => return stopped(progress),
            finished => finished.map_err(told)?,
        };
        drop(progress);
        if !first {
            return Ok(ExitCode::SUCCESS);
        }
        let (valid, test) = (finished.best.bpc, finished.test.bpc());
        let before = report::Reached::of(&run_dir).start.and_then(|start| start.bpc);
        // Of a model that came with a score as bad it is not known what did the harm.
        let diverged = refusal::diverged(valid, train_bpc(&run_dir)?, || order0_entropy(&splits.valid), vocab_size);
        if let (Some(diverged), None) = (diverged, before) {
            page::write(&run_dir, &splits, None)?;
            bail!("{diverged}");
        }
        // What belongs in the directory is there before anything is said: whoever reads may have gone.
        if speaks {
            interrupt.set_notice("stopping once it is written what the run reached");
        }
        let mut kept = Ok(());
        let adaptive = match is_quick(&finished.model.config(), splits.valid.len() + splits.test.len()) {
            true => adaptive(&finished.model, &splits, interrupt),
            false => None,
        };
        let outcome = life::whole(|| {
            let sample = report::sample(args.machine.backend.streams(&finished.model, 1), &splits, seed)?;
            let outcome = Outcome { sample, adaptive };
            kept = page::write(&run_dir, &splits, Some(&outcome));
            Ok::<_, anyhow::Error>(outcome)
        });
        let Outcome { sample, .. } = match outcome {
            Err(error) if life::is_stopped(&error) => {
                kept?;
                tell!("the run has come to its end, after step {steps}; what it reached is in {}", run_dir.display());
                return Ok(life::stopped());
            }
            outcome => outcome?,
        };
        let [valid_bpc_adaptive, test_bpc_adaptive] = adaptive.map_or([None; 2], |scores| scores.map(Some));
        let said = || -> Result<()> {
            if args.json {
                let reached = Reached {
                    run: &run_dir,
                    from: origin.as_ref().map(|origin| origin.model.clone()),
                    valid_bpc_before: before,
                    steps,
                    best_step: finished.best.step,
                    valid_bpc: valid,
                    valid_bytes: splits.valid.len(),
                    test_bpc: test,
                    test_bytes: splits.test.len(),
                    valid_bpc_adaptive,
                    test_bpc_adaptive,
                };
                say!("{}", json(&reached)?);
            } else {
                let best = finished.best.step;
                say!("trained {steps} steps; best weights, after step {best}, are in {}", run_dir.display());
                let scores = [("validation", valid, valid_bpc_adaptive), ("test", test, test_bpc_adaptive)]
                    .map(|(split, bpc, adaptive)| Score { split, bpc, adaptive });
                report::scores(&splits, &scores, "SHA-RNN", choice.is_whole())?;
                if let (Some(origin), Some(before)) = (&origin, before) {
                    say!("{} scored {before:.4} on the validation split before", origin.model);
                }
                if origin.is_some() && best == 0 && !args.quiet {
                    tell!(
                        "no step made the model better than it was: these are the weights that the run started from; try a lower --lr"
                    );
                }
                report::print_sample(&sample)?;
            }
            Ok(())
        };
        // All is said that can be; that something was not kept matters more than that it was not said.
        let said = said();
        kept.and(said).map(|()| if interrupt.is_raised() { life::stopped() } else { ExitCode::SUCCESS })
    }
}

/// Whether a model scores so many bytes, one after the other, within some seconds of one core: those of the bundled text with the models that
/// a few minutes train.
fn is_quick(config: &ShaRnnConfig, bytes: usize) -> bool {
    let tables = config.ngrams.as_ref().map_or(0, NGramConfig::table_size);
    let memory = config.n_attending().saturating_mul(2 * config.d_model).saturating_mul(config.mem_len);
    bytes <= 200_000 && (config.num_params() - tables).saturating_add(memory) <= 2_000_000
}

/// The scores of both splits mixed with what was read, from the first byte of each; `None` where somebody asks to stop, or it cannot be
/// measured: the run has come to its end without them.
#[cfg(feature = "flex")]
fn adaptive<B: Backend>(model: &ShaRnn<B>, splits: &Splits, interrupt: &Interrupt) -> Option<[f64; 2]> {
    // On the CPU whatever trained: byte by byte that is fastest.
    let engine = model.engine(WeightFormat::F32);
    let score = |split: &[u8]| {
        let scorer = BatchScorer::adaptive(engine.streams(1), Mixer::new(MixerConfig::default(), 1))?;
        evaluate_streams(scorer, split, interrupt, |_, _| {})
    };
    let scores = [&splits.valid, &splits.test].map(|split| match score(split) {
        Ok(score) => Some(score.bpc()),
        Err(EvalError::Interrupted { .. }) => None,
        Err(error) => {
            tell!("no adaptive score: {error}");
            None
        }
    });
    Some([scores[0]?, scores[1]?])
}

/// Nothing here decodes fast enough.
#[cfg(not(feature = "flex"))]
fn adaptive<B: Backend>(_model: &ShaRnn<B>, _splits: &Splits, _interrupt: &Interrupt) -> Option<[f64; 2]> {
    None
}

/// The training loss of a run's last steps; `None` where none of them counted.
fn train_bpc(run_dir: &Path) -> Result<Option<f64>> {
    // Those since the last record, where there are any.
    if let Some(bpc) = latest_manifest(run_dir)?.and_then(|(_, manifest)| manifest.window.bpc()) {
        return Ok(Some(bpc));
    }
    let last = Metrics::read(run_dir)?.into_iter().rev().find_map(|record| match record {
        Record::Train(record) => Some(record.train_bpc),
        _ => None,
    });
    Ok(last.flatten())
}

/// What is said when a signal comes: how long the step may take that is under way, where one was measured. Of a group no process
/// gives up a step alone.
fn notice(record: Option<&TrainRecord>, is_alone: bool) -> String {
    let about = record.map_or(String::new(), |record| {
        let step_bytes = record.bytes as f64 / record.step.max(1) as f64;
        match step_bytes / record.bytes_per_s.max(f64::MIN_POSITIVE) {
            s if s < 1.0 => ", which takes less than a second".into(),
            s if s < 100.0 => format!(", which takes about {s:.0} s"),
            s => format!(", which takes about {:.0} minutes", s / 60.0),
        }
    });
    let second = if is_alone { "; a second signal gives it up" } else { "" };
    format!("stopping after the step under way{about}{second}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_promised_than_is_kept() {
        let record = |bytes_per_s| TrainRecord {
            step: 2,
            phase: 0,
            epoch: 0,
            bytes: 200,
            seconds: 1.0,
            train_bpc: None,
            lr: 1.0,
            grad_norm: None,
            bytes_per_s,
            skipped: 0,
        };
        let said = notice(Some(&record(10.0)), true);
        assert_eq!(said, "stopping after the step under way, which takes about 10 s; a second signal gives it up");
        assert_eq!(notice(None, true), "stopping after the step under way; a second signal gives it up");
        let said = notice(Some(&record(0.5)), false);
        assert_eq!(said, "stopping after the step under way, which takes about 3 minutes");
    }
}
