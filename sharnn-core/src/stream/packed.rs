//! A model's weights packed for the CPU.

use std::convert::Infallible;

use burn::module::Param;
use burn::tensor::{Tensor, backend::Backend as BurnBackend};
use sharnn_stream::{DecodeEngine, ModelSizes, WeightFormat};

use super::values;
use crate::{Backend, Block, LayerNorm, Linear, ShaRnn};

impl<B: Backend> ShaRnn<B> {
    /// The model as one that reads and predicts a token at a time on the CPU, many times as fast as [`forward`](Self::forward). Its weights are
    /// packed, from whatever backend; value gates are collapsed, and `mem_len` is the model's.
    ///
    /// ```
    /// use burn::backend::Flex;
    /// use sharnn_core::{ShaRnnConfig, WeightFormat};
    ///
    /// let model = ShaRnnConfig::xs().with_mem_len(100).init_seeded::<Flex>(1, &Default::default());
    /// let mut streams = model.engine(WeightFormat::Bf16).streams(1);
    /// for byte in *b"Hello" {
    ///     let logits = streams.feed(&[byte]);
    ///     assert_eq!(logits.len(), 256);
    /// }
    /// ```
    pub fn engine(&self, format: WeightFormat) -> DecodeEngine {
        let attending = self.blocks.iter().find_map(|block| block.attending.as_ref());
        let sizes = ModelSizes {
            shape: self.stream_shape(1),
            n_heads: attending.map_or(1, |attending| attending.attention.n_heads),
            ngrams: self.ngrams.as_ref().map(|ngrams| (ngrams.orders.clone(), ngrams.rows)),
        };
        let packed = DecodeEngine::pack(&sizes, format, |name| Ok::<_, Infallible>(self.named(name)));
        packed.unwrap_or_else(|never| match never {})
    }

    /// The values of a parameter, by its name in the published model.
    fn named(&self, name: &str) -> Option<Vec<f32>> {
        if let Some((index, name)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            return of_block(self.blocks.get(index.parse::<usize>().ok()?)?, name);
        }
        match name {
            "encoder.weight" => Some(param(&self.encoder.weight)),
            "decoder.weight" => self.decoder.weight.as_ref().map(param),
            "decoder.bias" => Some(param(&self.decoder.bias)),
            "ngrams.table" => self.ngrams.as_ref().map(|ngrams| param(&ngrams.table)),
            "ngrams.input" => self.ngrams.as_ref()?.input.as_ref().map(param),
            "ngrams.output" => self.ngrams.as_ref()?.output.as_ref().map(param),
            _ => None,
        }
    }
}

fn of_block<B: Backend>(block: &Block<B>, name: &str) -> Option<Vec<f32>> {
    let attending = block.attending.as_ref();
    let attention = attending.map(|attending| &attending.attention);
    let gate = attention.map(|attention| &attention.value_gate);
    let (layer, part) = name.rsplit_once('.')?;
    match layer {
        "lnstart" => of_norm(&block.norm_start, part),
        "lnff" => of_norm(&block.norm_ff, part),
        "lnxff" => of_norm(&block.norm_xff, part),
        "lnmid" => of_norm(&attending?.norm_mid, part),
        "lnmem" => of_norm(&attending?.norm_mem, part),
        "attn.qln" => of_norm(&attention?.query_norm, part),
        "attn.q" => of_linear(&attention?.query, part),
        "attn.vq.l1" => of_linear(gate?.linear.as_ref()?, part),
        "ff.linear1" => of_linear(&block.boom.linear, part),
        "attn" => match part {
            "qs" => Some(param(&attention?.q_gate)),
            "ks" => Some(param(&attention?.k_gate)),
            "vs" => Some(param(&gate?.gate)),
            _ => None,
        },
        "rnn" => match part {
            "weight_ih_l0" => Some(param(&block.lstm.weight_ih)),
            "weight_hh_l0" => Some(param(&block.lstm.weight_hh)),
            "bias_ih_l0" => Some(param(&block.lstm.bias_ih)),
            "bias_hh_l0" => Some(param(&block.lstm.bias_hh)),
            _ => None,
        },
        _ => None,
    }
}

fn of_norm<B: BurnBackend>(norm: &LayerNorm<B>, part: &str) -> Option<Vec<f32>> {
    match part {
        "weight" => Some(param(&norm.weight)),
        "bias" => Some(param(&norm.bias)),
        _ => None,
    }
}

fn of_linear<B: BurnBackend>(linear: &Linear<B>, part: &str) -> Option<Vec<f32>> {
    match part {
        "weight" => Some(param(&linear.weight)),
        "bias" => Some(param(&linear.bias)),
        _ => None,
    }
}

fn param<B: BurnBackend, const D: usize>(param: &Param<Tensor<B, D>>) -> Vec<f32> {
    values(param.val())
}
