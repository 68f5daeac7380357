//! The options of `train`.

use std::path::PathBuf;

use super::super::data::DataArgs;
use super::super::machine::MachineArgs;

/// Train a model on enwik8 or on any file, and score it in bits per byte
///
/// Without options it trains a small model for about three minutes on data/enwik8 or, where there is none, on the bundled
/// first megabyte of it. A run is kept in a directory of its own under runs/, and goes on from there with --resume.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pub data: DataArgs,
    /// Train on the first so many bytes of the training split
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub train_bytes: Option<usize>,

    /// Size of the model: xs, s, m, l, or paper (l with the paper's recipe, both phases, no time limit) [default: two
    /// blocks of xs, what scores best in three minutes]
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

    /// How to train: budget, what scored best where data or time are short, with a memory of 128 bytes and one of n-grams (--set
    /// model.ngrams=null leaves it out); or paper, with short segments where the size is not paper [default: budget, but for --preset paper]
    #[arg(long, value_name = "NAME", help_heading = "Recipe")]
    pub recipe: Option<String>,
    /// Lanes trained side by side
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub batch: Option<usize>,
    /// Bytes of a segment, with recipe paper around it [default: 64 with recipe budget, 32 without --preset and --from]
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub seq_len: Option<usize>,
    /// Make every segment exactly --seq-len long
    #[arg(long, help_heading = "Recipe")]
    pub fixed_segments: bool,
    /// Round the lengths of segments to multiples of N bytes, so that a GPU's kernels see few different sizes [default: 8
    /// with --backend cuda or wgpu, else 1]
    #[arg(long, value_name = "N", help_heading = "Recipe", conflicts_with = "fixed_segments")]
    pub segment_multiple: Option<usize>,
    /// Learning rate after the warm-up; that of a later phase changes with it
    #[arg(long, value_name = "LR", allow_negative_numbers = true, help_heading = "Recipe")]
    pub lr: Option<f64>,
    /// Steps of linear warm-up
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub warmup: Option<u64>,
    /// Learning rate after the warm-up: constant, or to zero at --steps or --epochs along a line (linear), half a cosine (cosine)
    /// or a line over the last three tenths (late) [default: late with recipe budget where the end is known, else constant]
    #[arg(long, value_name = "KIND", help_heading = "Recipe")]
    pub schedule: Option<String>,
    /// Precision of matrix products in training and scoring: f32, bf16, or auto, the fastest on this CPU where backend flex
    /// knows it and f32 elsewhere; a run that exists keeps its own with auto [default: auto]
    #[arg(long, value_name = "NAME", help_heading = "Recipe")]
    pub precision: Option<String>,
    /// Set any field of the model or of the recipe, as checkpoints name them: model.d_ff=512, recipe.lamb.clip=1, or
    /// recipe.muon={...}; may be repeated
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Recipe")]
    pub set: Vec<String>,
    /// Seed of weights, segment lengths and dropout
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub seed: Option<u64>,
    /// Lanes of the evaluation
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub eval_batch: Option<usize>,
    /// Steps between two validations, beside those at the end of an epoch and of the run
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    pub valid_every: Option<u64>,

    /// Stop after so many steps of the whole run
    #[arg(long, value_name = "N", help_heading = WHEN_TO_STOP)]
    pub steps: Option<u64>,
    /// Stop after so many minutes of this call
    #[arg(long, value_name = "M", help_heading = WHEN_TO_STOP)]
    pub minutes: Option<f64>,
    /// Stop after so many passes over the training data
    #[arg(long, value_name = "N", help_heading = WHEN_TO_STOP)]
    pub epochs: Option<u64>,

    /// Directory of the run [default: the next free one under runs/; with --resume that of the highest number there]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub out: Option<PathBuf>,
    /// Go on where the run in --out stopped
    #[arg(long, help_heading = "Run")]
    pub resume: bool,
    /// Start a new run from the weights of a model, whose sizes it has: whatever --model takes elsewhere, a run's directory, `latest`, a
    /// weights file, `bundled` or `bundled-small`. The validation split is scored before and after
    #[arg(long, value_name = "MODEL", help_heading = "Model", conflicts_with_all = ["resume", "preset"])]
    pub from: Option<PathBuf>,
    /// Compute activations again in the backward pass: three quarters of the memory, a quarter more work, the same run
    #[arg(long, help_heading = "Run")]
    pub recompute: bool,
    /// Steps between two lines of progress and of metrics.jsonl
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Run")]
    pub log_every: u64,
    /// Steps between two checkpoints, beside the one every ten minutes
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Run")]
    pub checkpoint_every: u64,
    /// Say nothing but what the run reached
    #[arg(long, short, help_heading = "Run")]
    pub quiet: bool,
    /// Say what the run reached as one line of JSON, and nothing else
    #[arg(long, help_heading = "Run")]
    pub json: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
}

const WHEN_TO_STOP: &str = "When to stop [default: after 922 steps; with --preset after 3 minutes, with --preset paper where the \
    recipe ends; with --resume where the run was to]";
