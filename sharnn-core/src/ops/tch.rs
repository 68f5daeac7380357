//! The LSTM through libtorch's fused one: cuDNN on a GPU, oneDNN on a CPU; forward and backward.
//!
//! libtorch's own autograd differentiates it, on leaves that are cut off from everything else. Burn knows nothing of them: it
//! records one node, as on every backend. The generic body runs in bfloat16, since libtorch's would keep the cells in it too, and
//! where gates are to be computed again, since libtorch keeps what it likes.

use burn::tensor::{Tensor, TensorPrimitive};
use burn_tch::{LibTorch, TchElement, TchTensor};

use super::{Backend, LstmGrads, LstmInputs, LstmSaved, LstmWanted, Precision, generic};

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
        let grads = tch::with_grad(|| {
            let sum = |x: tch::Tensor, grad: tch::Tensor| (x * grad).sum(None);
            let objective = sum(of(output).tensor, of_hidden) + sum(of(cells).tensor, of_cells);
            tch::Tensor::run_backward(&[objective], &leaves, false, false)
        });
        let mut grads = grads.into_iter();
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
