#![doc = include_str!("../README.md")]

mod backend;
mod checkpoint;
mod evaluate;
mod group;
mod interrupt;
mod json_difference;
mod lane_state;
mod metrics;
#[cfg(feature = "mpi")]
mod mpi_group;
mod muon;
mod observer;
mod optimizer;
mod optimizer_config;
mod params;
mod progress;
mod recipe;
mod run_dir;
mod select_state;
mod step_log;
mod stream_file;
mod tensor_file;
mod trainer;
mod weights;

pub use backend::{BackendError, BackendJob, BackendKind, MissingPiece};
pub use checkpoint::{
    BEST_DIR, Best, BestManifest, CheckpointError, CorpusIdentity, FORMAT, FileDigest, Manifest, Moved, Position,
    latest_manifest, load_best, load_newest,
};
#[cfg(feature = "flex")]
pub use evaluate::evaluate_packed;
pub use evaluate::{DynamicEval, EvalConfig, EvalError, Evaluation, evaluate, evaluate_dynamic};
pub use group::{Alone, Group, GroupError, SharedGroup, launched_by_mpi};
pub use interrupt::{EXIT_STATUS, Interrupt, InterruptError};
pub use metrics::{EvalRecord, METRICS_FILE, Metrics, MetricsError, Record, TrainRecord};
#[cfg(feature = "mpi")]
pub use mpi_group::MpiGroup;
pub use observer::{Event, Observer};
pub use optimizer::{FIRST_MOMENT, Optimizer, SECOND_MOMENT, StepReport};
pub use optimizer_config::{LambConfig, MuonConfig, OptimizerConfigError};
pub use params::{MapFloat, NamedTensor, ParamInfo, VisitFloat, collect_params, map_params, param_infos, visit_params};
pub use progress::Progress;
pub use recipe::{LATE_FALL, Phase, Recipe, RecipeError, Schedule};
pub use select_state::select_state;
pub use sharnn_core::{GenerateError, Generator, Sampling, SamplingError, Scorer};
pub use step_log::{Smoothed, Window};
pub use stream_file::{StateFileError, load_state, save_state};
pub use tensor_file::{
    FloatType, HostTensor, Mismatch, TensorMismatch, WeightsError, load_metadata, load_tensors, save_tensors,
};
pub use trainer::{Finished, Limits, Stop, TrainError, TrainOptions, Trainer};
pub use weights::{
    CONFIG_KEY, ImportOptions, SaveOptions, UNKNOWN_BYTE_BIAS, Vocabulary, VocabularyError, import_weights,
    import_weights_from_bytes, load_weights, read_config, save_weights, save_weights_as,
};
