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

use crate::buffer::{Buffer, Shared};
use crate::gemm::{Mat, Operands, Packed, Product, Start, pack_panel, panel_width, product, round_bf16, scratch};
use crate::math::{sigmoid, tanh};
use crate::simd::{Vector, kernel};
use crate::team::{self, Member};

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

    /// Runs the segment: `h_1 .. h_T, c_T` into `output`, `[seq_len + 1, lanes, d]`.
    ///
    /// # Panics
    /// If a slice has another size than its shape says.
    pub fn forward(&self, output: &mut [f32], trace: Option<LstmTrace>) {
        self.check();
        let &Self { seq_len, lanes, d_in, d, operands, .. } = self;
        let (rows, state) = (seq_len * lanes, lanes * d);
        assert_eq!(output.len(), (seq_len + 1) * state, "size of output");
        let keeps_gates = trace.is_some();
        let mut own;
        let LstmTrace { gates, cells } = match trace {
            Some(trace) => trace,
            None => {
                own = (Buffer::room(self.chunk() * 4 * state), Buffer::room(rows * d));
                LstmTrace { gates: &mut own.0, cells: &mut own.1 }
            }
        };
        assert_eq!(gates.len(), if keeps_gates { seq_len } else { self.chunk() } * 4 * state, "size of gates");
        assert_eq!(cells.len(), rows * d, "size of cells");

        let bias: Vec<f32> = self.bias_ih.iter().zip(self.bias_hh).map(|(a, b)| a + b).collect();
        let rounded_x = rounded(self.x, operands);
        let mut rounded_h = self.two_rounded(self.h0, state);
        let pass = Forward {
            lstm: self,
            x: rounded_x.as_deref().unwrap_or(self.x),
            input: &self.pack_by_unit(self.weight_ih, d_in),
            recurrent: &self.pack_by_unit(self.weight_hh, d),
            bias: &bias,
            gates: Shared::new(gates),
            keeps_gates,
            cells: Shared::new(cells),
            output: Shared::new(output),
            rounded: rounded_h.as_mut().map(|rounded| Shared::new(rounded)),
        };
        team::run(self.members(), |member| pass.work(member));
        // The last row is c_T.
        output[seq_len * state..].copy_from_slice(&cells[(seq_len - 1) * state..]);
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

/// A rounded copy, where operands are rounded.
fn rounded(x: &[f32], operands: Operands) -> Option<Buffer> {
    (operands == Operands::Bf16).then(|| {
        let mut rounded = Buffer::room(x.len());
        rounded.iter_mut().zip(x).for_each(|(out, &x)| *out = round_bf16(x));
        rounded
    })
}

/// The forward pass, as all members see it.
struct Forward<'a> {
    lstm: &'a Lstm<'a>,
    /// The input, rounded where operands are.
    x: &'a [f32],
    input: &'a Packed,
    recurrent: &'a Packed,
    bias: &'a [f32],
    gates: Shared<f32>,
    /// Whether `gates` has room for the segment, or for a chunk that is overwritten by the next.
    keeps_gates: bool,
    cells: Shared<f32>,
    output: Shared<f32>,
    /// Two copies of h, rounded: the one of the step before is read while the other is written.
    rounded: Option<Shared<f32>>,
}

