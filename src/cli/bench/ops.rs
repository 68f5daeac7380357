//! Every fused operation beside its generic body, on the same tensors of flex over a grid of sizes: whether a kernel is slower
//! than Burn's own operations anywhere.

use std::hint::black_box;
use std::time::Instant;

use crate::core::kernels::{Isa, team::threads};
use crate::core::ops::{
    AttentionInputs, BoomInputs, DecoderLossInputs, Dropout, DropoutSite, LambOptions, LambParam, LambRatios, LambStep,
    LambUpdate, LstmInputs, LstmWanted, ResidualInputs, ResidualSaved, generic,
};
use crate::{Backend, DropoutStream, Precision};
use burn::backend::Flex;
use burn::tensor::{Bool, Distribution, Int, Tensor, TensorData};
use serde::Serialize;
use serde_json::{Value, json};

const SEQ_LENS: [usize; 4] = [1, 7, 64, 256];
const BATCHES: [usize; 3] = [1, 3, 16];
const WIDTHS: [usize; 3] = [16, 100, 256];
const MEMORIES: [usize; 3] = [0, 64, 1024];
const VOCAB_SIZE: usize = 256;
/// Sizes whose generic body takes longer are left out, seconds.
const LONGEST: f64 = 0.05;
/// What is timed at once lasts this long or one call, seconds.
const RUN: f64 = 0.002;
/// The shortest of so many runs counts.
const RUNS: usize = 9;

/// The result of one operation, in the order in which it is printed.
#[derive(Serialize)]
pub struct Comparison {
    mode: &'static str,
    op: &'static str,
    pass: &'static str,
    dtype: Precision,
    isa: &'static str,
    threads: usize,
    /// Sizes that were timed, and those that were left out.
    sizes: usize,
    left_out: usize,
    /// Seconds of the generic body over those of the kernel.
    smallest: f64,
    median: f64,
    largest: f64,
    /// Where the smallest was found, with the microseconds of both.
    smallest_at: Value,
}

impl Comparison {
    /// Compares all operations and hands over each result when it is there.
    pub fn each<E>(precision: Precision, mut report: impl FnMut(Self) -> Result<(), E>) -> Result<(), E> {
        let ops = [
            affine,
            layer_norm,
            dropout,
            norm_residual,
            lstm,
            attention,
            boom,
            decoder_loss,
            lamb,
            squared_norm,
            orthogonalize,
        ];
        ops.into_iter().flat_map(|op| op(precision)).try_for_each(|timed| report(timed.comparison(precision)))
    }
}

/// Times of one operation at its sizes.
struct Timed {
    op: &'static str,
    pass: &'static str,
    /// A size, with seconds of the kernel and of the generic body.
    cases: Vec<(Value, [f64; 2])>,
    left_out: usize,
}

impl Timed {
    fn new(op: &'static str, pass: &'static str) -> Self {
        Self { op, pass, cases: Vec::new(), left_out: 0 }
    }

    /// Forward, and forward with backward.
    fn both(op: &'static str) -> [Self; 2] {
        ["forward", "forward+backward"].map(|pass| Self::new(op, pass))
    }

    /// Times both at one size, in turn.
    fn add<K, G>(&mut self, size: &Value, mut kernel: impl FnMut() -> K, mut generic: impl FnMut() -> G) {
        // First calls fetch memory from the system.
        let _ = (kernel(), generic());
        let once = [seconds(1, &mut kernel), seconds(1, &mut generic)];
        if once[1] > LONGEST {
            self.left_out += 1;
            return;
        }
        let calls = once.map(|once| (RUN / once).ceil() as usize);
        let mut best = once;
        for _ in 0..RUNS {
            best[0] = best[0].min(seconds(calls[0], &mut kernel));
            best[1] = best[1].min(seconds(calls[1], &mut generic));
        }
        self.cases.push((size.clone(), best));
    }

