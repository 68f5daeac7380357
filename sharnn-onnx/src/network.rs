//! The model as a graph of standard operators, opset 17.
//!
//! ```text
//! x = LayerNormalization(x)
//! y, h, c = LSTM(x, h, c)
//! K = last mem_len rows of [memory ; LayerNormalization(y)]              in blocks that attend: this is the next memory too
//! q = LayerNormalization(y),  x = q + r ⊙ Softmax(LayerNormalization(W_q q + b_q) Kᵀ + mask) K
//! x = LayerNormalization(x) + Σ chunks of GELU(W LayerNormalization(x) + b)
//! ```
//!
//! Inside, values are time-major, `[seq, batch, d_model]`, as ONNX's LSTM has them; attention is batch-first. Gates of the
//! query and of the keys and the scale of the scores multiply the norm of the query once and for all.
//!
//! A memory of n-grams adds to the first x and to what the decoder reads: see [`ngrams`].
//!
//! The model cuts a memory to `mem_len - seq` rows before a segment. With the segment's own rows these are the last
//! `mem_len` rows of memory and segment, which is how the graph cuts them.

mod ngrams;

use burn::module::Param;
use burn::tensor::{Tensor, backend::Backend as BurnBackend};
use sharnn_core::ops::LAYER_NORM_EPS;
use sharnn_core::{
    Attending, Backend, Block, GELU_SLOPE, LayerNorm, Linear, Lstm, Precision, ShaRnn, SingleHeadAttention, ValueGate,
};

use crate::export::OnnxWeights;
use crate::graph::{Graph, Size, Value, float, int, ints};
use crate::proto::DataType;
use crate::{OnnxError, OnnxExport};

/// ONNX's order of an LSTM's gates, i, o, f and g (which it calls c), as places in ours: i, f, g, o.
const GATES: [usize; 4] = [0, 3, 1, 2];

const BATCH: Size = Size::Dynamic("batch");

/// The finite values of a weight.
fn read<B: BurnBackend, const D: usize>(name: &str, param: &Param<Tensor<B, D>>) -> Result<Vec<f32>, OnnxError> {
    finite(name, param.val())
}

fn finite<B: BurnBackend, const D: usize>(name: &str, tensor: Tensor<B, D>) -> Result<Vec<f32>, OnnxError> {
    let values: Vec<f32> = tensor.into_data().convert::<f32>().into_vec().expect("was converted to f32");
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(OnnxError::NotFinite { tensor: name.into(), index, value: values[index] }),
        None => Ok(values),
    }
}

/// `[cols, rows]` of the first `rows` of `[.., cols]`.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    for (row, values) in values.chunks(cols).take(rows).enumerate() {
        for (col, &value) in values.iter().enumerate() {
            out[col * rows + row] = value;
        }
    }
    out
}

/// The four gates' parts in ONNX's order.
fn gates_in_order(values: &[f32]) -> Vec<f32> {
    let gate = values.len() / 4;
    GATES.iter().flat_map(|&place| &values[place * gate..][..gate]).copied().collect()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// What is made once for all blocks.
struct Shared {
    single_step: bool,
    vocab_size: usize,
    mem_len: usize,
    weights: OnnxWeights,
    /// Tokens, `[batch, seq]`.
    tokens: Value,
    /// The lists `[0]`, `[1]` and `[2]`. ONNX's LSTM has an axis for its directions: 0 in states, 1 in outputs.
    axes: [Value; 3],
    gelu_slope: Value,
    /// The first row of memory and segment that is kept, `[1]`; made by the first block with a memory.
    first_row: Option<Value>,
    /// 0 where a query may look and -inf where not, `[seq, rows kept]`; made by the first block that attends.
    mask: Option<Value>,
}

/// The graph of a model.
pub(crate) fn network<'a, B: Backend>(model: &'a ShaRnn<B>, export: &OnnxExport) -> Graph<'a> {
    let mut graph = Graph::default();
    graph.proto.name = "sharnn".into();
    build(&mut graph, model, export);
    graph
}

