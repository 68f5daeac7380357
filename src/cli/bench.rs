//! `bench`: what this machine does, as a table or as lines of JSON.
//!
//! Options, defaults, work and keys of the JSON are those of a PyTorch statement of the same model, so that the two can be run
//! in turn and their medians divided. `--model` is added; `device` is the backend's name here, `peak_gpu_mb` is always null, and `enqueue_s` is added: of
//! `median_s`, the part until all work had been handed to the device's driver.
//!
//! The device has finished all work before the clock is read.

#[cfg(feature = "flex")]
mod ceilings;
mod lstm;
#[cfg(feature = "flex")]
mod ops;
mod passes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use indicatif::HumanBytes;
use serde::Serialize;

use passes::{Measured, Plan, Times};

use super::machine::{MachineArgs, check_settings, dispatch};
use super::model::ModelArgs;
use super::options::refused;
use super::printable::json;
use super::values::{attend, preset};
use crate::{BackendKind, ConfigError, Precision, ShaRnnConfig};

/// Measure training, scoring and decoding on this machine, in bytes a second
///
/// Random weights and random bytes: only the time counts. Scoring is a forward pass in lanes, decoding reads byte after byte in
/// one lane. Modes ceilings and ops always print JSON.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// d_model / d_ff of four blocks: XS 128/512, S 256/1024, M 512/2048, L 1024/4096 (the paper) [default: S]
    #[arg(long, value_enum, ignore_case = true)]
    size: Option<Size>,
    /// Measure the sizes of a model in their place: whatever --model takes elsewhere, a run's directory, `latest`, a weights file, `bundled` or
    /// `bundled-small`
    #[arg(long, short, value_name = "MODEL", conflicts_with = "size")]
    model: Option<PathBuf>,
    /// What to time [default: train, forward and decode]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Precision of matrix products, or of decoding's weights [default: f32; without --mode every one that decoding has]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Lanes side by side [default: 16; decoding: 1]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    batch: Option<usize>,
    /// Bytes of a segment; decoding goes byte by byte [default: 256, or a model's memory where that is shorter]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    seq_len: Option<usize>,
    /// Bytes read before the clock starts, which fill the memory, in whole segments [default: 1024]
    #[arg(long, value_name = "N")]
    memory: Option<usize>,
    /// Rows of memory kept at most; 0 keeps none [default: 5000, or the model's]
    #[arg(long, value_name = "N")]
    mem_len: Option<usize>,
    /// All three dropouts; they act in training only [default: 0.1, or the model's]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    dropout: Option<f64>,
    /// Compute activations again in the backward pass, in place of keeping them
    #[arg(long)]
    recompute: bool,
    /// Runs before those that count [default: 2]
    #[arg(long, value_name = "N")]
    warmup: Option<usize>,
    /// Runs that count [default: 7]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    runs: Option<usize>,
    /// Blocks that attend: none, one (the second-last), all, or a list as 0,2 [default: one, or the model's]
    #[arg(long)]
    attend: Option<String>,
    /// Seed of weights, bytes and dropout [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print a line of JSON for each measurement
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Size {
    #[value(name = "XS")]
    Xs,
    #[value(name = "S")]
    S,
    #[value(name = "M")]
    M,
    #[value(name = "L")]
    L,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Train,
    Forward,
    Decode,
    /// What the machine can do at most: multiplications and memory reads (backend flex)
    Ceilings,
    /// Each fused operation beside its generic body, in --dtype f32 or bf16 (backend flex)
    Ops,
    /// The LSTM alone, microseconds a step, 256 to 1,024 wide and in 1 to 64 lanes or in --batch of them
    Lstm,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Dtype {
    F32,
    Bf16,
    /// Weights of 8 bits with a scale a row (backend flex, --mode decode)
    Int8,
    /// The same, computed so that every CPU gives the same bits (backend flex, --mode decode)
    Exact,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "use a whole number of at least 1".into())
}

