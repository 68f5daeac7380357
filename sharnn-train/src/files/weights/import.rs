//! Models from files whose configuration is not known: it is read off the tensors.

use std::path::Path;

use sharnn_core::{Attend, Backend, ConfigError, ShaRnn, ShaRnnConfig};

use super::model_file::ModelFile;
use super::{DECODER, ENCODER, Vocabulary, place};
use crate::files::tensors::WeightsError;

/// What the tensors of a file do not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Number of attention heads. By default that of the file's metadata, else 1, as in the published model. It must agree
    /// with the metadata.
    pub n_heads: Option<usize>,
    /// Rows of memory kept. By default those of the file's metadata, else 5000, as in the published model.
    pub mem_len: Option<usize>,
    /// Which bytes the model's symbols are. To be named unless there are 256 of them, which are the bytes.
    pub vocabulary: Option<Vocabulary>,
}

/// The configuration of the model that [`import_weights`] makes of a file.
///
/// Sizes, the blocks that attend and whether the decoder is tied are read off the tensors. Heads, memory and dropouts
/// stand in the metadata of a file that [`save_weights`](crate::save_weights) wrote; else dropouts are 0.
///
/// # Errors
/// If the file cannot be read, is no SHA-RNN, contradicts its metadata or the options, or has a vocabulary that is not named.
pub fn read_config(path: &Path, options: &ImportOptions) -> Result<ShaRnnConfig, WeightsError> {
    Ok(Import::of(ModelFile::open(path)?, options)?.config)
}

/// [`read_config`] of a file in memory, as one that is part of the program; errors call it `name`.
///
/// # Errors
/// As [`read_config`].
pub fn read_config_from_bytes(
    name: &str,
    bytes: &'static [u8],
    options: &ImportOptions,
) -> Result<ShaRnnConfig, WeightsError> {
    Ok(Import::of(ModelFile::in_memory(name, bytes)?, options)?.config)
}

/// Makes a model of a file and loads it. What the file may hold is what [`load_weights`](crate::load_weights) takes; a value gate may be
/// collapsed or not, and is then so in the model. A model of other symbols than bytes is expanded to bytes: see
/// [`Vocabulary`].
///
/// ```
/// # #[cfg(feature = "flex")] {
/// # fn main() -> Result<(), sharnn_train::WeightsError> {
/// use burn::backend::Flex;
/// use sharnn_core::ShaRnnConfig;
/// use sharnn_train::{ImportOptions, Vocabulary, import_weights, save_weights};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("published.safetensors");
/// # let published = ShaRnnConfig { d_model: 8, d_ff: 16, vocab_size: 205, ..ShaRnnConfig::xs() };
/// # save_weights(&published.init_seeded::<Flex>(1, &Default::default()), &path)?;
/// let options = ImportOptions { vocabulary: Some(Vocabulary::PublishedEnwik8), ..ImportOptions::default() };
/// let model = import_weights::<Flex>(&path, &options, &Default::default())?;
/// assert_eq!(model.config().vocab_size, 256);
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
///
/// # Errors
/// As [`read_config`] and [`load_weights`](crate::load_weights). No more memory is taken than a model of the
/// file's size needs, once its vocabulary is expanded to bytes.
pub fn import_weights<B: Backend>(
    path: &Path,
    options: &ImportOptions,
    device: &B::Device,
) -> Result<ShaRnn<B>, WeightsError> {
    Import::of(ModelFile::open(path)?, options)?.load(device)
}

/// [`import_weights`] of a file in memory, as one that is part of the program; errors call it `name`.
///
/// # Errors
/// As [`import_weights`].
pub fn import_weights_from_bytes<B: Backend>(
    name: &str,
    bytes: &'static [u8],
    options: &ImportOptions,
    device: &B::Device,
) -> Result<ShaRnn<B>, WeightsError> {
    Import::of(ModelFile::in_memory(name, bytes)?, options)?.load(device)
}

/// A file, and what is made of it.
struct Import {
    file: ModelFile,
    /// The configuration of the tensors as they are.
    stored: ShaRnnConfig,
    /// That of the model, whose vocabulary may be larger.
    config: ShaRnnConfig,
    vocabulary: Vocabulary,
}

impl Import {
    fn of(file: ModelFile, options: &ImportOptions) -> Result<Self, WeightsError> {
        let stored = stored_config(&file, options)?;
        let vocabulary = Vocabulary::of_model(options.vocabulary.as_ref(), stored.vocab_size)
            .map_err(|source| WeightsError::Vocabulary { file: file.name().into(), source })?;
        let config = stored.clone().with_vocab_size(vocabulary.size(stored.vocab_size));
        if stored.ngrams.is_some() && vocabulary != Vocabulary::Bytes {
            let hint = "its rows are those of the symbols that it was trained with, which bytes would renumber: load it with its own \
                        configuration (load_weights), or import a model without n-grams";
            let source = ConfigError { field: "ngrams", value: "a memory of n-grams".into(), hint: hint.into() };
            return Err(WeightsError::Unusable { file: file.name().into(), source });
        }
        Ok(Self { file, stored, config, vocabulary })
    }

    fn load<B: Backend>(self, device: &B::Device) -> Result<ShaRnn<B>, WeightsError> {
        let Self { file, stored, config, vocabulary } = self;
        let blocks = file.blocks();
        let collapsed = |block: usize| blocks.get(&block).is_some_and(|it| it.as_ref().is_some_and(|it| it.collapsed));
        file.check(&stored, collapsed)?;
        let mut model = config.init_seeded::<B>(0, device);
        let collapse = |(index, block)| if collapsed(index) { sharnn_core::Block::collapse(block) } else { block };
        model.blocks = model.blocks.into_iter().enumerate().map(collapse).collect();
        place(model, &file, &vocabulary)
    }
}

fn stored_config(file: &ModelFile, options: &ImportOptions) -> Result<ShaRnnConfig, WeightsError> {
    let saved = file.saved_config()?;
    let [vocab_size, d_model] = file.known_shape(ENCODER)?;
    let [d_ff, _] = file.known_shape("blocks.0.ff.linear1.weight")?;
    let blocks = file.blocks();
    let n_layers = blocks.len();
    let attending = blocks.iter().filter(|(_, attention)| attention.is_some()).map(|(&block, _)| block);
    let attend = Attend::of(attending, n_layers);
    let tied = match &saved {
        // Untied by choice, though the two may be equal.
        Some(saved) => saved.tied,
        None => {
            !file.has(DECODER)
                || (file.known_shape(DECODER)? == [vocab_size, d_model] && file.first_untied()?.is_none())
        }
    };
    let base =
        saved.clone().unwrap_or(ShaRnnConfig { n_heads: 1, mem_len: 5000, ..ShaRnnConfig::enwik8().with_dropout(0.0) });
    let config = ShaRnnConfig {
        vocab_size,
        d_model,
        d_ff,
        n_layers,
        attend,
        tied,
        n_heads: options.n_heads.unwrap_or(base.n_heads),
        mem_len: options.mem_len.unwrap_or(base.mem_len),
        ..base
    };
    if let Some(saved) = &saved {
        let sizes = ShaRnnConfig { n_heads: saved.n_heads, ..config.clone() };
        file.check_saved(saved, &sizes, "its tensors have")?;
        file.check_saved(saved, &config, "the options have")?;
    }
    file.validate(&config)?;
    Ok(config)
}
