//! What libtorch has fused kernels for: its LSTM (cuDNN on a GPU, oneDNN on a CPU), layer norm and scaled dot product attention;
//! forward and backward.
//!
//! libtorch's own autograd differentiates them, on leaves that are cut off from everything else. Burn knows nothing of them: it
//! records one node, as on every backend. The generic bodies run in bfloat16, since libtorch's would keep cells and
//! softmax in it too; where gates are to be computed again, since libtorch keeps what it likes; and where attention weights are
//! dropped, since libtorch would drop others.

use burn::tensor::{Tensor, TensorPrimitive};
use burn_tch::{LibTorch, LibTorchDevice, TchElement, TchTensor};

use super::attention::{merge_heads, split_heads};
use super::{
    AttentionGrads, AttentionInputs, AttentionKept, AttentionSaved, Backend, LAYER_NORM_EPS, LaneAxis, LstmGrads,
    LstmInputs, LstmSaved, LstmWanted, Precision, generic,
};

/// The NVIDIA GPU of this number, where numbers beyond the last one begin anew, or the CPU where libtorch sees none.
pub fn libtorch_device(gpu: usize) -> LibTorchDevice {
    match tch::Cuda::device_count() {
        gpus @ 1.. => LibTorchDevice::Cuda(gpu % gpus as usize),
        _ => LibTorchDevice::Cpu,
    }
}

fn of<E: TchElement, const D: usize>(x: Tensor<LibTorch<E>, D>) -> TchTensor {
    x.into_primitive().tensor()
}

fn tensor<E: TchElement, const D: usize>(x: tch::Tensor) -> Tensor<LibTorch<E>, D> {
    Tensor::from_primitive(TensorPrimitive::Float(TchTensor::new(x)))
}

/// The same memory as a leaf of libtorch's autograd. It keeps its claim on the memory, which Burn would otherwise write to.
fn leaf<E: TchElement, const D: usize>(x: Tensor<LibTorch<E>, D>) -> Tensor<LibTorch<E>, D> {
    let TchTensor { tensor, storage } = of(x);
    let tensor = tensor.detach().set_requires_grad(true);
    Tensor::from_primitive(TensorPrimitive::Float(TchTensor { tensor, storage }))
}

/// Gradients of `Σ output ⊙ grad` over the pairs, for leaves of libtorch's graph.
fn run_backward(outputs: &[(&tch::Tensor, &tch::Tensor)], leaves: &[&tch::Tensor]) -> Vec<tch::Tensor> {
    tch::with_grad(|| {
        let parts = outputs.iter().map(|(output, grad)| (*output * *grad).sum(None));
        let objective = parts.reduce(|a, b| a + b).expect("there is an output");
        tch::Tensor::run_backward(&[objective], leaves, false, false)
    })
}

fn norm<E: TchElement>(
    x: Tensor<LibTorch<E>, 2>,
    weight: Tensor<LibTorch<E>, 1>,
    bias: Tensor<LibTorch<E>, 1>,
) -> tch::Tensor {
    let [_, d] = x.dims();
    of(x).tensor.layer_norm([d as i64], Some(of(weight).tensor), Some(of(bias).tensor), LAYER_NORM_EPS, true)
}

/// Whether libtorch's attention does what was asked for.
fn attends_fused<E: TchElement>(inputs: &AttentionInputs<LibTorch<E>>, precision: Precision) -> bool {
    precision == Precision::F32 && inputs.weight_dropout.is_none()
}

