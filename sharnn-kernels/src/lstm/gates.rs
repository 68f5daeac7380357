//! The products that gates are computed from, for the forward pass and for a backward to which nothing was kept.

use super::Lstm;
use crate::gemm::{Columns, Left, LeftCopy, Mat, Packed, Panels, Product, SharedCopy, Start, product};
use crate::team;

/// Packed weights and inputs.
pub(super) struct Gates<'a> {
    lstm: &'a Lstm<'a>,
    input: Packed,
    recurrent: Packed,
    /// The sum of both biases, `[groups, 4, units]`.
    bias: Vec<f32>,
    /// A copy of the input, where products want one.
    x: Option<LeftCopy>,
}

impl<'a> Gates<'a> {
    pub(super) fn new(lstm: &'a Lstm<'a>) -> Self {
        let &Lstm { seq_len, lanes, d_in, d, .. } = lstm;
        let mut bias = Vec::with_capacity(4 * d);
        for group in 0..lstm.groups() {
            for gate in 0..4 {
                let rows = lstm.units(group).map(|unit| gate * d + unit);
                bias.extend(rows.map(|row| lstm.bias_ih[row] + lstm.bias_hh[row]));
            }
        }
        Self {
            lstm,
            input: pack_by_unit(lstm, lstm.weight_ih, d_in),
            recurrent: pack_by_unit(lstm, lstm.weight_hh, d),
            bias,
            x: lstm.copy(Mat::row_major(lstm.x, seq_len * lanes, d_in)),
        }
    }

    pub(super) fn lstm(&self) -> &'a Lstm<'a> {
        self.lstm
    }

    /// As the members of a team see it.
    pub(super) fn share(&mut self) -> SharedGates<'_> {
        let Self { lstm, input, recurrent, bias, x } = self;
        let (input, recurrent) = (input.panels(), recurrent.panels());
        SharedGates { lstm, input, recurrent, bias, x: x.as_mut().map(LeftCopy::share) }
    }
}

/// The transpose of a weight `[4 d, k]` in panels: the four gates of one panel's width of units lie next to each other.
fn pack_by_unit(lstm: &Lstm, weight: &[f32], k: usize) -> Packed {
    let (d, width) = (lstm.d, lstm.width());
    let mut packed = Packed::room(k, 4 * lstm.groups() * width, lstm.operands);
    let panels = packed.share();
    let weight = Mat::row_major(weight, 4 * d, k);
    team::for_each(lstm.groups(), |group| {
        let units = lstm.units(group);
        for gate in 0..4 {
            let rows = weight.narrow_rows(gate * d + units.start, units.len());
            // SAFETY: each panel is written by one task.
            unsafe { panels.set(rows.t(), [0, (4 * group + gate) * width]) };
        }
    });
    packed
}

/// [`Gates`] that each member multiplies with.
#[derive(Clone, Copy)]
pub(super) struct SharedGates<'a> {
    lstm: &'a Lstm<'a>,
    input: Panels,
    recurrent: Panels,
    bias: &'a [f32],
    x: Option<SharedCopy>,
}

impl SharedGates<'_> {
    /// The input's part, with the biases, of a group's gates: of `steps` steps from `t` on, `[steps, lanes, 4, units]`.
    ///
    /// # Safety
    /// `out` has room for them, and no one else uses it.
    pub(super) unsafe fn of_input(&self, group: usize, t: usize, steps: usize, out: *mut f32) {
        let &Lstm { lanes, d_in, .. } = self.lstm;
        // SAFETY: there are such steps; the rest is the caller's.
        unsafe {
            let x = match self.x {
                Some(copy) => copy.left(t * lanes),
                None => Left::rows(self.lstm.x[t * lanes * d_in..].as_ptr(), d_in),
            };
            let bias = Start::Row(self.bias[4 * self.lstm.units(group).start..].as_ptr());
            self.product(group, x, self.input, steps * lanes, out, bias);
        }
    }

    /// Adds the part of `rows` hidden states.
    ///
    /// # Safety
    /// There are as many, and `out` holds as many rows, which no one else uses.
    pub(super) unsafe fn add_hidden(&self, group: usize, hidden: Left, rows: usize, out: *mut f32) {
        // SAFETY: the caller's.
        unsafe { self.product(group, hidden, self.recurrent, rows, out, Start::Result) }
    }

    unsafe fn product(&self, group: usize, left: Left, weight: Panels, rows: usize, c: *mut f32, start: Start) {
        let (units, width) = (self.lstm.units(group).len(), self.lstm.width());
        let of_weight = weight.product(0..weight.k(), 4 * group * width..4 * (group + 1) * width);
        let cols = Columns::Gates(units);
        // SAFETY: the caller's.
        unsafe { product(&Product { left, rows, cols, c, c_row: 4 * units, start, ..of_weight }, &mut []) }
    }
}
