//! A model's configuration from the tensors of its file.

use std::collections::BTreeSet;

use sharnn_core::{Attend, ShaRnnConfig};

use super::{CONFIG_KEY, EMBEDDING, ImportOptions, TIED_DECODER, Vocabulary, problems};
use crate::tensor_file::{ParsedFile, WeightsError};

/// What the file holds.
pub(super) struct Inferred {
    /// With the vocabulary that was asked for.
    pub(super) config: ShaRnnConfig,
    /// Whether value gates are collapsed.
    pub(super) collapsed: bool,
}

/// The paper's model, where a file does not say.
const N_HEADS: usize = 1;

/// Reads the configuration off names and shapes. The large tensors of every block are there in the shapes that follow from
/// it, so that a model of it takes no more memory than the file.
pub(super) fn infer(file: &ParsedFile<'_>, options: &ImportOptions) -> Result<Inferred, WeightsError> {
    let said = said(file)?;
    let shape = |name: &str| file.tensors.get(name).map(|view| view.shape().to_vec());
    let missing = |tensor: &str, expected: Vec<usize>| WeightsError::Missing {
        file: file.file.into(),
        tensor: tensor.into(),
        expected,
        hint: "the file is of another kind of model".into(),
    };
    let matrix = |name: &str| match shape(name) {
        Some(shape) if shape.len() == 2 && shape.iter().all(|&n| n > 0) => Ok([shape[0], shape[1]]),
        Some(found) => {
            Err(WeightsError::Shape { file: file.file.into(), tensor: name.into(), expected: vec![0, 0], found })
        }
        None => Err(missing(name, vec![0, 0])),
    };
    let [symbols, d] = matrix(EMBEDDING)?;
    let [d_ff, _] = matrix("blocks.0.ff.linear1.weight")?;

    let (mut blocks, mut attending) = (BTreeSet::new(), BTreeSet::new());
    for name in file.tensors.keys() {
        let Some((index, rest)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) else { continue };
        let Ok(index) = index.parse::<usize>() else { continue };
        blocks.insert(index);
        if rest == "attn.q.weight" {
            attending.insert(index);
        }
    }
    let n_layers = blocks.len();
    let linear = |block: usize| format!("blocks.{block}.attn.vq.l1.weight");
    let collapsed = !attending.is_empty() && attending.iter().all(|&block| !file.tensors.contains_key(&linear(block)));

    let mut wrong = Vec::new();
    for block in 0..n_layers {
        let mut large = vec![
            (format!("blocks.{block}.rnn.weight_ih_l0"), vec![4 * d, d]),
            (format!("blocks.{block}.rnn.weight_hh_l0"), vec![4 * d, d]),
            (format!("blocks.{block}.ff.linear1.weight"), vec![d_ff, d]),
        ];
        if attending.contains(&block) {
            large.push((format!("blocks.{block}.attn.q.weight"), vec![d, d]));
            if !collapsed {
                large.push((linear(block), vec![2 * d, d]));
            }
        }
        for (name, expected) in large {
            match shape(&name) {
                None => wrong.push(missing(&name, expected)),
                Some(found) if found != expected => {
                    wrong.push(WeightsError::Shape { file: file.file.into(), tensor: name, expected, found });
                }
                Some(_) => {}
            }
        }
    }
    problems(file.file, wrong)?;

    let tied = match file.tensors.get(TIED_DECODER) {
        None => true,
        Some(own) => own.shape() == [symbols, d] && own.data() == file.tensors[EMBEDDING].data(),
    };
    let of_file = |field: fn(&ShaRnnConfig) -> usize| said.as_ref().map(field);
    let config = ShaRnnConfig {
        vocab_size: symbols,
        d_model: d,
        d_ff,
        n_layers,
        n_heads: options.n_heads.or(of_file(|said| said.n_heads)).unwrap_or(N_HEADS),
        attend: Attend::of_blocks(attending.into_iter().collect(), n_layers),
        mem_len: options.mem_len.or(of_file(|said| said.mem_len)).unwrap_or(ShaRnnConfig::enwik8().mem_len),
        tied,
        ..said.clone().unwrap_or_else(|| ShaRnnConfig::enwik8().with_dropout(0.0))
    };
    if let Some(said) = &said {
        agree(file.file, said, &config)?;
    }
    config.validate().map_err(|source| WeightsError::Config { file: file.file.into(), source })?;
    let vocab_size = vocabulary(file.file, symbols, options.vocabulary.as_ref())?;
    Ok(Inferred { config: ShaRnnConfig { vocab_size, ..config }, collapsed })
}

/// What the file says of its model.
fn said(file: &ParsedFile<'_>) -> Result<Option<ShaRnnConfig>, WeightsError> {
    let Some(json) = file.metadata.get(CONFIG_KEY) else { return Ok(None) };
    serde_json::from_str(json).map(Some).map_err(|error| WeightsError::Format {
        file: file.file.into(),
        bytes: file.bytes,
        reason: format!("its metadata {CONFIG_KEY} are no configuration: {error}"),
    })
}

/// Refuses metadata that are of another model than the tensors.
fn agree(file: &str, said: &ShaRnnConfig, found: &ShaRnnConfig) -> Result<(), WeightsError> {
    let blocks = |config: &ShaRnnConfig| (0..found.n_layers).filter(|&b| config.attends(b)).collect::<Vec<_>>();
    for (field, said, found) in [
        ("vocab_size", said.vocab_size.to_string(), found.vocab_size.to_string()),
        ("d_model", said.d_model.to_string(), found.d_model.to_string()),
        ("d_ff", said.d_ff.to_string(), found.d_ff.to_string()),
        ("n_layers", said.n_layers.to_string(), found.n_layers.to_string()),
        ("attend", format!("{:?}", blocks(said)), format!("{:?}", blocks(found))),
    ] {
        if said != found {
            return Err(WeightsError::Metadata { file: file.into(), field, said, found });
        }
    }
    Ok(())
}

/// Number of tokens of the model, of a file with so many symbols.
fn vocabulary(file: &str, symbols: usize, vocabulary: Option<&Vocabulary>) -> Result<usize, WeightsError> {
    let refuse = |hint: String| Err(WeightsError::Vocabulary { file: file.into(), symbols, hint });
    match vocabulary {
        None if symbols == 256 => Ok(256),
        None => refuse(
            "it is not known which bytes they are: name the vocabulary, enwik8 for the 205 symbols of the published model, a \
             list of bytes, or symbols to keep them as they are"
                .into(),
        ),
        Some(named) => match named.bytes() {
            None => Ok(symbols),
            Some(bytes) if bytes.len() == symbols => Ok(256),
            Some(bytes) => refuse(format!("the vocabulary that was named has {}: name its own", bytes.len())),
        },
    }
}
