//! The fused operations under Burn's fusion: each is one custom operation of its stream, which runs the inner backend's.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;

use burn::tensor::backend::ExecutionError;
use burn::tensor::{DType, Int, Shape, Tensor, TensorPrimitive};
use burn_fusion::client::GlobalFusionClient;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use crate::ops::{
    AttentionGrads, AttentionInputs, AttentionKept, AttentionSaved, Backend, BoomGrads, BoomInputs, BoomSaved,
    DecoderLossInputs, DecoderLossSaved, Dropout, LambParam, LambRatios, LambStep, LambUpdate, LinearGrads, LstmGrads,
    LstmInputs, LstmSaved, LstmWanted, Precision, ResidualGrads, ResidualInputs, ResidualSaved,
};

/// Tensors of any rank on their way through a stream, taken out in the order in which they were put in.
struct Queue<B: burn::tensor::backend::Backend> {
    floats: VecDeque<B::FloatTensorPrimitive>,
    ints: VecDeque<B::IntTensorPrimitive>,
}

impl<B: burn::tensor::backend::Backend> Queue<B> {
    fn new() -> Self {
        Self { floats: VecDeque::new(), ints: VecDeque::new() }
    }

    fn with<const D: usize>(mut self, x: Tensor<B, D>) -> Self {
        self.floats.push_back(x.into_primitive().tensor());
        self
    }

    fn with_some<const D: usize>(self, x: Option<Tensor<B, D>>) -> Self {
        match x {
            Some(x) => self.with(x),
            None => self,
        }
    }

    fn with_int(mut self, x: Tensor<B, 1, Int>) -> Self {
        self.ints.push_back(x.into_primitive());
        self
    }

    fn take<const D: usize>(&mut self) -> Tensor<B, D> {
        let float = self.floats.pop_front().expect("as many tensors as were put in");
        Tensor::from_primitive(TensorPrimitive::Float(float))
    }

    fn take_if<const D: usize>(&mut self, there: bool) -> Option<Tensor<B, D>> {
        there.then(|| self.take())
    }

    fn take_int(&mut self) -> Tensor<B, 1, Int> {
        Tensor::from_primitive(self.ints.pop_front().expect("as many tensors as were put in"))
    }
}

/// A custom operation: its tensors, floats before integers, and what it does.
struct Custom<B, F> {
    ir: CustomOpIr,
    n_floats: usize,
    body: F,
    backend: PhantomData<fn() -> B>,
}

impl<B, F> fmt::Debug for Custom<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ir.id)
    }
}

impl<B, F> Operation<B::FusionRuntime> for Custom<B, F>
where
    B: FusionBackend + Backend,
    F: Fn(Queue<B>) -> Queue<B> + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>) {
        let (floats, ints) = self.ir.inputs.split_at(self.n_floats);
        let inputs = Queue {
            floats: floats.iter().map(|ir| handles.get_float_tensor::<B>(ir)).collect(),
            ints: ints.iter().map(|ir| handles.get_int_tensor::<B>(ir)).collect(),
        };
        for (ir, out) in self.ir.outputs.iter().zip((self.body)(inputs).floats) {
            handles.register_float_tensor::<B>(&ir.id, out);
        }
    }
}

/// Puts an operation into the stream of its inputs; its results have the given shapes and the first input's type.
fn record<B>(
    name: &'static str,
    inputs: Queue<Fusion<B>>,
    shapes: Vec<Shape>,
    body: impl Fn(Queue<B>) -> Queue<B> + Send + Sync + 'static,
) -> Queue<Fusion<B>>
where
    B: FusionBackend + Backend,
{
    let dtype = inputs.floats[0].dtype;
    record_types(name, inputs, shapes.into_iter().map(|shape| (shape, dtype)).collect(), body)
}

