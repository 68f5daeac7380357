//! The forward pass.

use super::{Lstm, LstmTrace, rounded};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{Operands, Packed, Product, Start, panel_width, product, round_bf16};
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