impl Forward<'_> {
    fn work(&self, member: &Member) {
        let &Lstm { seq_len, lanes, d_in, d, h0, c0, .. } = self.lstm;
        let (width, state) = (panel_width(), lanes * d);
        let groups = member.share(d.div_ceil(width));
        for start in (0..seq_len).step_by(self.lstm.chunk()) {
            let end = seq_len.min(start + self.lstm.chunk());
            let gates = |t: usize| if self.keeps_gates { t * 4 * state } else { (t - start) * 4 * state };
            for group in groups.clone() {
                let x = &self.x[start * lanes * d_in..];
                // SAFETY: a member writes the gates of its own units only, here and below.
                unsafe { self.add_to_gates(group, x, self.input, (end - start) * lanes, gates(start), true) };
            }
            for t in start..end {
                for group in groups.clone() {
                    let first = group * width;
                    // SAFETY: a member reads the hidden states of the step before, which the barrier has published.
                    unsafe {
                        let h = match (self.rounded, t) {
                            (Some(rounded), _) => rounded.slice(t % 2 * state, state),
                            (None, 0) => h0,
                            (None, _) => self.output.slice((t - 1) * state, state),
                        };
                        self.add_to_gates(group, h, self.recurrent, lanes, gates(t), false);
                        let before = match t {
                            0 => c0.as_ptr(),
                            _ => self.cells.at((t - 1) * state).cast_const(),
                        };
                        cell_forward(&CellForward {
                            lanes,
                            d,
                            units: width.min(d - first),
                            gates: self.gates.at(gates(t) + first),
                            before: before.add(first),
                            cell: self.cells.at(t * state + first),
                            hidden: self.output.at(t * state + first),
                            rounded: self.rounded.map(|rounded| rounded.at((t + 1) % 2 * state + first)),
                        });
                    }
                }
                member.wait();
            }
        }
    }

    /// Adds `rows` of a left operand times the weight of some units to their gates, which begin at `at`; to the bias where
    /// they are the first terms.
    unsafe fn add_to_gates(&self, group: usize, left: &[f32], weight: &Packed, rows: usize, at: usize, first: bool) {
        let (d, width, k) = (self.lstm.d, panel_width(), weight.k());
        debug_assert!(left.len() >= rows * k);
        for gate in 0..4 {
            let unit = gate * d + group * width;
            // SAFETY: the caller's for the gates; all else is in bounds.
            unsafe {
                let part = Product {
                    a: left.as_ptr(),
                    a_row: k,
                    a_col: 1,
                    rows,
                    k,
                    panels: weight.panels()[(4 * group + gate) * width * k..].as_ptr(),
                    panel_rows: k,
                    operands: Operands::F32,
                    cols: width.min(d - group * width),
                    c: self.gates.at(at + unit),
                    c_row: 4 * d,
                    start: if first { Start::Row(self.bias[unit..].as_ptr()) } else { Start::Result },
                };
                product(&part, &mut []);
            }
        }
    }
}

/// One step of some units: all rows of `d` (gates of `4 d`) from the first of these units on.
struct CellForward {
    lanes: usize,
    d: usize,
    units: usize,
    gates: *mut f32,
    before: *const f32,
    cell: *mut f32,
    hidden: *mut f32,
    rounded: Option<*mut f32>,
}

