//! The backward pass.

use std::ops::Range;

use super::gates::{Gates, SharedGates};
use super::{Lstm, LstmGrads};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{Left, LeftCopy, Mat, Packed, Panels, Product, SharedCopy, Start, product, scratch};
use crate::math::{sigmoid, tanh};
use crate::simd::{Vector, kernel};
use crate::team::{self, Member};

impl Lstm<'_> {
    /// Gradients, given what [`forward`](Self::forward) put out and kept, and the gradient of its output.
    ///
    /// # Panics
    /// If a slice has another size than its shape says.
    pub fn backward(&self, output: &[f32], gates: Option<&[f32]>, cells: &[f32], grad: &[f32], grads: LstmGrads) {
        self.check();
        let &Self { seq_len, lanes, d_in, d, operands, .. } = self;
        let (rows, state) = (seq_len * lanes, lanes * d);
        let LstmGrads { x, weight_ih, weight_hh, mut bias, h0, c0 } = grads;
        let sizes = [
            (output.len(), (seq_len + 1) * state, "output"),
            (grad.len(), (seq_len + 1) * state, "grad"),
            (gates.map_or(rows * 4 * d, |gates| gates.len()), rows * 4 * d, "gates"),
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
        if self.is_few() {
            let grads = LstmGrads { x, weight_ih, weight_hh, bias, h0, c0 };
            return self.backward_few(output, gates, cells, grad, grads);
        }
        if let Some(bias) = &mut bias {
            bias.fill(0.0);
        }

        // What the gates' gradients of a chunk are multiplied with: inputs and hidden states side by side.
        let width = self.width();
        let mut right = Packed::room(self.chunk() * lanes, d_in.next_multiple_of(width) + d, operands);
        let gate_row = 4 * d + 16;
        let chunk_rows = self.chunk() * lanes;
        let mut dgates = Buffer::room(2 * chunk_rows * gate_row);
        let mut copy = LeftCopy::room(2 * chunk_rows, 4 * d, operands.format());
        let recurrent = Packed::new(Mat::row_major(self.weight_hh, 4 * d, d), operands);
        let input = Packed::new(Mat::row_major(self.weight_ih, 4 * d, d_in), operands);
        let mut again = gates.is_none().then(|| Again::new(self, output));
        let pass = Backward {
            lstm: self,
            recurrent: recurrent.panels(),
            input: input.panels(),
            output,
            gates,
            again: again.as_mut().map(Again::share),
            cells,
            grad,
            gate_row,
            dgates: Shared::new(&mut dgates),
            copy: copy.as_mut().map(LeftCopy::share),
            right: right.share(),
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

/// What the gates of a chunk are computed from once more.
struct Again<'a> {
    products: Gates<'a>,
    /// A copy of `h_0 .. h_{T-1}`, where products want one.
    hidden: Option<LeftCopy>,
    /// Of one chunk.
    gates: Buffer,
}

impl<'a> Again<'a> {
    fn new(lstm: &'a Lstm<'a>, output: &[f32]) -> Self {
        let &Lstm { seq_len, lanes, d, .. } = lstm;
        let mut hidden = LeftCopy::room(seq_len * lanes, d, lstm.operands.format());
        if let Some(hidden) = &mut hidden {
            let hidden = hidden.share();
            // SAFETY: there are as many rows, and no one else is there yet.
            unsafe {
                hidden.put_rows(0, Mat::row_major(lstm.h0, lanes, d));
                hidden.put_rows(lanes, Mat::row_major(output, (seq_len - 1) * lanes, d));
            }
        }
        Self { products: Gates::new(lstm), hidden, gates: Buffer::room(lstm.chunk() * lanes * 4 * d) }
    }

    fn share(&mut self) -> SharedAgain<'_> {
        let Self { products, hidden, gates } = self;
        let lstm = products.lstm();
        let hidden = hidden.as_mut().map(LeftCopy::share);
        SharedAgain { lstm, products: products.share(), hidden, gates: Shared::new(gates) }
    }
}

/// [`Again`], as all members see it.
struct SharedAgain<'a> {
    lstm: &'a Lstm<'a>,
    products: SharedGates<'a>,
    hidden: Option<SharedCopy>,
    gates: Shared<f32>,
}

