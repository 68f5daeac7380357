//! The command line, and what it asks for: a model, a recipe, limits, a place.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use sharnn::train::{Limits, Phase, Schedule, TrainError, latest_manifest};
use sharnn::{Attend, BackendKind, Recipe, SegmentLengths, ShaRnnConfig, Splits, TrainOptions};

/// Train a SHA-RNN language model on enwik8 (or on any file) and score it in bits per byte.
///
/// Without options it trains a small model for about three minutes on data/enwik8 or, where there is none, on the bundled
/// first megabyte of it.
#[derive(Parser, Debug)]
#[command(name = "enwik8", max_term_width = 100)]
pub struct Args {
    /// File to train on: 90 % of it, validated and tested on 5 % each (enwik8: 90, 5 and 5 million bytes)
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Download enwik8 (36 MB) to data/enwik8 or to --data, unless it is there
    #[arg(long, help_heading = "Data")]
    pub download: bool,
    /// Train on the first so many bytes of the training split
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub train_bytes: Option<usize>,
    /// Score the first so many bytes of the validation and of the test split [default: 500000]
    #[arg(long, value_name = "N", help_heading = "Data", conflicts_with = "full_eval")]
    pub valid_bytes: Option<usize>,
    /// Score the whole of both splits
    #[arg(long, help_heading = "Data")]
    pub full_eval: bool,

    /// Model and recipe: xs, s, m, l, or paper (l with the paper's recipe, both phases, no time limit) [default: quick,
    /// what scores best in three minutes]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub preset: Option<String>,
    /// Blocks that attend: none, one (the second-last), all, or a list as 0,2
    #[arg(long, value_name = "WHICH", help_heading = "Model")]
    pub attend: Option<String>,
    /// Bytes of memory that attention sees; 0 for the current segment alone
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub mem_len: Option<usize>,
    /// All three dropouts
    #[arg(long, value_name = "P", help_heading = "Model")]
    pub dropout: Option<f64>,

    /// Lanes trained side by side
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub batch: Option<usize>,
    /// Bytes of a segment; lengths vary around it, as in the paper
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub seq_len: Option<usize>,
    /// Make every segment exactly --seq-len long
    #[arg(long, help_heading = "Recipe")]
    pub fixed_segments: bool,
    /// Learning rate after the warm-up
    #[arg(long, value_name = "LR", allow_negative_numbers = true, help_heading = "Recipe")]
    pub lr: Option<f64>,
    /// Steps of linear warm-up
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub warmup: Option<u64>,
    /// Learning rate after the warm-up: constant, linear (to zero at --steps or --epochs) or cosine
    #[arg(long, value_name = "KIND", help_heading = "Recipe")]
    pub schedule: Option<String>,
    /// Seed of weights, segment lengths and dropout
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub seed: Option<u64>,
    /// Lanes of the evaluation
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub eval_batch: Option<usize>,

    /// Stop after so many steps of the whole run
    #[arg(long, value_name = "N", help_heading = "When to stop (one of them lifts the three minutes)")]
    pub steps: Option<u64>,
    /// Stop after so many minutes of this call
    #[arg(long, value_name = "M", help_heading = "When to stop (one of them lifts the three minutes)")]
    pub minutes: Option<f64>,
    /// Stop after so many passes over the training data
    #[arg(long, value_name = "N", help_heading = "When to stop (one of them lifts the three minutes)")]
    pub epochs: Option<u64>,

    /// Directory of the run [default: the next free one under runs/; with --resume the newest one there]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub out: Option<PathBuf>,
    /// Go on where the run in --out stopped
    #[arg(long, help_heading = "Run", conflicts_with = "init_weights")]
    pub resume: bool,
    /// Train nothing; score the best weights of the run in --out, or --init-weights
    #[arg(long, help_heading = "Run")]
    pub eval_only: bool,
    /// Start from these weights: safetensors under the published PyTorch model's names
    #[arg(long, value_name = "PATH", help_heading = "Run")]
    pub init_weights: Option<PathBuf>,
    /// Steps between two lines of progress and of metrics.jsonl
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Run")]
    pub log_every: u64,
    /// Steps between two checkpoints, beside the one every ten minutes
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Run")]
    pub checkpoint_every: u64,
    /// Backend, of those compiled in: flex, ndarray, cuda, wgpu or tch
    #[arg(long, value_name = "NAME", help_heading = "Run")]
    pub backend: Option<String>,
    /// Threads of the CPU backends [default: one a core]
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub threads: Option<usize>,
}

