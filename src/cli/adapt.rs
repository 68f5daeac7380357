//! Adaptive mixing on the command line: whether predictions are mixed with what was read, and in how much memory.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use crate::core::{Mixer, MixerConfig, StreamState};

/// What adaptive scores are called, so that nobody takes them for the model's own.
pub const NAME: &str = "adaptive";

/// Options for mixing.
#[derive(clap::Args, Debug)]
pub struct AdaptArgs {
    /// Mix the model's predictions with what was read so far: what repeats becomes cheap. Scores are called adaptive then
    #[arg(long, help_heading = "Adaptive mixing")]
    pub adapt: bool,
    /// Memory for what was read, in MiB [default: 16, or that of --from-state]
    #[arg(long, value_name = "MIB", help_heading = "Adaptive mixing")]
    adapt_memory: Option<usize>,
}

impl AdaptArgs {
    /// The mixer, where predictions are mixed. One that is to go on from a state has its memory.
    pub fn mixer(&self, adapts: bool, from: Option<(&Path, &StreamState)>) -> Result<Option<Mixer>> {
        if !adapts {
            ensure!(self.adapt_memory.is_none(), "--adapt-memory cannot be used without --adapt: give both or none");
            if let Some((path, _)) = from.filter(|(_, state)| state.adaptive().is_some()) {
                tell!("the adaptive statistics in {} are left aside: --adapt goes on from them", path.display());
            }
            return Ok(None);
        }
        let given = self.adapt_memory.map(config).transpose()?;
        let of_state = match from {
            None => None,
            Some((path, state)) => match state.adaptive() {
                Some(bytes) => Some((path, Mixer::saved_config(bytes)?.0)),
                None => {
                    tell!("{} has no adaptive statistics: they begin here", path.display());
                    None
                }
            },
        };
        if let (Some(given), Some((path, of_state))) = (given, of_state)
            && given != of_state
        {
            let mib = of_state.memory >> 20;
            bail!(
                "--adapt-memory {} cannot be used: {} has a memory of {mib} MiB: leave it out",
                given.memory >> 20,
                path.display()
            );
        }
        Ok(Some(Mixer::new(given.or(of_state.map(|(_, config)| config)).unwrap_or_default(), 1)))
    }
}

fn config(mib: usize) -> Result<MixerConfig> {
    let [least, most] = [MixerConfig::MEMORY.start(), MixerConfig::MEMORY.end()].map(|bytes| bytes >> 20);
    ensure!((least..=most).contains(&mib), "--adapt-memory {mib} cannot be used: use {least} to {most}");
    Ok(MixerConfig { memory: mib << 20 })
}