impl SharedAgain<'_> {
    /// Where a step of a chunk begins.
    fn place(&self, group: usize, t: usize) -> usize {
        let chunk = self.lstm.chunk();
        4 * self.lstm.place(group, t % chunk, chunk)
    }

    /// The gates of the steps of a chunk, as the forward pass had them.
    ///
    /// # Safety
    /// No one else uses the group's.
    unsafe fn compute(&self, output: &[f32], group: usize, steps: Range<usize>) {
        let &Lstm { lanes, d, h0, .. } = self.lstm;
        let units = self.lstm.units(group).len();
        // SAFETY: there are such steps; the rest is the caller's.
        unsafe {
            let out = self.gates.at(self.place(group, steps.start));
            self.products.of_input(group, steps.start, steps.len(), out);
            let mut done = 0;
            if self.hidden.is_none() && steps.start == 0 {
                self.products.add_hidden(group, Left::rows(h0.as_ptr(), d), lanes, out);
                done = 1;
            }
            if done < steps.len() {
                let t = steps.start + done;
                let hidden = match self.hidden {
                    Some(copy) => copy.left(t * lanes),
                    None => Left::rows(output[(t - 1) * lanes * d..].as_ptr(), d),
                };
                let rows = (steps.len() - done) * lanes;
                self.products.add_hidden(group, hidden, rows, out.add(done * lanes * 4 * units));
            }
            activate(out, steps.len() * lanes, units);
        }
    }
}

#[inline(always)]
unsafe fn activate_body<V: Vector>(gates: *mut f32, rows: usize, units: usize) {
    for row in 0..rows {
        for gate in 0..4 {
            for unit in (0..units).step_by(V::LANES) {
                // SAFETY: the caller's, for `units` values of every gate.
                unsafe {
                    let (at, n) = (gates.add((row * 4 + gate) * units + unit), units - unit);
                    let x = V::load_up_to(at, n);
                    let x = if gate == 2 { tanh(x) } else { sigmoid(x) };
                    x.store_up_to(at, n);
                }
            }
        }
    }
}
kernel!(pub(super) unsafe fn activate(gates: *mut f32, rows: usize, units: usize) => activate_body);