#[inline(always)]
unsafe fn cell_forward_body<V: Vector>(step: &CellForward) {
    let &CellForward { lanes, d, units, .. } = step;
    // SAFETY: the caller's, for `units` values of every row.
    unsafe {
        for lane in 0..lanes {
            for unit in (0..units).step_by(V::LANES) {
                let n = V::LANES.min(units - unit);
                let gate = |k: usize| step.gates.add(lane * 4 * d + k * d + unit);
                let at = lane * d + unit;
                // The next step's, which the processor cannot foresee: each row is a page further on.
                for k in 0..4 {
                    V::prefetch(gate(k).wrapping_add(lanes * 4 * d));
                }
                let i = sigmoid(V::load_up_to(gate(0), n));
                let f = sigmoid(V::load_up_to(gate(1), n));
                let g = tanh(V::load_up_to(gate(2), n));
                let o = sigmoid(V::load_up_to(gate(3), n));
                let c = f.mul_add(V::load_up_to(step.before.add(at), n), i.mul(g));
                let h = o.mul(tanh(c));
                i.store_up_to(gate(0), n);
                f.store_up_to(gate(1), n);
                g.store_up_to(gate(2), n);
                o.store_up_to(gate(3), n);
                c.store_up_to(step.cell.add(at), n);
                h.store_up_to(step.hidden.add(at), n);
                if let Some(rounded) = step.rounded {
                    for k in at..at + n {
                        *rounded.add(k) = round_bf16(*step.hidden.add(k));
                    }
                }
            }
        }
    }
}
kernel!(unsafe fn cell_forward(step: &CellForward) => cell_forward_body);

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
    fn pack_right(&self, member: &Member, steps: std::ops::Range<usize>) {
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
    unsafe fn add_up(&self, member: &Member, steps: std::ops::Range<usize>, scratch: &mut [f32]) {
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

/// One step of some units, backward; pointers as in [`CellForward`].
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, random};

    struct Case {
        sizes: [usize; 4],
        inputs: [Vec<f32>; 7],
        grad: Vec<f32>,
        operands: Operands,
    }

    impl Case {
        fn new(sizes: [usize; 4], operands: Operands) -> Self {
            let [t, b, d_in, d] = sizes;
            let lens = [t * b * d_in, 4 * d * d_in, 4 * d * d, 4 * d, 4 * d, b * d, b * d];
            let inputs = std::array::from_fn(|i| random(lens[i], i as u64));
            Self { sizes, inputs, grad: random((t + 1) * b * d, 9), operands }
        }

        fn lstm(&self) -> Lstm<'_> {
            let [seq_len, lanes, d_in, d] = self.sizes;
            let [x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0] = &self.inputs;
            let operands = self.operands;
            Lstm { seq_len, lanes, d_in, d, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, operands }
        }

        /// The equations in double precision: output, then the gradients of all inputs (one for both biases).
        fn reference(&self) -> [Vec<f64>; 7] {
            let [t_len, b, d_in, d] = self.sizes;
            let round = |x: f64| match self.operands {
                Operands::F32 => x,
                Operands::Bf16 => f64::from(round_bf16(x as f32)),
            };
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let [x, w_ih, w_hh, b_ih, b_hh, h0, c0] = self.inputs.each_ref().map(|x| wide(x));
            let grad = wide(&self.grad);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let (mut h, mut c) = (vec![h0], vec![c0]);
            let mut gates = vec![];
            for t in 0..t_len {
                let (mut h_t, mut c_t, mut gates_t) = (vec![0.0; b * d], vec![0.0; b * d], vec![0.0; b * 4 * d]);
                for lane in 0..b {
                    for u in 0..d {
                        let gate = |k: usize| {
                            let row = k * d + u;
                            let from_x = (0..d_in)
                                .map(|e| round(x[(t * b + lane) * d_in + e]) * round(w_ih[row * d_in + e]))
                                .sum::<f64>();
                            let from_h =
                                (0..d).map(|e| round(h[t][lane * d + e]) * round(w_hh[row * d + e])).sum::<f64>();
                            let z = from_x + from_h + b_ih[row] + b_hh[row];
                            if k == 2 { z.tanh() } else { sigmoid(z) }
                        };
                        let [i, f, g, o] = std::array::from_fn(gate);
                        let at = lane * d + u;
                        c_t[at] = f * c[t][at] + i * g;
                        h_t[at] = o * c_t[at].tanh();
                        for (k, gate) in [i, f, g, o].into_iter().enumerate() {
                            gates_t[lane * 4 * d + k * d + u] = gate;
                        }
                    }
                }
                h.push(h_t);
                c.push(c_t);
                gates.push(gates_t);
            }
            let output = [h[1..].concat(), c[t_len].clone()].concat();

            let (mut dh, mut dc) = (vec![0.0; b * d], grad[t_len * b * d..].to_vec());
            let [mut dx, mut dw_ih, mut dw_hh, mut db] =
                [vec![0.0; x.len()], vec![0.0; w_ih.len()], vec![0.0; w_hh.len()], vec![0.0; 4 * d]];
            for t in (0..t_len).rev() {
                let mut dz = vec![0.0; b * 4 * d];
                for at in 0..b * d {
                    let (lane, u) = (at / d, at % d);
                    let [i, f, g, o] = std::array::from_fn(|k| gates[t][lane * 4 * d + k * d + u]);
                    let tanh_c = c[t + 1][at].tanh();
                    let dh = dh[at] + grad[t * b * d + at];
                    dc[at] += dh * o * (1.0 - tanh_c * tanh_c);
                    let parts = [
                        dc[at] * g * i * (1.0 - i),
                        dc[at] * c[t][at] * f * (1.0 - f),
                        dc[at] * i * (1.0 - g * g),
                        dh * tanh_c * o * (1.0 - o),
                    ];
                    for (k, part) in parts.into_iter().enumerate() {
                        dz[lane * 4 * d + k * d + u] = part;
                    }
                    dc[at] *= f;
                }
                for lane in 0..b {
                    for row in 0..4 * d {
                        let z = round(dz[lane * 4 * d + row]);
                        db[row] += dz[lane * 4 * d + row];
                        for e in 0..d_in {
                            dx[(t * b + lane) * d_in + e] += z * round(w_ih[row * d_in + e]);
                            dw_ih[row * d_in + e] += z * round(x[(t * b + lane) * d_in + e]);
                        }
                        for e in 0..d {
                            dw_hh[row * d + e] += z * round(h[t][lane * d + e]);
                        }
                    }
                }
                dh = (0..b * d)
                    .map(|at| {
                        (0..4 * d).map(|row| round(dz[at / d * 4 * d + row]) * round(w_hh[row * d + at % d])).sum()
                    })
                    .collect();
            }
            [output, dx, dw_ih, dw_hh, db, dh, dc]
        }

        fn run(&self) -> [Vec<f32>; 7] {
            let [t, b, d_in, d] = self.sizes;
            let lstm = self.lstm();
            let nan = |len: usize| vec![f32::NAN; len];
            let (mut output, mut gates, mut cells) = (nan((t + 1) * b * d), nan(t * b * 4 * d), nan(t * b * d));
            lstm.forward(&mut output, Some(LstmTrace { gates: &mut gates, cells: &mut cells }));
            let mut inferred = nan(output.len());
            lstm.forward(&mut inferred, None);
            assert_eq!(inferred, output, "without a trace");
            let lens = [t * b * d_in, 4 * d * d_in, 4 * d * d, 4 * d, b * d, b * d];
            let [mut x, mut weight_ih, mut weight_hh, mut bias, mut h0, mut c0] = lens.map(nan);
            let grads = LstmGrads {
                x: Some(&mut x),
                weight_ih: Some(&mut weight_ih),
                weight_hh: Some(&mut weight_hh),
                bias: Some(&mut bias),
                h0: &mut h0,
                c0: &mut c0,
            };
            lstm.backward(&output, &gates, &cells, &self.grad, grads);
            [output, x, weight_ih, weight_hh, bias, h0, c0]
        }
    }

    const NAMES: [&str; 7] = ["output", "x", "weight_ih", "weight_hh", "bias", "h0", "c0"];

    fn cases() -> &'static [[usize; 4]] {
        match cfg!(miri) {
            true => &[[1, 1, 1, 1], [2, 3, 5, 17]],
            false => &[
                [1, 1, 1, 1],
                [1, 3, 5, 4],
                [2, 1, 4, 7],
                [7, 3, 16, 17],
                [13, 16, 8, 40],
                [5, 17, 33, 128],
                [3, 2, 20, 300],
                // More steps than a chunk has.
                [37, 17, 9, 24],
            ],
        }
    }

    #[test]
    fn agrees_with_the_equations_in_double_precision() {
        for &sizes in cases() {
            let case = Case::new(sizes, Operands::F32);
            for ((name, got), want) in NAMES.iter().zip(case.run()).zip(case.reference()) {
                assert_near(&format!("{name} of {sizes:?}"), &got, &want, 1e-5);
            }
        }
    }

    /// A value that lies on the other side of a rounding boundary moves by 2⁻⁸ of itself; few do, and only those below 1
    /// enter sums of a few hundred terms: 1e-2 of the largest value is far above that, and far below an operand left out.
    #[test]
    fn rounds_the_operands_of_products_and_nothing_else() {
        for &sizes in cases() {
            let case = Case::new(sizes, Operands::Bf16);
            for ((name, got), want) in NAMES.iter().zip(case.run()).zip(case.reference()) {
                assert_near(&format!("{name} of {sizes:?}"), &got, &want, 1e-2);
            }
        }
    }
}
