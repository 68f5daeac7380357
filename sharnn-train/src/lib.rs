#![doc = include_str!("../README.md")]

// The rooms, each below those that it may use. What a room offers to others stands in its top file, and they take it by the
// room's name. Where the order matters, blank lines keep it from being sorted.

mod backend;
mod interrupt;
mod params;

mod files; // uses params
mod group;

mod eval; // uses params, group, interrupt
mod optim; // uses params, files, group

mod recipe; // uses eval, optim

mod run; // uses params, files, group, optim, recipe

mod report; // uses run

mod trainer; // uses all but backend

pub use backend::{BackendError, BackendJob, BackendKind, MissingPiece};
#[cfg(feature = "flex")]
pub use eval::evaluate_packed;
pub use eval::evaluate_streams;
pub use eval::{DynamicEval, EvalConfig, EvalError, Evaluation, evaluate, evaluate_dynamic};
pub use files::{
    CONFIG_KEY, HostTensor, ImportOptions, Mismatch, SaveOptions, StateFileError, TensorMismatch, UNKNOWN_BYTE_BIAS,
    Vocabulary, VocabularyError, WeightType, WeightsError, import_weights, import_weights_from_bytes, json_error,
    load_metadata, load_state, load_state_of, load_tensors, load_weights, load_weights_from_bytes, read_config,
    read_config_from_bytes, save_state, save_tensors, save_weights, save_weights_as, weights_digest,
};
#[cfg(feature = "mpi")]
pub use group::MpiGroup;
pub use group::{Alone, Group, GroupError, SharedGroup, launched_by_mpi};
pub use interrupt::{EXIT_STATUS, Interrupt, InterruptError};
pub use optim::{
    AdagradConfig, FIRST_MOMENT, LambConfig, MuonConfig, Optimizer, OptimizerConfigError, RowGrads, SECOND_MOMENT,
    SQUARES, StepReport,
};
pub use params::{MapFloat, NamedTensor, ParamInfo, VisitFloat, collect_params, map_params, param_infos, visit_params};
pub use recipe::{LATE_FALL, Phase, Recipe, RecipeError, Schedule};
pub use report::{Event, Observer, Progress, draws_live_lines, printable, printable_line};
pub use run::{
    BEST_DIR, Best, BestManifest, CheckpointError, CorpusIdentity, EvalRecord, FORMAT, FileDigest, METRICS_FILE,
    Manifest, Metrics, MetricsError, Moved, Position, Record, RunWeights, Smoothed, TrainRecord, Window,
    latest_manifest, load_best, load_run, run_weights,
};
pub use sharnn_core::{GenerateError, Generator, Sampling, SamplingError, Scorer};
pub use trainer::{Finished, InitialWeights, Limits, Stop, TrainError, TrainOptions, Trainer, select_state};