/// Seconds that a run without any limit may train.
const QUICK_SECONDS: u64 = 180;

/// What the command line asks for.
pub struct Plan {
    pub config: ShaRnnConfig,
    pub recipe: Recipe,
    pub limits: Limits,
    pub options: TrainOptions,
}

/// The model and the recipe of a preset. Sizes but `paper` train by the paper's recipe with short segments and a short
/// warm-up, in one phase.
fn preset(name: &str) -> Result<(ShaRnnConfig, Recipe)> {
    let short = |warmup_steps: u64| {
        let phase = Phase { warmup_steps, ..Phase::constant(2e-3, 32) };
        Recipe { phases: vec![phase], ..Recipe::paper().with_segments_around(256) }
    };
    Ok(match name {
        "quick" => {
            (ShaRnnConfig { n_layers: 2, ..ShaRnnConfig::xs() }.with_mem_len(512), short(50).with_segments_around(64))
        }
        "xs" => (ShaRnnConfig::xs(), short(100)),
        "s" => (ShaRnnConfig::s(), short(100)),
        "m" => (ShaRnnConfig::m(), short(200)),
        "l" => (ShaRnnConfig::enwik8().with_dropout(0.0), short(400)),
        "paper" => (ShaRnnConfig::enwik8(), Recipe::paper()),
        _ => bail!("there is no preset {name:?}: use one of xs, s, m, l, paper"),
    })
}

fn attend(which: &str) -> Result<Attend> {
    let list = || which.split(',').map(|block| block.trim().parse()).collect::<Result<Vec<usize>, _>>();
    Ok(match which {
        "none" => Attend::None,
        "one" => Attend::SecondLast,
        "all" => Attend::All,
        _ => match list() {
            Ok(blocks) => Attend::Blocks(blocks),
            Err(_) => bail!("--attend {which:?} cannot be used: use none, one, all, or a list of blocks as 0,2"),
        },
    })
}

fn schedule(kind: &str) -> Result<Schedule> {
    Ok(match kind {
        "constant" => Schedule::Constant,
        "linear" => Schedule::Linear,
        "cosine" => Schedule::Cosine,
        _ => bail!("--schedule {kind:?} cannot be used: use constant, linear or cosine"),
    })
}

impl Args {
    /// The backend that was asked for, or the first that is compiled in.
    pub fn backend(&self) -> Result<BackendKind> {
        Ok(match &self.backend {
            Some(name) => BackendKind::from_str(name)?,
            None => BackendKind::default(),
        })
    }

