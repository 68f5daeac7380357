//! The LSTM over a whole segment (Hochreiter and Schmidhuber 1997, in PyTorch's convention).
//!
//! ```text
//! [i f g o] = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh      c_t = σ(f) c_{t-1} + σ(i) tanh(g)      h_t = σ(o) tanh(c_t)
//! ```
//!
//! The input's part of all gates of all steps is one product. Then every member of the team owns some hidden units through
//! the whole segment: it multiplies `h_{t-1}` with their columns of all four gates, which stay in its cache, applies the
//! nonlinearities to them at once, and meets the others at a barrier, one a step. The backward is the same in reverse, and the
//! weights' gradients are one product each over all steps.

use crate::buffer::{Buffer, Shared};
use crate::gemm::{
    Mat, Operands, Packed, Product, Start, pack_panel, panel_width, product, round_bf16, scratch, task_rows,
};
use crate::linear::{affine_into, column_sums};
use crate::math::{sigmoid, tanh};
use crate::simd::{Vector, kernel};
use crate::team::{self, Member};

/// Multiplications of a recurrent step that are worth a member: some microseconds.
const STEP_SHARE: usize = 1 << 17;

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

    /// Runs the segment: `h_1 .. h_T, c_T` into `output`, `[seq_len + 1, lanes, d]`.
    ///
    /// # Panics
    /// If a slice has another size than its shape says.
    pub fn forward(&self, output: &mut [f32], trace: Option<LstmTrace>) {
        self.check();
        let &Self { seq_len, lanes, d_in, d, .. } = self;
        assert_eq!(output.len(), (seq_len + 1) * lanes * d, "size of output");
        let mut own;
        let LstmTrace { gates, cells } = match trace {
            Some(trace) => trace,
            None => {
                own = (Buffer::room(seq_len * lanes * 4 * d), Buffer::room(seq_len * lanes * d));
                LstmTrace { gates: &mut own.0, cells: &mut own.1 }
            }
        };
        assert_eq!(gates.len(), seq_len * lanes * 4 * d, "size of gates");
        assert_eq!(cells.len(), seq_len * lanes * d, "size of cells");

        let rows = seq_len * lanes;
        let x = Mat::row_major(self.x, rows, d_in);
        let input = Packed::new(Mat::row_major(self.weight_ih, 4 * d, d_in).t(), self.operands);
        let bias: Vec<f32> = self.bias_ih.iter().zip(self.bias_hh).map(|(a, b)| a + b).collect();
        let recurrent = self.pack_recurrent();
        let mut rounded = self.rounded(self.h0, lanes * d);
        let shared = Forward {
            lstm: self,
            recurrent: &recurrent,
            gates: Shared::new(gates),
            cells: Shared::new(cells),
            output: Shared::new(output),
            rounded: rounded.as_mut().map(|rounded| Shared::new(rounded)),
        };
        let task_rows = task_rows(rows);
        team::for_each_with(rows.div_ceil(task_rows), scratch, |scratch, task| {
            let row = task * task_rows;
            let rows = task_rows.min(rows - row);
            // SAFETY: each task has rows of its own.
            unsafe {
                let gates = shared.gates.at(row * 4 * d);
                affine_into(x.narrow_rows(row, rows), &input, &bias, 0..4 * d, gates, 4 * d, scratch);
            }
        });
        team::run(self.members(), |member| shared.recur(member));
        // The last row is c_T.
        let (cells, output) = (shared.cells, shared.output);
        // SAFETY: the team has finished.
        unsafe {
            output
                .slice(seq_len * lanes * d, lanes * d)
                .copy_from_slice(cells.slice((seq_len - 1) * lanes * d, lanes * d));
        }
    }

    /// `W_hhᵀ` in panels: the four gates of one panel's width of units lie next to each other.
    fn pack_recurrent(&self) -> Packed {
        let (d, width) = (self.d, panel_width());
        let groups = d.div_ceil(width);
        let mut packed = Packed::room(d, 4 * groups * width, self.operands);
        let panels = Shared::new(packed.panels_mut());
        let weight = Mat::row_major(self.weight_hh, 4 * d, d);
        team::for_each(groups, |group| {
            for gate in 0..4 {
                // SAFETY: each panel is written by one task.
                let panel = unsafe { panels.slice((4 * group + gate) * d * width, d * width) };
                pack_panel(weight.narrow_rows(gate * d, d).t(), group * width, panel, self.operands);
            }
        });
        packed
    }

    /// Two copies, of which one holds `first`, for the left operands of a recurrent product, where they are rounded.
    fn rounded(&self, first: &[f32], len: usize) -> Option<Buffer> {
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
        assert_eq!(output.len(), (seq_len + 1) * state, "size of output");
        assert_eq!(grad.len(), (seq_len + 1) * state, "size of grad");
        assert_eq!(gates.len(), rows * 4 * d, "size of gates");
        assert_eq!(cells.len(), rows * d, "size of cells");
        assert_eq!([grads.h0.len(), grads.c0.len()], [state; 2], "sizes of the gradients of h0 and c0");

        let recurrent = Packed::new(Mat::row_major(self.weight_hh, 4 * d, d), operands);
        let mut dgates = Buffer::room(rows * 4 * d);
        grads.h0.fill(0.0);
        grads.c0.copy_from_slice(&grad[seq_len * state..]);
        let mut rounded = self.rounded(&[], lanes * 4 * d);
        let shared = Backward {
            lstm: self,
            recurrent: &recurrent,
            gates,
            cells,
            grad,
            dgates: Shared::new(&mut dgates),
            dh: Shared::new(grads.h0),
            dc: Shared::new(grads.c0),
            rounded: rounded.as_mut().map(|rounded| Shared::new(rounded)),
        };
        team::run(self.members(), |member| shared.recur(member));

        let dgates = Mat::row_major(&dgates, rows, 4 * d);
        if let Some(bias) = grads.bias {
            column_sums(dgates.as_slice(), 4 * d, bias);
        }
        if let Some(weight) = grads.weight_ih {
            let x = Packed::new(Mat::row_major(self.x, rows, d_in), operands);
            crate::gemm(dgates.t(), &x, weight, false);
        }
        if let Some(weight) = grads.weight_hh {
            crate::gemm(dgates.t(), &self.pack_hidden_before(output), weight, false);
        }
        if let Some(x) = grads.x {
            crate::gemm(dgates, &Packed::new(Mat::row_major(self.weight_ih, 4 * d, d_in), operands), x, false);
        }
    }

    /// `h_0 .. h_{T-1}` as a right operand, `[seq_len * lanes, d]`.
    fn pack_hidden_before(&self, output: &[f32]) -> Packed {
        let &Self { seq_len, lanes, d, operands, .. } = self;
        let (rows, width) = (seq_len * lanes, panel_width());
        let mut packed = Packed::room(rows, d, operands);
        let panels = Shared::new(packed.panels_mut());
        let first = Mat::row_major(self.h0, lanes, d);
        let rest = Mat::row_major(output, rows - lanes, d);
        team::for_each(d.div_ceil(width), |i| {
            // SAFETY: each panel is written by one task.
            let panel = unsafe { panels.slice(i * rows * width, rows * width) };
            let (head, tail) = panel.split_at_mut(lanes * width);
            pack_panel(first, i * width, head, operands);
            pack_panel(rest, i * width, tail, operands);
        });
        packed
    }
}

