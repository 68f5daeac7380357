//! The LSTM over a whole segment (Hochreiter and Schmidhuber 1997, in PyTorch's convention).
//!
//! ```text
//! [i f g o] = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh      c_t = σ(f) c_{t-1} + σ(i) tanh(g)      h_t = σ(o) tanh(c_t)
//! ```
//!
//! Every member of the team owns some hidden units through the whole segment. It multiplies `h_{t-1}` with their columns of
//! all four gates, which stay in its cache, applies the nonlinearities to them at once, and meets the others at a barrier,
//! one a step. The segment is gone through in chunks of a few hundred rows: the input's part of a chunk's gates is one
//! product right before its steps, and in the backward the gradients of weights and input are added up right after them,
//! while the chunk's values are in the cache.

mod backward;
mod forward;
#[cfg(test)]
mod tests;

use crate::buffer::{Buffer, Shared};
use crate::gemm::{Mat, Operands, Packed, pack_panel, panel_width, round_bf16};
use crate::team;

/// Multiplications of a recurrent step that are worth a member: some microseconds.
const STEP_SHARE: usize = 1 << 17;

/// Rows of a chunk: as many as a product sums in registers.
const CHUNK_ROWS: usize = 256;

/// The operation's inputs. All tensors are row-major and time-major.
#[derive(Clone, Copy)]
pub struct Lstm<'a> {
    /// Steps.
    pub seq_len: usize,
    /// Rows of a step: the batch size.
    pub lanes: usize,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the state.
    pub d: usize,
    /// `[seq_len, lanes, d_in]`
    pub x: &'a [f32],
    /// `[4 d, d_in]`, rows in the order i, f, g, o.
    pub weight_ih: &'a [f32],
    /// `[4 d, d]`
    pub weight_hh: &'a [f32],
    /// `[4 d]`
    pub bias_ih: &'a [f32],
    /// `[4 d]`
    pub bias_hh: &'a [f32],
    /// `[lanes, d]`
    pub h0: &'a [f32],
    /// `[lanes, d]`
    pub c0: &'a [f32],
    /// What the operands of products are rounded to.
    pub operands: Operands,
}

/// What the forward pass keeps for the backward.
pub struct LstmTrace<'a> {
    /// Activated gates, `[seq_len, lanes, 4 d]`.
    pub gates: &'a mut [f32],
    /// `c_1 .. c_T`, `[seq_len, lanes, d]`.
    pub cells: &'a mut [f32],
}

/// Where the gradients go; those that are `None` are not computed.
pub struct LstmGrads<'a> {
    /// `[seq_len, lanes, d_in]`
    pub x: Option<&'a mut [f32]>,
    /// `[4 d, d_in]`
    pub weight_ih: Option<&'a mut [f32]>,
    /// `[4 d, d]`
    pub weight_hh: Option<&'a mut [f32]>,
    /// `[4 d]`, of either bias.
    pub bias: Option<&'a mut [f32]>,
    /// `[lanes, d]`
    pub h0: &'a mut [f32],
    /// `[lanes, d]`
    pub c0: &'a mut [f32],
}

impl Lstm<'_> {
    fn check(&self) {
        let &Self { seq_len, lanes, d_in, d, .. } = self;
        let sizes = [
            (self.x.len(), seq_len * lanes * d_in, "x"),
            (self.weight_ih.len(), 4 * d * d_in, "weight_ih"),
            (self.weight_hh.len(), 4 * d * d, "weight_hh"),
            (self.bias_ih.len(), 4 * d, "bias_ih"),
            (self.bias_hh.len(), 4 * d, "bias_hh"),
            (self.h0.len(), lanes * d, "h0"),
            (self.c0.len(), lanes * d, "c0"),
        ];
        for (found, expected, name) in sizes {
            assert_eq!(found, expected, "size of {name}");
        }
        assert!(seq_len > 0 && lanes > 0 && d > 0, "the LSTM has nothing to do");
    }

    /// Members that a step is worth.
    fn members(&self) -> usize {
        (self.lanes * 4 * self.d * self.d / STEP_SHARE).clamp(1, self.d.div_ceil(panel_width()))
    }

    /// Steps of a chunk.
    fn chunk(&self) -> usize {
        (CHUNK_ROWS / self.lanes).clamp(1, self.seq_len)
    }

    /// The transpose of a weight `[4 d, k]` in panels: the four gates of one panel's width of units lie next to each other.
    fn pack_by_unit(&self, weight: &[f32], k: usize) -> Packed {
        let (d, width) = (self.d, panel_width());
        let groups = d.div_ceil(width);
        let mut packed = Packed::room(k, 4 * groups * width, self.operands);
        let panels = Shared::new(packed.panels_mut());
        let weight = Mat::row_major(weight, 4 * d, k);
        team::for_each(groups, |group| {
            for gate in 0..4 {
                // SAFETY: each panel is written by one task.
                let panel = unsafe { panels.slice((4 * group + gate) * k * width, k * width) };
                pack_panel(weight.narrow_rows(gate * d, d).t(), group * width, panel, self.operands);
            }
        });
        packed
    }

    /// Two copies, of which one holds `first`, for the left operands of a recurrent product, where they are rounded.
    fn two_rounded(&self, first: &[f32], len: usize) -> Option<Buffer> {
        (self.operands == Operands::Bf16).then(|| {
            let mut rounded = Buffer::zeros(2 * len);
            rounded[..first.len()].iter_mut().zip(first).for_each(|(out, &x)| *out = round_bf16(x));
            rounded
        })
    }
}

/// A rounded copy, where operands are rounded.
fn rounded(x: &[f32], operands: Operands) -> Option<Buffer> {
    (operands == Operands::Bf16).then(|| {
        let mut rounded = Buffer::room(x.len());
        rounded.iter_mut().zip(x).for_each(|(out, &x)| *out = round_bf16(x));
        rounded
    })
}
