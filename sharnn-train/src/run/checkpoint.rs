//! Checkpoints: everything that a run needs to go on as if it had never stopped.
//!
//! A checkpoint is a directory of the run directory, `step-00001000`:
//!
//! ```text
//! checkpoint.json            the model's configuration, the recipe, where the run stands, checksums of the files below
//! checkpoint.json.sha256     its checksum, as sha256sum writes it
//! weights.safetensors        weights, under the published PyTorch model's names
//! moments.safetensors        the optimizer's moments, by parameter path
//! state.safetensors          what the next segment starts from: blocks.0.h, blocks.0.c, blocks.0.memory, ..., recent
//! best.safetensors           weights of the best validation so far (a hard link to best/weights.safetensors)
//! ```
//!
//! `best/` holds `weights.safetensors` and `best.json` (with its checksum), for whoever uses the model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend as BurnBackend};
use serde::{Deserialize, Serialize};
use sharnn_core::{AutodiffBackend, BlockState, LstmState, ShaRnn, ShaRnnConfig, ShaRnnState};

use super::directory::{RunDir, checkpoints, is_being_replaced, step_name};
use super::manifest::{MANIFEST, read_json, verify, write_json};
use super::{Best, CheckpointError, FORMAT, FileDigest, Manifest};
use crate::files::weights::{load_config, validate};
use crate::files::{HostTensor, WeightsError, load_tensors, save_tensors, save_weights, shown};
use crate::optim::Optimizer;
use crate::params::{VisitFloat, host_values, visit_params};

const WEIGHTS: &str = "weights.safetensors";
const MOMENTS: &str = "moments.safetensors";
const STATE: &str = "state.safetensors";
const BEST: &str = "best.safetensors";
/// The newest tokens in the state, as numbers like all else in it.
const RECENT: &str = "recent";
/// Name of the directory of the best weights.
pub const BEST_DIR: &str = "best";
const BEST_MANIFEST: &str = "best.json";
/// How often best weights are read that are being replaced, and the time between.
const MOST_READINGS: usize = 10;
const BETWEEN_READINGS: Duration = Duration::from_millis(20);

/// What stands beside the best weights of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestManifest {
    /// Version of the layout.
    pub format: u64,
    /// The model.
    pub config: ShaRnnConfig,
    /// The validation that they are the best of.
    pub best: Best,
    /// Length and checksum of the weights.
    pub weights: FileDigest,
}

/// Loads the best weights of a run, from its directory or from the directory `best` itself.
///
/// # Errors
/// If there are none, if a file is damaged, or if they do not fit their configuration.
pub fn load_best<B: sharnn_core::Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(ShaRnn<B>, BestManifest), CheckpointError> {
    let (weights, manifest) = best_weights(dir)?;
    let model = load_config(&manifest.config, &weights, device)?;
    Ok((model, manifest))
}

/// The file of the best weights, and what stands beside it, both verified. Where a run that goes on replaces them meanwhile, they are
/// read again.
fn best_weights(dir: &Path) -> Result<(PathBuf, BestManifest), CheckpointError> {
    let which = || fs::read(dir.join(BEST_DIR).join(BEST_MANIFEST)).ok();
    let mut before = which();
    for _ in 0..MOST_READINGS {
        let found = read_best(dir);
        let after = which();
        if found.is_ok() || after == before && !is_being_replaced(dir, BEST_DIR) {
            return found;
        }
        before = after;
        std::thread::sleep(BETWEEN_READINGS);
    }
    read_best(dir)
}

fn read_best(dir: &Path) -> Result<(PathBuf, BestManifest), CheckpointError> {
    let best_dir = if dir.join(BEST_MANIFEST).exists() { dir.to_path_buf() } else { dir.join(BEST_DIR) };
    if !best_dir.is_dir() {
        return Err(CheckpointError::NoBest { run_dir: dir.into() });
    }
    let advice = "resume the run, which writes it anew from its checkpoint, or copy it again";
    let manifest: BestManifest = read_json(&best_dir, BEST_MANIFEST, advice)?;
    let weights = best_dir.join(WEIGHTS);
    verify(&weights, &manifest.weights, advice)?;
    Ok((weights, manifest))
}

