//! The backward pass.

use std::ops::Range;

use super::{Lstm, LstmGrads};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{Mat, Operands, Packed, Product, Start, pack_panel, panel_width, product, round_bf16, scratch};
use crate::math::tanh;
use crate::simd::{Vector, kernel};
use crate::team::{self, Member};

impl Lstm<'_> {
    /// Gradients, given what [`forward`](Self::forward) put out and kept, and the gradient of its output.
    ///
    /// # Panics
    /// If a slice has another size than its shape says.
    pub fn backward(&self, output: &[f32], gates: &[f32], cells: &[f32], grad: &[f32], grads: LstmGrads) {
        self.check();
        let &Self { seq_len, lanes, d_in, d, operands, .. } = self;
        let (rows, state) = (seq_len * lanes, lanes * d);
        let LstmGrads { x, weight_ih, weight_hh, mut bias, h0, c0 } = grads;
        let sizes = [
            (output.len(), (seq_len + 1) * state, "output"),
            (grad.len(), (seq_len + 1) * state, "grad"),
            (gates.len(), rows * 4 * d, "gates"),
            (cells.len(), rows * d, "cells"),
            (h0.len(), state, "the gradient of h0"),
            (c0.len(), state, "the gradient of c0"),
            (x.as_ref().map_or(rows * d_in, |x| x.len()), rows * d_in, "the gradient of x"),
            (weight_ih.as_ref().map_or(4 * d * d_in, |w| w.len()), 4 * d * d_in, "the gradient of weight_ih"),
            (weight_hh.as_ref().map_or(4 * d * d, |w| w.len()), 4 * d * d, "the gradient of weight_hh"),
            (bias.as_ref().map_or(4 * d, |bias| bias.len()), 4 * d, "the gradient of the bias"),
        ];
        for (found, expected, name) in sizes {
            assert_eq!(found, expected, "size of {name}");
        }
        h0.fill(0.0);
        c0.copy_from_slice(&grad[seq_len * state..]);
        if let Some(bias) = &mut bias {
            bias.fill(0.0);
        }

        // What the gates' gradients of a chunk are multiplied with: inputs and hidden states side by side.
        let width = panel_width();
        let mut right = Packed::room(self.chunk() * lanes, d_in.next_multiple_of(width) + d, operands);
        let gate_row = 4 * d + width;
        let chunk_len = self.chunk() * lanes * gate_row;
        let mut dgates = Buffer::room(2 * chunk_len);
        let mut rounded = (operands == Operands::Bf16).then(|| Buffer::room(2 * chunk_len));
        let pass = Backward {
            lstm: self,
            recurrent: &Packed::new(Mat::row_major(self.weight_hh, 4 * d, d), operands),
            input: &Packed::new(Mat::row_major(self.weight_ih, 4 * d, d_in), operands),
            output,
            gates,
            cells,
            grad,
            gate_row,
            dgates: Shared::new(&mut dgates),
            rounded: rounded.as_mut().map(|rounded| Shared::new(rounded)),
            right: Shared::new(right.panels_mut()),
            dh: Shared::new(h0),
            dc: Shared::new(c0),
            dx: x.map(Shared::new),
            dweight_ih: weight_ih.map(Shared::new),
            dweight_hh: weight_hh.map(Shared::new),
            dbias: bias.map(Shared::new),
        };
        team::run(self.members(), |member| pass.work(member));
    }
}

/// The backward pass, as all members see it.
struct Backward<'a> {
    lstm: &'a Lstm<'a>,
    recurrent: &'a Packed,
    input: &'a Packed,
    output: &'a [f32],
    gates: &'a [f32],
    cells: &'a [f32],
    grad: &'a [f32],
    /// Distance of the rows of `dgates`: not a power of two, which would crowd them into a few sets of the cache.
    gate_row: usize,
    /// The gates' gradients of a chunk and of the one before it, by turns.
    dgates: Shared<f32>,
    /// The same rounded, where operands are.
    rounded: Option<Shared<f32>>,
    /// Panels of a chunk's inputs, then of its hidden states.
    right: Shared<f32>,
    /// Gradients of h and c as they come from the step after.
    dh: Shared<f32>,
    dc: Shared<f32>,
    dx: Option<Shared<f32>>,
    dweight_ih: Option<Shared<f32>>,
    dweight_hh: Option<Shared<f32>>,
    dbias: Option<Shared<f32>>,
}