fn build<'a, B: Backend>(graph: &mut Graph<'a>, model: &'a ShaRnn<B>, export: &OnnxExport) {
    let [vocab_size, d] = model.encoder.weight.dims();
    let seq = if export.single_step { Size::Fixed(1) } else { Size::Dynamic("seq") };

    let doc = format!("Token ids, 0 to {}.", vocab_size - 1);
    let tokens = graph.input("tokens", DataType::Int64, &[BATCH, seq], doc);
    let mut shared = Shared {
        single_step: export.single_step,
        vocab_size,
        mem_len: model.mem_len,
        weights: export.weights,
        axes: [0, 1, 2].map(|axis| graph.list(&format!("axis_{axis}"), &[axis])),
        gelu_slope: graph.scalar("gelu_slope", GELU_SLOPE as f32),
        first_row: None,
        mask: None,
        tokens,
    };

    let name = "encoder.weight";
    let embedding = stored(graph, &shared, name, [vocab_size, d], move || read(name, &model.encoder.weight));
    let ids = graph.node("tokens/time_major", "Transpose", &[&shared.tokens], vec![ints("perm", &[1, 0])]);
    let rows = graph.node("encoder", "Gather", &[&embedding, &ids], vec![int("axis", 0)]);
    let mut h = widened(graph, &shared, "encoder/f32", rows);
    let ngrams = model.ngrams.as_ref().map(|ngrams| (ngrams, ngrams::rows(graph, &shared, ngrams)));
    if let Some((ngrams, rows)) = &ngrams {
        h = ngrams::add(graph, &shared, "ngrams.input", ngrams.input.as_ref(), rows, h);
    }
    for (index, block_of) in model.blocks.iter().enumerate() {
        h = block(graph, &mut shared, block_of, index, h);
    }
    if let Some((ngrams, rows)) = &ngrams {
        h = ngrams::add(graph, &shared, "ngrams.output", ngrams.output.as_ref(), rows, h);
    }

    let h = graph.node("decoder/batch_first", "Transpose", &[&h], vec![ints("perm", &[1, 0, 2])]);
    let weight = match &model.decoder.weight {
        None => {
            let weight = widened(graph, &shared, "decoder/f32", embedding);
            graph.node("decoder/weight", "Transpose", &[&weight], vec![ints("perm", &[1, 0])])
        }
        Some(weight) => matrix(graph, &shared, "decoder.weight", weight, vocab_size),
    };
    let bias = vector(graph, "decoder.bias", &model.decoder.bias);
    let product = graph.node("decoder", "MatMul", &[&h, &weight], vec![]);
    let logits = graph.node("logits", "Add", &[&product, &bias], vec![]);
    let doc = "Of the token after each token: a softmax makes them probabilities.";
    graph.output(&logits, DataType::Float, &[BATCH, seq, Size::Fixed(vocab_size)], doc.into());
}

fn block<'a, B: Backend>(
    graph: &mut Graph<'a>,
    shared: &mut Shared,
    block: &'a Block<B>,
    index: usize,
    h: Value,
) -> Value {
    let at = format!("blocks.{index}");
    let x = norm(graph, &format!("{at}.norm_start"), &block.norm_start, &h);
    let mut h = lstm(graph, shared, &at, &block.lstm, index, &x);
    if let Some(attending) = &block.attending {
        h = attention(graph, shared, &at, attending, index, &h);
    }
    let residual = norm(graph, &format!("{at}.norm_ff"), &block.norm_ff, &h);
    let x = norm(graph, &format!("{at}.norm_xff"), &block.norm_xff, &h);
    let boom = boom(graph, shared, &format!("{at}.boom"), &block.boom.linear, &x);
    graph.node(&format!("{at}/out"), "Add", &[&residual, &boom], vec![])
}

