//! `export`: a model as a file for other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use burn::module::AutodiffModule;
use indicatif::HumanBytes;

use super::life;
use super::machine::MachineArgs;
use super::model::ModelArgs;
use crate::onnx::{OnnxExport, OnnxWeights};
use crate::train::{SaveOptions, WeightType, save_weights_as};
use crate::{AutodiffBackend, BackendJob};

/// Write a model as an ONNX graph or as PyTorch's weights
///
/// A file ending in .onnx becomes one graph with the state as inputs and outputs; one ending in .safetensors holds weights under the
/// names of the published PyTorch model.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// File to write: .onnx or .safetensors
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// Type of the weights: f32, f16, or for .safetensors alone bf16 and int8
    #[arg(long, value_name = "NAME", value_parser = ["f32", "f16", "bf16", "int8"], default_value = "f32")]
    dtype: String,
    /// ONNX: a graph that reads one byte at a time, for decoding
    #[arg(long)]
    single_step: bool,
    /// ONNX: more metadata, as license=MIT; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    meta: Vec<(String, String)>,
    /// Safetensors: write a tied decoder too, as PyTorch's load_state_dict wants it
    #[arg(long)]
    tied_twice: bool,
    /// Safetensors: collapse value gates to their vectors. Such a model is smaller and can't be trained as before
    #[arg(long)]
    collapse: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as license=MIT")?;
    Ok((key.into(), value.into()))
}

pub fn run(args: Args) -> Result<ExitCode> {
    args.check()?;
    args.model.refuse_as_output("--to", &args.to, [])?;
    args.machine.set_threads()?;
    args.machine.backend.dispatch(args)?
}

impl Args {
    /// Whether the file is a graph.
    fn is_onnx(&self) -> Result<bool> {
        match self.to.extension().and_then(|extension| extension.to_str()) {
            Some("onnx") => Ok(true),
            Some("safetensors") => Ok(false),
            _ => bail!("--to {} cannot be used: name a file that ends in .onnx or .safetensors", self.to.display()),
        }
    }

    /// Refuses options that would do nothing.
    fn check(&self) -> Result<()> {
        let onnx = self.is_onnx()?;
        for (option, given, for_onnx) in [
            ("--single-step", self.single_step, true),
            ("--meta", !self.meta.is_empty(), true),
            ("--tied-twice", self.tied_twice, false),
            ("--collapse", self.collapse, false),
            ("--dtype bf16", self.dtype == "bf16", false),
            ("--dtype int8", self.dtype == "int8", false),
        ] {
            let wanted = if for_onnx { ".onnx" } else { ".safetensors" };
            ensure!(!given || onnx == for_onnx, "{option} cannot be used: it is for files that end in {wanted}");
        }
        Ok(())
    }
}

impl BackendJob for Args {
    type Output = Result<ExitCode>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<ExitCode> {
        let loaded = self.model.load::<B>(&device)?;
        let model = loaded.model.valid();
        if self.is_onnx()? {
            let weights = if self.dtype == "f16" { OnnxWeights::F16 } else { OnnxWeights::F32 };
            let metadata: BTreeMap<_, _> = self.meta.into_iter().collect();
            let export = OnnxExport { weights, single_step: self.single_step, metadata };
            life::whole_at(&self.to, || export.save(&model, &self.to))?;
        } else {
            let named = WeightType::ALL.into_iter().find(|(_, name)| *name == self.dtype);
            let (dtype, _) = named.expect("the parser takes these names alone");
            let Self { tied_twice, collapse, .. } = self;
            life::whole_at(&self.to, || {
                save_weights_as(&model, &self.to, &SaveOptions { dtype, tied_twice, collapse })
            })?;
        }
        let bytes = HumanBytes(std::fs::metadata(&self.to)?.len());
        say!("{} ({bytes}) from {}", self.to.display(), loaded.name);
        Ok(ExitCode::SUCCESS)
    }
}