/// The recurrence of the forward pass, as all members see it.
struct Forward<'a> {
    lstm: &'a Lstm<'a>,
    recurrent: &'a Packed,
    /// The inputs' part at first.
    gates: Shared<f32>,
    cells: Shared<f32>,
    output: Shared<f32>,
    /// Two copies of h, rounded: the one of the step before is read while the other is written.
    rounded: Option<Shared<f32>>,
}

impl Forward<'_> {
    fn recur(&self, member: &Member) {
        let &Lstm { seq_len, lanes, d, h0, c0, .. } = self.lstm;
        let (width, state) = (panel_width(), lanes * d);
        let groups = member.share(d.div_ceil(width));
        for t in 0..seq_len {
            for group in groups.clone() {
                let first = group * width;
                let units = width.min(d - first);
                // SAFETY: a member reads the hidden states of the step before, which the barrier has published, and writes
                // gates, cells and hidden states of its own units only.
                unsafe {
                    let h = match (self.rounded, t) {
                        (Some(rounded), _) => rounded.at(t % 2 * state).cast_const(),
                        (None, 0) => h0.as_ptr(),
                        (None, _) => self.output.at((t - 1) * state).cast_const(),
                    };
                    for gate in 0..4 {
                        let part = Product {
                            a: h,
                            a_row: d,
                            a_col: 1,
                            rows: lanes,
                            k: d,
                            panel_rows: d,
                            panels: self.recurrent.panels()[(4 * group + gate) * width * d..].as_ptr(),
                            operands: Operands::F32,
                            cols: units,
                            c: self.gates.at(t * 4 * state + gate * d + first),
                            c_row: 4 * d,
                            start: Start::Result,
                        };
                        product(&part, &mut []);
                    }
                    let before = match t {
                        0 => c0.as_ptr(),
                        _ => self.cells.at((t - 1) * state).cast_const(),
                    };
                    cell_forward(&CellForward {
                        lanes,
                        d,
                        units,
                        gates: self.gates.at(t * 4 * state + first),
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

/// The recurrence of the backward pass, as all members see it.
struct Backward<'a> {
    lstm: &'a Lstm<'a>,
    recurrent: &'a Packed,
    gates: &'a [f32],
    cells: &'a [f32],
    grad: &'a [f32],
    dgates: Shared<f32>,
    /// Gradients of h and c as they come from the step after.
    dh: Shared<f32>,
    dc: Shared<f32>,
    /// Two copies of a step's gates' gradients, rounded.
    rounded: Option<Shared<f32>>,
}

impl Backward<'_> {
    fn recur(&self, member: &Member) {
        let &Lstm { seq_len, lanes, d, c0, .. } = self.lstm;
        let (width, state) = (panel_width(), lanes * d);
        let groups = member.share(d.div_ceil(width));
        for t in (0..seq_len).rev() {
            for group in groups.clone() {
                let first = group * width;
                // SAFETY: as in the forward pass; the gates' gradients of the step after are published by the barrier.
                unsafe {
                    if t + 1 < seq_len {
                        self.pull_back(t + 1, group);
                    }
                    let before = match t {
                        0 => c0.as_ptr(),
                        _ => self.cells[(t - 1) * state..].as_ptr(),
                    };
                    cell_backward(&CellBackward {
                        lanes,
                        d,
                        units: width.min(d - first),
                        gates: self.gates[t * 4 * state + first..].as_ptr(),
                        before: before.add(first),
                        cell: self.cells[t * state + first..].as_ptr(),
                        grad: self.grad[t * state + first..].as_ptr(),
                        dh: self.dh.at(first),
                        dc: self.dc.at(first),
                        dgates: self.dgates.at(t * 4 * state + first),
                        rounded: self.rounded.map(|rounded| rounded.at(t % 2 * 4 * state + first)),
                    });
                }
            }
            member.wait();
        }
        for group in groups {
            // SAFETY: as above.
            unsafe { self.pull_back(0, group) };
        }
    }

    /// The gradient of these units' hidden state of the step before `t`.
    unsafe fn pull_back(&self, t: usize, group: usize) {
        let &Lstm { lanes, d, .. } = self.lstm;
        let (width, state) = (panel_width(), lanes * d);
        // SAFETY: the caller's: the gates' gradients of step `t` are complete, and the units are this member's own.
        unsafe {
            let a = match self.rounded {
                Some(rounded) => rounded.at(t % 2 * 4 * state),
                None => self.dgates.at(t * 4 * state),
            };
            let part = Product {
                a: a.cast_const(),
                a_row: 4 * d,
                a_col: 1,
                rows: lanes,
                k: 4 * d,
                panel_rows: 4 * d,
                panels: self.recurrent.panels()[group * width * 4 * d..].as_ptr(),
                operands: Operands::F32,
                cols: width.min(d - group * width),
                c: self.dh.at(group * width),
                c_row: d,
                start: Start::Zero,
            };
            product(&part, &mut []);
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
                    dz.store_up_to(step.dgates.add(gate_at(k)), n);
                    if let Some(rounded) = step.rounded {
                        for e in gate_at(k)..gate_at(k) + n {
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
