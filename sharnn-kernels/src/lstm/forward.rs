//! The forward pass.

use super::gates::{Gates, SharedGates};
use super::{Lstm, LstmTrace};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{Left, LeftCopy, Mat, SharedCopy};
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
        let &Self { seq_len, lanes, d, operands, .. } = self;
        let (rows, state) = (seq_len * lanes, lanes * d);
        assert_eq!(output.len(), (seq_len + 1) * state, "size of output");
        let (gates, cells) = match trace {
            Some(LstmTrace { gates, cells }) => (gates, Some(cells)),
            None => (None, None),
        };
        let kept_steps = if gates.is_some() { seq_len } else { self.chunk() };
        let (mut own_gates, mut own_cells);
        let gates = match gates {
            Some(gates) => gates,
            None => {
                own_gates = Buffer::room(kept_steps * 4 * state);
                &mut own_gates
            }
        };
        let cells = match cells {
            Some(cells) => cells,
            None => {
                own_cells = Buffer::room(rows * d);
                &mut own_cells
            }
        };
        assert_eq!(gates.len(), kept_steps * 4 * state, "size of gates");
        assert_eq!(cells.len(), rows * d, "size of cells");

        if self.is_few() {
            return self.forward_few(output, gates, cells);
        }
        let mut h = LeftCopy::room(2 * lanes, d, operands.format());
        let h = h.as_mut().map(LeftCopy::share);
        if let Some(h) = h {
            // SAFETY: there are as many rows, and no one else is there yet.
            unsafe { h.put_rows(0, Mat::row_major(self.h0, lanes, d)) };
        }
        let mut products = Gates::new(self);
        let pass = Forward {
            lstm: self,
            products: products.share(),
            gates: Shared::new(gates),
            kept_steps,
            cells: Shared::new(cells),
            output: Shared::new(output),
            h,
        };
        team::run(self.members(), |member| pass.work(member));
        // The last row is c_T.
        for group in 0..self.groups() {
            let (units, from) = (self.units(group), self.place(group, seq_len - 1, seq_len));
            for lane in 0..lanes {
                let c = &cells[from + lane * units.len()..][..units.len()];
                output[seq_len * state + lane * d..][units.clone()].copy_from_slice(c);
            }
        }
    }
}

/// The forward pass, as all members see it.
struct Forward<'a> {
    lstm: &'a Lstm<'a>,
    products: SharedGates<'a>,
    gates: Shared<f32>,
    /// Steps that `gates` has room for: those of the segment, or of a chunk that is overwritten by the next.
    kept_steps: usize,
    cells: Shared<f32>,
    output: Shared<f32>,
    /// Two copies of h, where products want them: the one of the step before is read while the other is written.
    h: Option<SharedCopy>,
}

impl Forward<'_> {
    fn work(&self, member: &Member) {
        let &Lstm { seq_len, lanes, d, h0, c0, .. } = self.lstm;
        let state = lanes * d;
        let groups = member.share(self.lstm.groups());
        for start in (0..seq_len).step_by(self.lstm.chunk()) {
            let end = seq_len.min(start + self.lstm.chunk());
            let gates = |group: usize, t: usize| {
                let t = if self.kept_steps == seq_len { t } else { t - start };
                4 * self.lstm.place(group, t, self.kept_steps)
            };
            for group in groups.clone() {
                // SAFETY: a member writes the gates of its own units only, here and below.
                unsafe {
                    let out = self.gates.at(gates(group, start));
                    self.products.of_input(group, start, end - start, out);
                }
            }
            for t in start..end {
                for group in groups.clone() {
                    let units = self.lstm.units(group);
                    // SAFETY: a member reads the hidden states of the step before, which the barrier has published.
                    unsafe {
                        let h = match (self.h, t) {
                            (Some(copy), _) => copy.left(t % 2 * lanes),
                            (None, 0) => Left::rows(h0.as_ptr(), d),
                            (None, _) => Left::rows(self.output.at((t - 1) * state), d),
                        };
                        self.products.add_hidden(group, h, lanes, self.gates.at(gates(group, t)));
                        let (before, before_row) = match t {
                            0 => (c0[units.start..].as_ptr(), d),
                            _ => (self.cells.at(self.lstm.place(group, t - 1, seq_len)).cast_const(), units.len()),
                        };
                        cell_forward(&CellForward {
                            lanes,
                            units: units.len(),
                            gates: self.gates.at(gates(group, t)),
                            before,
                            before_row,
                            cell: self.cells.at(self.lstm.place(group, t, seq_len)),
                            hidden: self.output.at(t * state + units.start),
                            d,
                            copy: self.h.map(|copy| (copy, (t + 1) % 2 * lanes, units.start)),
                        });
                    }
                }
                member.wait();
            }
        }
    }
}

