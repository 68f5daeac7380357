//! What computes: the backend, its threads, and the precision that suits it.

use std::panic;

use anyhow::{Context, Result, anyhow, bail};

use crate::train::BackendError;
use crate::{AutodiffBackend, BackendJob, BackendKind, Precision};

/// Options that choose what computes.
#[derive(clap::Args, Debug)]
pub struct MachineArgs {
    /// Backend, of those compiled in: flex, ndarray, cuda, wgpu or tch
    #[arg(long, value_name = "NAME", default_value_t, help_heading = "Machine")]
    pub backend: BackendKind,
    /// Threads of the CPU backends written in Rust [default: one a core]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub threads: Option<usize>,
}

impl MachineArgs {
    /// Sets the number of threads that was asked for, and starts them.
    pub fn set_threads(&self) -> Result<()> {
        let Some(threads) = self.threads else {
            self.backend.start_threads();
            return Ok(());
        };
        let started = self.backend.set_threads(threads).map_err(|error| match error {
            BackendError::Threads { hint, .. } => anyhow!("--threads {threads} cannot be used: {hint}"),
            error => error.into(),
        })?;
        if started < threads {
            tell!("--threads {threads}: this system lets the program have no more than {started}");
        }
        Ok(())
    }
}

/// Runs a job, and tells what its backend has to say of the device.
pub fn dispatch<J: BackendJob>(backend: BackendKind, job: J) -> Result<J::Output> {
    struct Told<J>(J);
    impl<J: BackendJob> BackendJob for Told<J> {
        type Output = J::Output;
        fn run<B: AutodiffBackend>(self, device: B::Device) -> J::Output {
            let output = self.0.run::<B>(device.clone());
            B::notices(&device).iter().for_each(|line| tell!("{line}"));
            output
        }
    }
    Ok(backend.dispatch(Told(job))?)
}

/// Refuses settings of Burn that cannot be read: whoever needs them first would panic.
pub fn check_settings() -> Result<()> {
    let here = std::env::current_dir().context("the current directory cannot be had: change to one that is there")?;
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let read = panic::catch_unwind(burn::runtime_config);
    panic::set_hook(hook);
    if read.is_ok() {
        return Ok(());
    }
    let names = here.ancestors().flat_map(|dir| ["burn.toml", "Burn.toml"].map(|name| dir.join(name)));
    let file = names.into_iter().find(|file| file.is_file()).unwrap_or_else(|| here.join("burn.toml"));
    bail!("{} cannot be used: it is no TOML with settings of Burn; mend it, or move it away", file.display())
}

/// The precision that a backend computes fastest in on this machine, as far as that is known.
pub fn fastest(backend: BackendKind) -> Precision {
    match backend {
        #[cfg(feature = "flex")]
        BackendKind::Flex => crate::core::kernels::Operands::fastest().into(),
        _ => Precision::F32,
    }
}