    /// Whether a run that exists is used: to go on with it or to score it.
    pub fn continues(&self) -> bool {
        self.resume || (self.eval_only && self.init_weights.is_none())
    }

    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(Recipe::paper().seed)
    }

    /// Puts the options together. A run that exists lends its model and recipe, and the options given now change them: a
    /// change that it cannot take is refused by the trainer by name.
    pub fn plan(&self, run_dir: &Path, splits: &Splits) -> Result<Plan> {
        let stored = match self.continues() {
            true => latest_manifest(run_dir)?.map(|(_, manifest)| (manifest.config, manifest.recipe)),
            false => None,
        };
        if self.continues() && stored.is_none() {
            bail!("there is no run in {}: leave out --resume to start one, or name another --out", run_dir.display());
        }
        let (mut config, mut recipe) = match (&self.preset, stored) {
            (Some(name), _) => preset(name)?,
            (None, Some(stored)) => stored,
            (None, None) => preset("quick")?,
        };
        self.change_model(&mut config)?;
        self.change_recipe(&mut recipe, splits)?;
        if let Some(minutes) = self.minutes {
            ensure!(minutes.is_finite() && minutes > 0.0, "--minutes {minutes} cannot be used: use a number above 0");
        }
        ensure!(self.steps != Some(0), "--steps 0 cannot be used: use at least 1, or --eval-only to score alone");
        ensure!(self.epochs != Some(0), "--epochs 0 cannot be used: use at least 1, or --eval-only to score alone");
        Ok(Plan { config, recipe, limits: self.limits(), options: self.options(run_dir) })
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
        config.validate()?;
        Ok(())
    }

    fn change_recipe(&self, recipe: &mut Recipe, splits: &Splits) -> Result<()> {
        if let Some(batch) = self.batch {
            recipe.batch_size = batch;
        }
        if let Some(seq_len) = self.seq_len {
            ensure!(seq_len > 0, "--seq-len 0 cannot be used: use at least 1");
            *recipe = recipe.clone().with_segments_around(seq_len);
        }
        if self.fixed_segments {
            recipe.segments = SegmentLengths::Fixed { len: recipe.segments.max() };
        }
        for phase in &mut recipe.phases {
            if let Some(lr) = self.lr {
                phase.lr = lr;
            }
            if let Some(warmup) = self.warmup {
                phase.warmup_steps = warmup;
            }
            if let Some(kind) = &self.schedule {
                phase.schedule = schedule(kind)?;
            }
            // What decays has to know its end.
            if phase.schedule != Schedule::Constant {
                phase.steps = self.steps.or(phase.steps);
                phase.epochs = self.epochs.unwrap_or(phase.epochs);
            }
        }
        if let Some(seed) = self.seed {
            recipe.seed = seed;
        }
        match self.eval_batch {
            Some(lanes) => (recipe.valid.lanes, recipe.test.lanes) = (lanes, lanes),
            // A split of a small file may be too short for the paper's lanes.
            None if self.preset.is_some() || !self.continues() => {
                let lanes = |bytes: usize| (bytes / (4 * recipe.valid.seq_len)).clamp(1, 8);
                recipe.valid.lanes = lanes(splits.valid.len());
                recipe.test.lanes = lanes(splits.test.len());
            }
            None => {}
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        let unlimited = self.steps.is_none() && self.minutes.is_none() && self.epochs.is_none();
        let paper = self.preset.as_deref() == Some("paper");
        Limits {
            max_steps: self.steps,
            max_epochs: self.epochs,
            max_time: match self.minutes {
                Some(minutes) => Some(Duration::from_secs_f64(60.0 * minutes)),
                None if unlimited && !paper => Some(Duration::from_secs(QUICK_SECONDS)),
                None => None,
            },
        }
    }

    fn options(&self, run_dir: &Path) -> TrainOptions {
        TrainOptions {
            log_every: self.log_every,
            checkpoint_every: self.checkpoint_every,
            initial_weights: self.init_weights.clone(),
            ..TrainOptions::new(run_dir)
        }
    }
}

impl Plan {
    /// One line of what will be trained, on what, for how long.
    pub fn describe(&self, splits: &Splits) -> String {
        let Self { config, recipe, limits, options } = self;
        let stop = match limits {
            Limits { max_time: Some(time), .. } => format!("{:.1} minutes", time.as_secs_f64() / 60.0),
            Limits { max_steps: Some(steps), .. } => format!("{steps} steps"),
            Limits { max_epochs: Some(epochs), .. } => format!("{epochs} epochs"),
            _ => "the whole recipe".into(),
        };
        format!(
            "{} wide, {} blocks, memory {}; batches of {} x up to {} bytes of {} ({} bytes); {stop}; into {}",
            config.d_model,
            config.n_layers,
            config.mem_len,
            recipe.batch_size,
            recipe.segments.max(),
            splits.name,
            splits.train.len(),
            options.run_dir.display()
        )
    }
}

/// What to do about an error, in this program's words.
pub fn explain(error: TrainError) -> anyhow::Error {
    match &error {
        TrainError::Checkpoint(sharnn::train::CheckpointError::Exists { run_dir, .. }) => {
            let dir = run_dir.display();
            anyhow::anyhow!("there is a run in {dir} already: go on with it with --resume, or name another --out")
        }
        _ => error.into(),
    }
}