/// The weights that a run has to show for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RunWeights {
    /// Their file.
    pub file: PathBuf,
    /// The model.
    pub config: ShaRnnConfig,
    /// Steps trained before.
    pub step: u64,
    /// Whether they are the best of a validation, and not the newest of a run that had none yet.
    pub is_best: bool,
}

/// Finds and verifies the weights of a run: the best ones or, before the first validation, those of its newest checkpoint.
///
/// # Errors
/// If there are none, if the best ones are gone, or if a file is damaged.
pub fn run_weights(dir: &Path) -> Result<RunWeights, CheckpointError> {
    match best_weights(dir) {
        Ok((file, BestManifest { config, best, .. })) => {
            Ok(RunWeights { file, config, step: best.step, is_best: true })
        }
        Err(CheckpointError::NoBest { run_dir }) => {
            let Checkpoint { manifest, dir } = Checkpoint::load_newest(dir)?;
            if manifest.best.is_some() {
                return Err(CheckpointError::BestMissing { run_dir });
            }
            let (file, step) = (dir.join(WEIGHTS), manifest.position.step);
            Ok(RunWeights { file, config: manifest.config, step, is_best: false })
        }
        Err(error) => Err(error),
    }
}

/// Loads the weights of a run: those that [`run_weights`] finds.
///
/// # Errors
/// As [`run_weights`], or if they do not fit their configuration.
pub fn load_run<B: sharnn_core::Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(ShaRnn<B>, RunWeights), CheckpointError> {
    let weights = run_weights(dir)?;
    Ok((load_config(&weights.config, &weights.file, device)?, weights))
}

/// Replaces `best/` by the weights that `write` writes.
fn replace_best(
    run: &RunDir,
    config: &ShaRnnConfig,
    best: &Best,
    write: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<FileDigest, CheckpointError> {
    run.write_dir(BEST_DIR, |dir| {
        write(&dir.join(WEIGHTS))?;
        let weights = FileDigest::of_file(&dir.join(WEIGHTS))?;
        let manifest =
            BestManifest { format: FORMAT, config: config.clone(), best: best.clone(), weights: weights.clone() };
        write_json(dir, BEST_MANIFEST, &manifest)?;
        Ok(weights)
    })
}

/// The file of the best weights of a run.
pub(crate) fn best_file(run: &RunDir) -> PathBuf {
    run.path().join(BEST_DIR).join(WEIGHTS)
}

/// Writes the weights of a new best validation, and returns their checksum.
pub(crate) fn save_best<B: sharnn_core::Backend>(
    run: &RunDir,
    config: &ShaRnnConfig,
    best: &Best,
    model: &ShaRnn<B>,
) -> Result<FileDigest, CheckpointError> {
    replace_best(run, config, best, |path| Ok(save_weights(model, path)?))
}

/// The tensors of a run.
pub(crate) struct Tensors<'a, B: AutodiffBackend> {
    pub(crate) model: &'a ShaRnn<B>,
    pub(crate) optimizer: &'a Optimizer<B>,
    pub(crate) state: &'a ShaRnnState<B>,
    /// The best weights, and where they are.
    pub(crate) best: Option<(&'a FileDigest, PathBuf)>,
}

/// Writes a checkpoint and returns its directory. `manifest.files` is filled in here.
///
/// Nothing is written where weights, moments or state are not all finite: such a run cannot go on.
pub(crate) fn save<B: AutodiffBackend>(
    run: &RunDir,
    mut manifest: Manifest,
    tensors: &Tensors<'_, B>,
) -> Result<PathBuf, CheckpointError> {
    let step = manifest.position.step;
    let (moments, state) = (tensors.optimizer.moments(), state_tensors(tensors.state));
    let all_finite = |tensors: &[HostEntry]| tensors.iter().all(|(_, _, data)| data.iter().all(|x| x.is_finite()));
    for (what, finite) in [
        ("weights", weights_are_finite(tensors.model)),
        ("moments", all_finite(&moments)),
        ("states and memories", all_finite(&state)),
    ] {
        if !finite {
            return Err(CheckpointError::NotFinite { step, what });
        }
    }
    run.write_dir(&step_name(step), |dir| {
        save_weights(tensors.model, &dir.join(WEIGHTS))?;
        save_tensors(&dir.join(MOMENTS), &moments, &BTreeMap::new())?;
        save_tensors(&dir.join(STATE), &state, &BTreeMap::new())?;
        for name in [WEIGHTS, MOMENTS, STATE] {
            manifest.files.insert(name.into(), FileDigest::of_file(&dir.join(name))?);
        }
        if let Some((digest, file)) = &tensors.best {
            link_or_copy(file, &dir.join(BEST))?;
            manifest.files.insert(BEST.into(), (*digest).clone());
        }
        manifest.write(dir)
    })?;
    Ok(run.path().join(step_name(step)))
}

/// A checkpoint whose files have all been verified.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) manifest: Manifest,
    pub(crate) dir: PathBuf,
}

