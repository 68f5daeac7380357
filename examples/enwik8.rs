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
#[path = "enwik8/report.rs"]
mod report;
#[path = "enwik8/runs.rs"]
mod runs;
mod support;

use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::module::AutodiffModule;
use clap::Parser;
use sharnn::burn;
#[cfg(feature = "flex")]
use sharnn::core::DecodeEngine;
#[cfg(feature = "flex")]
use sharnn::train::evaluate_packed;
use sharnn::train::{EvalError, Interrupt, Progress, Stop, Trainer, load_best, load_weights};
use sharnn::{AutodiffBackend, BackendJob, EvalConfig, Splits};

use args::{Args, Plan};
use data::DataChoice;

fn main() -> ExitCode {
    support::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let args = Args::parse();
    let backend = args.backend()?;
    if let Some(threads) = args.threads {
        backend.set_threads(threads)?;
    }
    let run_dir = runs::choose(&args)?;
    let stored = args.continues().then(|| DataChoice::stored(&run_dir)).transpose()?.flatten();
    let choice = DataChoice::from_args(&args, stored);
    let splits = choice.open(&args)?;
    let plan = args.plan(&run_dir, &splits)?;
    backend.dispatch(Job { args, plan, choice, splits })?
}

/// The whole job, generic over the backend.
struct Job {
    args: Args,
    plan: Plan,
    choice: DataChoice,
    splits: Splits,
}

impl BackendJob for Job {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        if self.args.eval_only { self.evaluate::<B>(&device) } else { self.train::<B>(&device) }
    }
}

impl Job {
    fn train<B: AutodiffBackend>(self, device: &B::Device) -> Result<ExitCode> {
        let Self { args, plan, choice, splits } = self;
        let run_dir = plan.options.run_dir.clone();
        eprintln!("{}", plan.describe(&splits));
        eprintln!("{}", plan.memory::<B>());
        let mut progress = Progress::new();
        let mut trainer = Trainer::<B>::open(plan.config, plan.recipe, splits.clone(), plan.options, device)
            .map_err(args::explain)?;
        choice.store(&run_dir)?;

        let interrupt = Interrupt::on_ctrl_c()?;
        let stop = trainer.run(&plan.limits, &mut progress, &interrupt).map_err(args::explain)?;
        if stop == Stop::Interrupted {
            eprintln!(
                "stopped after step {}; go on with: --resume --out {}",
                trainer.position().step,
                run_dir.display()
            );
            return Ok(ExitCode::from(130));
        }
        let steps = trainer.position().step;
        let finished = trainer.finish(&mut progress).map_err(args::explain)?;
        drop(progress);
        println!(
            "trained {steps} steps; best weights, after step {}, are in {}",
            finished.best.step,
            run_dir.display()
        );
        report::scores(&splits, finished.best.bpc, finished.test.bpc(), args.full_eval);
        report::sample(finished.model, &splits, args.seed())?;
        Ok(ExitCode::SUCCESS)
    }

    fn evaluate<B: AutodiffBackend>(self, device: &B::Device) -> Result<ExitCode> {
        let Self { args, plan, splits, .. } = self;
        let model = match &args.init_weights {
            Some(path) => load_weights(plan.config.init_seeded::<B>(0, device), path)?.valid(),
            None => load_best::<B::InnerBackend>(&plan.options.run_dir, device)?.0,
        };
        let model = model.with_mem_len(plan.config.mem_len);
        eprintln!("{}", plan.describe_scoring());
        #[cfg(feature = "flex")]
        let packed = match plan.weights {
            Some((format, _)) => Some((DecodeEngine::new(&model, format), Interrupt::on_ctrl_c()?)),
            None => None,
        };
        let evaluate = |bytes: &[u8], config: &EvalConfig| {
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
        report::scores(&splits, valid, test, args.full_eval);
        report::sample(model, &splits, args.seed())?;
        Ok(ExitCode::SUCCESS)
    }
}
