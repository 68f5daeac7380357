//! The fused operations under [`Autodiff`]: one recorded node each, with the inner backend's own backward.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::Autodiff;
use burn::tensor::backend::ExecutionError;
use burn::tensor::{Tensor, TensorPrimitive};
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{
    AttentionInputs, AttentionSaved, Backend, BoomInputs, BoomSaved, DecoderLossInputs, DecoderLossSaved, Dropout,
    LinearGrads, LstmInputs, LstmSaved, LstmWanted, Precision, ResidualInputs, ResidualSaved,
};

/// A float tensor of any rank, as a gradient is passed to a parent.
type Primitive<B> = burn::tensor::ops::FloatTensor<B>;

/// What one operation saved, and how it turns the gradient of its output into those of its `N` parents.
trait Saved<B: Backend, const N: usize>: Clone + Send + Debug + 'static {
    /// The gradient of each parent that wants one; the others are ignored.
    fn backward(self, grad: Primitive<B>, wanted: [bool; N]) -> [Option<Primitive<B>>; N];
}

/// The graph's node of an operation that saved an `S`.
#[derive(Debug)]
struct Node<S>(PhantomData<S>);

impl<B: Backend, S: Saved<B, N>, const N: usize> Backward<B, N> for Node<S> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, grad) in ops.parents.into_iter().zip(ops.state.backward(grad, wanted)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

/// Runs an operation and records it as one node: `train` where a parent is tracked, `infer` where none is.
fn record<B, C, S, const N: usize, const D: usize>(
    parents: [&Primitive<Autodiff<B, C>>; N],
    train: impl FnOnce() -> (Tensor<B, D>, S),
    infer: impl FnOnce() -> Tensor<B, D>,
) -> Tensor<Autodiff<B, C>, D>
where
    B: Backend,
    C: CheckpointStrategy,
    S: Saved<B, N>,
{
    let nodes = parents.map(|parent| parent.node.clone());
    let output = match Node::<S>(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, saved) = train();
            prep.finish(saved, lower(output))
        }
        OpsKind::UnTracked(prep) => prep.finish(lower(infer())),
    };
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

fn lower<B: Backend, const D: usize>(x: Tensor<B, D>) -> Primitive<B> {
    x.into_primitive().tensor()
}