/// The manifest of the newest checkpoint of a run directory, with its own checksum verified; `None` where there is none.
///
/// # Errors
/// If it is damaged, of another format or of a model that cannot be. The error names the checkpoint before it.
pub fn latest_manifest(run_dir: &Path) -> Result<Option<(PathBuf, Manifest)>, CheckpointError> {
    let Some((dir, advice)) = newest(run_dir)? else { return Ok(None) };
    let manifest = Manifest::read(&dir, &advice)?;
    validate(&manifest.config, &dir.join(MANIFEST).display().to_string())?;
    Ok(Some((dir, manifest)))
}

/// The newest checkpoint, and what to do should it be damaged.
fn newest(run_dir: &Path) -> Result<Option<(PathBuf, String)>, CheckpointError> {
    let mut found = checkpoints(run_dir)?;
    let Some((step, dir)) = found.pop() else { return Ok(None) };
    let advice = match found.last() {
        Some((older, _)) => format!(
            "move {} out of the run directory and resume: the run then goes on from {}",
            step_name(step),
            step_name(*older)
        ),
        None => "there is no older checkpoint: restore the file from a copy, or start anew in another directory".into(),
    };
    Ok(Some((dir, advice)))
}

impl Checkpoint {
    /// Reads and verifies the newest checkpoint of a run directory.
    pub(crate) fn load_newest(run_dir: &Path) -> Result<Self, CheckpointError> {
        let (dir, advice) = newest(run_dir)?.ok_or_else(|| CheckpointError::None { run_dir: run_dir.into() })?;
        let manifest = Manifest::read(&dir, &advice)?;
        let best = manifest.best.is_some().then_some(BEST);
        for name in [WEIGHTS, MOMENTS, STATE].into_iter().chain(best) {
            let Some(digest) = manifest.files.get(name) else {
                return Err(CheckpointError::Damaged {
                    file: dir.join(MANIFEST),
                    expected: format!("the checksum of {name}"),
                    found: "none".into(),
                    advice,
                });
            };
            verify(&dir.join(name), digest, &advice)?;
        }
        Ok(Self { manifest, dir })
    }

    /// The model.
    pub(crate) fn model<B: sharnn_core::Backend>(&self, device: &B::Device) -> Result<ShaRnn<B>, CheckpointError> {
        Ok(load_config(&self.manifest.config, &self.dir.join(WEIGHTS), device)?)
    }

    /// Puts the moments into `optimizer`.
    pub(crate) fn moments<B: AutodiffBackend>(
        &self,
        mut optimizer: Optimizer<B>,
        model: &ShaRnn<B>,
    ) -> Result<Optimizer<B>, CheckpointError> {
        optimizer.load_moments(load_tensors(&self.dir.join(MOMENTS))?, model)?;
        Ok(optimizer)
    }