/// The backward pass, as all members see it.
struct Backward<'a> {
    lstm: &'a Lstm<'a>,
    recurrent: Panels,
    input: Panels,
    output: &'a [f32],
    /// The gates, or what they are computed from again.
    gates: Option<&'a [f32]>,
    again: Option<SharedAgain<'a>>,
    cells: &'a [f32],
    grad: &'a [f32],
    /// Distance of the rows of `dgates`: not a power of two, which would crowd them into a few sets of the cache.
    gate_row: usize,
    /// The gates' gradients of a chunk and of the one before it, by turns.
    dgates: Shared<f32>,
    /// A copy of the same, where products want one.
    copy: Option<SharedCopy>,
    /// A chunk's inputs, then from a panel on its hidden states.
    right: Panels,
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
        let seq_len = self.lstm.seq_len;
        let chunk = self.lstm.chunk();
        let groups = member.share(self.lstm.groups());
        let mut scratch = scratch();
        for index in (0..seq_len.div_ceil(chunk)).rev() {
            let steps = index * chunk..seq_len.min((index + 1) * chunk);
            if let Some(again) = &self.again {
                for group in groups.clone() {
                    // SAFETY: the member's own units.
                    unsafe { again.compute(self.output, group, steps.clone()) };
                }
            }
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

    /// The row of the gates' gradients at which step `t` begins.
    fn row(&self, t: usize) -> usize {
        let (chunk, lanes) = (self.lstm.chunk(), self.lstm.lanes);
        (t / chunk % 2 * chunk + t % chunk) * lanes
    }

    /// The gates' gradients from a row on, as a left operand.
    unsafe fn left(&self, row: usize) -> Left {
        // SAFETY: the caller's.
        unsafe {
            match self.copy {
                Some(copy) => copy.left(row),
                None => Left::rows(self.dgates.at(row * self.gate_row), self.gate_row),
            }
        }
    }

    /// One step of some units.
    unsafe fn step(&self, t: usize, group: usize) {
        let &Lstm { seq_len, lanes, d, c0, .. } = self.lstm;
        let (units, row) = (self.lstm.units(group), self.row(t));
        let cells = |t: usize| self.cells[self.lstm.place(group, t, seq_len)..].as_ptr();
        let (before, before_row) = match t {
            0 => (c0[units.start..].as_ptr(), d),
            _ => (cells(t - 1), units.len()),
        };
        // SAFETY: the caller's.
        unsafe {
            cell_backward(&CellBackward {
                lanes,
                d,
                units: units.len(),
                gates: match (self.gates, &self.again) {
                    (Some(gates), _) => gates[4 * self.lstm.place(group, t, seq_len)..].as_ptr(),
                    (None, Some(again)) => again.gates.at(again.place(group, t)),
                    (None, None) => unreachable!("there are gates, or they are computed again"),
                },
                before,
                before_row,
                cell: cells(t),
                grad: self.grad[t * lanes * d + units.start..].as_ptr(),
                dh: self.dh.at(units.start),
                dc: self.dc.at(units.start),
                gate_row: self.gate_row,
                dgates: self.dgates.at(row * self.gate_row + units.start),
                copy: self.copy.map(|copy| (copy, row, units.start)),
            });
        }
    }

    /// The gradient of these units' hidden state of the step before `t`.
    unsafe fn pull_back(&self, t: usize, group: usize) {
        let &Lstm { lanes, d, .. } = self.lstm;
        let units = self.lstm.units(group);
        // SAFETY: the caller's: the gates' gradients of step `t` are complete, and the units are this member's own.
        unsafe {
            let (left, c) = (self.left(self.row(t)), self.dh.at(units.start));
            let of_weight = self.recurrent.product(0..4 * d, units);
            product(&Product { left, rows: lanes, c, c_row: d, ..of_weight }, &mut []);
        }
    }

    /// The right operand of a chunk of so many rows.
    fn right(&self, rows: usize) -> Panels {
        self.right.with_rows(rows)
    }

    /// Packs this member's share of the inputs and hidden states that led to `steps`.
    fn pack_right(&self, member: &Member, steps: Range<usize>) {
        let &Lstm { lanes, d_in, d, x, h0, .. } = self.lstm;
        let (width, rows) = (self.lstm.width(), steps.len() * lanes);
        let right = self.right(rows);
        let x_panels = d_in.div_ceil(width);
        let x = Mat::row_major(&x[steps.start * lanes * d_in..], rows, d_in);
        // h_0 is no part of the output.
        let head = if steps.start == 0 { lanes } else { 0 };
        let from = steps.start.saturating_sub(1) * lanes * d;
        let hidden = Mat::row_major(&self.output[from..], rows - head, d);
        for panel in member.share(x_panels + d.div_ceil(width)) {
            // SAFETY: each panel is written by one member.
            unsafe {
                if panel < x_panels {
                    let col = panel * width;
                    right.set(x.narrow_cols(col, width.min(d_in - col)), [0, col]);
                } else {
                    let col = (panel - x_panels) * width;
                    let n = width.min(d - col);
                    if head > 0 {
                        right.set(Mat::row_major(h0, lanes, d).narrow_cols(col, n), [0, panel * width]);
                    }
                    right.set(hidden.narrow_cols(col, n), [head, panel * width]);
                }
            }
        }
    }

    /// Adds this member's share of what `steps` contribute to the gradients of weights and bias, and computes that of the
    /// input. Chunks come in a fixed order, so that sums do not depend on the members.
    unsafe fn add_up(&self, member: &Member, steps: Range<usize>, scratch: &mut [f32]) {
        let &Lstm { seq_len, lanes, d_in, d, .. } = self.lstm;
        let rows = steps.len() * lanes;
        let start = if steps.end == seq_len { Start::Zero } else { Start::Result };
        let units = member.share(4 * d);
        let first_row = self.row(steps.start);
        // SAFETY: the caller's.
        unsafe {
            let left = Left::columns(self.dgates.at(first_row * self.gate_row + units.start), self.gate_row);
            let hidden = d_in.next_multiple_of(self.lstm.width());
            for (out, cols) in [(self.dweight_ih, 0..d_in), (self.dweight_hh, hidden..hidden + d)] {
                let (Some(out), n) = (out, cols.len()) else { continue };
                let c = out.at(units.start * n);
                let of_right = self.right(rows).product(0..rows, cols);
                product(&Product { left, rows: units.len(), c, c_row: n, start, ..of_right }, scratch);
            }
            if let Some(dbias) = self.dbias {
                let sums = dbias.slice(units.start, units.len());
                for row in 0..rows {
                    let row = self.dgates.slice((first_row + row) * self.gate_row + units.start, units.len());
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
                }
            }
            if let Some(dx) = self.dx {
                let share = member.share(rows);
                let left = self.left(first_row + share.start);
                let c = dx.at((steps.start * lanes + share.start) * d_in);
                let of_weight = self.input.product(0..4 * d, 0..d_in);
                product(&Product { left, rows: share.len(), c, c_row: d_in, ..of_weight }, scratch);
            }
        }
    }
}