fn lstm<'a, B: Backend>(
    graph: &mut Graph<'a>,
    shared: &Shared,
    at: &str,
    lstm: &'a Lstm<B>,
    index: usize,
    x: &Value,
) -> Value {
    let [_, d] = lstm.weight_hh.dims();
    let name = format!("{at}.lstm");
    let mut gates = |what: &str, weight: &'a Param<Tensor<B, 2>>| {
        let path = format!("{name}.{what}");
        let values = {
            let path = path.clone();
            move || Ok(gates_in_order(&read(&path, weight)?))
        };
        let stored = stored(graph, shared, &path, [1, 4 * d, d], values);
        widened(graph, shared, &format!("{path}/f32"), stored)
    };
    let weights = [gates("weight_ih", &lstm.weight_ih), gates("weight_hh", &lstm.weight_hh)];
    let paths = [format!("{name}.bias_ih"), format!("{name}.bias_hh")];
    let bias = graph.tensor(&format!("{name}.bias"), &[1, 8 * d], move || {
        let [ih, hh] = [read(&paths[0], &lstm.bias_ih)?, read(&paths[1], &lstm.bias_hh)?];
        Ok([gates_in_order(&ih), gates_in_order(&hh)].concat())
    });

    let mut state = |what: &str, kind: &str| {
        let shape = [BATCH, Size::Fixed(d)];
        let doc =
            format!("{kind} state of block {index}'s LSTM: zeros at the start of a stream, then next.{what}.{index}.");
        let value = graph.input(&format!("{what}.{index}"), DataType::Float, &shape, doc);
        graph.node(&format!("{name}/{what}"), "Unsqueeze", &[&value, &shared.axes[0]], vec![])
    };
    let (h, c) = (state("h", "Hidden"), state("c", "Cell"));
    let inputs = [x, &weights[0], &weights[1], &bias, &Graph::absent(), &h, &c];
    let outputs = ["/out", "/last_h", "/last_c"];
    let [y, last_h, last_c] = graph.node_of(&name, "LSTM", &inputs, outputs, vec![int("hidden_size", d as i64)]);
    for (what, last) in [("h", &last_h), ("c", &last_c)] {
        let next = graph.node(&format!("next.{what}.{index}"), "Squeeze", &[last, &shared.axes[0]], vec![]);
        let doc = format!("{what}.{index} of the next segment.");
        graph.output(&next, DataType::Float, &[BATCH, Size::Fixed(d)], doc);
    }
    match shared.single_step {
        // Outputs and last state are the same then, and this one has the shape already.
        true => last_h,
        false => graph.node(&format!("{name}/squeezed"), "Squeeze", &[&y, &shared.axes[1]], vec![]),
    }
}