/// Attention of a query to rows, which are keys and values; `[batch_size, seq_len, d_model]`.
fn attend<E: TchElement>(
    query: Tensor<LibTorch<E>, 3>,
    rows: Tensor<LibTorch<E>, 3>,
    inputs: &AttentionInputs<LibTorch<E>>,
) -> Tensor<LibTorch<E>, 3> {
    let ([_, seq_len, _], dims) = (query.dims(), rows.dims());
    let (keys, n_heads) = (dims[1], inputs.n_heads);
    let values = match inputs.value_dropout {
        Some(dropout) => rows.clone() * dropout.mask(dims, LaneAxis::First, &rows),
        None => rows.clone(),
    };
    let [query, keys_of_heads, values] = [query, rows, values].map(|x| of(split_heads(x, n_heads)).tensor);
    let seen = (keys > seq_len).then(|| {
        let all = tch::Tensor::ones([seq_len as i64, keys as i64], (tch::Kind::Bool, query.device()));
        all.tril((keys - seq_len) as i64)
    });
    let is_causal = seen.is_none();
    let out = tch::Tensor::scaled_dot_product_attention(
        &query,
        &keys_of_heads,
        &values,
        seen,
        0.0,
        is_causal,
        // It is in the query.
        1.0,
        false,
    );
    merge_heads(tensor(out))
}

/// Hidden states of all steps, `[seq_len, batch_size, d]`, and the last cells, `[1, batch_size, d]`.
fn run<E: TchElement>(inputs: &LstmInputs<LibTorch<E>>) -> (tch::Tensor, tch::Tensor) {
    let LstmInputs { x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, .. } = inputs.clone();
    let state = [of(h0).tensor.unsqueeze(0), of(c0).tensor.unsqueeze(0)];
    let weights = [of(weight_ih).tensor, of(weight_hh).tensor, of(bias_ih).tensor, of(bias_hh).tensor];
    let (hidden, _, cells) = of(x).tensor.lstm(&state, &weights, true, 1, 0.0, true, false, false);
    (hidden, cells)
}

/// Whether libtorch's LSTM does what was asked for.
fn is_fused(precision: Precision, recompute: bool) -> bool {
    precision == Precision::F32 && !recompute
}

impl<E: TchElement> Backend for LibTorch<E> {
    fn layer_norm_rows(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, bias: Tensor<Self, 1>) -> Tensor<Self, 2> {
        tensor(tch::no_grad(|| norm(x, weight, bias)))
    }

