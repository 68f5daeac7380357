//! The memory of n-grams: the hash in integers, the rows that it chooses, and the maps that add them.
//!
//! ```text
//! ids = [recent ; tokens] + 1;   H_1 = ids;   H_n(t) = (4093 H_{n-1}(t - 1) + ids(t)) mod 524287
//! r = the rows H_n mod rows of the tables;   next recent = the last tokens of [recent ; tokens]
//! ```
//!
//! Integers are int64 and below 2^31: a runtime that computes them in 32 bits is right too.

use burn::module::Param;
use burn::tensor::Tensor;
use sharnn_core::{Backend, NGRAM_MODULUS, NGRAM_MULTIPLIER, NGrams};

use super::{BATCH, Shared, matrix, read, stored, widened};
use crate::graph::{Graph, Size, Value, int, ints};
use crate::proto::DataType;

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
    let (begin, end) = (graph.list("ngrams/begin", &[0]), graph.list("ngrams/end", &[i64::MAX]));
    let tokens = recent(graph, shared, context, &end);

    let one = graph.integer("ngrams/one", 1);
    let ids = graph.node("ngrams/ids", "Add", &[&tokens, &one], vec![]);
    let multiplier = graph.integer("ngrams/multiplier", NGRAM_MULTIPLIER as i64);
    let modulus = graph.integer("ngrams/modulus", NGRAM_MODULUS as i64);
    let all_but_last = graph.list("ngrams/all_but_last", &[-1]);
    let mut hash = ids.clone();
    let mut of_orders = Vec::with_capacity(ngrams.orders.len());
    for order in 2..=context + 1 {
        let name = format!("ngrams/hash_{order}");
        let from = graph.list(&format!("{name}/from"), &[order as i64 - 1]);
        let newest = graph.node(&format!("{name}/newest"), "Slice", &[&ids, &from, &end, axis], vec![]);
        let before = graph.node(&format!("{name}/before"), "Slice", &[&hash, &begin, &all_but_last, axis], vec![]);
        let product = graph.node(&format!("{name}/product"), "Mul", &[&before, &multiplier], vec![]);
        let sum = graph.node(&format!("{name}/sum"), "Add", &[&product, &newest], vec![]);
        hash = graph.node(&name, "Mod", &[&sum, &modulus], vec![]);
        if ngrams.orders.contains(&order) {
            // What is left of the context precedes the segment.
            let from = graph.list(&format!("{name}/segment_from"), &[(context + 1 - order) as i64]);
            let segment = graph.node(&format!("{name}/segment"), "Slice", &[&hash, &from, &end, axis], vec![]);
            of_orders.push(graph.node(&format!("{name}/column"), "Unsqueeze", &[&segment, &shared.axes[2]], vec![]));
        }
    }
    let hashes = graph.node("ngrams/hashes", "Concat", &of_orders.iter().collect::<Vec<_>>(), vec![int("axis", 2)]);
    let rows = graph.integer("ngrams/rows", ngrams.rows as i64);
    let places = graph.node("ngrams/row", "Mod", &[&hashes, &rows], vec![]);
    let tables: Vec<_> = (0..ngrams.orders.len()).map(|table| (table * ngrams.rows) as i64).collect();
    let tables = graph.list("ngrams/tables", &tables);
    let places = graph.node("ngrams/places", "Add", &[&places, &tables], vec![]);
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