    /// The state that the next segment starts from, of all lanes.
    pub(crate) fn state<B: BurnBackend>(&self, device: &B::Device) -> Result<ShaRnnState<B>, CheckpointError> {
        let path = self.dir.join(STATE);
        let mut tensors = load_tensors(&path)?;
        let (config, lanes) = (&self.manifest.config, self.manifest.recipe.batch_size);
        let mut blocks = Vec::with_capacity(config.n_layers);
        for block in 0..config.n_layers {
            let name = |part: &str| format!("blocks.{block}.{part}");
            let of_lstm = [lanes, config.d_model];
            let [h, c] = ["h", "c"].map(|part| take(&mut tensors, name(part), of_lstm, &path, device));
            let lstm = match (h?, c?) {
                (Some(h), Some(c)) => Some(LstmState { h, c }),
                (None, None) => None,
                (h, _) => {
                    let tensor = name(if h.is_some() { "c" } else { "h" });
                    let (file, hint) = (path.display().to_string(), "use an older checkpoint".into());
                    return Err(WeightsError::Missing { file, tensor, expected: of_lstm.into(), hint }.into());
                }
            };
            // As many rows as were seen, up to the length of the memory.
            let seen = tensors.get(&name("memory")).and_then(|memory| memory.shape.get(1).copied());
            let rows = seen.unwrap_or_default().min(config.mem_len);
            let memory = match config.attends(block) {
                true => take(&mut tensors, name("memory"), [lanes, rows, config.d_model], &path, device)?,
                false => None,
            };
            blocks.push(BlockState { lstm, memory });
        }
        // Where the stream has begun.
        let recent = match config.context() {
            context if context > 0 && blocks.iter().any(|block| block.lstm.is_some()) => {
                Some(self.recent(&mut tensors, [lanes, context], &path, device)?)
            }
            _ => None,
        };
        if let Some((tensor, HostTensor { shape: found, .. })) = tensors.pop_first() {
            let (file, hint) = (path.display().to_string(), "use an older checkpoint".into());
            return Err(WeightsError::Unexpected { file, tensor: shown(&tensor), found, hint }.into());
        }
        Ok(ShaRnnState { blocks, recent })
    }

    /// The newest tokens of each lane.
    fn recent<B: BurnBackend>(
        &self,
        tensors: &mut BTreeMap<String, HostTensor>,
        expected: [usize; 2],
        path: &Path,
        device: &B::Device,
    ) -> Result<Tensor<B, 2, Int>, CheckpointError> {
        let (file, tensor) = (path.display().to_string(), RECENT.to_string());
        let vocab_size = self.manifest.config.vocab_size;
        let is_token = |x: f32| x.fract() == 0.0 && (-1.0..vocab_size as f32).contains(&x);
        let values = tensors.get(RECENT).map_or(&[][..], |recent| &recent.data);
        if let Some(index) = values.iter().position(|&x| !is_token(x)) {
            return Err(WeightsError::NotAToken { file, tensor, index, value: values[index], vocab_size }.into());
        }
        match take::<B, 2>(tensors, RECENT.into(), expected, path, device)? {
            Some(recent) => Ok(recent.int()),
            None => {
                let (expected, hint) = (expected.into(), "use an older checkpoint".into());
                Err(WeightsError::Missing { file, tensor, expected, hint }.into())
            }
        }
    }

    /// The checksum of the best weights.
    pub(crate) fn best_digest(&self) -> Option<FileDigest> {
        self.manifest.files.get(BEST).cloned()
    }

    /// The file of the best weights.
    pub(crate) fn best_file(&self) -> PathBuf {
        self.dir.join(BEST)
    }

    /// Makes `best/` agree with this checkpoint: it may have been written after it, or be gone.
    pub(crate) fn restore_best(&self, run: &RunDir) -> Result<(), CheckpointError> {
        let Some(best) = &self.manifest.best else { return run.remove_dir(BEST_DIR) };
        let copy = |path: &Path| link_or_copy(&self.best_file(), path);
        replace_best(run, &self.manifest.config, best, copy).map(drop)
    }
}

