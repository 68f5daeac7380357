//! The forward pass.

use super::{Lstm, LstmTrace};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{Columns, Left, LeftCopy, Mat, Panels, Product, SharedCopy, Start, product};
use crate::math::{sigmoid, tanh};
use crate::simd::{Vector, kernel};
use crate::team::{self, Member};

impl Lstm<'_> {
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
        let (input, recurrent) = (self.pack_by_unit(self.weight_ih, d_in), self.pack_by_unit(self.weight_hh, d));
        let mut x = self.copy(Mat::row_major(self.x, rows, d_in));
        let mut h = LeftCopy::room(2 * lanes, d, operands.format());
        let h = h.as_mut().map(LeftCopy::share);
        if let Some(h) = h {
            // SAFETY: there are as many rows, and no one else is there yet.
            unsafe { h.put_rows(0, Mat::row_major(self.h0, lanes, d)) };
        }
        let pass = Forward {
            lstm: self,
            x: x.as_mut().map(LeftCopy::share),
            input: input.panels(),
            recurrent: recurrent.panels(),
            bias: &bias,
            gates: Shared::new(gates),
            keeps_gates,
            cells: Shared::new(cells),
            output: Shared::new(output),
            h,
        };
        team::run(self.members(), |member| pass.work(member));
        // The last row is c_T.
        output[seq_len * state..].copy_from_slice(&cells[(seq_len - 1) * state..]);
    }
}

/// The forward pass, as all members see it.
struct Forward<'a> {
    lstm: &'a Lstm<'a>,
    /// A copy of the input, where products want one.
    x: Option<SharedCopy>,
    input: Panels,
    recurrent: Panels,
    bias: &'a [f32],
    gates: Shared<f32>,
    /// Whether `gates` has room for the segment, or for a chunk that is overwritten by the next.
    keeps_gates: bool,
    cells: Shared<f32>,
    output: Shared<f32>,
    /// Two copies of h likewise: the one of the step before is read while the other is written.
    h: Option<SharedCopy>,
}

impl Forward<'_> {
    fn work(&self, member: &Member) {
        let &Lstm { seq_len, lanes, d_in, d, h0, c0, .. } = self.lstm;
        let (width, state) = (self.lstm.width(), lanes * d);
        let groups = member.share(self.lstm.groups());
        for start in (0..seq_len).step_by(self.lstm.chunk()) {
            let end = seq_len.min(start + self.lstm.chunk());
            let gates = |t: usize| if self.keeps_gates { t * 4 * state } else { (t - start) * 4 * state };
            for group in groups.clone() {
                // SAFETY: a member writes the gates of its own units only, here and below.
                unsafe {
                    let x = match self.x {
                        Some(copy) => copy.left(start * lanes),
                        None => Left::rows(self.lstm.x[start * lanes * d_in..].as_ptr(), d_in),
                    };
                    let bias = Start::Row(self.bias[group * width..].as_ptr());
                    self.add_to_gates(group, x, self.input, (end - start) * lanes, gates(start), bias);
                }
            }
            for t in start..end {
                for group in groups.clone() {
                    let first = group * width;
                    // SAFETY: a member reads the hidden states of the step before, which the barrier has published.
                    unsafe {
                        let h = match (self.h, t) {
                            (Some(copy), _) => copy.left(t % 2 * lanes),
                            (None, 0) => Left::rows(h0.as_ptr(), d),
                            (None, _) => Left::rows(self.output.at((t - 1) * state), d),
                        };
                        self.add_to_gates(group, h, self.recurrent, lanes, gates(t), Start::Result);
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
                            copy: self.h.map(|copy| (copy, (t + 1) % 2 * lanes, first)),
                        });
                    }
                }
                member.wait();
            }
        }
    }

    /// Some rows times the weight of some units: their gates of as many rows, which begin at `at`, added to `start`.
    unsafe fn add_to_gates(&self, group: usize, left: Left, weight: Panels, rows: usize, at: usize, start: Start) {
        let (d, width) = (self.lstm.d, self.lstm.width());
        let (first, panels) = (group * width, 4 * group * width..4 * (group + 1) * width);
        let cols = Columns::Gates { units: width.min(d - first), distance: d };
        // SAFETY: the caller's for the gates; all else is in bounds.
        unsafe {
            let c = self.gates.at(at + first);
            let of_weight = weight.product(0..weight.k(), panels);
            product(&Product { left, rows, cols, c, c_row: 4 * d, start, ..of_weight }, &mut []);
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
    /// A copy of h, and where these units are in it.
    copy: Option<(SharedCopy, usize, usize)>,
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
                if let Some((copy, row, col)) = step.copy {
                    copy.put(row + lane, col + unit, h, n);
                }
            }
        }
    }
}
kernel!(unsafe fn cell_forward(step: &CellForward) => cell_forward_body);
