//! Training, evaluation, checkpoints and generation for SHA-RNN models.

mod evaluate;
mod generate;
mod lamb;
mod lamb_config;
mod params;
mod select_state;
mod tensor_file;
mod weights;

pub use evaluate::{EvalConfig, EvalError, Evaluation, cut_lanes, evaluate};
pub use generate::{GenerateError, Generator, Sampling, SamplingError};
pub use lamb::{FIRST_MOMENT, LambGate, LambUpdate, MinTrustLamb, SECOND_MOMENT, StepReport, lamb_update};
pub use lamb_config::{LambConfig, LambConfigError};
pub use params::{MapFloat, NamedTensor, ParamInfo, VisitFloat, collect_params, map_params, param_infos, visit_params};
pub use select_state::select_state;
pub use tensor_file::{HostTensor, WeightsError, load_metadata, load_tensors, save_tensors};
pub use weights::{load_weights, save_weights};