impl Backward<'_> {
    fn work(&self, member: &Member) {
        let &Lstm { seq_len, d, .. } = self.lstm;
        let chunk = self.lstm.chunk();
        let groups = member.share(d.div_ceil(panel_width()));
        let mut scratch = scratch();
        for index in (0..seq_len.div_ceil(chunk)).rev() {
            let steps = index * chunk..seq_len.min((index + 1) * chunk);
            for t in steps.clone().rev() {
                for group in groups.clone() {
                    // SAFETY: the member's own units; the gates' gradients of the step after are published by the barrier.
                    unsafe {
                        if t + 1 < seq_len {
                            self.pull_back(t + 1, group);
                        }
                        self.step(t, group);
                    }
                }
                member.wait();
            }
            // No one packs the next chunk before everyone has come through its steps, and so is done with this one.
            self.pack_right(member, steps.clone());
            member.wait();
            // SAFETY: the chunk's gates' gradients and the right operand are complete; each member has its own results.
            unsafe { self.add_up(member, steps, &mut scratch) };
        }
        for group in groups {
            // SAFETY: as above.
            unsafe { self.pull_back(0, group) };
        }
    }

    /// Where the gates' gradients of step `t` begin.
    fn place(&self, t: usize) -> usize {
        let (chunk, lanes) = (self.lstm.chunk(), self.lstm.lanes);
        (t / chunk % 2 * chunk + t % chunk) * lanes * self.gate_row
    }

    /// The gates' gradients as left operands see them.
    fn left(&self) -> Shared<f32> {
        self.rounded.unwrap_or(self.dgates)
    }

    /// One step of some units.
    unsafe fn step(&self, t: usize, group: usize) {
        let &Lstm { lanes, d, c0, .. } = self.lstm;
        let (width, state) = (panel_width(), lanes * d);
        let first = group * width;
        let before = if t == 0 { c0 } else { &self.cells[(t - 1) * state..] };
        // SAFETY: the caller's.
        unsafe {
            cell_backward(&CellBackward {
                lanes,
                d,
                units: width.min(d - first),
                gates: self.gates[t * 4 * state + first..].as_ptr(),
                before: before[first..].as_ptr(),
                cell: self.cells[t * state + first..].as_ptr(),
                grad: self.grad[t * state + first..].as_ptr(),
                dh: self.dh.at(first),
                dc: self.dc.at(first),
                gate_row: self.gate_row,
                dgates: self.dgates.at(self.place(t) + first),
                rounded: self.rounded.map(|rounded| rounded.at(self.place(t) + first)),
            });
        }
    }

    /// The gradient of these units' hidden state of the step before `t`.
    unsafe fn pull_back(&self, t: usize, group: usize) {
        let &Lstm { lanes, d, .. } = self.lstm;
        let width = panel_width();
        // SAFETY: the caller's: the gates' gradients of step `t` are complete, and the units are this member's own.
        unsafe {
            let part = Product {
                a: self.left().at(self.place(t)),
                a_row: self.gate_row,
                a_col: 1,
                rows: lanes,
                k: 4 * d,
                panels: self.recurrent.panels()[group * width * 4 * d..].as_ptr(),
                panel_rows: 4 * d,
                operands: Operands::F32,
                cols: width.min(d - group * width),
                c: self.dh.at(group * width),
                c_row: d,
                start: Start::Zero,
            };
            product(&part, &mut []);
        }
    }

    /// Packs this member's share of the inputs and hidden states that led to `steps`.
    fn pack_right(&self, member: &Member, steps: Range<usize>) {
        let &Lstm { lanes, d_in, d, x, h0, operands, .. } = self.lstm;
        let (width, rows) = (panel_width(), steps.len() * lanes);
        let x_panels = d_in.div_ceil(width);
        let x = Mat::row_major(&x[steps.start * lanes * d_in..], rows, d_in);
        // h_0 is no part of the output.
        let head = if steps.start == 0 { lanes } else { 0 };
        let from = steps.start.saturating_sub(1) * lanes * d;
        let hidden = Mat::row_major(&self.output[from..], rows - head, d);
        for panel in member.share(x_panels + d.div_ceil(width)) {
            // SAFETY: each panel is written by one member.
            let out = unsafe { self.right.slice(panel * rows * width, rows * width) };
            if panel < x_panels {
                pack_panel(x, panel * width, out, operands);
            } else {
                let col = (panel - x_panels) * width;
                let (first, rest) = out.split_at_mut(head * width);
                if head > 0 {
                    pack_panel(Mat::row_major(h0, lanes, d), col, first, operands);
                }
                pack_panel(hidden, col, rest, operands);
            }
        }
    }

    /// Adds this member's share of what `steps` contribute to the gradients of weights and bias, and computes that of the
    /// input. Chunks come in a fixed order, so that sums do not depend on the members.
    unsafe fn add_up(&self, member: &Member, steps: Range<usize>, scratch: &mut [f32]) {
        let &Lstm { seq_len, lanes, d_in, d, .. } = self.lstm;
        let (width, rows) = (panel_width(), steps.len() * lanes);
        let start = if steps.end == seq_len { Start::Zero } else { Start::Result };
        let units = member.share(4 * d);
        // SAFETY: the caller's.
        unsafe {
            let left = self.left().at(self.place(steps.start)).cast_const();
            let x_panels = d_in.div_ceil(width);
            let targets = [(self.dweight_ih, 0, d_in), (self.dweight_hh, x_panels, d)];
            for (out, panel, cols) in targets {
                let Some(out) = out else { continue };
                let part = Product {
                    a: left.add(units.start),
                    a_row: 1,
                    a_col: self.gate_row,
                    rows: units.len(),
                    k: rows,
                    panels: self.right.at(panel * rows * width),
                    panel_rows: rows,
                    operands: Operands::F32,
                    cols,
                    c: out.at(units.start * cols),
                    c_row: cols,
                    start,
                };
                product(&part, scratch);
            }
            if let Some(dbias) = self.dbias {
                let sums = dbias.slice(units.start, units.len());
                for row in 0..rows {
                    let at = self.place(steps.start) + row * self.gate_row + units.start;
                    let row = self.dgates.slice(at, units.len());
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
                }
            }
            if let Some(dx) = self.dx {
                let share = member.share(rows);
                let part = Product {
                    a: left.add(share.start * self.gate_row),
                    a_row: self.gate_row,
                    a_col: 1,
                    rows: share.len(),
                    k: 4 * d,
                    panels: self.input.panels().as_ptr(),
                    panel_rows: 4 * d,
                    operands: Operands::F32,
                    cols: d_in,
                    c: dx.at((steps.start * lanes + share.start) * d_in),
                    c_row: d_in,
                    start: Start::Zero,
                };
                product(&part, scratch);
            }
        }
    }
}