    fn comparison(mut self, precision: Precision) -> Comparison {
        let round = |x: f64| (x * 100.0).round() / 100.0;
        let ratio = |[kernel, generic]: [f64; 2]| generic / kernel;
        self.cases.sort_by(|(_, a), (_, b)| ratio(*a).total_cmp(&ratio(*b)));
        let at = |index: usize| round(ratio(self.cases[index].1));
        let (mut smallest_at, [kernel, generic]) = self.cases[0].clone();
        smallest_at["kernel_us"] = round(kernel * 1e6).into();
        smallest_at["generic_us"] = round(generic * 1e6).into();
        Comparison {
            mode: "ops",
            op: self.op,
            pass: self.pass,
            dtype: precision,
            isa: Isa::current().name(),
            threads: threads(),
            sizes: self.cases.len(),
            left_out: self.left_out,
            smallest: at(0),
            median: at(self.cases.len() / 2),
            largest: at(self.cases.len() - 1),
            smallest_at,
        }
    }
}

/// Seconds of one of `calls` calls.
fn seconds<T>(calls: usize, op: &mut impl FnMut() -> T) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        black_box(op());
    }
    start.elapsed().as_secs_f64() / calls as f64
}

/// Segments, lanes and widths.
fn sizes() -> impl Iterator<Item = [usize; 3]> {
    let widths = |seq_len, batch| WIDTHS.map(|d| [seq_len, batch, d]);
    SEQ_LENS.into_iter().flat_map(move |seq_len| BATCHES.into_iter().flat_map(move |batch| widths(seq_len, batch)))
}

fn at([seq_len, batch, d]: [usize; 3]) -> Value {
    json!({ "seq_len": seq_len, "batch": batch, "d": d })
}

/// Parameters of a bias, of a square matrix and of an LSTM's.
fn parameters() -> impl Iterator<Item = usize> {
    WIDTHS.into_iter().flat_map(|d| [d, d * d, 4 * d * d])
}

fn floats<const D: usize>(dims: [usize; D]) -> Tensor<Flex, D> {
    Tensor::random(dims, Distribution::Uniform(-0.1, 0.1), &Default::default())
}

fn affine(precision: Precision) -> Vec<Timed> {
    let [mut forward, mut both] = Timed::both("affine");
    for size @ [seq_len, batch, d] in sizes() {
        let (x, weight, bias) = (floats([seq_len * batch, d]), floats([d, d]), floats([d]));
        let grad = floats([seq_len * batch, d]);
        let kernel = || Flex::affine(x.clone(), weight.clone(), bias.clone(), precision);
        let body = || generic::affine(x.clone(), weight.clone(), bias.clone(), precision);
        forward.add(&at(size), kernel, body);
        both.add(
            &at(size),
            || (kernel(), Flex::affine_backward(x.clone(), weight.clone(), grad.clone(), [true; 3], precision)),
            || (body(), generic::affine_backward(x.clone(), weight.clone(), grad.clone(), [true; 3], precision)),
        );
    }
    vec![forward, both]
}

fn layer_norm(_precision: Precision) -> Vec<Timed> {
    let [mut forward, mut both] = Timed::both("layer_norm_rows");
    for size @ [seq_len, batch, d] in sizes() {
        let (x, weight, bias) = (floats([seq_len * batch, d]), floats([d]), floats([d]));
        let grad = floats([seq_len * batch, d]);
        let kernel = || Flex::layer_norm_rows(x.clone(), weight.clone(), bias.clone());
        let body = || generic::layer_norm_rows(x.clone(), weight.clone(), bias.clone());
        forward.add(&at(size), kernel, body);
        both.add(
            &at(size),
            || (kernel(), Flex::layer_norm_rows_backward(x.clone(), weight.clone(), grad.clone())),
            || (body(), generic::layer_norm_rows_backward(x.clone(), weight.clone(), grad.clone())),
        );
    }
    vec![forward, both]
}

/// It is its own backward.
fn dropout(_precision: Precision) -> Vec<Timed> {
    let mut forward = Timed::new("dropout", "forward");
    let stream = DropoutStream { seed: 1, step: 1, first_lane: 0 };
    let dropout = Dropout { prob: 0.1, key: stream.key(0, DropoutSite::Input) };
    for size in sizes() {
        let x = floats(size);
        forward.add(&at(size), || Flex::dropout(x.clone(), dropout), || generic::dropout(x.clone(), dropout));
    }
    vec![forward]
}

