//! Packing a model's tensors, by their names in the published model.

use sharnn_kernels::{AttentionWeights, BlockWeights, DecodeModel, NGramWeights, NormWeights, WeightFormat};

use super::DecodeEngine;
use crate::{NGRAM_MODULUS, NGRAM_MULTIPLIER, StreamShape};

/// What the tensors of a model do not say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSizes {
    /// What a stream of it carries.
    pub shape: StreamShape,
    /// Attention heads.
    pub n_heads: usize,
    /// Its memory of n-grams: the orders of the tables, and the rows of one; `None` without.
    pub ngrams: Option<(Vec<usize>, usize)>,
}

/// A weight and a bias.
struct Affine {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Affine {
    fn view(&self) -> NormWeights<'_> {
        NormWeights { weight: &self.weight, bias: &self.bias }
    }
}

/// The tensors of a block.
struct Block<'a, F> {
    tensor: &'a mut F,
    prefix: String,
}

impl<E, F: FnMut(&str) -> Result<Option<Vec<f32>>, E>> Block<'_, F> {
    fn optional(&mut self, name: &str) -> Result<Option<Vec<f32>>, E> {
        (self.tensor)(&format!("{}{name}", self.prefix))
    }

    /// # Panics
    /// If it is not there.
    fn get(&mut self, name: &str) -> Result<Vec<f32>, E> {
        let found = self.optional(name)?;
        Ok(found.unwrap_or_else(|| panic!("the model has {}{name}", self.prefix)))
    }

    fn affine(&mut self, name: &str) -> Result<Affine, E> {
        Ok(Affine { weight: self.get(&format!("{name}.weight"))?, bias: self.get(&format!("{name}.bias"))? })
    }

    /// Packs the block; its values in f32 live no longer than that.
    fn push(&mut self, model: &mut DecodeModel, attends: bool, n_heads: usize) -> Result<(), E> {
        let attending = if attends {
            let norms = [self.affine("lnmid")?, self.affine("lnmem")?, self.affine("attn.qln")?];
            let (query, gates) = (self.affine("attn.q")?, [self.get("attn.qs")?, self.get("attn.ks")?]);
            let value_gate = self.value_gate(model.format())?;
            Some((norms, query, gates, value_gate))
        } else {
            None
        };
        let attention =
            attending.as_ref().map(|([mid, mem, query_norm], query, [q_gate, k_gate], value_gate)| AttentionWeights {
                norm_mid: mid.view(),
                norm_mem: mem.view(),
                query: &query.weight,
                query_bias: &query.bias,
                query_norm: query_norm.view(),
                q_gate,
                k_gate,
                value_gate,
                n_heads,
            });
        let [start, ff, xff] = [self.affine("lnstart")?, self.affine("lnff")?, self.affine("lnxff")?];
        let boom = self.affine("ff.linear1")?;
        model.push(BlockWeights {
            norm_start: start.view(),
            weight_ih: &self.get("rnn.weight_ih_l0")?,
            weight_hh: &self.get("rnn.weight_hh_l0")?,
            bias_ih: &self.get("rnn.bias_ih_l0")?,
            bias_hh: &self.get("rnn.bias_hh_l0")?,
            attention,
            norm_ff: ff.view(),
            norm_xff: xff.view(),
            boom: &boom.weight,
            boom_bias: &boom.bias,
        });
        Ok(())
    }

    /// The value gate as one vector, whether its map is there or was collapsed.
    fn value_gate(&mut self, format: WeightFormat) -> Result<Vec<f32>, E> {
        let gate = self.get("attn.vs")?;
        let Some(mut weight) = self.optional("attn.vq.l1.weight")? else { return Ok(gate) };
        let bias = self.get("attn.vq.l1.bias")?;
        if format.is_whole() {
            weight = sharnn_kernels::int8::rounded(&weight, [bias.len(), gate.len()]);
        }
        Ok(sharnn_kernels::value_gate(&gate, &weight, &bias))
    }
}

impl DecodeEngine {
    /// Packs a model whose tensors `tensor` gives, by their names in the published model (docs/weights.md of the repository), each at most
    /// once or twice, and `None` for what it does not have: the decoder's weight where that is the embedding, the map of a value gate that
    /// was collapsed, a map of n-grams.
    ///
    /// # Errors
    /// Those of `tensor`.
    ///
    /// # Panics
    /// If a tensor is missing that every model has, or has another size than the model.
    pub fn pack<E>(
        sizes: &ModelSizes,
        format: WeightFormat,
        mut tensor: impl FnMut(&str) -> Result<Option<Vec<f32>>, E>,
    ) -> Result<Self, E> {
        let StreamShape { d_model, mem_len, attends, .. } = &sizes.shape;
        let mut whole = Block { tensor: &mut tensor, prefix: String::new() };
        let (embedding, bias) = (whole.get("encoder.weight")?, whole.get("decoder.bias")?);
        let decoder = whole.optional("decoder.weight")?;
        let mut model = DecodeModel::new(*d_model, *mem_len, embedding, decoder.as_deref(), &bias, format);
        for (i, &attends) in attends.iter().enumerate() {
            let mut block = Block { tensor: &mut tensor, prefix: format!("blocks.{i}.") };
            block.push(&mut model, attends, sizes.n_heads)?;
        }
        if let Some((orders, rows)) = &sizes.ngrams {
            let mut ngrams = Block { tensor: &mut tensor, prefix: "ngrams.".into() };
            model = model.with_ngrams(NGramWeights {
                orders,
                rows: *rows,
                table: &ngrams.get("table")?,
                input: ngrams.optional("input")?.as_deref(),
                output: ngrams.optional("output")?.as_deref(),
                multiplier: NGRAM_MULTIPLIER,
                modulus: NGRAM_MODULUS,
            });
        }
        Ok(Self::new(model, sizes.shape.clone()))
    }
}