/// One step of some units, backward: rows of `d`, but for what the forward pass left.
pub(super) struct CellBackward {
    pub lanes: usize,
    pub d: usize,
    pub units: usize,
    /// `[lanes, 4, units]`
    pub gates: *const f32,
    /// The cells of the step before, in rows so far apart.
    pub before: *const f32,
    pub before_row: usize,
    /// `[lanes, units]`
    pub cell: *const f32,
    pub grad: *const f32,
    pub dh: *const f32,
    pub dc: *mut f32,
    /// Distance of the rows of `dgates`.
    pub gate_row: usize,
    pub dgates: *mut f32,
    /// A copy of these, and where the units are in it.
    pub copy: Option<(SharedCopy, usize, usize)>,
}

#[inline(always)]
unsafe fn cell_backward_body<V: Vector>(step: &CellBackward) {
    let &CellBackward { lanes, units, .. } = step;
    // SAFETY: the caller's, for `units` values of every row.
    unsafe {
        for lane in 0..lanes {
            let mut unit = 0;
            // Two vectors at once, which need not wait for each other.
            while unit + 2 * V::LANES <= units {
                some_cells_backward::<V, 2>(step, lane, unit, V::LANES);
                unit += 2 * V::LANES;
            }
            while unit < units {
                some_cells_backward::<V, 1>(step, lane, unit, units - unit);
                unit += V::LANES;
            }
        }
    }
}
kernel!(pub(super) unsafe fn cell_backward(step: &CellBackward) => cell_backward_body);

/// `N` vectors, of each of which `n` values count.
#[inline(always)]
unsafe fn some_cells_backward<V: Vector, const N: usize>(step: &CellBackward, lane: usize, unit: usize, n: usize) {
    let &CellBackward { d, units, .. } = step;
    // SAFETY: the caller's.
    unsafe {
        let one = V::splat(1.0);
        let at = lane * d + unit;
        // The step before, to which the processor does not foresee that we go.
        V::prefetch(step.grad.wrapping_add(at).wrapping_sub(step.lanes * d));
        let load = |from: *const f32, v: usize| V::load_up_to(from.add(v * V::LANES), n);
        let gate = |k: usize| step.gates.add((lane * 4 + k) * units + unit);
        let mut tanh_c = [V::splat(0.0); N];
        for (v, tanh_c) in tanh_c.iter_mut().enumerate() {
            *tanh_c = tanh(load(step.cell.add(lane * units + unit), v));
        }
        for (v, &tanh_c) in tanh_c.iter().enumerate() {
            let [i, f, g, o] = [load(gate(0), v), load(gate(1), v), load(gate(2), v), load(gate(3), v)];
            let dh = load(step.dh.add(at), v).add(load(step.grad.add(at), v));
            let through_c = dh.mul(o).mul(one.sub(tanh_c.mul(tanh_c)));
            let dc = load(step.dc.add(at), v).add(through_c);
            let before = load(step.before.add(lane * step.before_row + unit), v);
            let dz = [
                dc.mul(g).mul(i).mul(one.sub(i)),
                dc.mul(before).mul(f).mul(one.sub(f)),
                dc.mul(i).mul(one.sub(g.mul(g))),
                dh.mul(tanh_c).mul(o).mul(one.sub(o)),
            ];
            let unit = unit + v * V::LANES;
            dc.mul(f).store_up_to(step.dc.add(lane * d + unit), n);
            for (k, dz) in dz.into_iter().enumerate() {
                dz.store_up_to(step.dgates.add(lane * step.gate_row + k * d + unit), n);
                if let Some((copy, row, col)) = step.copy {
                    copy.put(row + lane, col + k * d + unit, dz, n);
                }
            }
        }
    }
}