fn attention<'a, B: Backend>(
    graph: &mut Graph<'a>,
    shared: &mut Shared,
    at: &str,
    attending: &'a Attending<B>,
    index: usize,
    h: &Value,
) -> Value {
    let (path, attention) = (format!("{at}.attending"), &attending.attention);
    let swapped = || vec![ints("perm", &[1, 0, 2])];
    let [d] = attention.q_gate.dims();
    let n_heads = attention.n_heads;

    let current = norm(graph, &format!("{path}.norm_mem"), &attending.norm_mem, h);
    let current = graph.node(&format!("{path}/current"), "Transpose", &[&current], swapped());
    let keys = match shared.mem_len {
        0 => current,
        mem_len => extend_memory(graph, shared, &path, index, [mem_len, d], &current),
    };

    let residual = norm(graph, &format!("{path}.norm_mid"), &attending.norm_mid, h);
    let name = format!("{path}.attention");
    let query = query(graph, shared, &name, attention, &residual);

    // `[batch, seq, d]`, or with a dimension of heads after the batch.
    let heads = |graph: &mut Graph<'a>, what: &str, x: &Value, batch_first: bool| {
        let sizes = graph.list(&format!("{name}/{what}/sizes"), &[0, 0, n_heads as i64, (d / n_heads) as i64]);
        let split = graph.node(&format!("{name}/{what}/split"), "Reshape", &[x, &sizes], vec![]);
        let perm = if batch_first { [0, 2, 1, 3] } else { [1, 2, 0, 3] };
        graph.node(&format!("{name}/{what}"), "Transpose", &[&split], vec![ints("perm", &perm)])
    };
    let (query, split_keys) = match n_heads {
        1 => (graph.node(&format!("{name}/queries"), "Transpose", &[&query], swapped()), keys.clone()),
        _ => (heads(graph, "queries", &query, false), heads(graph, "keys", &keys, true)),
    };
    let perm = if n_heads == 1 { &[0, 2, 1][..] } else { &[0, 1, 3, 2] };
    let turned = |graph: &mut Graph<'a>, what: &str, x: &Value| {
        graph.node(&format!("{name}/{what}"), "Transpose", &[x], vec![ints("perm", perm)])
    };
    let scores = if shared.single_step {
        // The one query is turned, and not the whole memory. A single token sees everything that is there. (The usual form, of one row,
        // OpenVINO 2026.4 computes wrongly from 16 keys on.)
        let column = turned(graph, "column", &query);
        let column = graph.node(&format!("{name}/scores_column"), "MatMul", &[&split_keys, &column], vec![]);
        turned(graph, "scores", &column)
    } else {
        let across = turned(graph, "keys_across", &split_keys);
        let scores = graph.node(&format!("{name}/scores"), "MatMul", &[&query, &across], vec![]);
        let mask = shared.mask.take().unwrap_or_else(|| causal_mask(graph, shared, &keys));
        let masked = graph.node(&format!("{name}/masked"), "Add", &[&scores, &mask], vec![]);
        shared.mask = Some(mask);
        masked
    };
    let weights = graph.node(&format!("{name}/weights"), "Softmax", &[&scores], vec![int("axis", -1)]);
    let mix = graph.node(&format!("{name}/mix"), "MatMul", &[&weights, &split_keys], vec![]);
    let mix = match n_heads {
        1 => graph.node(&format!("{name}/joined"), "Transpose", &[&mix], swapped()),
        _ => {
            let perm = vec![ints("perm", &[2, 0, 1, 3])];
            let apart = graph.node(&format!("{name}/apart"), "Transpose", &[&mix], perm);
            let sizes = graph.list(&format!("{name}/joined/sizes"), &[0, 0, d as i64]);
            graph.node(&format!("{name}/joined"), "Reshape", &[&apart, &sizes], vec![])
        }
    };
    let gate_name = format!("{name}.value_gate");
    let path_of_gate = gate_name.clone();
    let value_gate = graph.tensor(&gate_name, &[d], move || collapsed(&path_of_gate, &attention.value_gate));
    let gated = graph.node(&format!("{name}/gated"), "Mul", &[&mix, &value_gate], vec![]);
    graph.node(&format!("{path}/out"), "Add", &[&residual, &gated], vec![])
}

/// The query, times the gates of query and keys and the scale of the scores: all are in its norm.
fn query<'a, B: Backend>(
    graph: &mut Graph<'a>,
    shared: &Shared,
    name: &str,
    attention: &'a SingleHeadAttention<B>,
    x: &Value,
) -> Value {
    let [d] = attention.q_gate.dims();
    let mapped = linear(graph, shared, &format!("{name}.query"), &attention.query, d, x);
    let norm_name = format!("{name}.query_norm");
    let mut scaled = |what: &str, param: &'a Param<Tensor<B, 1>>| {
        let path = format!("{norm_name}.{what}");
        let gates = ["q_gate", "k_gate"].map(|gate| format!("{name}.{gate}"));
        graph.tensor(&path.clone(), &[d], move || {
            let scale = 1.0 / ((d / attention.n_heads) as f32).sqrt();
            let (q_gate, k_gate) = (read(&gates[0], &attention.q_gate)?, read(&gates[1], &attention.k_gate)?);
            let gates = q_gate.iter().zip(k_gate).map(|(&q, k)| sigmoid(q) * sigmoid(k) * scale);
            Ok(read(&path, param)?.iter().zip(gates).map(|(value, gate)| value * gate).collect())
        })
    };
    let weight = scaled("weight", &attention.query_norm.weight);
    let bias = scaled("bias", &attention.query_norm.bias);
    layer_norm(graph, &norm_name, [&mapped, &weight, &bias])
}

/// The vector of a value gate.
fn collapsed<B: Backend>(path: &str, value_gate: &ValueGate<B>) -> Result<Vec<f32>, OnnxError> {
    // Its functions make a number of what is none.
    read(&format!("{path}.gate"), &value_gate.gate)?;
    if let Some(linear) = &value_gate.linear {
        read(&format!("{path}.linear.weight"), &linear.weight)?;
        read(&format!("{path}.linear.bias"), &linear.bias)?;
    }
    finite(path, value_gate.forward(Precision::F32))
}

