//! `export`: a model for other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use burn::module::AutodiffModule;

use super::machine::MachineArgs;
use super::model::ModelArgs;
use crate::{AutodiffBackend, BackendJob};
