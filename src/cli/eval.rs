//! `eval`: a model's bits per byte on a file, as it is, on packed weights, mixed with what was read, or while it goes on learning.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::module::AutodiffModule;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::adapt::{self, AdaptArgs};
use super::data::{DataArgs, DataChoice};
use super::machine::{MachineArgs, check_settings, dispatch, fastest};
use super::model::{FormatArgs, Loaded, ModelArgs};
use super::options::of_eval;
use super::printable::json;
use super::{life, report, values};
use crate::core::BatchScorer;
use crate::train::{
    DynamicEval, EvalConfig, EvalError, Evaluation, Interrupt, draws_live_lines, evaluate, evaluate_dynamic,
    evaluate_streams,
};
use crate::{AutodiffBackend, BackendJob, ShaRnn, Splits, Streams};
#[cfg(feature = "flex")]
use crate::{DecodeEngine, train::evaluate_packed};

/// Score a model in bits per byte on the validation and the test split of a file
///
/// The bytes of a split are cut into lanes, each of which starts cold, and read in segments: what a byte can see depends on
/// both. The data of a run is that which it was trained on, unless --data names another. With --adapt a split is read byte by byte
/// in one lane, and what is mixed with the model is learned from its first byte on.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Score one split alone: valid or test
    #[arg(long, value_name = "NAME", value_parser = ["valid", "test"], help_heading = "Data")]
    split: Option<String>,

    /// Lanes scored side by side [default: the run's; for weights without a run 8, fewer for short splits]
    #[arg(long, value_name = "N", help_heading = "How to score")]
    lanes: Option<usize>,
    /// Bytes of a segment [default: the run's, with --mem-len no more than a sixteenth of that memory (or 32); for weights without a
    /// run a sixteenth of the memory, from 32 to 1024]
    #[arg(long, value_name = "N", conflicts_with = "weights", help_heading = "How to score")]
    seq_len: Option<usize>,
    /// Precision of matrix products: f32, bf16, or auto, the fastest on this CPU [default: the run's, else auto]
    #[arg(long, value_name = "NAME", conflicts_with = "weights", help_heading = "How to score")]
    precision: Option<String>,
    /// Score while the weights go on learning from what was scored, at this learning rate (dynamic evaluation); choose it on the
    /// validation split. In one lane, so that nothing is learned from what comes later, unless --lanes says otherwise
    #[arg(
        long,
        value_name = "LR",
        allow_negative_numbers = true,
        conflicts_with = "weights",
        help_heading = "How to score"
    )]
    dynamic_eval: Option<f64>,
    /// With --dynamic-eval: how strongly weights are drawn back to where they began [default: 0.02]
    #[arg(
        long,
        value_name = "D",
        allow_negative_numbers = true,
        requires = "dynamic_eval",
        help_heading = "How to score"
    )]
    dynamic_decay: Option<f64>,

    #[command(flatten)]
    adapt: AdaptArgs,
    /// Say the scores as one line of JSON, and nothing else
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Scores as the options say.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.adapt.adapt {
        let others = [
            ("--seq-len", args.seq_len.is_some()),
            ("--precision", args.precision.is_some()),
            ("--dynamic-eval", args.dynamic_eval.is_some()),
        ];
        let given = others.iter().find(|(_, given)| *given);
        ensure!(
            given.is_none(),
            "{} cannot be used with --adapt, which reads byte by byte: leave one out",
            given.map_or("", |(name, _)| name)
        );
    }
    args.data.check(None)?;
    if args.dynamic_eval.is_some() {
        check_settings()?;
    }
    args.machine.set_threads()?;
    let stored = match args.model.run_dir()? {
        Some(run_dir) => {
            let stored = DataChoice::stored(&run_dir)?;
            if let (Some(stored), None, false) = (&stored, &args.data.data, args.data.download) {
                stored.check(&run_dir)?;
            }
            stored
        }
        None => None,
    };
    let choice = DataChoice::from_args(&args.data, None, stored, !args.json);
    if let (Some(bundled), true, false) = (args.model.bundled(), choice.is_sample(), args.json) {
        tell!("{} was trained on these bytes: this is not its score on bytes that it has not seen", bundled.name);
    }
    let splits = choice.open(&args.data, true)?;
    dispatch(args.machine.backend, Job { args, splits, whole: choice.is_whole() })?
}

struct Job {
    args: Args,
    splits: Splits,
    /// Whether no byte of them was left out.
    whole: bool,
}

