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
//! while the chunk's values are in the cache. A few rows in all ([`few`]) are not worth packed weights.

mod backward;
mod few;
mod forward;
mod gates;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::blocks;
use crate::gemm::{LeftCopy, Mat, Operands};

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

/// What the forward pass keeps for the backward, in an order of its own: all steps of some units lie together, so that who
/// computes them goes straight through the memory. Of a few rows in all, rows lie together.
pub struct LstmTrace<'a> {
    /// Activated gates, `seq_len * lanes * 4 d` values. Without them the backward computes them again, to the same bits.
    pub gates: Option<&'a mut [f32]>,
    /// `c_1 .. c_T`, `seq_len * lanes * d` values.
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
        (self.lanes * 4 * self.d * self.d / STEP_SHARE).clamp(1, self.groups())
    }

    /// Steps of a chunk.
    fn chunk(&self) -> usize {
        (CHUNK_ROWS / self.lanes).clamp(1, self.seq_len)
    }

    /// Width of a panel: units whose gates are computed together.
    fn width(&self) -> usize {
        self.operands.format().width()
    }

    /// Groups of so many units.
    fn groups(&self) -> usize {
        self.d.div_ceil(self.width())
    }

    /// The units of a group.
    fn units(&self, group: usize) -> Range<usize> {
        let first = group * self.width();
        first..self.d.min(first + self.width())
    }

    /// Where step `t` of a group begins in what holds so many steps, `[groups, steps, lanes, units]`. Of gates,
    /// `[groups, steps, lanes, 4, units]`, it is four times as far.
    fn place(&self, group: usize, t: usize, steps: usize) -> usize {
        let units = self.units(group);
        self.lanes * (steps * units.start + t * units.len())
    }

    /// A copy of some rows that is the left operand of many products, where these want one.
    fn copy(&self, rows: Mat) -> Option<LeftCopy> {
        let mut copy = LeftCopy::room(rows.rows(), rows.cols(), self.operands.format())?;
        let (shared, n) = (copy.share(), rows.rows());
        let task = |(): &mut (), task: usize| {
            let first = task * CHUNK_ROWS;
            let rows = rows.narrow_rows(first, CHUNK_ROWS.min(n - first));
            // SAFETY: each row is written by one task.
            unsafe { shared.put_rows(first, rows) };
        };
        blocks::for_each_with(n.div_ceil(CHUNK_ROWS), n * rows.cols(), || (), task);
        Some(copy)
    }
}