/// The generic body is the sum of the kernels of norm and dropout.
fn norm_residual(_precision: Precision) -> Vec<Timed> {
    let [mut forward, mut both] = Timed::both("norm_residual");
    let stream = DropoutStream { seed: 1, step: 1, first_lane: 0 };
    let dropout = Some(Dropout { prob: 0.1, key: stream.key(0, DropoutSite::BoomOutput) });
    for size @ [.., d] in sizes() {
        let (h, x, grad) = (floats(size), floats(size), floats(size));
        let (weight, bias) = (floats([d]), floats([d]));
        let inputs = || {
            let (h, weight, bias, x) = (h.clone(), weight.clone(), bias.clone(), x.clone());
            ResidualInputs { h, weight, bias, x, dropout }
        };
        let saved = || ResidualSaved { h: h.clone(), weight: weight.clone(), dropout };
        forward.add(&at(size), || Flex::norm_residual(inputs()), || generic::norm_residual(inputs()));
        both.add(
            &at(size),
            || (Flex::norm_residual(inputs()), Flex::norm_residual_backward(saved(), grad.clone())),
            || (generic::norm_residual(inputs()), generic::norm_residual_backward(saved(), grad.clone())),
        );
    }
    vec![forward, both]
}

fn lstm(precision: Precision) -> Vec<Timed> {
    let [mut forward, mut both] = Timed::both("lstm");
    let wanted = LstmWanted { x: true, weight_ih: true, weight_hh: true, bias: true };
    for size @ [seq_len, batch, d] in sizes() {
        let inputs = LstmInputs {
            x: floats(size),
            weight_ih: floats([4 * d, d]),
            weight_hh: floats([4 * d, d]),
            bias_ih: floats([4 * d]),
            bias_hh: floats([4 * d]),
            h0: floats([batch, d]),
            c0: floats([batch, d]),
            recompute: false,
        };
        let grad = floats([seq_len + 1, batch, d]);
        forward.add(&at(size), || Flex::lstm(inputs.clone(), precision), || generic::lstm(inputs.clone(), precision));
        both.add(
            &at(size),
            || Flex::lstm_backward(Flex::lstm_forward(inputs.clone(), precision).1, grad.clone(), wanted),
            || generic::lstm_backward(generic::lstm_forward(inputs.clone(), precision).1, grad.clone(), wanted),
        );
    }
    vec![forward, both]
}

/// The memory wants no gradient, as in training.
fn attention(precision: Precision) -> Vec<Timed> {
    let [mut forward, mut both] = Timed::both("memory_attention");
    for ([seq_len, batch, d], mem_len) in sizes().flat_map(|size| MEMORIES.map(|mem_len| (size, mem_len))) {
        let inputs = AttentionInputs {
            query: floats([batch, seq_len, d]),
            memory: (mem_len > 0).then(|| floats([batch, mem_len, d])),
            current: floats([batch, seq_len, d]),
            n_heads: 1,
            value_dropout: None,
            weight_dropout: None,
        };
        let grad = floats([batch, seq_len, d]);
        let mut size = at([seq_len, batch, d]);
        size["memory"] = mem_len.into();
        let kernel = || Flex::memory_attention_forward(inputs.clone(), precision).1;
        let body = || generic::memory_attention_forward(inputs.clone(), precision);
        forward.add(&size, || Flex::memory_attention(inputs.clone(), precision), || body().0);
        both.add(
            &size,
            || Flex::memory_attention_backward(kernel(), grad.clone(), false),
            || generic::memory_attention_backward(body().1, grad.clone(), false),
        );
    }
    vec![forward, both]
}