/// The last `mem_len` rows of memory and segment: what the segment sees, and the next memory.
fn extend_memory(
    graph: &mut Graph<'_>,
    shared: &mut Shared,
    path: &str,
    index: usize,
    [mem_len, d]: [usize; 2],
    current: &Value,
) -> Value {
    let shape = |rows| [BATCH, Size::Dynamic(rows), Size::Fixed(d)];
    let doc = format!(
        "Memory of block {index}, oldest row first: no rows at the start of a stream, then next.memory.{index}. At most its \
         last {mem_len} - seq rows are used, as many in every block."
    );
    let memory = graph.input(&format!("memory.{index}"), DataType::Float, &shape("rows"), doc);
    let all = graph.node(&format!("{path}/rows"), "Concat", &[&memory, current], vec![int("axis", 1)]);
    let first = shared.first_row.take().unwrap_or_else(|| first_row(graph, &all, mem_len));
    let end = graph.list(&format!("{path}/end"), &[i64::MAX]);
    let next = graph.node(&format!("next.memory.{index}"), "Slice", &[&all, &first, &end, &shared.axes[1]], vec![]);
    shared.first_row = Some(first);
    let doc = format!("memory.{index} of the next segment: at most {mem_len} rows.");
    graph.output(&next, DataType::Float, &shape("next_rows"), doc);
    next
}

/// Where the last `mem_len` rows begin. A slice from `-mem_len` on would say it in one, but tract takes no such start where
/// there are fewer rows.
fn first_row(graph: &mut Graph<'_>, rows: &Value, mem_len: usize) -> Value {
    let rows = graph.node("memory/rows", "Shape", &[rows], vec![int("start", 1), int("end", 2)]);
    let (kept, zero) =
        (graph.list("memory/mem_len", &[i64::try_from(mem_len).unwrap_or(i64::MAX)]), graph.list("memory/none", &[0]));
    let older = graph.node("memory/too_old", "Sub", &[&rows, &kept], vec![]);
    graph.node("memory/first_row", "Max", &[&older, &zero], vec![])
}

/// A query sees the memory and the segment's rows up to its own. A segment of which rows are missing, as it is longer than
/// `mem_len`, asks for a negative number of older rows, which is an error.
fn causal_mask(graph: &mut Graph<'_>, shared: &Shared, keys: &Value) -> Value {
    let of_axis_1 = || vec![int("start", 1), int("end", 2)];
    let seq = graph.node("mask/seq", "Shape", &[&shared.tokens], of_axis_1());
    let rows = graph.node("mask/rows", "Shape", &[keys], of_axis_1());
    let (zero, one) = (graph.integer("mask/zero", 0), graph.integer("mask/one", 1));
    let end = graph.node("mask/end", "Squeeze", &[&seq, &shared.axes[0]], vec![]);
    let places = graph.node("mask/range", "Range", &[&zero, &end, &one], vec![]);
    let places = graph.node("mask/places", "Cast", &[&places], vec![int("to", DataType::Float as i64)]);
    let older = graph.node("mask/older", "Sub", &[&rows, &seq], vec![]);
    let older = graph.node("mask/older_places", "ConstantOfShape", &[&older], vec![]);
    let keys = graph.node("mask/keys", "Concat", &[&older, &places], vec![int("axis", 0)]);
    let queries = graph.node("mask/queries", "Unsqueeze", &[&places, &shared.axes[1]], vec![]);
    let later = graph.node("mask/later", "Greater", &[&keys, &queries], vec![]);
    let (hidden, seen) = (graph.scalar("mask/hidden", f32::NEG_INFINITY), graph.scalar("mask/seen", 0.0));
    graph.node("mask", "Where", &[&later, &hidden, &seen], vec![])
}