/// One step of some units.
pub(super) struct CellForward {
    pub lanes: usize,
    pub units: usize,
    /// `[lanes, 4, units]`
    pub gates: *mut f32,
    /// The cells of the step before, in rows so far apart.
    pub before: *const f32,
    pub before_row: usize,
    /// `[lanes, units]`
    pub cell: *mut f32,
    /// Rows of `d`.
    pub hidden: *mut f32,
    pub d: usize,
    /// A copy of h, and where these units are in it.
    pub copy: Option<(SharedCopy, usize, usize)>,
}

#[inline(always)]
unsafe fn cell_forward_body<V: Vector>(step: &CellForward) {
    let &CellForward { lanes, units, .. } = step;
    // SAFETY: the caller's, for `units` values of every row.
    unsafe {
        for lane in 0..lanes {
            let mut unit = 0;
            // Two vectors at once, which need not wait for each other.
            while unit + 2 * V::LANES <= units {
                some_cells_forward::<V, 2>(step, lane, unit, V::LANES);
                unit += 2 * V::LANES;
            }
            while unit < units {
                some_cells_forward::<V, 1>(step, lane, unit, units - unit);
                unit += V::LANES;
            }
        }
    }
}
kernel!(pub(super) unsafe fn cell_forward(step: &CellForward) => cell_forward_body);

/// `N` vectors, of each of which `n` values count.
#[inline(always)]
unsafe fn some_cells_forward<V: Vector, const N: usize>(step: &CellForward, lane: usize, unit: usize, n: usize) {
    let units = step.units;
    // SAFETY: the caller's.
    unsafe {
        let gates = step.gates.add(lane * 4 * units + unit);
        let gate = |k: usize, v: usize| gates.add(k * units + v * V::LANES);
        let before = step.before.add(lane * step.before_row + unit);
        let [mut i, mut f, mut g, mut o, mut c, mut h] = [[V::splat(0.0); N]; 6];
        // No closures: the compiler would not see them through.
        for (v, i) in i.iter_mut().enumerate() {
            *i = sigmoid(V::load_up_to(gate(0, v), n));
        }
        for (v, f) in f.iter_mut().enumerate() {
            *f = sigmoid(V::load_up_to(gate(1, v), n));
        }
        for (v, g) in g.iter_mut().enumerate() {
            *g = tanh(V::load_up_to(gate(2, v), n));
        }
        for v in 0..N {
            o[v] = sigmoid(V::load_up_to(gate(3, v), n));
            c[v] = f[v].mul_add(V::load_up_to(before.add(v * V::LANES), n), i[v].mul(g[v]));
        }
        for v in 0..N {
            h[v] = o[v].mul(tanh(c[v]));
        }
        for v in 0..N {
            for (k, x) in [i, f, g, o].into_iter().enumerate() {
                x[v].store_up_to(gate(k, v), n);
            }
            let unit = unit + v * V::LANES;
            c[v].store_up_to(step.cell.add(lane * units + unit), n);
            h[v].store_up_to(step.hidden.add(lane * step.d + unit), n);
            if let Some((copy, row, col)) = step.copy {
                copy.put(row + lane, col + unit, h[v], n);
            }
        }
    }
}
