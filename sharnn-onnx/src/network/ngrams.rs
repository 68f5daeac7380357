//! The memory of n-grams: the hash in integers, the rows that it chooses, and the maps that add them.
//!
//! ```text
//! ids = [recent ; tokens] + 1;   H_n(t) = (ids(t) + Σ_{0 < k < n} terms_k[ids(t - k)]) mod 524287;   terms_k[i] = 4093^k i mod 524287
//! r = the rows H_n mod rows of the tables;   next recent = the last tokens of [recent ; tokens]
//! ```
//!
//! This is the model's hash, written as a sum: its integers are below 2^24 and so exact in a runtime that computes a remainder in f32,
//! as OpenVINO 2026.4 does.

use burn::module::Param;
use burn::tensor::Tensor;
use sharnn_core::{Backend, NGRAM_MODULUS, NGRAM_MULTIPLIER, NGrams};

use super::{BATCH, Shared, matrix, read, stored, widened};
use crate::graph::{Graph, Size, Value, int, ints};
use crate::proto::DataType;

const MODULUS: i64 = NGRAM_MODULUS as i64;

/// The rows of each token, `[seq, batch, orders x width]`.
pub(super) fn rows<'a, B: Backend>(graph: &mut Graph<'a>, shared: &Shared, ngrams: &'a NGrams<B>) -> Value {
    let [all_rows, width] = ngrams.table.dims();
    let places = places(graph, shared, ngrams);
    let table = stored(graph, shared, "ngrams.table", [all_rows, width], || read("ngrams.table", &ngrams.table));
    let gathered = graph.node("ngrams", "Gather", &[&table, &places], vec![int("axis", 0)]);
    let gathered = widened(graph, shared, "ngrams/f32", gathered);
    let sizes = graph.list("ngrams/joined/sizes", &[0, 0, (ngrams.orders.len() * width) as i64]);
    graph.node("ngrams/joined", "Reshape", &[&gathered, &sizes], vec![])
}

/// `h` with what a map makes of the rows, where there is one.
pub(super) fn add<'a, B: Backend>(
    graph: &mut Graph<'a>,
    shared: &Shared,
    name: &str,
    map: Option<&'a Param<Tensor<B, 2>>>,
    rows: &Value,
    h: Value,
) -> Value {
    let Some(map) = map else { return h };
    let [d, _] = map.dims();
    let weight = matrix(graph, shared, name, map, d);
    let product = graph.node(&format!("{name}/product"), "MatMul", &[rows, &weight], vec![]);
    graph.node(&format!("{name}/added"), "Add", &[&h, &product], vec![])
}

/// Where the rows of each token are in the table, `[seq, batch, orders]`.
fn places<B: Backend>(graph: &mut Graph<'_>, shared: &Shared, ngrams: &NGrams<B>) -> Value {
    let (context, axis) = (ngrams.context(), &shared.axes[1]);
    let end = graph.list("ngrams/end", &[i64::MAX]);
    let tokens = recent(graph, shared, context, &end);
    let one = graph.integer("ngrams/one", 1);
    let ids = graph.node("ngrams/ids", "Add", &[&tokens, &one], vec![]);

    let from = graph.list("ngrams/segment/from", &[context as i64]);
    let mut sum = graph.node("ngrams/segment", "Slice", &[&ids, &from, &end, axis], vec![]);
    let mut sums = Vec::with_capacity(ngrams.orders.len());
    let mut power = 1;
    for back in 1..=context {
        let name = format!("ngrams/{back}_back");
        let from = graph.list(&format!("{name}/from"), &[(context - back) as i64]);
        let to = graph.list(&format!("{name}/to"), &[-(back as i64)]);
        let ids = graph.node(&format!("{name}/ids"), "Slice", &[&ids, &from, &to, axis], vec![]);
        power = power * NGRAM_MULTIPLIER as i64 % MODULUS;
        let terms: Vec<_> = (0..=shared.vocab_size as i64).map(|id| power * id % MODULUS).collect();
        let terms = graph.list(&format!("{name}/terms"), &terms);
        let term = graph.node(&name, "Gather", &[&terms, &ids], vec![int("axis", 0)]);
        sum = graph.node(&format!("{name}/sum"), "Add", &[&sum, &term], vec![]);
        if ngrams.orders.contains(&(back + 1)) {
            sums.push(graph.node(&format!("{name}/column"), "Unsqueeze", &[&sum, &shared.axes[2]], vec![]));
        }
    }
    let sums = graph.node("ngrams/sums", "Concat", &sums.iter().collect::<Vec<_>>(), vec![int("axis", 2)]);
    let modulus = graph.integer("ngrams/modulus", MODULUS);
    let hashes = graph.node("ngrams/hashes", "Mod", &[&sums, &modulus], vec![]);
    let rows = graph.integer("ngrams/rows", ngrams.rows as i64);
    let row = graph.node("ngrams/row", "Mod", &[&hashes, &rows], vec![]);
    let tables: Vec<_> = (0..ngrams.orders.len()).map(|table| (table * ngrams.rows) as i64).collect();
    let tables = graph.list("ngrams/tables", &tables);
    let places = graph.node("ngrams/places", "Add", &[&row, &tables], vec![]);
    graph.node("ngrams/places/time_major", "Transpose", &[&places], vec![ints("perm", &[1, 0, 2])])
}

/// The tokens with those before the segment, `[batch, context + seq]`; the last of them are the next segment's `recent`.
fn recent(graph: &mut Graph<'_>, shared: &Shared, context: usize, end: &Value) -> Value {
    let shape = [BATCH, Size::Fixed(context)];
    let doc = "The newest tokens, oldest first: -1 each at the start of a stream, then next.recent.";
    let recent = graph.input("recent", DataType::Int64, &shape, doc.into());
    let tokens = graph.node("ngrams/tokens", "Concat", &[&recent, &shared.tokens], vec![int("axis", 1)]);
    let last = graph.list("ngrams/last", &[-(context as i64)]);
    let next = graph.node("next.recent", "Slice", &[&tokens, &last, end, &shared.axes[1]], vec![]);
    graph.output(&next, DataType::Int64, &shape, "recent of the next segment.".into());
    tokens
}
