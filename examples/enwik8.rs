//! Trains a SHA-RNN on enwik8, and says what it reached.
//!
//! ```text
//! cargo run --release --example enwik8                         about three minutes on two cores, nothing to install
//! cargo run --release --example enwik8 -- --download           the same on the whole of enwik8
//! cargo run --release --example enwik8 -- --preset paper       the paper's model and recipe, both phases
//! cargo run --release --example enwik8 -- --help               every option
//! ```
//!
//! A run is kept in a directory of its own under `runs/`, and goes on from there with `--resume`.

#[path = "enwik8/args.rs"]
mod args;
#[path = "enwik8/data.rs"]
mod data;
#[path = "enwik8/processes.rs"]
mod processes;
#[path = "enwik8/report.rs"]
mod report;
#[path = "enwik8/runs.rs"]
mod runs;
mod support;
#[path = "enwik8/values.rs"]
mod values;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::module::AutodiffModule;
use clap::Parser;
use sharnn::burn;
#[cfg(feature = "flex")]
use sharnn::core::DecodeEngine;
#[cfg(feature = "flex")]
use sharnn::train::evaluate_packed;
use sharnn::train::{
    EvalError, Event, Interrupt, Observer, Progress, SharedGroup, Stop, Trainer, evaluate_dynamic, load_best,
    load_weights,
};
use sharnn::{AutodiffBackend, BackendJob, EvalConfig, Splits};

use args::{Args, Plan};
use data::DataChoice;

fn main() -> ExitCode {
    let group = match processes::join() {
        Ok(group) => group,
        Err(error) => return support::exit_code(Err(error)),
    };
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            if group.is_first() {
                // There is nobody left to tell.
                let _ = error.print();
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let result = run(args, group.clone());
    processes::exit_code(group.as_ref(), result)
}

fn run(args: Args, group: SharedGroup) -> Result<ExitCode> {
    ensure!(
        group.size() == 1 || !args.eval_only,
        "--eval-only runs in one process, not in {}: leave out mpirun",
        group.size()
    );
    let backend = args.backend()?;
    processes::set_threads(group.as_ref(), backend, args.threads)?;
    let run_dir = runs::choose(&args, group.as_ref())?;
    let stored = args.continues().then(|| DataChoice::stored(&run_dir)).transpose()?.flatten();
    let choice = DataChoice::from_args(&args, stored, group.is_first());
    // Should it have to be downloaded, then once.
    let splits = processes::after_first(group.as_ref(), || choice.open(&args))?;
    let plan = args.plan(&run_dir, &splits)?;
    let device = group.local_rank();
    backend.dispatch_on(device, Job { args, plan, choice, splits, group })?
}

/// The whole job, generic over the backend.
struct Job {
    args: Args,
    plan: Plan,
    choice: DataChoice,
    splits: Splits,
    group: SharedGroup,
}

impl BackendJob for Job {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        if self.args.eval_only { self.evaluate::<B>(&device) } else { self.train::<B>(&device) }
    }
}

impl Job {
    fn train<B: AutodiffBackend>(self, device: &B::Device) -> Result<ExitCode> {
        let Self { args, plan, choice, splits, group } = self;
        let run_dir = plan.options.run_dir.clone();
        let speaks = group.is_first();
        if speaks {
            eprintln!("{}", plan.describe(&splits));
            eprintln!("{}", plan.memory::<B>(group.size()));
        }
        let mut progress = speaks.then(Progress::new);
        let mut watch = |event: Event<'_>| {
            if let Some(progress) = &mut progress {
                progress.on(event);
            }
        };
        // Before anything is kept, so that nothing is lost.
        let interrupt = Interrupt::on_ctrl_c()?;
        let (config, recipe, options) = (plan.config, plan.recipe, plan.options);
        let mut trainer =
            Trainer::<B>::open_in(group, config, recipe, splits.clone(), options, device).map_err(args::explain)?;
        if speaks {
            choice.store(&run_dir)?;
        }
        let stop = trainer.run(&plan.limits, &mut watch, &interrupt).map_err(args::explain)?;
        if stop == Stop::Interrupted {
            if !speaks {
                return Ok(ExitCode::from(130));
            }
            eprintln!(
                "stopped after step {}; go on with: --resume --out {}",
                trainer.position().step,
                run_dir.display()
            );
            return Ok(ExitCode::from(130));
        }
        let steps = trainer.position().step;
        let finished = trainer.finish(&mut watch).map_err(args::explain)?;
        drop(progress);
        if !speaks {
            return Ok(ExitCode::SUCCESS);
        }
        println!(
            "trained {steps} steps; best weights, after step {}, are in {}",
            finished.best.step,
            run_dir.display()
        );
        report::scores(&splits, finished.best.bpc, finished.test.bpc(), args.full_eval, false);
        report::sample(args.backend()?.streams(&finished.model, 1), &splits, args.seed())?;
        Ok(ExitCode::SUCCESS)
    }

    fn evaluate<B: AutodiffBackend>(self, device: &B::Device) -> Result<ExitCode> {
        let Self { args, plan, splits, .. } = self;
        let tracked = match &args.init_weights {
            Some(path) => load_weights(plan.config.init_seeded::<B>(0, device), path)?,
            None => load_best::<B>(&plan.options.run_dir, device)?.0,
        };
        let tracked = tracked.with_mem_len(plan.config.mem_len);
        let model = tracked.valid();
        eprintln!("{}", plan.describe_scoring());
        #[cfg(feature = "flex")]
        let packed = match plan.weights {
            Some((format, _)) => Some((DecodeEngine::new(&model, format), Interrupt::on_ctrl_c()?)),
            None => None,
        };
        let evaluate = |bytes: &[u8], config: &EvalConfig| {
            if let Some(dynamic) = &plan.dynamic {
                let model = tracked.clone();
                return evaluate_dynamic(model, &splits.train, bytes, config, dynamic, device, |_, _| {});
            }
            #[cfg(feature = "flex")]
            if let Some((engine, interrupt)) = &packed {
                return evaluate_packed(engine, bytes, config.lanes, interrupt, |_, _| {});
            }
            sharnn::evaluate(&model, bytes, config, device, |_, _| {})
        };
        let score = |name: &str, bytes: &[u8], config: &EvalConfig| {
            let evaluation = evaluate(bytes, config).with_context(|| format!("cannot score the {name} split"))?;
            anyhow::Ok(evaluation.bpc())
        };
        let scores = score("valid", &splits.valid, &plan.recipe.valid)
            .and_then(|valid| Ok((valid, score("test", &splits.test, &plan.recipe.test)?)));
        let (valid, test) = match scores {
            Err(error) if matches!(error.downcast_ref(), Some(EvalError::Interrupted { .. })) => {
                eprintln!("{error:#}");
                return Ok(ExitCode::from(130));
            }
            scores => scores?,
        };
        report::scores(&splits, valid, test, args.full_eval, plan.dynamic.is_some());
        report::sample(args.backend()?.streams(&model, 1), &splits, args.seed())?;
        Ok(ExitCode::SUCCESS)
    }
}