    fn layer_norm_rows_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        grad: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>, Tensor<Self, 1>) {
        let bias = leaf(weight.zeros_like());
        let (x, weight) = (leaf(x), leaf(weight));
        let output = tch::with_grad(|| norm(x.clone(), weight.clone(), bias.clone()));
        let leaves = [&of(x).tensor, &of(weight).tensor, &of(bias).tensor];
        let mut grads = run_backward(&[(&output, &of(grad).tensor)], &leaves).into_iter();
        let mut next = || grads.next().expect("a gradient for each leaf");
        (tensor(next()), tensor(next()), tensor(next()))
    }

    fn memory_attention(inputs: AttentionInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        if !attends_fused(&inputs, precision) {
            return generic::memory_attention_forward(inputs, precision).0;
        }
        tch::no_grad(|| attend(inputs.query.clone(), inputs.rows(), &inputs))
    }

    fn memory_attention_forward(
        inputs: AttentionInputs<Self>,
        precision: Precision,
    ) -> (Tensor<Self, 3>, AttentionSaved<Self>) {
        if !attends_fused(&inputs, precision) {
            return generic::memory_attention_forward(inputs, precision);
        }
        let output = Self::memory_attention(inputs.clone(), precision);
        (output, AttentionSaved { inputs, kept: AttentionKept::Nothing, precision })
    }

    fn memory_attention_backward(
        saved: AttentionSaved<Self>,
        grad: Tensor<Self, 3>,
        memory_wanted: bool,
    ) -> AttentionGrads<Self> {
        if !matches!(saved.kept, AttentionKept::Nothing) {
            return generic::memory_attention_backward(saved, grad, memory_wanted);
        }
        let inputs = saved.inputs;
        let (query, rows) = (leaf(inputs.query.clone()), leaf(inputs.rows()));
        let ([_, seq_len, _], [_, keys, _]) = (query.dims(), rows.dims());
        let mem_len = keys - seq_len;
        let output = of(tch::with_grad(|| attend(query.clone(), rows.clone(), &inputs))).tensor;
        let mut grads =
            run_backward(&[(&output, &of(grad).tensor)], &[&of(query).tensor, &of(rows).tensor]).into_iter();
        let mut next = || tensor(grads.next().expect("a gradient for each leaf"));
        let (query, rows): (_, Tensor<Self, 3>) = (next(), next());
        let memory = (memory_wanted && mem_len > 0).then(|| rows.clone().narrow(1, 0, mem_len));
        AttentionGrads { query, memory, current: rows.narrow(1, mem_len, seq_len) }
    }

    fn lstm(inputs: LstmInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        if !is_fused(precision, false) {
            return generic::lstm(inputs, precision);
        }
        let (hidden, cells) = tch::no_grad(|| run(&inputs));
        tensor(tch::Tensor::cat(&[hidden, cells], 0))
    }

    fn lstm_forward(inputs: LstmInputs<Self>, precision: Precision) -> (Tensor<Self, 3>, LstmSaved<Self>) {
        if !is_fused(precision, inputs.recompute) {
            return generic::lstm_forward(inputs, precision);
        }
        let LstmInputs { x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, recompute } = inputs;
        let inputs = LstmInputs {
            x: leaf(x),
            weight_ih: leaf(weight_ih),
            weight_hh: leaf(weight_hh),
            bias_ih: leaf(bias_ih),
            bias_hh: leaf(bias_hh),
            h0: leaf(h0),
            c0: leaf(c0),
            recompute,
        };
        let (hidden, cells) = tch::with_grad(|| run(&inputs));
        let output = tensor(tch::Tensor::cat(&[hidden.detach(), cells.detach()], 0));
        // With what libtorch has recorded; there are no gates, and the hidden states stand for the output.
        let saved = LstmSaved { inputs, output: tensor(hidden), gates: None, cells: tensor(cells), precision };
        (output, saved)
    }

    fn lstm_backward(saved: LstmSaved<Self>, grad: Tensor<Self, 3>, wanted: LstmWanted) -> LstmGrads<Self> {
        if !is_fused(saved.precision, saved.inputs.recompute) {
            return generic::lstm_backward(saved, grad, wanted);
        }
        let LstmSaved { inputs, output, cells, .. } = saved;
        let LstmInputs { x, weight_ih, weight_hh, bias_ih, h0, c0, .. } = inputs;
        let [seq_len, _, _] = output.dims();
        let all = [
            (true, of(h0).tensor),
            (true, of(c0).tensor),
            (wanted.x, of(x).tensor),
            (wanted.weight_ih, of(weight_ih).tensor),
            (wanted.weight_hh, of(weight_hh).tensor),
            (wanted.bias, of(bias_ih).tensor),
        ];
        let leaves: Vec<_> = all.iter().filter_map(|(wanted, leaf)| wanted.then_some(leaf)).collect();
        let grad = of(grad).tensor;
        let of_hidden = grad.narrow(0, 0, seq_len as i64);
        let of_cells = grad.narrow(0, seq_len as i64, 1);
        let outputs = [(&of(output).tensor, &of_hidden), (&of(cells).tensor, &of_cells)];
        let mut grads = run_backward(&outputs, &leaves).into_iter();
        let mut next = |wanted: bool| wanted.then(|| grads.next().expect("a gradient for each leaf"));
        LstmGrads {
            h0: tensor(next(true).expect("it was wanted")),
            c0: tensor(next(true).expect("it was wanted")),
            x: next(wanted.x).map(tensor),
            weight_ih: next(wanted.weight_ih).map(tensor),
            weight_hh: next(wanted.weight_hh).map(tensor),
            bias: next(wanted.bias).map(tensor),
        }
    }
}