type HostEntry = (String, Vec<usize>, Vec<f32>);

/// Every tensor of a state by name.
fn state_tensors<B: BurnBackend>(state: &ShaRnnState<B>) -> Vec<HostEntry> {
    fn entry<B: BurnBackend, const D: usize>(name: String, tensor: &Tensor<B, D>) -> HostEntry {
        (name, tensor.dims().to_vec(), host_values(tensor.clone()))
    }
    let mut tensors = Vec::new();
    for (i, block) in state.blocks.iter().enumerate() {
        if let Some(LstmState { h, c }) = &block.lstm {
            tensors.extend([entry(format!("blocks.{i}.h"), h), entry(format!("blocks.{i}.c"), c)]);
        }
        if let Some(memory) = &block.memory {
            tensors.push(entry(format!("blocks.{i}.memory"), memory));
        }
    }
    tensors.extend(state.recent.clone().map(|recent| entry(RECENT.into(), &recent.float())));
    tensors
}

/// Moves one tensor to the device, where there is one of that name.
fn take<B: BurnBackend, const D: usize>(
    tensors: &mut BTreeMap<String, HostTensor>,
    name: String,
    expected: [usize; D],
    path: &Path,
    device: &B::Device,
) -> Result<Option<Tensor<B, D>>, CheckpointError> {
    let Some(HostTensor { shape, data }) = tensors.remove(&name) else { return Ok(None) };
    if shape != expected {
        let (file, expected) = (path.display().to_string(), expected.to_vec());
        return Err(WeightsError::Shape { file, tensor: name, expected, found: shape }.into());
    }
    Ok(Some(Tensor::from_data(TensorData::new(data, shape), device)))
}

/// Whether every weight is finite; one read from the device.
fn weights_are_finite<B: BurnBackend>(model: &ShaRnn<B>) -> bool {
    struct Finite<B: BurnBackend>(Vec<Tensor<B, 1, Bool>>);
    impl<B: BurnBackend> VisitFloat<B> for Finite<B> {
        fn visit<const D: usize>(&mut self, _path: &str, tensor: Tensor<B, D>) {
            self.0.push(tensor.is_finite().all());
        }
    }
    let mut finite = Finite(Vec::new());
    visit_params(model, &mut finite);
    Tensor::cat(finite.0, 0).all().into_data().iter::<bool>().all(|finite| finite)
}

/// Makes `to` the same file as `from`, or a copy of it where the file system has no hard links. Files of a run are never
/// changed in place, so the two are as good.
fn link_or_copy(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    // The file itself, should it be a symbolic link.
    let file = fs::canonicalize(from).map_err(CheckpointError::io("read", from))?;
    if fs::hard_link(&file, to).is_ok() {
        return Ok(());
    }
    fs::copy(&file, to).map(drop).map_err(CheckpointError::io("copy the best weights to", to))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// By a run that goes on, which finds a better model every few milliseconds.
    #[test]
    fn best_weights_that_are_being_replaced_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let replace = |step: u64| {
            let best = Best { bpc: 1.0, step, epoch: 0, phase: 0 };
            let text = vec![step as u8; 1 << 16];
            let write = |path: &Path| fs::write(path, &text).map_err(CheckpointError::io("write", path));
            replace_best(&run, &ShaRnnConfig::xs(), &best, write).unwrap();
        };
        replace(0);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..200).for_each(replace);
                is_done.store(true, Ordering::SeqCst);
            });
            let mut readings = 0;
            while !is_done.load(Ordering::SeqCst) {
                if let Err(error) = best_weights(dir.path()) {
                    is_done.store(true, Ordering::SeqCst);
                    panic!("after {readings} readings: {error}");
                }
                readings += 1;
            }
        });
        // What stays damaged is so.
        fs::write(dir.path().join("best/weights.safetensors"), b"other").unwrap();
        assert!(matches!(best_weights(dir.path()), Err(CheckpointError::Damaged { .. })));
    }
}