fn lift<B: Backend, const D: usize>(x: Primitive<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

#[derive(Clone, Debug)]
struct LinearSaved<B: Backend> {
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    precision: Precision,
}

impl<B: Backend> Saved<B, 3> for LinearSaved<B> {
    fn backward(self, grad: Primitive<B>, wanted: [bool; 3]) -> [Option<Primitive<B>>; 3] {
        lower_linear(B::affine_backward(self.x, self.weight, lift(grad), wanted, self.precision))
    }
}

fn lower_linear<B: Backend>(grads: LinearGrads<B>) -> [Option<Primitive<B>>; 3] {
    [grads.x.map(lower), grads.weight.map(lower), grads.bias.map(lower)]
}

#[derive(Clone, Debug)]
struct LayerNormSaved<B: Backend> {
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
}

impl<B: Backend> Saved<B, 3> for LayerNormSaved<B> {
    fn backward(self, grad: Primitive<B>, _wanted: [bool; 3]) -> [Option<Primitive<B>>; 3] {
        let (x, weight, bias) = B::layer_norm_rows_backward(self.x, self.weight, lift(grad));
        [Some(lower(x)), Some(lower(weight)), Some(lower(bias))]
    }
}

impl<B: Backend> Saved<B, 1> for Dropout {
    fn backward(self, grad: Primitive<B>, _wanted: [bool; 1]) -> [Option<Primitive<B>>; 1] {
        [Some(lower(B::dropout(lift(grad), self)))]
    }
}

impl<B: Backend> Saved<B, 4> for ResidualSaved<B> {
    fn backward(self, grad: Primitive<B>, _wanted: [bool; 4]) -> [Option<Primitive<B>>; 4] {
        let grads = B::norm_residual_backward(self, lift(grad));
        [Some(lower(grads.h)), Some(lower(grads.weight)), Some(lower(grads.bias)), Some(lower(grads.x))]
    }
}

impl<B: Backend> Saved<B, 7> for LstmSaved<B> {
    fn backward(self, grad: Primitive<B>, wanted: [bool; 7]) -> [Option<Primitive<B>>; 7] {
        let [x, weight_ih, weight_hh, bias_ih, bias_hh, _, _] = wanted;
        let wanted = LstmWanted { x, weight_ih, weight_hh, bias: bias_ih || bias_hh };
        let grads = B::lstm_backward(self, lift(grad), wanted);
        let bias = grads.bias.map(lower);
        [
            grads.x.map(lower),
            grads.weight_ih.map(lower),
            grads.weight_hh.map(lower),
            bias.clone(),
            bias,
            Some(lower(grads.h0)),
            Some(lower(grads.c0)),
        ]
    }
}

impl<B: Backend> Saved<B, 3> for AttentionSaved<B> {
    fn backward(self, grad: Primitive<B>, wanted: [bool; 3]) -> [Option<Primitive<B>>; 3] {
        let [_, memory_wanted, _] = wanted;
        let grads = B::memory_attention_backward(self, lift(grad), memory_wanted);
        [Some(lower(grads.query)), grads.memory.map(lower), Some(lower(grads.current))]
    }
}

impl<B: Backend> Saved<B, 3> for BoomSaved<B> {
    fn backward(self, grad: Primitive<B>, _wanted: [bool; 3]) -> [Option<Primitive<B>>; 3] {
        let grads = B::boom_backward(self, lift(grad));
        [Some(lower(grads.x)), Some(lower(grads.weight)), Some(lower(grads.bias))]
    }
}

impl<B: Backend> Saved<B, 3> for DecoderLossSaved<B> {
    fn backward(self, grad: Primitive<B>, wanted: [bool; 3]) -> [Option<Primitive<B>>; 3] {
        lower_linear(B::decoder_loss_backward(self, lift(grad), wanted))
    }
}

impl<B: Backend, C: CheckpointStrategy> Backend for Autodiff<B, C> {
    const KEEPS_ATTENTION_WEIGHTS: bool = B::KEEPS_ATTENTION_WEIGHTS;

    const HALVES_ATTENTION_WEIGHTS: bool = B::HALVES_ATTENTION_WEIGHTS;

    fn instructions() -> Option<&'static str> {
        B::instructions()
    }

    fn notices(device: &B::Device) -> Vec<String> {
        B::notices(device)
    }

    fn flush(device: &B::Device) -> Result<(), ExecutionError> {
        B::flush(device)
    }

    fn affine(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Tensor<Self, 1>,
        precision: Precision,
    ) -> Tensor<Self, 2> {
        let (x, weight, bias) = (lower(x), lower(weight), lower(bias));
        let saved = LinearSaved { x: lift(x.primitive.clone()), weight: lift(weight.primitive.clone()), precision };
        let output = B::affine(saved.x.clone(), saved.weight.clone(), lift(bias.primitive.clone()), precision);
        record::<B, C, _, _, _>([&x, &weight, &bias], || (output.clone(), saved), || output.clone())
    }

    fn layer_norm_rows(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, bias: Tensor<Self, 1>) -> Tensor<Self, 2> {
        let (x, weight, bias) = (lower(x), lower(weight), lower(bias));
        let saved = LayerNormSaved { x: lift(x.primitive.clone()), weight: lift(weight.primitive.clone()) };
        let output = B::layer_norm_rows(saved.x.clone(), saved.weight.clone(), lift(bias.primitive.clone()));
        record::<B, C, _, _, _>([&x, &weight, &bias], || (output.clone(), saved), || output.clone())
    }

    fn dropout(x: Tensor<Self, 3>, dropout: Dropout) -> Tensor<Self, 3> {
        let x = lower(x);
        let output = B::dropout(lift(x.primitive.clone()), dropout);
        record::<B, C, _, _, _>([&x], || (output.clone(), dropout), || output.clone())
    }

    fn norm_residual(inputs: ResidualInputs<Self>) -> Tensor<Self, 3> {
        let ResidualInputs { h, weight, bias, x, dropout } = inputs;
        let (h, weight, bias, x) = (lower(h), lower(weight), lower(bias), lower(x));
        let parents = [&h, &weight, &bias, &x].map(|parent| parent.node.clone());
        let saved =
            ResidualSaved::<B> { h: lift(h.primitive.clone()), weight: lift(weight.primitive.clone()), dropout };
        // What is added is handed over, so that the sum may take its place.
        let output = B::norm_residual(ResidualInputs {
            h: saved.h.clone(),
            weight: saved.weight.clone(),
            bias: lift(bias.primitive),
            x: lift(x.primitive),
            dropout,
        });
        let output = match Node::<ResidualSaved<B>>(PhantomData).prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(saved, lower(output)),
            OpsKind::UnTracked(prep) => prep.finish(lower(output)),
        };
        lift(output)
    }

    fn lstm(inputs: LstmInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        let LstmInputs { x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, recompute } = inputs;
        let (x, weight_ih, weight_hh) = (lower(x), lower(weight_ih), lower(weight_hh));
        let (bias_ih, bias_hh, h0, c0) = (lower(bias_ih), lower(bias_hh), lower(h0), lower(c0));
        let inputs = LstmInputs::<B> {
            x: lift(x.primitive.clone()),
            weight_ih: lift(weight_ih.primitive.clone()),
            weight_hh: lift(weight_hh.primitive.clone()),
            bias_ih: lift(bias_ih.primitive.clone()),
            bias_hh: lift(bias_hh.primitive.clone()),
            h0: lift(h0.primitive.clone()),
            c0: lift(c0.primitive.clone()),
            recompute,
        };
        record::<B, C, _, _, _>(
            [&x, &weight_ih, &weight_hh, &bias_ih, &bias_hh, &h0, &c0],
            || B::lstm_forward(inputs.clone(), precision),
            || B::lstm(inputs.clone(), precision),
        )
    }

    fn memory_attention(inputs: AttentionInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        let AttentionInputs { query, memory, current, n_heads, value_dropout, weight_dropout } = inputs;
        let (query, memory, current) = (lower(query), memory.map(lower), lower(current));
        let inputs = AttentionInputs::<B> {
            query: lift(query.primitive.clone()),
            memory: memory.as_ref().map(|memory| lift(memory.primitive.clone())),
            current: lift(current.primitive.clone()),
            n_heads,
            value_dropout,
            weight_dropout,
        };
        // Where there is no memory, an untracked tensor stands in its place among the parents.
        let memory = memory.unwrap_or_else(|| lower(Tensor::<Self, 3>::from_inner(inputs.current.clone())));
        record::<B, C, _, _, _>(
            [&query, &memory, &current],
            || B::memory_attention_forward(inputs.clone(), precision),
            || B::memory_attention(inputs.clone(), precision),
        )
    }

    fn boom(inputs: BoomInputs<Self>, precision: Precision) -> Tensor<Self, 3> {
        let BoomInputs { x, weight, bias, dropout, recompute } = inputs;
        let (x, weight, bias) = (lower(x), lower(weight), lower(bias));
        let inputs = BoomInputs::<B> {
            x: lift(x.primitive.clone()),
            weight: lift(weight.primitive.clone()),
            bias: lift(bias.primitive.clone()),
            dropout,
            recompute,
        };
        record::<B, C, _, _, _>(
            [&x, &weight, &bias],
            || B::boom_forward(inputs.clone(), precision),
            || B::boom(inputs.clone(), precision),
        )
    }

    fn decoder_loss(inputs: DecoderLossInputs<Self>, precision: Precision) -> Tensor<Self, 1> {
        let DecoderLossInputs { h, weight, bias, targets } = inputs;
        let (h, weight, bias) = (lower(h), lower(weight), lower(bias));
        let inputs = DecoderLossInputs::<B> {
            h: lift(h.primitive.clone()),
            weight: lift(weight.primitive.clone()),
            bias: lift(bias.primitive.clone()),
            targets: targets.inner(),
        };
        record::<B, C, _, _, _>(
            [&h, &weight, &bias],
            || B::decoder_loss_forward(inputs.clone(), precision),
            || B::decoder_loss(inputs.clone(), precision),
        )
    }
}
