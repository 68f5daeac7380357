//! Both passes over a few rows in all: a single step, as in decoding through the model, or a short segment of one lane. Weights
//! are read as they lie, a step's products are divided among the members, and what is kept lies in rows: `[steps, lanes, 4, d]`
//! of gates, `[steps, lanes, d]` of cells.

use super::backward::{CellBackward, activate, cell_backward};
use super::forward::{CellForward, cell_forward};
use super::{Lstm, LstmGrads};
use crate::buffer::Buffer;
use crate::gemm::{FEW, Mat, Start, multiply};
use crate::linear::{affine, affine_backward};

impl Lstm<'_> {
    /// Whether there are so few rows in all that packing the weights would take longer than all products.
    pub(super) fn is_few(&self) -> bool {
        self.seq_len * self.lanes <= FEW
    }

    fn weight_hh(&self) -> Mat<'_> {
        Mat::row_major(self.weight_hh, 4 * self.d, self.d)
    }

    /// The input's part of all gates, with the biases.
    fn input_gates(&self, gates: &mut [f32]) {
        let bias: Vec<f32> = self.bias_ih.iter().zip(self.bias_hh).map(|(x, y)| x + y).collect();
        let weight = Mat::row_major(self.weight_ih, 4 * self.d, self.d_in);
        let x = Mat::row_major(self.x, self.seq_len * self.lanes, self.d_in);
        affine(x, weight, &bias, self.operands, gates);
    }

    /// Adds the part of some hidden states to as many rows of gates.
    fn add_hidden(&self, hidden: &[f32], gates: &mut [f32]) {
        multiply(
            Mat::row_major(hidden, hidden.len() / self.d, self.d),
            self.weight_hh().t(),
            self.operands,
            gates,
            |_| Start::Result,
        );
    }

    pub(super) fn forward_few(&self, output: &mut [f32], gates: &mut [f32], cells: &mut [f32]) {
        let &Self { seq_len, lanes, d, h0, c0, .. } = self;
        let state = lanes * d;
        self.input_gates(gates);
        for (t, gates) in gates.chunks_exact_mut(4 * state).enumerate() {
            let (past, rest) = output.split_at_mut(t * state);
            let hidden = if t == 0 { h0 } else { &past[(t - 1) * state..] };
            self.add_hidden(hidden, gates);
            let (past, cell) = cells.split_at_mut(t * state);
            let before = if t == 0 { c0 } else { &past[(t - 1) * state..] };
            // SAFETY: rows of `d` of every lane.
            unsafe {
                cell_forward(&CellForward {
                    lanes,
                    units: d,
                    gates: gates.as_mut_ptr(),
                    before: before.as_ptr(),
                    before_row: d,
                    cell: cell.as_mut_ptr(),
                    hidden: rest.as_mut_ptr(),
                    d,
                    copy: None,
                });
            }
        }
        output[seq_len * state..].copy_from_slice(&cells[(seq_len - 1) * state..]);
    }

    /// The gradients of the last hidden state and cell are zeros and those of the output.
    pub(super) fn backward_few(
        &self,
        output: &[f32],
        gates: Option<&[f32]>,
        cells: &[f32],
        grad: &[f32],
        grads: LstmGrads,
    ) {
        let &Self { seq_len, lanes, d_in, d, operands, h0, c0, .. } = self;
        let (rows, state) = (seq_len * lanes, lanes * d);
        let LstmGrads { x: dx, weight_ih, weight_hh, bias, h0: dh, c0: dc } = grads;
        let mut hidden = Buffer::room(rows * d);
        hidden[..state].copy_from_slice(h0);
        hidden[state..].copy_from_slice(&output[..(seq_len - 1) * state]);
        let mut again = Buffer::room(if gates.is_some() { 0 } else { 4 * rows * d });
        let gates = match gates {
            Some(gates) => gates,
            None => {
                self.input_gates(&mut again);
                self.add_hidden(&hidden, &mut again);
                // SAFETY: there are as many rows.
                unsafe { activate(again.as_mut_ptr(), rows, d) };
                &again
            }
        };
        let mut dgates = Buffer::room(4 * rows * d);
        for t in (0..seq_len).rev() {
            let before = if t == 0 { c0 } else { &cells[(t - 1) * state..] };
            // SAFETY: rows of `d` of every lane, or of `4 d`.
            unsafe {
                cell_backward(&CellBackward {
                    lanes,
                    d,
                    units: d,
                    gates: gates[t * 4 * state..].as_ptr(),
                    before: before.as_ptr(),
                    before_row: d,
                    cell: cells[t * state..].as_ptr(),
                    grad: grad[t * state..].as_ptr(),
                    dh: dh.as_ptr(),
                    dc: dc.as_mut_ptr(),
                    gate_row: 4 * d,
                    dgates: dgates[t * 4 * state..].as_mut_ptr(),
                    copy: None,
                });
            }
            let of_step = Mat::row_major(&dgates[t * 4 * state..], lanes, 4 * d);
            multiply(of_step, self.weight_hh(), operands, dh, |_| Start::Zero);
        }
        let (x, weight) = (Mat::row_major(self.x, rows, d_in), Mat::row_major(self.weight_ih, 4 * d, d_in));
        affine_backward(x, weight, &dgates, operands, dx, weight_ih, bias);
        if let Some(weight_hh) = weight_hh {
            let dgates = Mat::row_major(&dgates, rows, 4 * d);
            multiply(dgates.t(), Mat::row_major(&hidden, rows, d), operands, weight_hh, |_| Start::Zero);
        }
    }
}