/// How the model is run.
enum How {
    Segments,
    Dynamic(DynamicEval),
    /// Byte by byte, mixed with what was read.
    Adaptive(BatchScorer<Box<dyn Streams>>),
    #[cfg(feature = "flex")]
    /// With its name.
    Packed(DecodeEngine, String),
}

impl How {
    fn name(&self) -> &str {
        match self {
            Self::Segments => "segments",
            Self::Dynamic(_) => "dynamic",
            Self::Adaptive(_) => adapt::NAME,
            #[cfg(feature = "flex")]
            Self::Packed(_, name) => name,
        }
    }

    /// Bytes of a segment.
    fn seq_len(&self, config: &EvalConfig) -> usize {
        match self {
            Self::Segments | Self::Dynamic(_) => config.seq_len,
            _ => 1,
        }
    }

    /// What its scores are headed by.
    fn heading(&self) -> &'static str {
        match self {
            Self::Dynamic(_) => "dynamic",
            Self::Adaptive(_) => adapt::NAME,
            _ => "SHA-RNN",
        }
    }

    /// One line for a reader.
    fn describe(&self, config: &EvalConfig) -> String {
        let EvalConfig { lanes, seq_len, precision } = config;
        let plural = if *lanes == 1 { "" } else { "s" };
        let products = format!("segments of {seq_len} bytes, matrix products in {}", precision.name());
        match self {
            Self::Segments => format!("{lanes} lane{plural}, {products}"),
            Self::Dynamic(DynamicEval { lr, decay, .. }) => {
                let together = if *lanes == 1 { "" } else { " that learn together" };
                format!(
                    "dynamic evaluation in {lanes} lane{plural}{together}, learning at {lr}, decay {decay}; {products}"
                )
            }
            Self::Adaptive(_) => {
                format!("{lanes} lane{plural}, byte by byte, mixed with what was read ({})", adapt::NAME)
            }
            #[cfg(feature = "flex")]
            Self::Packed(_, name) => {
                format!("{lanes} lane{plural}, byte by byte with {name} weights packed for decoding")
            }
        }
    }
}

/// What `--json` says of a split.
#[derive(Serialize)]
struct Scored<'a> {
    split: &'static str,
    bpc: f64,
    bytes: u64,
    seconds: f64,
    lanes: usize,
    /// Bytes of a segment: 1 where bytes are read one by one.
    seq_len: usize,
    mem_len: usize,
    how: &'a str,
}

impl BackendJob for Job {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, splits, whole } = self;
        let loaded = args.model.load::<B>(&device)?;
        let model = loaded.model.valid();
        let interrupt = life::heed(1);
        let scorer = Scorer { tracked: &loaded.model, model, train: &splits.train, device, interrupt };
        let (mut scored, mut stopped, mut heading) = (Vec::new(), false, "");
        for (split, bytes) in [("valid", &splits.valid), ("test", &splits.test)] {
            if args.split.as_deref().is_some_and(|only| only != split) {
                continue;
            }
            let config = args.config(&loaded, split, bytes.len())?;
            let how = args.how(&loaded, &scorer.model, config.lanes)?;
            if scored.is_empty() && !args.json {
                tell!("{}: {}", loaded.name, how.describe(&config));
            }
            heading = how.heading();
            let (name, seq_len) = (how.name().to_string(), how.seq_len(&config));
            let evaluation = scorer.score(how, bytes, &config);
            // Scored or not: of a file that has lost bytes meanwhile it was something else.
            bytes.corpus().check()?;
            let evaluation = match evaluation {
                Err(error @ EvalError::Interrupted { .. }) => {
                    tell!("the {split} split: {error}");
                    stopped = true;
                    break;
                }
                result => result.map_err(of_eval).with_context(|| format!("cannot score the {split} split"))?,
            };
            if args.json {
                let line = Scored {
                    split,
                    bpc: evaluation.bpc(),
                    bytes: evaluation.bytes_scored,
                    seconds: evaluation.seconds,
                    lanes: config.lanes,
                    seq_len,
                    mem_len: scorer.model.mem_len,
                    how: &name,
                };
                say!("{}", json(&line)?);
            }
            let split = if split == "test" { "test" } else { "validation" };
            scored.push(report::Score { split, bpc: evaluation.bpc(), adaptive: None });
        }
        // Of what was scored nothing is lost.
        let is_empty = stopped && scored.is_empty();
        if !args.json && !is_empty {
            report::scores(&splits, &scored, heading, whole)?;
        }
        Ok(if stopped || interrupt.is_raised() { life::stopped() } else { ExitCode::SUCCESS })
    }
}