pub fn run(args: &Args) -> Result<ExitCode> {
    args.check_sizes()?;
    if args.mode.is_none_or(|mode| mode == Mode::Train) {
        check_settings()?;
    }
    args.machine.set_threads()?;
    if args.mode == Some(Mode::Lstm) {
        args.machine.backend.dispatch(args.lstm()?)??;
        return Ok(ExitCode::SUCCESS);
    }
    let plans = args.plans()?;
    if let [plan @ Plan { mode: Mode::Ceilings | Mode::Ops, .. }] = &plans[..] {
        print_kernels(plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (i, plan) in plans.into_iter().enumerate() {
        let Measured { params, times: Times { mut seconds, mut enqueued } } = dispatch(plan.backend, plan.clone())??;
        seconds.sort_by(f64::total_cmp);
        enqueued.sort_by(f64::total_cmp);
        let median_s = median(&seconds);
        let line = Line {
            size: args.name(),
            mode: plan.mode,
            dtype: plan.dtype,
            device: plan.backend.name(),
            threads: (plan.backend != BackendKind::Tch).then(rayon::current_num_threads),
            batch: plan.batch,
            seq_len: plan.seq_len,
            memory: plan.memory,
            params,
            median_s: round(median_s, 5),
            min_s: round(seconds[0], 5),
            enqueue_s: round(median(&enqueued), 5),
            tokens_per_s: round((plan.batch * plan.seq_len) as f64 / median_s, 1),
            peak_rss_mb: peak_rss_mb(),
            peak_gpu_mb: None,
        };
        if args.json {
            print(&line)?;
        } else {
            line.print_row(i == 0)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The modes without a model.
#[cfg(feature = "flex")]
fn print_kernels(plan: &Plan) -> Result<()> {
    ensure!(
        plan.backend == BackendKind::Flex,
        "--backend {} cannot be used: this mode measures the kernels of backend flex",
        plan.backend
    );
    match plan.mode {
        Mode::Ops => ops::Comparison::each(plan.precision, |comparison| print(&comparison)),
        _ => print(&ceilings::Ceilings::measure()),
    }
}

#[cfg(not(feature = "flex"))]
fn print_kernels(_plan: &Plan) -> Result<()> {
    anyhow::bail!(
        "--mode ceilings and --mode ops measure the kernels of backend flex, which is not compiled in: build with \
         --features flex"
    )
}

/// As one line of JSON.
fn print(line: &impl Serialize) -> Result<()> {
    say!("{}", json(line)?);
    Ok(())
}

/// The result, in the order in which it is printed.
#[derive(Serialize)]
struct Line {
    size: String,
    mode: Mode,
    dtype: Dtype,
    device: &'static str,
    /// `None` where the backend has a pool of its own.
    threads: Option<usize>,
    batch: usize,
    seq_len: usize,
    memory: usize,
    params: usize,
    median_s: f64,
    min_s: f64,
    /// Of these, until all work had been handed to the device's driver: the host's share, which the device may hide.
    enqueue_s: f64,
    tokens_per_s: f64,
    peak_rss_mb: Option<u64>,
    peak_gpu_mb: Option<u64>,
}

impl Line {
    /// As a row of a table; the first one under its headings.
    fn print_row(&self, first: bool) -> Result<()> {
        let Self { size, mode, dtype, device, batch, seq_len, median_s, tokens_per_s, params, .. } = self;
        if first {
            let threads =
                self.threads.map_or(String::new(), |n| format!(", {n} thread{}", if n == 1 { "" } else { "s" }));
            say!("size {size}: {params} parameters, memory filled with {} bytes; {device}{threads}", self.memory);
            say!("");
            say!("{:<10}{:<8}{:>6} x {:<8}{:>14}{:>14}", "", "", "lanes", "bytes", "bytes/s", "ms");
        }
        let (mode, dtype) = (format!("{mode:?}").to_lowercase(), format!("{dtype:?}").to_lowercase());
        say!("{mode:<10}{dtype:<8}{batch:>6} x {seq_len:<8}{tokens_per_s:>14.0}{:>14.3}", 1e3 * median_s);
        Ok(())
    }
}

impl Args {
    /// Refuses sizes that no machine measures.
    fn check_sizes(&self) -> Result<()> {
        let most = ShaRnnConfig::MOST_MEM_LEN;
        for (option, value) in [
            ("--batch", self.batch),
            ("--seq-len", self.seq_len),
            ("--memory", self.memory),
            ("--warmup", self.warmup),
            ("--runs", self.runs),
        ] {
            let value = value.unwrap_or(0);
            ensure!(value <= most, "{option} {value} cannot be used: use at most {most}");
        }
        Ok(())
    }

    /// Refuses lanes and segments for which a CPU's memory has no room.
    fn check_room(&self, bytes: u64) -> Result<()> {
        let in_memory = matches!(self.machine.backend, BackendKind::Flex | BackendKind::NdArray);
        let Some(room) = memory_bytes().filter(|_| in_memory) else { return Ok(()) };
        let typed = [("--batch", self.batch), ("--seq-len", self.seq_len)];
        let Some((option, value)) = typed.into_iter().find_map(|(option, value)| Some((option, value?))) else {
            return Ok(());
        };
        ensure!(
            bytes <= room,
            "{option} {value} cannot be used: a segment of all lanes takes some {}, and this machine has {}; use fewer",
            HumanBytes(bytes),
            HumanBytes(room)
        );
        Ok(())
    }

    /// What is measured, as it is typed.
    fn name(&self) -> String {
        let typed = |value: clap::builder::PossibleValue| value.get_name().to_owned();
        let size = || self.size.unwrap_or(Size::S).to_possible_value().map(typed).expect("no size is left out");
        self.model.as_ref().map_or_else(size, |model| model.display().to_string())
    }

    /// The model to measure: of one that is there what no option changes is its own.
    fn config(&self) -> Result<ShaRnnConfig> {
        let mut config = match &self.model {
            Some(model) => ModelArgs::of(model.clone()).trained()?.config,
            None => preset(Some(&self.name().to_lowercase()))?,
        };
        if let Some(which) = &self.attend {
            config.attend = attend(which)?;
        }
        config.mem_len = self.mem_len.unwrap_or(config.mem_len);
        if self.dropout.is_some() || self.model.is_none() {
            config = config.with_dropout(self.dropout.unwrap_or(0.1));
        }
        let named = |error: ConfigError| refused(&format!("model.{}", error.field), &error.value, &error.hint, &[]);
        config.validate().map_err(named)?;
        Ok(config)
    }

    fn warmup(&self) -> usize {
        self.warmup.unwrap_or(2)
    }

    fn runs(&self) -> usize {
        self.runs.unwrap_or(7)
    }

    /// What to measure, one after the other.
    fn plans(&self) -> Result<Vec<Plan>> {
        let dtype = self.dtype.unwrap_or(Dtype::F32);
        if let Some(mode) = self.mode {
            self.refuse_idle_options(mode)?;
            return Ok(vec![self.plan(&self.config()?, mode, dtype)?]);
        }
        let config = self.config()?;
        let formats = match self.dtype {
            Some(dtype) => vec![dtype],
            None if self.machine.backend.name() == "flex" => vec![Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Exact],
            None => vec![Dtype::F32],
        };
        let computed = [Mode::Train, Mode::Forward].map(|mode| self.plan(&config, mode, dtype));
        let decoded = formats.into_iter().map(|dtype| self.plan(&config, Mode::Decode, dtype));
        computed.into_iter().chain(decoded).collect()
    }

    /// The LSTM alone.
    fn lstm(&self) -> Result<lstm::Job> {
        self.refuse_idle_options(Mode::Lstm)?;
        // Its inputs and gates.
        let rows = self.batch.unwrap_or(1) as u64 * self.seq_len.unwrap_or(256) as u64;
        self.check_room(rows * 4 * 5 * 1024)?;
        let precision = match self.dtype {
            None | Some(Dtype::F32) => Precision::F32,
            Some(Dtype::Bf16) => Precision::Bf16,
            Some(Dtype::Int8 | Dtype::Exact) => anyhow::bail!("--dtype int8 and exact cannot be used: use f32 or bf16"),
        };
        Ok(lstm::Job {
            precision,
            lanes: self.batch,
            seq_len: self.seq_len.unwrap_or(256),
            warmup: self.warmup(),
            runs: self.runs(),
            json: self.json,
            device: self.machine.backend.name(),
        })
    }

    /// Refuses options that would do nothing.
    fn refuse_idle_options(&self, mode: Mode) -> Result<()> {
        if mode == Mode::Decode {
            let (seq_len, lanes) = (self.seq_len.unwrap_or(1), self.batch.unwrap_or(1));
            ensure!(seq_len == 1, "--seq-len {seq_len} cannot be used: decoding reads one byte of a lane at a time");
            let packed = self.machine.backend.name() == "flex";
            ensure!(lanes == 1 || packed, "--batch {lanes} cannot be used: backends other than flex decode one lane");
        }
        if let (Mode::Forward | Mode::Decode | Mode::Lstm, Some(dropout)) = (mode, self.dropout) {
            ensure!(dropout == 0.0, "--dropout {dropout} cannot be used: dropout acts in --mode train only");
        }
        ensure!(!self.recompute || mode == Mode::Train, "--recompute cannot be used: it acts in --mode train only");
        let without_runs = matches!(mode, Mode::Ceilings | Mode::Ops);
        let without_model = without_runs || mode == Mode::Lstm;
        let named = format!("{mode:?}").to_lowercase();
        for (option, is_given, is_idle) in [
            ("--size", self.size.is_some(), without_model),
            ("--model", self.model.is_some(), without_model),
            ("--memory", self.memory.is_some(), without_model),
            ("--mem-len", self.mem_len.is_some(), without_model),
            ("--attend", self.attend.is_some(), without_model),
            ("--seed", self.seed.is_some(), without_model),
            ("--dropout", self.dropout.is_some(), without_runs),
            ("--batch", self.batch.is_some(), without_runs),
            ("--seq-len", self.seq_len.is_some(), without_runs),
            ("--warmup", self.warmup.is_some(), without_runs),
            ("--runs", self.runs.is_some(), without_runs),
            ("--dtype", self.dtype.is_some(), mode == Mode::Ceilings),
        ] {
            ensure!(!(is_given && is_idle), "{option} cannot be used: --mode {named} does not read it");
        }
        Ok(())
    }

    /// Puts the options together.
    fn plan(&self, config: &ShaRnnConfig, mode: Mode, dtype: Dtype) -> Result<Plan> {
        let mem_len = config.mem_len;
        let is_bounded = mem_len > 0 && config.n_attending() > 0;
        // What nobody typed fits a model's memory.
        let segment = if self.model.is_some() && is_bounded { mem_len.min(256) } else { 256 };
        let (batch, seq_len) = match mode {
            Mode::Decode => (self.batch.unwrap_or(1), 1),
            _ => (self.batch.unwrap_or(16), self.seq_len.unwrap_or(segment)),
        };
        ensure!(
            seq_len <= mem_len || !is_bounded,
            "--seq-len {seq_len} is more than --mem-len {mem_len}: use shorter segments, a longer memory, or --mem-len 0"
        );
        // Of all that is computed with: what is read and what is predicted.
        let rows = batch as u64 * seq_len as u64;
        self.check_room(rows * 4 * (config.vocab_size + 2 * config.d_model) as u64)?;
        if mode == Mode::Train {
            self.check_room(rows * 4 * (config.n_layers * (7 * config.d_model + config.d_ff)) as u64)?;
        }
        let (memory, seed) = (self.memory.unwrap_or(1024), self.seed.unwrap_or(1));
        let (recompute, warmup, runs) = (self.recompute, self.warmup(), self.runs());
        let backend = self.machine.backend;
        ensure!(
            matches!(dtype, Dtype::F32 | Dtype::Bf16) || (mode == Mode::Decode && backend.name() == "flex"),
            "--dtype int8 and exact cannot be used: they are for --mode decode of backend flex; use f32 or bf16"
        );
        let precision = if dtype == Dtype::Bf16 { Precision::Bf16 } else { Precision::F32 };
        let config = config.clone();
        Ok(Plan { backend, config, dtype, precision, mode, batch, seq_len, memory, recompute, warmup, runs, seed })
    }
}

/// Of sorted values, at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// Most memory that this process has held, in MiB; `None` where the system has no `/proc`.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?.trim();
    Some(kib.parse::<u64>().ok()? / 1024)
}

/// The machine's memory in bytes.
fn memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}