/// One step of some units, backward; pointers as in the forward pass.
struct CellBackward {
    lanes: usize,
    d: usize,
    units: usize,
    gates: *const f32,
    before: *const f32,
    cell: *const f32,
    grad: *const f32,
    dh: *const f32,
    dc: *mut f32,
    /// Distance of the rows of `dgates`.
    gate_row: usize,
    dgates: *mut f32,
    rounded: Option<*mut f32>,
}

#[inline(always)]
unsafe fn cell_backward_body<V: Vector>(step: &CellBackward) {
    let &CellBackward { lanes, d, units, .. } = step;
    // SAFETY: the caller's, for `units` values of every row.
    unsafe {
        let one = V::splat(1.0);
        for lane in 0..lanes {
            for unit in (0..units).step_by(V::LANES) {
                let n = V::LANES.min(units - unit);
                let gate_at = |k: usize| lane * 4 * d + k * d + unit;
                let at = lane * d + unit;
                for k in 0..4 {
                    V::prefetch(step.gates.wrapping_add(gate_at(k)).wrapping_sub(lanes * 4 * d));
                }
                V::prefetch(step.grad.wrapping_add(at).wrapping_sub(lanes * d));
                V::prefetch(step.cell.wrapping_add(at).wrapping_sub(2 * lanes * d));
                let i = V::load_up_to(step.gates.add(gate_at(0)), n);
                let f = V::load_up_to(step.gates.add(gate_at(1)), n);
                let g = V::load_up_to(step.gates.add(gate_at(2)), n);
                let o = V::load_up_to(step.gates.add(gate_at(3)), n);
                let tanh_c = tanh(V::load_up_to(step.cell.add(at), n));
                let dh = V::load_up_to(step.dh.add(at), n).add(V::load_up_to(step.grad.add(at), n));
                let through_c = dh.mul(o).mul(one.sub(tanh_c.mul(tanh_c)));
                let dc = V::load_up_to(step.dc.add(at), n).add(through_c);
                let before = V::load_up_to(step.before.add(at), n);
                let dz = [
                    dc.mul(g).mul(i).mul(one.sub(i)),
                    dc.mul(before).mul(f).mul(one.sub(f)),
                    dc.mul(i).mul(one.sub(g.mul(g))),
                    dh.mul(tanh_c).mul(o).mul(one.sub(o)),
                ];
                dc.mul(f).store_up_to(step.dc.add(at), n);
                for (k, dz) in dz.into_iter().enumerate() {
                    let at = lane * step.gate_row + k * d + unit;
                    dz.store_up_to(step.dgates.add(at), n);
                    if let Some(rounded) = step.rounded {
                        for e in at..at + n {
                            *rounded.add(e) = round_bf16(*step.dgates.add(e));
                        }
                    }
                }
            }
        }
    }
}
kernel!(unsafe fn cell_backward(step: &CellBackward) => cell_backward_body);
