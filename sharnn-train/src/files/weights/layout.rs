//! Name and shape of every tensor of the published model.

use sharnn_core::{NGramConfig, ShaRnnConfig};

use super::{DECODER, DECODER_BIAS, ENCODER};

/// The tensors that a model of `config` must find in a file, in the order of the model, for its first `n_blocks` blocks, of
/// which those in `attending` attend. `collapsed` says of a block whether its value gate is.
///
/// Of the configuration nothing is taken for granted but that it has been validated: sizes may be any number.
pub(super) fn tensors(
    config: &ShaRnnConfig,
    n_blocks: usize,
    attending: &[usize],
    collapsed: impl Fn(usize) -> bool,
) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (d, vocab_size) = (config.d_model, config.vocab_size);
    let blocks = (0..n_blocks).flat_map(move |block| {
        let attends = attending.binary_search(&block).is_ok();
        let tensors = block_tensors(config, attends, attends && collapsed(block));
        tensors.into_iter().map(move |(name, shape)| (format!("blocks.{block}.{name}"), shape))
    });
    let decoder = (!config.tied).then(|| (DECODER.to_string(), vec![vocab_size, d]));
    std::iter::once((ENCODER.to_string(), vec![vocab_size, d]))
        .chain(blocks)
        .chain(decoder)
        .chain(std::iter::once((DECODER_BIAS.to_string(), vec![vocab_size])))
        .chain(config.ngrams.iter().flat_map(move |ngrams| ngram_tensors(ngrams, d)))
}

fn ngram_tensors(ngrams: &NGramConfig, d: usize) -> Vec<(String, Vec<usize>)> {
    let tables = ngrams.orders.len();
    let maps = [(ngrams.at.is_input(), "input"), (ngrams.at.is_output(), "output")];
    let maps = maps.into_iter().filter(|(is_there, _)| *is_there);
    std::iter::once(("ngrams.table".to_string(), vec![tables.saturating_mul(ngrams.rows), ngrams.width]))
        .chain(maps.map(|(_, name)| (format!("ngrams.{name}"), vec![d, tables.saturating_mul(ngrams.width)])))
        .collect()
}

fn block_tensors(config: &ShaRnnConfig, attends: bool, collapsed: bool) -> Vec<(String, Vec<usize>)> {
    let (d, d_ff) = (config.d_model, config.d_ff);
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[usize]| tensors.push((name.to_string(), shape.to_vec()));
    let affine = |add: &mut dyn FnMut(&str, &[usize]), name: &str, weight: &[usize]| {
        add(&format!("{name}.weight"), weight);
        add(&format!("{name}.bias"), &weight[..1]);
    };
    affine(&mut add, "lnstart", &[d]);
    for which in ["ih", "hh"] {
        add(&format!("rnn.weight_{which}_l0"), &[d.saturating_mul(4), d]);
        add(&format!("rnn.bias_{which}_l0"), &[d.saturating_mul(4)]);
    }
    if attends {
        affine(&mut add, "lnmid", &[d]);
        affine(&mut add, "lnmem", &[d]);
        affine(&mut add, "attn.q", &[d, d]);
        affine(&mut add, "attn.qln", &[d]);
        for gate in ["qs", "ks", "vs"] {
            add(&format!("attn.{gate}"), &[1, 1, d]);
        }
        if !collapsed {
            affine(&mut add, "attn.vq.l1", &[d.saturating_mul(2), d]);
        }
    }
    affine(&mut add, "lnff", &[d]);
    affine(&mut add, "lnxff", &[d]);
    affine(&mut add, "ff.linear1", &[d_ff, d]);
    tensors
}

/// The shape in a file of a parameter that has this one in the model: gates are vectors here and `[1, 1, d_model]` there.
pub(super) fn published_shape(name: &str, shape: &[usize]) -> Vec<usize> {
    let gate = [".attn.qs", ".attn.ks", ".attn.vs"].iter().any(|gate| name.ends_with(gate));
    if gate { [&[1, 1], shape].concat() } else { shape.to_vec() }
}

/// Number of the block that a tensor belongs to, and its name there.
pub(super) fn in_block(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let block = index.parse().ok()?;
    // As it is written, and not "+1" or "01".
    (index == format!("{block}")).then_some((block, rest))
}

/// Whether the published model carries a block's tensor without ever giving it a gradient.
pub(super) fn is_unused(name: &str, attends: bool) -> bool {
    match name {
        "lnout.weight" | "lnout.bias" => true,
        "attn.qkvs" | "attn.r_gate" => attends,
        "lnmid.weight" | "lnmid.bias" | "lnmem.weight" | "lnmem.bias" => !attends,
        _ => false,
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Flex;
    use sharnn_core::{Attend, NGramSite, pytorch_name};

    use super::*;
    use crate::params::param_infos;

    #[test]
    fn the_layout_is_that_of_the_model() {
        let base = ShaRnnConfig { d_model: 8, d_ff: 24, n_layers: 3, vocab_size: 11, ..ShaRnnConfig::xs() };
        let of = |at| NGramConfig { orders: vec![2, 4], rows: 5, width: 3, at };
        for at in [NGramSite::Embedding, NGramSite::Decoder, NGramSite::Both] {
            let config = base.clone().with_ngrams(of(at));
            let model = config.init_seeded::<Flex>(1, &Default::default());
            let mut of_model: Vec<_> = param_infos(&model).into_iter().map(|param| (param.path, param.shape)).collect();
            of_model.retain(|(name, _)| name.starts_with("ngrams."));
            let attending = config.attend.blocks(3);
            let layout = tensors(&config, 3, &attending, |_| false);
            assert_eq!(layout.filter(|(name, _)| name.starts_with("ngrams.")).collect::<Vec<_>>(), of_model);
        }
        for attend in [Attend::None, Attend::SecondLast, Attend::All] {
            for (tied, collapsed) in [(true, false), (false, false), (true, true)] {
                let config = base.clone().with_attend(attend.clone()).with_tied(tied);
                let model = config.init_seeded::<Flex>(1, &Default::default());
                let model = if collapsed { model.collapse() } else { model };
                let mut of_model: Vec<_> = param_infos(&model)
                    .into_iter()
                    .map(|param| {
                        let name = pytorch_name(&param.path);
                        let shape = published_shape(&name, &param.shape);
                        (name, shape)
                    })
                    .collect();
                let mut layout: Vec<_> = tensors(&config, 3, &attend.blocks(3), |_| collapsed).collect();
                of_model.sort();
                layout.sort();
                assert_eq!(layout, of_model);
            }
        }
    }

    #[test]
    fn a_block_is_named_as_it_is_written() {
        assert_eq!(in_block("blocks.12.attn.qs"), Some((12, "attn.qs")));
        for name in ["blocks.x.attn.qs", "blocks.01.a", "blocks.+1.a", "blocks.1", "block.1.a", "blocks.-1.a"] {
            assert_eq!(in_block(name), None, "{name}");
        }
    }
}
