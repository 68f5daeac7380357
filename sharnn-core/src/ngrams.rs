//! A memory of n-grams: tables of rows that the last bytes choose, added to the embedding and to what the decoder reads.
//!
//! ```text
//! H_1(t) = x_t + 1;   H_n(t) = (4093 H_{n-1}(t - 1) + x_t + 1) mod 524287        x_t the token, -1 before the stream's start
//! r(t) = [table_n[H_n(t) mod rows] for each order n]                             [orders x width]
//! e(t) = embedding[x_t] + W_in r(t);   logits(t) = W (h(t) + W_out r(t)) + b
//! ```
//!
//! All of the hash is exact in 32 bits with a sign, for fewer tokens than the modulus. Hashed n-grams of bytes after Pagnoni et al. 2024
//! (Byte Latent Transformer, arXiv 2412.09871).

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend as BurnBackend};

use crate::config::context;
use crate::init::Initializer;
use crate::{Backend, NGramConfig, NGramSite, Precision};

pub use sharnn_stream::{NGRAM_MODULUS, NGRAM_MULTIPLIER};

/// The n-gram memory of a model.
#[derive(Module, Debug)]
pub struct NGrams<B: BurnBackend> {
    /// Tables of all orders below each other, `[orders x rows, width]`. No graph holds it: a segment's rows are gathered and enter as a
    /// leaf, see [`NGramRows`].
    pub table: Param<Tensor<B, 2>>,
    /// `[d_model, orders x width]`, where rows are added to the embedding.
    pub input: Option<Param<Tensor<B, 2>>>,
    /// `[d_model, orders x width]`, where rows are added to what the decoder reads.
    pub output: Option<Param<Tensor<B, 2>>>,
    /// The orders, rising.
    pub orders: Vec<usize>,
    /// Rows of each table.
    pub rows: usize,
}

/// The rows of the table that a segment used. Where the table is not trained their values are no leaf.
#[derive(Clone, Debug)]
pub struct NGramRows<B: BurnBackend> {
    /// Which rows, `[n]`; the same one may be there often.
    pub rows: Tensor<B, 1, Int>,
    /// Their values, `[n, width]`: a leaf of the segment's graph, whose gradient is that of the rows.
    pub values: Tensor<B, 2>,
}

impl<B: BurnBackend> NGrams<B> {
    pub(crate) fn new(config: &NGramConfig, d_model: usize, init: &mut Initializer<B>) -> Self {
        let width = config.orders.len() * config.width;
        let mut map = |is_there: bool| is_there.then(|| init.map([d_model, width], width));
        let (input, output) = (map(config.at.is_input()), map(config.at.is_output()));
        let table = init.zeros([config.orders.len() * config.rows, config.width]);
        Self { table, input, output, orders: config.orders.clone(), rows: config.rows }
    }

    /// How many tokens before a segment its rows depend on.
    pub fn context(&self) -> usize {
        context(&self.orders)
    }

    /// The configuration that it was made with.
    pub(crate) fn config(&self) -> NGramConfig {
        let at = match (&self.input, &self.output) {
            (Some(_), Some(_)) => NGramSite::Both,
            (Some(_), None) => NGramSite::Embedding,
            _ => NGramSite::Decoder,
        };
        NGramConfig { orders: self.orders.clone(), rows: self.rows, width: self.table.dims()[1], at }
    }
}

impl<B: Backend> NGrams<B> {
    /// The row of each order at each token.
    ///
    /// # Shapes
    /// - `tokens`: `[context + seq_len, batch_size]`, those before the segment first
    /// - result: `[seq_len, batch_size, orders]`
    fn hash(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3, Int> {
        let [len, _] = tokens.dims();
        let seq_len = len - self.context();
        let tokens = tokens + 1;
        let mut hash = tokens.clone();
        let mut rows = Vec::with_capacity(self.orders.len());
        for order in 1..=self.context() + 1 {
            if order > 1 {
                let [before, _] = hash.dims();
                let newest = tokens.clone().narrow(0, order - 1, before - 1);
                hash = (hash.narrow(0, 0, before - 1) * NGRAM_MULTIPLIER as i32 + newest)
                    .remainder_scalar(NGRAM_MODULUS as i32);
            }
            if let Some(table) = self.orders.iter().position(|&other| other == order) {
                let [hashes, _] = hash.dims();
                let of_segment = hash.clone().narrow(0, hashes - seq_len, seq_len);
                let row = of_segment.remainder_scalar(self.rows as i32) + (table * self.rows) as i32;
                rows.push(row.unsqueeze_dim(2));
            }
        }
        Tensor::cat(rows, 2)
    }

    /// The rows of a segment, and the tokens before the next one.
    ///
    /// # Shapes
    /// - `tokens`: `[seq_len, batch_size]`
    /// - `recent` and that of the result: `[batch_size, context]`; `None` at the start of a stream
    pub(crate) fn gather(
        &self,
        tokens: Tensor<B, 2, Int>,
        recent: Option<Tensor<B, 2, Int>>,
    ) -> (NGramRows<B>, Tensor<B, 2, Int>) {
        let [seq_len, batch_size] = tokens.dims();
        let context = self.context();
        let before = match recent {
            Some(recent) => {
                let dims = recent.dims();
                assert_eq!(
                    dims,
                    [batch_size, context],
                    "newest tokens have shape {dims:?}, expected {:?}",
                    [batch_size, context]
                );
                recent.swap_dims(0, 1)
            }
            None => Tensor::full([context, batch_size], -1, &tokens.device()),
        };
        let tokens = Tensor::cat(vec![before, tokens], 0);
        let rows: Tensor<B, 1, Int> = self.hash(tokens.clone()).flatten(0, 2);
        let table = self.table.val();
        let trains = table.is_require_grad();
        let values = table.detach().select(0, rows.clone()).detach().set_require_grad(trains);
        (NGramRows { rows, values }, tokens.narrow(0, seq_len, context).swap_dims(0, 1))
    }

    /// Embeddings with what the map of the input makes of their rows added, where there is one.
    ///
    /// # Shapes
    /// - `h` and result: `[seq_len, batch_size, d_model]`
    pub(crate) fn add_input(&self, h: Tensor<B, 3>, rows: &NGramRows<B>, precision: Precision) -> Tensor<B, 3> {
        add(h, self.input.as_ref(), rows, precision)
    }

    /// The same of what the decoder reads.
    pub(crate) fn add_output(&self, h: Tensor<B, 3>, rows: &NGramRows<B>, precision: Precision) -> Tensor<B, 3> {
        add(h, self.output.as_ref(), rows, precision)
    }
}

fn add<B: Backend>(
    h: Tensor<B, 3>,
    map: Option<&Param<Tensor<B, 2>>>,
    rows: &NGramRows<B>,
    precision: Precision,
) -> Tensor<B, 3> {
    let Some(map) = map else { return h };
    let [seq_len, batch_size, d] = h.dims();
    let [_, width] = map.dims();
    let values = rows.values.clone().reshape([seq_len * batch_size, width]);
    let bias = Tensor::zeros([d], (&h.device(), h.dtype()));
    h + B::affine(values, map.val(), bias, precision).reshape([seq_len, batch_size, d])
}