/// As [`record`]; the results' types are given too.
fn record_types<B>(
    name: &'static str,
    inputs: Queue<Fusion<B>>,
    results: Vec<(Shape, DType)>,
    body: impl Fn(Queue<B>) -> Queue<B> + Send + Sync + 'static,
) -> Queue<Fusion<B>>
where
    B: FusionBackend + Backend,
{
    let n_floats = inputs.floats.len();
    let tensors: Vec<_> = inputs.floats.into_iter().chain(inputs.ints).collect();
    let client = tensors[0].client.clone();
    let streams = OperationStreams::with_inputs(&tensors);
    let inputs: Vec<_> = tensors.into_iter().map(|x| x.into_ir()).collect();
    let uninit = |(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let outputs: Vec<_> = results.into_iter().map(uninit).collect();
    let ir = CustomOpIr::new(name, &inputs, &outputs);
    let operation = Custom { ir: ir.clone(), n_floats, body, backend: PhantomData::<fn() -> B> };
    let floats = client.register(streams, OperationIr::Custom(ir), operation).into();
    Queue { floats, ints: VecDeque::new() }
}

fn shape<const D: usize>(dims: [usize; D]) -> Shape {
    Shape::from(dims)
}

fn linear_grads<B: Backend>(queue: &mut Queue<B>, wanted: [bool; 3]) -> LinearGrads<B> {
    LinearGrads { x: queue.take_if(wanted[0]), weight: queue.take_if(wanted[1]), bias: queue.take_if(wanted[2]) }
}

fn put_linear_grads<B: Backend>(grads: LinearGrads<B>) -> Queue<B> {
    Queue::new().with_some(grads.x).with_some(grads.weight).with_some(grads.bias)
}

/// Those of `x`, weight and bias that are wanted.
fn linear_shapes([rows, d_in, d_out]: [usize; 3], wanted: [bool; 3]) -> Vec<Shape> {
    let all = [shape([rows, d_in]), shape([d_out, d_in]), shape([d_out])];
    all.into_iter().zip(wanted).filter_map(|(shape, wanted)| wanted.then_some(shape)).collect()
}

fn put_lstm<B: Backend>(inputs: LstmInputs<B>) -> Queue<B> {
    let LstmInputs { x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, .. } = inputs;
    Queue::new().with(x).with(weight_ih).with(weight_hh).with(bias_ih).with(bias_hh).with(h0).with(c0)
}

fn take_lstm<B: Backend>(queue: &mut Queue<B>, recompute: bool) -> LstmInputs<B> {
    LstmInputs {
        x: queue.take(),
        weight_ih: queue.take(),
        weight_hh: queue.take(),
        bias_ih: queue.take(),
        bias_hh: queue.take(),
        h0: queue.take(),
        c0: queue.take(),
        recompute,
    }
}

/// What of the attention's inputs is not a tensor.
#[derive(Clone, Copy)]
struct Attention {
    has_memory: bool,
    n_heads: usize,
    value_dropout: Option<Dropout>,
    weight_dropout: Option<Dropout>,
}

fn put_attention<B: Backend>(inputs: AttentionInputs<B>) -> (Queue<B>, Attention) {
    let AttentionInputs { query, memory, current, n_heads, value_dropout, weight_dropout } = inputs;
    let rest = Attention { has_memory: memory.is_some(), n_heads, value_dropout, weight_dropout };
    (Queue::new().with(query).with(current).with_some(memory), rest)
}

fn take_attention<B: Backend>(queue: &mut Queue<B>, rest: Attention) -> AttentionInputs<B> {
    let Attention { has_memory, n_heads, value_dropout, weight_dropout } = rest;
    let (query, current, memory) = (queue.take(), queue.take(), queue.take_if(has_memory));
    AttentionInputs { query, memory, current, n_heads, value_dropout, weight_dropout }
}

/// The inner backend keeps the attention's weights for the backward, as the generic body and the one on CubeCL do.
impl<B: FusionBackend + Backend> Backend for Fusion<B> {
    const HALVES_ATTENTION_WEIGHTS: bool = B::HALVES_ATTENTION_WEIGHTS;

    fn notices(device: &Self::Device) -> Vec<String> {
        B::notices(device)
    }

    fn flush(device: &Self::Device) -> Result<(), ExecutionError> {
        let inner = device.clone();
        // Its stream is run to its end before the inner backend is asked.
        GlobalFusionClient::<B::FusionRuntime>::load(device).sync(move || B::flush(&inner))
    }

    fn affine(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 1>,
        precision: Precision,
    ) -> Tensor<Self, 2> {
        let ([rows, _], [d_out, _]) = (x.dims(), weight.dims());
        let inputs = Queue::new().with(x).with(weight).with(bias);
        let body = move |mut q: Queue<B>| Queue::new().with(B::affine(q.take(), q.take(), q.take(), precision));
        record("affine", inputs, vec![shape([rows, d_out])], body).take()
    }

    fn affine_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
        wanted: [bool; 3],
        precision: Precision,
    ) -> LinearGrads<Self> {
        let ([rows, d_in], [d_out, _]) = (x.dims(), weight.dims());
        let inputs = Queue::new().with(x).with(weight).with(grad);
        let body = move |mut q: Queue<B>| {
            put_linear_grads(B::affine_backward(q.take(), q.take(), q.take(), wanted, precision))
        };
        let mut out = record("affine_backward", inputs, linear_shapes([rows, d_in, d_out], wanted), body);
        linear_grads(&mut out, wanted)
    }

    fn layer_norm_rows(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, bias: Tensor<Self, 1>) -> Tensor<Self, 2> {
        let of_x = x.shape();
        let inputs = Queue::new().with(x).with(weight).with(bias);
        let body = |mut q: Queue<B>| Queue::new().with(B::layer_norm_rows(q.take(), q.take(), q.take()));
        record("layer_norm", inputs, vec![of_x], body).take()
    }

    fn layer_norm_rows_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>, Tensor<Self, 1>) {
        let shapes = vec![x.shape(), weight.shape(), weight.shape()];
        let inputs = Queue::new().with(x).with(weight).with(grad);
        let body = |mut q: Queue<B>| {
            let (dx, dweight, dbias) = B::layer_norm_rows_backward(q.take(), q.take(), q.take());
            Queue::new().with(dx).with(dweight).with(dbias)
        };
        let mut out = record("layer_norm_backward", inputs, shapes, body);
        (out.take(), out.take(), out.take())
    }

    fn dropout(x: Tensor<Self, 3>, dropout: Dropout) -> Tensor<Self, 3> {
        let of_x = x.shape();
        let body = move |mut q: Queue<B>| Queue::new().with(B::dropout(q.take(), dropout));
        record("dropout", Queue::new().with(x), vec![of_x], body).take()
    }

    fn norm_residual(inputs: ResidualInputs<Self>) -> Tensor<Self, 3> {
        let ResidualInputs { h, weight, bias, x, dropout } = inputs;
        let of_x = x.shape();
        let body = move |mut q: Queue<B>| {
            let inputs = ResidualInputs { h: q.take(), weight: q.take(), bias: q.take(), x: q.take(), dropout };
            Queue::new().with(B::norm_residual(inputs))
        };
        record("norm_residual", Queue::new().with(h).with(weight).with(bias).with(x), vec![of_x], body).take()
    }

    fn norm_residual_backward(saved: ResidualSaved<Self>, grad: Tensor<Self, 3>) -> ResidualGrads<Self> {
        let ResidualSaved { h, weight, dropout } = saved;
        let shapes = vec![h.shape(), weight.shape(), weight.shape(), h.shape()];
        let body = move |mut q: Queue<B>| {
            let saved = ResidualSaved { h: q.take(), weight: q.take(), dropout };
            let ResidualGrads { h, weight, bias, x } = B::norm_residual_backward(saved, q.take());
            Queue::new().with(h).with(weight).with(bias).with(x)
        };
        let mut out = record("norm_residual_backward", Queue::new().with(h).with(weight).with(grad), shapes, body);
        ResidualGrads { h: out.take(), weight: out.take(), bias: out.take(), x: out.take() }
    }

    fn lstm(inputs: LstmInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        let ([seq_len, lanes, _], [_, d]) = (inputs.x.dims(), inputs.h0.dims());
        let recompute = inputs.recompute;
        let body = move |mut q: Queue<B>| Queue::new().with(B::lstm(take_lstm(&mut q, recompute), precision));
        record("lstm", put_lstm(inputs), vec![shape([seq_len + 1, lanes, d])], body).take()
    }

    fn lstm_forward(inputs: LstmInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, LstmSaved<Self>) {
        let ([seq_len, lanes, _], [_, d]) = (inputs.x.dims(), inputs.h0.dims());
        let recompute = inputs.recompute;
        let mut shapes = vec![shape([seq_len + 1, lanes, d]), shape([seq_len, lanes, d])];
        if !recompute {
            shapes.push(shape([seq_len, lanes, 4 * d]));
        }
        let body = move |mut q: Queue<B>| {
            let (output, saved) = B::lstm_forward(take_lstm(&mut q, recompute), precision);
            Queue::new().with(output).with(saved.cells).with_some(saved.gates)
        };
        let mut out = record("lstm_forward", put_lstm(inputs.clone()), shapes, body);
        let (output, cells, gates): (Tensor<Self, 3>, _, _) = (out.take(), out.take(), out.take_if(!recompute));
        (output.clone(), LstmSaved { inputs, output, gates, cells, precision })
    }

    fn lstm_backward(saved: LstmSaved<Self>, grad: Tensor<Self, 3>, wanted: LstmWanted) -> LstmGrads<Self> {
        let LstmSaved { inputs, output, gates, cells, precision } = saved;
        let LstmWanted { x, weight_ih, weight_hh, bias } = wanted;
        let (recompute, has_gates) = (inputs.recompute, gates.is_some());
        let all = [
            (true, inputs.h0.shape()),
            (true, inputs.c0.shape()),
            (x, inputs.x.shape()),
            (weight_ih, inputs.weight_ih.shape()),
            (weight_hh, inputs.weight_hh.shape()),
            (bias, inputs.bias_ih.shape()),
        ];
        let shapes = all.into_iter().filter_map(|(wanted, shape)| wanted.then_some(shape)).collect();
        let queue = put_lstm(inputs).with(output).with(cells).with_some(gates).with(grad);
        let body = move |mut q: Queue<B>| {
            let inputs = take_lstm(&mut q, recompute);
            let (output, cells, gates) = (q.take(), q.take(), q.take_if(has_gates));
            let saved = LstmSaved { inputs, output, gates, cells, precision };
            let grads = B::lstm_backward(saved, q.take(), wanted);
            let rest = Queue::new().with(grads.h0).with(grads.c0).with_some(grads.x).with_some(grads.weight_ih);
            rest.with_some(grads.weight_hh).with_some(grads.bias)
        };
        let mut out = record("lstm_backward", queue, shapes, body);
        LstmGrads {
            h0: out.take(),
            c0: out.take(),
            x: out.take_if(x),
            weight_ih: out.take_if(weight_ih),
            weight_hh: out.take_if(weight_hh),
            bias: out.take_if(bias),
        }
    }

    fn memory_attention(inputs: AttentionInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        let of_query = inputs.query.shape();
        let (queue, rest) = put_attention(inputs);
        let body =
            move |mut q: Queue<B>| Queue::new().with(B::memory_attention(take_attention(&mut q, rest), precision));
        record("attention", queue, vec![of_query], body).take()
    }

    fn memory_attention_forward(
        inputs: AttentionInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 3>, AttentionSaved<Self>) {
        let [batch_size, seq_len, _] = inputs.query.dims();
        let key_len = seq_len + inputs.memory.as_ref().map_or(0, |memory| memory.dims()[1]);
        let (dtype, of_weights) = (inputs.query.dtype(), shape([batch_size, inputs.n_heads, seq_len, key_len]));
        let weights = (of_weights, super::attention::weight_dtype(precision, dtype));
        let results = vec![(inputs.query.shape(), dtype), weights];
        let (queue, rest) = put_attention(inputs.clone());
        let body = move |mut q: Queue<B>| {
            let (out, saved) = B::memory_attention_forward(take_attention(&mut q, rest), precision);
            match saved.kept {
                AttentionKept::Weights(weights) => Queue::new().with(out).with(weights),
                _ => unreachable!("this backend keeps the weights"),
            }
        };
        let mut out = record_types("attention_forward", queue, results, body);
        let output = out.take();
        (output, AttentionSaved { inputs, kept: AttentionKept::Weights(out.take()), precision })
    }

    fn memory_attention_backward(
        saved: AttentionSaved<Self>,
        grad: Tensor<Self, 3>,
        memory_wanted: bool,
    ) -> AttentionGrads<Self> {
        let AttentionSaved { inputs, kept, precision } = saved;
        let AttentionKept::Weights(weights) = kept else { unreachable!("this backend keeps the weights") };
        let mut shapes = vec![inputs.query.shape(), inputs.current.shape()];
        let of_memory = inputs.memory.as_ref().map(|memory| memory.shape()).filter(|_| memory_wanted);
        let has_memory = of_memory.is_some();
        shapes.extend(of_memory);
        let (queue, rest) = put_attention(inputs);
        let body = move |mut q: Queue<B>| {
            let inputs = take_attention(&mut q, rest);
            let saved = AttentionSaved { inputs, kept: AttentionKept::Weights(q.take()), precision };
            let grads = B::memory_attention_backward(saved, q.take(), memory_wanted);
            Queue::new().with(grads.query).with(grads.current).with_some(grads.memory)
        };
        let mut out = record("attention_backward", queue.with(weights).with(grad), shapes, body);
        AttentionGrads { query: out.take(), current: out.take(), memory: out.take_if(has_memory) }
    }

    fn boom(inputs: BoomInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        let BoomInputs { x, weight, bias, dropout, recompute } = inputs;
        let of_x = x.shape();
        let body = move |mut q: Queue<B>| {
            let inputs = BoomInputs { x: q.take(), weight: q.take(), bias: q.take(), dropout, recompute };
            Queue::new().with(B::boom(inputs, precision))
        };
        record("boom", Queue::new().with(x).with(weight).with(bias), vec![of_x], body).take()
    }

    fn boom_forward(inputs: BoomInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, BoomSaved<Self>) {
        let BoomInputs { x, weight, bias, dropout, recompute } = inputs;
        let ([seq_len, batch_size, _], [d_ff, _]) = (x.dims(), weight.dims());
        let mut shapes = vec![x.shape()];
        if !recompute {
            shapes.push(shape([seq_len * batch_size, d_ff]));
        }
        let queue = Queue::new().with(x.clone()).with(weight.clone()).with(bias.clone());
        let body = move |mut q: Queue<B>| {
            let inputs = BoomInputs { x: q.take(), weight: q.take(), bias: q.take(), dropout, recompute };
            let (y, saved) = B::boom_forward(inputs, precision);
            Queue::new().with(y).with_some(saved.z)
        };
        let mut out = record("boom_forward", queue, shapes, body);
        let (y, z) = (out.take(), out.take_if(!recompute));
        (y, BoomSaved { x, weight, bias, z, dropout, precision })
    }

    fn boom_backward(saved: BoomSaved<Self>, grad: Tensor<Self, 3>) -> BoomGrads<Self> {
        let BoomSaved { x, weight, bias, z, dropout, precision } = saved;
        let shapes = vec![x.shape(), weight.shape(), bias.shape()];
        let has_z = z.is_some();
        let queue = Queue::new().with(x).with(weight).with(bias).with_some(z).with(grad);
        let body = move |mut q: Queue<B>| {
            let (x, weight, bias, z) = (q.take(), q.take(), q.take(), q.take_if(has_z));
            let grads = B::boom_backward(BoomSaved { x, weight, bias, z, dropout, precision }, q.take());
            Queue::new().with(grads.x).with(grads.weight).with(grads.bias)
        };
        let mut out = record("boom_backward", queue, shapes, body);
        BoomGrads { x: out.take(), weight: out.take(), bias: out.take() }
    }

    fn decoder_loss(inputs: DecoderLossInputs<Self>, precision: Precision) -> Tensor<Self, 1> {
        Self::decoder_loss_forward(inputs, precision).0
    }

    fn decoder_loss_forward(
        inputs: DecoderLossInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 1>, DecoderLossSaved<Self>) {
        let DecoderLossInputs { h, weight, bias, targets } = inputs;
        let ([rows, _], [vocab_size, _]) = (h.dims(), weight.dims());
        let queue = Queue::new().with(h.clone()).with(weight.clone()).with(bias).with_int(targets.clone());
        let body = move |mut q: Queue<B>| {
            let (h, weight, bias, targets) = (q.take(), q.take(), q.take(), q.take_int());
            let (loss, saved) = B::decoder_loss_forward(DecoderLossInputs { h, weight, bias, targets }, precision);
            Queue::new().with(loss).with(saved.log_probs)
        };
        let mut out = record("decoder_loss_forward", queue, vec![shape([1]), shape([rows, vocab_size])], body);
        let (loss, log_probs) = (out.take(), out.take());
        (loss, DecoderLossSaved { h, weight, log_probs, targets, precision })
    }

    fn decoder_loss_backward(
        saved: DecoderLossSaved<Self>,
        grad: Tensor<Self, 1>,
        wanted: [bool; 3],
    ) -> LinearGrads<Self> {
        let DecoderLossSaved { h, weight, log_probs, targets, precision } = saved;
        let ([rows, d_in], [d_out, _]) = (h.dims(), weight.dims());
        let queue = Queue::new().with(h).with(weight).with(log_probs).with(grad).with_int(targets);
        let body = move |mut q: Queue<B>| {
            let (h, weight, log_probs, grad) = (q.take(), q.take(), q.take(), q.take());
            let saved = DecoderLossSaved { h, weight, log_probs, targets: q.take_int(), precision };
            put_linear_grads(B::decoder_loss_backward(saved, grad, wanted))
        };
        let mut out = record("decoder_loss_backward", queue, linear_shapes([rows, d_in, d_out], wanted), body);
        linear_grads(&mut out, wanted)
    }

    fn lamb(step: &LambStep<Self>, params: Vec<LambParam<Self>>) -> (Vec<LambUpdate<Self>>, LambRatios<Self>) {
        let per_param = |param: &LambParam<Self>| [param.param.shape(), param.param.shape(), param.param.shape()];
        let mut shapes: Vec<_> = params.iter().flat_map(per_param).collect();
        shapes.extend([(); 3].map(|()| shape([params.len()])));
        let (options, n) = (step.options, params.len());
        let has_moments: Vec<_> = params.iter().map(|param| param.moments.is_some()).collect();
        let mut queue = Queue::new().with(step.scale.clone()).with(step.counts.clone());
        for LambParam { param, grad, moments } in params {
            let (first, second) = moments.unzip();
            queue = queue.with(param).with(grad).with_some(first).with_some(second);
        }
        let body = move |mut q: Queue<B>| {
            let step = LambStep { options, scale: q.take(), counts: q.take() };
            let mut take = |&has_moments: &bool| LambParam {
                param: q.take(),
                grad: q.take(),
                moments: has_moments.then(|| (q.take(), q.take())),
            };
            let (updates, ratios) = B::lamb(&step, has_moments.iter().map(&mut take).collect());
            let mut out = Queue::new();
            for LambUpdate { param, first, second } in updates {
                out = out.with(param).with(first).with(second);
            }
            out.with(ratios.weight_norm).with(ratios.adam_norm).with(ratios.trust_ratio)
        };
        let mut out = record("lamb", queue, shapes, body);
        let updates = (0..n).map(|_| LambUpdate { param: out.take(), first: out.take(), second: out.take() }).collect();
        let ratios = LambRatios { weight_norm: out.take(), adam_norm: out.take(), trust_ratio: out.take() };
        (updates, ratios)
    }

    fn squared_norm(xs: Vec<Tensor<Self, 1>>) -> Tensor<Self, 1> {
        let (n, queue) = (xs.len(), xs.into_iter().fold(Queue::new(), Queue::with));
        let body = move |mut q: Queue<B>| Queue::new().with(B::squared_norm((0..n).map(|_| q.take()).collect()));
        record("squared_norm", queue, vec![shape([1])], body).take()
    }
}