fn boom<'a, B: Backend>(graph: &mut Graph<'a>, shared: &Shared, name: &str, layer: &'a Linear<B>, x: &Value) -> Value {
    let [d_ff, d] = layer.weight.dims();
    // What is left of `d_ff` after the last whole chunk is never used.
    let chunks = d_ff / d;
    let u = linear(graph, shared, &format!("{name}.linear"), layer, chunks * d, x);
    let slope = graph.node(&format!("{name}/slope"), "Mul", &[&u, &shared.gelu_slope], vec![]);
    let sigmoid = graph.node(&format!("{name}/sigmoid"), "Sigmoid", &[&slope], vec![]);
    let gelu = graph.node(&format!("{name}/gelu"), "Mul", &[&u, &sigmoid], vec![]);
    if chunks == 1 {
        return gelu;
    }
    let sizes = graph.list(&format!("{name}/sizes"), &[0, 0, chunks as i64, d as i64]);
    let apart = graph.node(&format!("{name}/chunks"), "Reshape", &[&gelu, &sizes], vec![]);
    graph.node(&format!("{name}/sum"), "ReduceSum", &[&apart, &shared.axes[2]], vec![int("keepdims", 0)])
}

/// The first `d_out` outputs of an affine map.
fn linear<'a, B: Backend>(
    graph: &mut Graph<'a>,
    shared: &Shared,
    name: &str,
    linear: &'a Linear<B>,
    d_out: usize,
    x: &Value,
) -> Value {
    let weight = matrix(graph, shared, &format!("{name}.weight"), &linear.weight, d_out);
    let bias_name = format!("{name}.bias");
    let path = bias_name.clone();
    let bias = graph.tensor(&bias_name, &[d_out], move || {
        let mut bias = read(&path, &linear.bias)?;
        bias.truncate(d_out);
        Ok(bias)
    });
    let product = graph.node(&format!("{name}/product"), "MatMul", &[x, &weight], vec![]);
    graph.node(name, "Add", &[&product, &bias], vec![])
}

fn norm<'a, B: Backend>(graph: &mut Graph<'a>, name: &str, norm: &'a LayerNorm<B>, x: &Value) -> Value {
    let weight = vector(graph, &format!("{name}.weight"), &norm.weight);
    let bias = vector(graph, &format!("{name}.bias"), &norm.bias);
    layer_norm(graph, name, [x, &weight, &bias])
}

fn layer_norm(graph: &mut Graph<'_>, name: &str, inputs: [&Value; 3]) -> Value {
    graph.node(name, "LayerNormalization", &inputs, vec![int("axis", -1), float("epsilon", LAYER_NORM_EPS as f32)])
}

/// The first `d_out` rows of a weight, ready to be multiplied by from the left: `[d_in, d_out]`.
fn matrix<'a, B: Backend>(
    graph: &mut Graph<'a>,
    shared: &Shared,
    name: &str,
    weight: &'a Param<Tensor<B, 2>>,
    d_out: usize,
) -> Value {
    let [_, d_in] = weight.dims();
    let path = name.to_string();
    let stored = stored(graph, shared, name, [d_in, d_out], move || Ok(transposed(&read(&path, weight)?, d_out, d_in)));
    widened(graph, shared, &format!("{name}/f32"), stored)
}

fn vector<'a, B: Backend>(graph: &mut Graph<'a>, name: &str, param: &'a Param<Tensor<B, 1>>) -> Value {
    let path = name.to_string();
    graph.tensor(name, &param.dims(), move || read(&path, param))
}

/// A matrix in the format of the file's weights.
fn stored<'a, const D: usize>(
    graph: &mut Graph<'a>,
    shared: &Shared,
    name: &str,
    dims: [usize; D],
    values: impl Fn() -> Result<Vec<f32>, OnnxError> + 'a,
) -> Value {
    match shared.weights {
        OnnxWeights::F32 => graph.tensor(name, &dims, values),
        OnnxWeights::F16 => graph.half_tensor(name, &dims, values),
    }
}

/// The f32 value of what is in the format of the file's weights.
fn widened(graph: &mut Graph<'_>, shared: &Shared, name: &str, stored: Value) -> Value {
    match shared.weights {
        OnnxWeights::F32 => stored,
        OnnxWeights::F16 => graph.node(name, "Cast", &[&stored], vec![int("to", DataType::Float as i64)]),
    }
}