fn boom(precision: Precision) -> Vec<Timed> {
    let [mut forward, mut both] = Timed::both("boom");
    for size @ [_, _, d] in sizes() {
        let inputs = BoomInputs {
            x: floats(size),
            weight: floats([4 * d, d]),
            bias: floats([4 * d]),
            dropout: None,
            recompute: false,
        };
        let grad = floats(size);
        let body = || generic::boom_forward(inputs.clone(), precision);
        forward.add(&at(size), || Flex::boom(inputs.clone(), precision), || body().0);
        both.add(
            &at(size),
            || Flex::boom_backward(Flex::boom_forward(inputs.clone(), precision).1, grad.clone()),
            || generic::boom_backward(body().1, grad.clone()),
        );
    }
    vec![forward, both]
}

fn decoder_loss(precision: Precision) -> Vec<Timed> {
    let [mut forward, mut both] = Timed::both("decoder_loss");
    let grad = Tensor::<Flex, 1>::ones([1], &Default::default());
    for size @ [seq_len, batch, d] in sizes() {
        let rows = seq_len * batch;
        let targets: Vec<i64> = (0..rows).map(|row| (row * 31 % VOCAB_SIZE) as i64).collect();
        let inputs = DecoderLossInputs {
            h: floats([rows, d]),
            weight: floats([VOCAB_SIZE, d]),
            bias: floats([VOCAB_SIZE]),
            targets: Tensor::<Flex, 1, Int>::from_data(TensorData::new(targets, [rows]), &Default::default()),
        };
        let kernel = || Flex::decoder_loss_forward(inputs.clone(), precision).1;
        let body = || generic::decoder_loss_forward(inputs.clone(), precision);
        forward.add(&at(size), || Flex::decoder_loss(inputs.clone(), precision), || body().0);
        both.add(
            &at(size),
            || Flex::decoder_loss_backward(kernel(), grad.clone(), [true; 3]),
            || generic::decoder_loss_backward(body().1, grad.clone(), [true; 3]),
        );
    }
    vec![forward, both]
}

type LambBody = fn(&LambStep<Flex>, Vec<LambParam<Flex>>) -> (Vec<LambUpdate<Flex>>, LambRatios<Flex>);

/// A step takes over what the one before it left, as in training.
fn lamb(_precision: Precision) -> Vec<Timed> {
    let mut step = Timed::new("lamb", "step");
    let options = LambOptions { lr: 1e-3, weight_decay: 0.01, ..LambOptions::default() };
    let finite = Tensor::<Flex, 1, Bool>::from_data(TensorData::from([true]), &Default::default());
    let shared = LambStep::new(options, Tensor::ones([1], &Default::default()), finite);
    for n in parameters() {
        let (shared, grad) = (&shared, floats([n]));
        let carry = |update: LambBody| {
            let (grad, mut state) = (grad.clone(), Some((floats([n]), None)));
            move || {
                let (param, moments) = state.take().expect("a parameter between two steps");
                let all = vec![LambParam { param, grad: grad.clone(), moments }];
                let update = update(shared, all).0.remove(0);
                state = Some((update.param, Some((update.first, update.second))));
            }
        };
        step.add(&json!({ "parameters": n }), carry(Flex::lamb), carry(generic::lamb));
    }
    vec![step]
}

fn squared_norm(_precision: Precision) -> Vec<Timed> {
    let mut forward = Timed::new("squared_norm", "forward");
    for n in parameters() {
        let x = floats([n]);
        let size = json!({ "parameters": n });
        forward.add(&size, || Flex::squared_norm(vec![x.clone()]), || generic::squared_norm(vec![x.clone()]));
    }
    vec![forward]
}

fn orthogonalize(precision: Precision) -> Vec<Timed> {
    let mut forward = Timed::new("orthogonalize", "forward");
    for [n, rows, cols] in [[4, 16, 16], [4, 64, 64], [4, 128, 128], [1, 512, 128], [4, 256, 256], [1, 1024, 256]] {
        let x: Tensor<Flex, 3> = floats([n, rows, cols]);
        let size = json!({ "matrices": n, "rows": rows, "columns": cols });
        forward.add(
            &size,
            || Flex::orthogonalize(x.clone(), precision),
            || generic::orthogonalize(x.clone(), precision),
        );
    }
    vec![forward]
}
