//! A file of tensors taken for that of a model, and compared with one.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use sharnn_core::{Attend, ConfigError, ShaRnnConfig};

use super::layout::{in_block, is_unused, tensors};
use super::{CONFIG_KEY, DECODER, ENCODER};
use crate::files::json_error;
use crate::files::tensors::{Mismatch, TensorFile, WeightsError, shown};

/// What the tensors of a block's attention say of it.
pub(super) struct AttentionInFile {
    /// Whether the value gate's map is gone.
    pub(super) collapsed: bool,
}

/// A file of tensors under the published names.
#[derive(Debug)]
pub(super) struct ModelFile {
    tensors: TensorFile,
    /// Whether the embedding is there under the decoder's name alone: right where the two are tied.
    has_decoder_alone: bool,
}

/// Refuses a configuration in `file` of which no model can be made.
pub(crate) fn validate(config: &ShaRnnConfig, file: &str) -> Result<(), WeightsError> {
    config.validate().map_err(|ConfigError { field, value, hint }| {
        // They may quote a list of blocks.
        let source = ConfigError { field, value: shown(&value), hint: shown(&hint) };
        WeightsError::Unusable { file: file.into(), source }
    })
}

impl ModelFile {
    /// Opens a file. Names are those of the model alone, whatever wrapped it, and a tensor that the file has once is there under each
    /// of its names.
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        Ok(Self::new(TensorFile::open(path)?))
    }

    /// The same of a file in memory, called `file` in messages.
    pub(super) fn in_memory(file: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        Ok(Self::new(TensorFile::in_memory(file, bytes)?))
    }

    fn new(tensors: TensorFile) -> Self {
        let tensors = tensors.rename(unwrapped);
        let names = tensors.shapes().map(|(name, _)| name);
        let prefixes = names.filter_map(|name| [ENCODER, DECODER].iter().find_map(|known| name.strip_suffix(known)));
        let prefix = prefixes.min_by_key(|prefix| prefix.len()).filter(|prefix| prefix.ends_with('.'));
        let prefix = prefix.unwrap_or_default().to_string();
        let is_shared = tensors.shapes().all(|(name, _)| name.starts_with(&prefix));
        let bare = |name: &str| match name.strip_prefix(&prefix) {
            Some(bare) if is_shared => bare.to_string(),
            _ => name.to_string(),
        };
        let mut tensors = tensors.rename(bare);
        // What safetensors' `save_model` writes of a tensor that has several names: it is there under one, and the others are metadata.
        let aliases = tensors.metadata.iter().filter(|(name, _)| *name != CONFIG_KEY);
        let aliases: Vec<_> = aliases.map(|(name, of)| [name, of].map(|name| bare(&unwrapped(name)))).collect();
        for [name, of] in aliases {
            tensors.alias(&name, &of);
        }
        // A tied weight that was left out without a word of it. Files of ours have it, and say whether it is tied.
        let has_decoder_alone = !tensors.metadata.contains_key(CONFIG_KEY) && tensors.shape(ENCODER).is_none();
        if has_decoder_alone {
            tensors.alias(ENCODER, DECODER);
        }
        Self { tensors, has_decoder_alone }
    }

    /// The path, for messages.
    pub(super) fn name(&self) -> &str {
        &self.tensors.file
    }

    /// The shape of a tensor that every model has.
    pub(super) fn known_shape<const D: usize>(&self, name: &'static str) -> Result<[usize; D], WeightsError> {
        self.tensors.shape(name).and_then(|shape| shape.try_into().ok()).ok_or_else(|| WeightsError::NotAModel {
            file: self.name().into(),
            tensors: self.tensors.shapes().count(),
            tensor: name,
            rank: D,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.shape(name).is_some()
    }

    pub(super) fn values(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.tensors.values(name)
    }

    /// The blocks of which the file has a tensor, with their attention where it has one of that.
    pub(super) fn blocks(&self) -> BTreeMap<usize, Option<AttentionInFile>> {
        let mut blocks = BTreeMap::new();
        for (block, name) in self.tensors.shapes().filter_map(|(name, _)| in_block(name)) {
            let attention = blocks.entry(block).or_insert(None);
            if let Some(name) = name.strip_prefix("attn.") {
                attention.get_or_insert(AttentionInFile { collapsed: true }).collapsed &= !name.starts_with("vq.l1.");
            }
        }
        blocks
    }

    /// The configuration that the file was saved with, where its metadata say so.
    pub(super) fn saved_config(&self) -> Result<Option<ShaRnnConfig>, WeightsError> {
        let Some(json) = self.tensors.metadata.get(CONFIG_KEY) else { return Ok(None) };
        let config: ShaRnnConfig = serde_json::from_str(json).map_err(|error| WeightsError::Metadata {
            file: self.name().into(),
            key: CONFIG_KEY,
            reason: json_error(&error),
        })?;
        self.validate(&config)?;
        Ok(Some(config))
    }

    /// Refuses a configuration of which no model can be made.
    pub(super) fn validate(&self, config: &ShaRnnConfig) -> Result<(), WeightsError> {
        validate(config, self.name())
    }

    /// Refuses the file for a model of `config`, whose blocks are `collapsed` or not, unless every tensor is there and fits.
    /// No memory is taken for the configuration's sizes.
    pub(super) fn check(&self, config: &ShaRnnConfig, collapsed: impl Fn(usize) -> bool) -> Result<(), WeightsError> {
        let blocks = self.blocks();
        // A block that is not in the file cannot be loaded: of as many as there are and one more, one is missing.
        let n_blocks = config.n_layers.min(blocks.len() + 1);
        let attending = attending(config, n_blocks);
        for &block in &attending {
            let Some(Some(found)) = blocks.get(&block) else { continue };
            let file = self.name().to_string();
            match (collapsed(block), found.collapsed) {
                (false, true) if self.has(&format!("blocks.{block}.attn.vs")) => {
                    return Err(WeightsError::Collapsed { file, tensor: format!("blocks.{block}.attn.vq.l1.weight") });
                }
                (true, false) => {
                    return Err(WeightsError::Uncollapsed { file, tensor: format!("blocks.{block}.attn.vq.l1") });
                }
                _ => {}
            }
        }
        self.compare(config, n_blocks, &attending, collapsed)?;
        if let Some(saved) = self.saved_config()? {
            self.check_saved(&saved, config, "the model has")?;
        }
        if config.tied && self.has(DECODER) { self.check_tied() } else { Ok(()) }
    }

    /// Lists every tensor that is missing, left over or misshapen.
    fn compare(
        &self,
        config: &ShaRnnConfig,
        n_blocks: usize,
        attending: &[usize],
        collapsed: impl Fn(usize) -> bool,
    ) -> Result<(), WeightsError> {
        let mut mismatch = Mismatch::default();
        let mut known = HashSet::new();
        let own_decoder =
            (config.tied && self.has(DECODER)).then(|| (DECODER.to_string(), vec![config.vocab_size, config.d_model]));
        for (name, expected) in tensors(config, n_blocks, attending, collapsed).chain(own_decoder) {
            let is_there = config.tied || !self.has_decoder_alone || name != ENCODER;
            let found = self.tensors.shape(&name).filter(|_| is_there);
            // A gate may be a plain vector.
            let fits = |found: &[usize]| found == expected || matches!(expected[..], [1, 1, d] if found == [d]);
            if !found.is_some_and(fits) {
                mismatch.add(&name, Some(&expected), found);
            }
            if found.is_some() {
                known.insert(name);
            }
        }
        let passed_over = |name: &str| {
            in_block(name).is_some_and(|(block, name)| {
                block < n_blocks && is_unused(name, attending.binary_search(&block).is_ok())
            })
        };
        for (name, found) in self.tensors.shapes() {
            let is_alias = self.has_decoder_alone && name == ENCODER;
            if !known.contains(name) && !passed_over(name) && !is_alias {
                mismatch.add(name, None, Some(found));
            }
        }
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Mismatch { file: self.name().into(), mismatch })
    }

    /// Refuses metadata that contradict `other`. Dropouts, the length of the memory and whether the decoder is tied may
    /// differ: the same tensors serve.
    pub(super) fn check_saved(
        &self,
        saved: &ShaRnnConfig,
        other: &ShaRnnConfig,
        what: &'static str,
    ) -> Result<(), WeightsError> {
        let sizes = |config: &ShaRnnConfig| {
            let ShaRnnConfig { vocab_size, d_model, d_ff, n_layers, .. } = *config;
            [("vocab_size", vocab_size), ("d_model", d_model), ("d_ff", d_ff), ("n_layers", n_layers)]
        };
        let differ = |field, saved: String, found: String| {
            Err(WeightsError::Config {
                file: self.name().into(),
                field,
                saved: shown(&saved),
                what,
                found: shown(&found),
            })
        };
        for ((field, saved), (_, other)) in sizes(saved).into_iter().zip(sizes(other)) {
            if saved != other {
                return differ(field, saved.to_string(), other.to_string());
            }
        }
        let blocks = [saved, other].map(|config| config.attend.blocks(config.n_layers));
        if blocks[0] != blocks[1] {
            return differ("attend", format!("{:?}", blocks[0]), format!("{:?}", blocks[1]));
        }
        if saved.ngrams != other.ngrams {
            let text = |config: &ShaRnnConfig| serde_json::to_string(&config.ngrams).expect("plain data");
            return differ("ngrams", text(saved), text(other));
        }
        if saved.n_heads != other.n_heads && !blocks[0].is_empty() {
            return differ("n_heads", saved.n_heads.to_string(), other.n_heads.to_string());
        }
        Ok(())
    }

    /// The decoder's own copy of a tied weight must equal the embedding's.
    fn check_tied(&self) -> Result<(), WeightsError> {
        match self.first_untied()? {
            None => Ok(()),
            Some((index, encoder, decoder)) => {
                Err(WeightsError::NotTied { file: self.name().into(), index, encoder, decoder })
            }
        }
    }

    /// Where decoder and embedding, of one shape, differ first, and what they hold there.
    pub(super) fn first_untied(&self) -> Result<Option<(usize, f32, f32)>, WeightsError> {
        let (encoder, decoder) = (self.values(ENCODER)?, self.values(DECODER)?);
        let index = encoder.iter().zip(&decoder).position(|(encoder, decoder)| encoder != decoder);
        Ok(index.map(|index| (index, encoder[index], decoder[index])))
    }
}

/// A name without what PyTorch puts into it where a module is wrapped, for many processes or to be compiled: anywhere, since parts of a
/// model can be wrapped too.
fn unwrapped(name: &str) -> String {
    const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// Those of the first `n_blocks` blocks that attend, in rising order. Neither is gone through as often as there are of the
/// other, or of layers: a file may have made each of them large.
fn attending(config: &ShaRnnConfig, n_blocks: usize) -> Vec<usize> {
    match &config.attend {
        Attend::Blocks(list) => Attend::Blocks(list.clone()).blocks(n_blocks),
        _ => (0..n_blocks).filter(|&block| config.attends(block)).collect(),
    }
}