/// A model and all that scoring it takes.
struct Scorer<'a, B: AutodiffBackend> {
    /// With gradients, for dynamic evaluation.
    tracked: &'a ShaRnn<B>,
    model: ShaRnn<B::InnerBackend>,
    /// Where dynamic evaluation learns the sizes of gradients.
    train: &'a [u8],
    device: B::Device,
    interrupt: &'a Interrupt,
}

impl<B: AutodiffBackend> Scorer<'_, B> {
    /// Scores a split, and shows on a terminal how far it is.
    fn score(&self, how: How, bytes: &[u8], config: &EvalConfig) -> Result<Evaluation, EvalError> {
        let Self { tracked, model, train, device, interrupt } = self;
        let style =
            ProgressStyle::with_template("{percent:>3} % of {total_bytes}, {eta} left").expect("a valid template");
        let bar = if draws_live_lines() { ProgressBar::new(bytes.len() as u64) } else { ProgressBar::hidden() };
        let bar = bar.with_style(style);
        let show = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let evaluation = match how {
            How::Segments => evaluate(model, bytes, config, device, interrupt, show),
            How::Dynamic(dynamic) => {
                let tracked = ShaRnn::clone(tracked);
                evaluate_dynamic(tracked, train, bytes, config, &dynamic, device, interrupt, show)
            }
            How::Adaptive(scorer) => evaluate_streams(scorer, bytes, interrupt, show),
            #[cfg(feature = "flex")]
            How::Packed(engine, _) => evaluate_packed(&engine, bytes, config.lanes, interrupt, show),
        };
        bar.finish_and_clear();
        evaluation
    }
}

impl Args {
    /// How to score a split of so many bytes: as the options say, or as the run does.
    fn config<B: AutodiffBackend>(&self, loaded: &Loaded<B>, split: &str, bytes: usize) -> Result<EvalConfig> {
        let of_run = loaded.recipe.as_ref().map(|recipe| if split == "test" { &recipe.test } else { &recipe.valid });
        // A segment sees the memory less its own length.
        let fitting = match loaded.model.mem_len {
            0 => 1024,
            mem_len => (mem_len / 16).clamp(32, 1024).min(mem_len),
        };
        let by_default = match of_run {
            Some(config) if self.model.changes_memory() => config.seq_len.min(fitting),
            Some(config) => config.seq_len,
            None => fitting,
        };
        let seq_len = self.seq_len.unwrap_or(by_default);
        ensure!(seq_len > 0, "--seq-len 0 cannot be used: use at least 1");
        let by_default = match (self.dynamic_eval.is_some() || self.adapt.adapt, of_run) {
            (true, _) => 1,
            // Other data than the run's may have no byte for each.
            (false, Some(config)) => config.lanes.min((bytes / seq_len).max(1)),
            (false, None) => values::lanes(8, bytes, seq_len),
        };
        let precision = match self.precision.as_deref().map(values::precision).transpose()? {
            Some(given) => given.unwrap_or_else(|| fastest(self.machine.backend)),
            None => of_run.map_or_else(|| fastest(self.machine.backend), |config| config.precision),
        };
        Ok(EvalConfig { lanes: self.lanes.unwrap_or(by_default), seq_len, precision })
    }

    /// How a split is scored, in so many lanes.
    fn how<B: AutodiffBackend>(
        &self,
        loaded: &Loaded<B>,
        model: &ShaRnn<B::InnerBackend>,
        lanes: usize,
    ) -> Result<How> {
        if let Some(mixer) = self.adapt.mixer(self.adapt.adapt, None)? {
            let streams = self.format.streams(&self.machine, model, lanes)?;
            return Ok(How::Adaptive(BatchScorer::adaptive(streams, mixer)?));
        }
        if let Some(lr) = self.dynamic_eval {
            let by_default = DynamicEval::default();
            return Ok(How::Dynamic(DynamicEval {
                lr,
                decay: self.dynamic_decay.unwrap_or(by_default.decay),
                ..by_default
            }));
        }
        match &self.format.weights {
            None => Ok(How::Segments),
            #[cfg(feature = "flex")]
            Some(name) => {
                let engine = self.format.engine(&self.machine, &loaded.model)?;
                Ok(How::Packed(engine, name.clone()))
            }
            #[cfg(not(feature = "flex"))]
            Some(name) => anyhow::bail!(
                "--weights {name} cannot be used for {}: it needs backend flex, which is not compiled in",
                loaded.name
            ),
        }
    }
}
