//! The Boom feed-forward (Merity 2019, section 3.2): `z = x Wᵀ + b` in `d_ff` dimensions, `u = z σ(1.702 z)`, dropout, and the
//! SUM of the `d`-wide chunks of `u`. Where `d` does not divide `d_ff` the tail of `u` is dropped.
//!
//! One pass over blocks of rows computes some columns of `z`, and what follows from them while they are in the cache.

use crate::blocks::{BLOCK, ColumnSums, add_to, enough_blocks, for_each_block, product_work};
use crate::buffer::{Buffer, Shared};
use crate::dropout::Mask;
use crate::gemm::{Mat, Operands, Packed, Product, Start, multiply, product, scratch};
use crate::linear::{affine, affine_into};
use crate::math::{GELU_SLOPE, sigmoid};
use crate::simd::{Vector, kernel};

/// Columns of `z` that are computed together: whole panels and groups of a mask.
const COLUMNS: usize = 512;

/// The inputs.
#[derive(Clone, Copy)]
pub struct Boom<'a> {
    /// `[seq_len, lanes, d]`
    pub x: &'a [f32],
    /// Number of lanes: the batch size.
    pub lanes: usize,
    /// `[d_ff, d]`
    pub weight: Mat<'a>,
    /// `[d_ff]`
    pub bias: &'a [f32],
    /// Dropout of `u`.
    pub mask: Option<&'a Mask>,
    /// What the operands of all products are rounded to.
    pub operands: Operands,
}

/// Where the backward pass finds `z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preactivations {
    /// In [`BoomGrads::z`], which is overwritten with its gradient.
    InPlace,
    /// Nowhere: it is computed again.
    Recompute,
}

/// Where the gradients are written.
pub struct BoomGrads<'a> {
    /// Of `z`, `[rows, d_ff]`: room that the other gradients need.
    pub z: &'a mut [f32],
    /// `[rows, d]`
    pub x: &'a mut [f32],
    /// `[d_ff, d]`
    pub weight: &'a mut [f32],
    /// `[d_ff]`
    pub bias: &'a mut [f32],
}

impl Boom<'_> {
    /// Rows, `d` and `d_ff`.
    fn shape(&self) -> [usize; 3] {
        let (d_ff, d) = (self.weight.rows(), self.weight.cols());
        assert!(d > 0 && d_ff >= d, "a Boom from {d} to {d_ff} dimensions");
        assert_eq!(self.bias.len(), d_ff, "bias {} and d_ff {d_ff}", self.bias.len());
        let (n, lanes) = (self.x.len(), self.lanes);
        assert!(n == 0 || (lanes > 0 && n.is_multiple_of(lanes * d)), "{n} values of x are not [_, {lanes}, {d}]");
        [n / d, d, d_ff]
    }

    /// The result in `y`, and `z` where it is to be kept.
    ///
    /// # Shapes
    /// - `z`: `[rows, d_ff]`
    /// - `y`: `[rows, d]`, time-major as `x`
    ///
    /// # Panics
    /// If the shapes do not agree, or `d_ff < d`.
    pub fn forward(&self, z: Option<&mut [f32]>, y: &mut [f32]) {
        self.forward_with(enough_blocks(self.shape()[0]), z, y);
    }

    /// [`forward`](Self::forward), `z` computed in the pass over blocks where `fused`, else before it.
    fn forward_with(&self, fused: bool, z: Option<&mut [f32]>, y: &mut [f32]) {
        let [rows, d, d_ff] = self.shape();
        assert_eq!(y.len(), rows * d, "the result is {rows} x {d}");
        if let Some(z) = &z {
            assert_eq!(z.len(), rows * d_ff, "z is {rows} x {d_ff}");
        }
        // Columns that no chunk has are computed only to be kept.
        let cols = if z.is_some() { d_ff } else { d_ff / d * d };
        let weight = fused.then(|| Packed::new(self.weight.t(), self.operands));
        let x = Mat::row_major(self.x, rows, d);
        let mut room = Vec::new();
        let mut z = match z {
            None if !fused => {
                room.resize(rows * d_ff, 0.0);
                Some(&mut room[..])
            }
            z => z,
        };
        if let (false, Some(z)) = (fused, z.as_deref_mut()) {
            affine(x, self.weight, self.bias, self.operands, z);
        }
        let (z, y) = (z.map(Shared::new), Shared::new(y));
        let block = if z.is_some() { 0 } else { BLOCK * COLUMNS };
        let room = || (scratch(), Buffer::room(block), Buffer::room(COLUMNS));
        let row_work = if fused { product_work(1, d, d_ff) } else { 2 * d_ff };
        for_each_block(rows, row_work, room, |(scratch, block, u), first_row, rows| {
            for start in (0..cols).step_by(COLUMNS) {
                let end = cols.min(start + COLUMNS);
                // SAFETY: shapes were checked, and each block is written by one task.
                unsafe {
                    let (z, z_row) = match z {
                        Some(z) => (z.at(first_row * d_ff + start), d_ff),
                        None => (block.as_mut_ptr(), COLUMNS),
                    };
                    if let Some(weight) = &weight {
                        let x = x.narrow_rows(first_row, rows);
                        affine_into(x, weight, self.bias, start..end, z, z_row, scratch);
                    }
                    let part = Part { first_row, rows, start, end, d, chunks_end: d_ff / d * d, z, z_row };
                    activate(&part, self.mask, self.lanes, u, y.at(first_row * d));
                }
            }
        });
    }

    /// Gradients given that of the result: with `s = σ(1.702 z)`, `dz = repeat(grad) ⊙ mask ⊙ (s + 1.702 z s (1 - s))`, then
    /// `dx = dz W`, `dW = dzᵀ x`, `db = Σ dz`.
    ///
    /// # Shapes
    /// - `grad`: `[rows, d]`, time-major as `x`
    ///
    /// # Panics
    /// If the shapes do not agree, or `d_ff < d`.
    pub fn backward(&self, z: Preactivations, grad: &[f32], grads: BoomGrads) {
        self.backward_with(enough_blocks(self.shape()[0]), z, grad, grads);
    }

    fn backward_with(&self, fused: bool, z: Preactivations, grad: &[f32], grads: BoomGrads) {
        let [rows, d, d_ff] = self.shape();
        let BoomGrads { z: dz, x: dx, weight: dweight, bias: dbias } = grads;
        assert_eq!(grad.len(), rows * d, "the gradient is {rows} x {d}");
        assert_eq!(dz.len(), rows * d_ff, "the gradient of z is {rows} x {d_ff}");
        assert_eq!(dx.len(), rows * d, "the gradient of x is {rows} x {d}");
        let x = Mat::row_major(self.x, rows, d);
        let mut again = None;
        if z == Preactivations::Recompute {
            match fused {
                true => again = Some(Packed::new(self.weight.t(), self.operands)),
                false => affine(x, self.weight, self.bias, self.operands, dz),
            }
        }
        let weight = fused.then(|| Packed::new(self.weight, self.operands));
        let mut bias_sums = ColumnSums::new(rows, d_ff);
        let sums = bias_sums.share();
        let (dz_shared, dx_shared) = (Shared::new(dz), Shared::new(dx));
        let row_work = if fused { product_work(1, d, d_ff) } else { 2 * d_ff };
        for_each_block(
            rows,
            row_work,
            || (scratch(), Buffer::room(COLUMNS)),
            |(scratch, u), first_row, rows| {
                // SAFETY: shapes were checked, and each block is written by one task.
                unsafe {
                    let sums = sums.block(first_row);
                    for start in (0..d_ff).step_by(COLUMNS) {
                        let end = d_ff.min(start + COLUMNS);
                        let dz = dz_shared.at(first_row * d_ff + start);
                        if let Some(weight) = &again {
                            let x = x.narrow_rows(first_row, rows);
                            affine_into(x, weight, self.bias, start..end, dz, d_ff, scratch);
                        }
                        let (z, chunks_end) = (dz.cast_const(), d_ff / d * d);
                        let part = Part { first_row, rows, start, end, d, chunks_end, z, z_row: d_ff };
                        let grad = &grad[first_row * d..][..rows * d];
                        differentiate(&part, self.mask, self.lanes, grad, u, dz, &mut sums[start..end]);
                    }
                    if let Some(weight) = &weight {
                        let dz = Mat::row_major(dz_shared.slice(first_row * d_ff, rows * d_ff), rows, d_ff);
                        product(&Product { c: dx_shared.at(first_row * d), c_row: d, ..weight.product(dz) }, scratch);
                    }
                }
            },
        );
        bias_sums.finish(dbias);
        let dz = Mat::row_major(dz, rows, d_ff);
        if !fused {
            multiply(dz, self.weight, self.operands, dx, |_| Start::Zero);
        }
        multiply(dz.t(), x, self.operands, dweight, |_| Start::Zero);
    }
}

/// Columns `start .. end` of a block of rows.
#[derive(Clone, Copy)]
struct Part {
    first_row: usize,
    rows: usize,
    start: usize,
    end: usize,
    d: usize,
    /// Where the chunks end and the tail begins.
    chunks_end: usize,
    /// Column `start` of row `i` is at `z + i * z_row`.
    z: *const f32,
    z_row: usize,
}

/// Calls the body with each stretch of the columns of a part that lies in one chunk: its first column, that in the chunk, and
/// its length.
macro_rules! for_each_stretch {
    ($part:expr, |$col:ident, $j:ident, $n:ident| $body:expr) => {{
        let (mut $col, end) = ($part.start, $part.end.min($part.chunks_end));
        while $col < end {
            let $j = $col % $part.d;
            let $n = ($part.d - $j).min(end - $col);
            $body;
            $col += $n;
        }
    }};
}

#[inline(always)]
unsafe fn activate_body<V: Vector>(part: &Part, mask: Option<&Mask>, lanes: usize, u: &mut [f32], y: *mut f32) {
    let n = part.end - part.start;
    debug_assert!(n <= u.len());
    let u = u.as_mut_ptr();
    for i in 0..part.rows {
        // SAFETY: `n` columns of `z` and `u`, `d` of `y`, by the caller's word; so are the instructions.
        unsafe {
            let (z, y) = (part.z.add(i * part.z_row), y.add(i * part.d));
            for j in (0..n).step_by(V::LANES) {
                let z = V::load_up_to(z.add(j), n - j);
                z.mul(sigmoid(z.mul(V::splat(GELU_SLOPE)))).store_up_to(u.add(j), n - j);
            }
            if let Some(mask) = mask {
                mask.apply_time_major::<V>(part.first_row + i, lanes, part.start, u, n);
            }
            for_each_stretch!(part, |col, j, n| {
                let (from, to) = (u.add(col - part.start), y.add(j));
                match col < part.d {
                    true => std::ptr::copy_nonoverlapping(from, to, n),
                    false => add_to::<V>(from, to, n),
                }
            });
        }
    }
}
kernel!(
    /// Writes, or from the second chunk on adds, to rows of `y` what the part gives.
    ///
    /// # Safety
    /// `z` is as its fields say, `u` at least as long as the part is wide, and `y` valid for the rows of the block.
    unsafe fn activate(part: &Part, mask: Option<&Mask>, lanes: usize, u: &mut [f32], y: *mut f32) => activate_body
);

#[inline(always)]
unsafe fn differentiate_body<V: Vector>(
    part: &Part,
    mask: Option<&Mask>,
    lanes: usize,
    grad: &[f32],
    du: &mut [f32],
    dz: *mut f32,
    sums: &mut [f32],
) {
    let n = part.end - part.start;
    debug_assert!(n <= du.len() && n == sums.len());
    let (du, sums) = (du.as_mut_ptr(), sums.as_mut_ptr());
    for i in 0..part.rows {
        // SAFETY: `n` columns of `z`, `dz`, `du` and `sums` by the caller's word; so are the instructions.
        unsafe {
            let grad = grad.as_ptr().add(i * part.d);
            for_each_stretch!(part, |col, j, n| {
                std::ptr::copy_nonoverlapping(grad.add(j), du.add(col - part.start), n);
            });
            let chunks = part.chunks_end.clamp(part.start, part.end) - part.start;
            std::slice::from_raw_parts_mut(du.add(chunks), n - chunks).fill(0.0);
            if let Some(mask) = mask {
                mask.apply_time_major::<V>(part.first_row + i, lanes, part.start, du, n);
            }
            let (z, dz) = (part.z.add(i * part.z_row), dz.add(i * part.z_row));
            let (one, slope) = (V::splat(1.0), V::splat(GELU_SLOPE));
            for j in (0..n).step_by(V::LANES) {
                let left = n - j;
                let scaled = V::load_up_to(z.add(j), left).mul(slope);
                let s = sigmoid(scaled);
                let derivative = scaled.mul(s).mul_add(one.sub(s), s);
                let gradient = V::load_up_to(du.add(j), left).mul(derivative);
                gradient.store_up_to(dz.add(j), left);
                V::load_up_to(sums.add(j), left).add(gradient).store_up_to(sums.add(j), left);
            }
        }
    }
}
kernel!(
    /// Writes the gradient of `z`, in whose place it may be, and adds it to the sums of its columns.
    ///
    /// # Safety
    /// `z` is as its fields say, `dz` laid out alike, `grad` the rows of the block, and `du` and `sums` at least as long as
    /// the part is wide.
    unsafe fn differentiate(
        part: &Part,
        mask: Option<&Mask>,
        lanes: usize,
        grad: &[f32],
        du: &mut [f32],
        dz: *mut f32,
        sums: &mut [f32],
    ) => differentiate_body
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::FEW;
    use crate::team;
    use crate::testing::{
        alone, assert_near, f64s, matmul, random, rounded, scalar_mask, skip, sums_of_columns, test_mask, transposed,
    };

    /// `[z, y]`, or `y` alone.
    fn forward(boom: &Boom, fused: bool, keep: bool) -> (Vec<f32>, Vec<f32>) {
        let [rows, d, d_ff] = boom.shape();
        let (mut z, mut y) = (vec![f32::NAN; if keep { rows * d_ff } else { 0 }], vec![f32::NAN; rows * d]);
        boom.forward_with(fused, keep.then_some(&mut z[..]), &mut y);
        (z, y)
    }

    /// Gradients of z, x, weight and bias.
    fn backward(boom: &Boom, fused: bool, z: Preactivations, grad: &[f32], room: Vec<f32>) -> [Vec<f32>; 4] {
        let [rows, d, d_ff] = boom.shape();
        let mut all = [room, vec![f32::NAN; rows * d], vec![f32::NAN; d_ff * d], vec![f32::NAN; d_ff]];
        let [dz, x, weight, bias] = &mut all;
        boom.backward_with(fused, z, grad, BoomGrads { z: dz, x, weight, bias });
        all
    }

    fn check(seq_len: usize, lanes: usize, d: usize, d_ff: usize, mask: Option<&Mask>, operands: Operands) {
        let rows = seq_len * lanes;
        if skip(rows * d_ff) {
            return;
        }
        let what = format!("{seq_len} x {lanes} x {d} to {d_ff} {operands:?}, dropout {}", mask.is_some());
        let [x, weight] = [random(rows * d, 1), random(d_ff * d, 2)];
        let [bias, grad] = [random(d_ff, 3), random(rows * d, 4)];
        let boom = Boom { x: &x, lanes, weight: Mat::row_major(&weight, d_ff, d), bias: &bias, mask, operands };

        let (x64, w64) = (rounded(&x, operands), rounded(&weight, operands));
        let mut z64 = matmul(&x64, &transposed(&w64, d_ff), [rows, d, d_ff]);
        z64.iter_mut().enumerate().for_each(|(i, z)| *z += f64::from(bias[i % d_ff]));
        let multipliers = match mask {
            Some(mask) => f64s(&scalar_mask(mask, seq_len, lanes, d_ff)),
            None => vec![1.0; rows * d_ff],
        };
        let s = |z: f64| 1.0 / (1.0 + (-1.702 * z).exp());
        let chunks = d_ff / d;
        let u: Vec<f64> = z64.iter().zip(&multipliers).map(|(&z, m)| z * s(z) * m).collect();
        let y64: Vec<f64> = (0..rows * d).map(|i| (0..chunks).map(|k| u[i / d * d_ff + k * d + i % d]).sum()).collect();
        let dz64: Vec<f64> = (0..rows * d_ff)
            .map(|i| {
                let (row, col, z) = (i / d_ff, i % d_ff, z64[i]);
                let g = if col < chunks * d { f64::from(grad[row * d + col % d]) } else { 0.0 };
                g * multipliers[i] * (s(z) + 1.702 * z * s(z) * (1.0 - s(z)))
            })
            .collect();

        let results = [false, true].map(|fused| {
            let (z, y) = forward(&boom, fused, true);
            assert_near(&format!("{what} z"), &z, &z64, 1e-5);
            assert_near(&format!("{what} y"), &y, &y64, 1e-5);
            assert_eq!(y, forward(&boom, fused, false).1, "{what}: y without z");

            let grads = backward(&boom, fused, Preactivations::InPlace, &grad, z);
            let nan = vec![f32::NAN; rows * d_ff];
            assert_eq!(grads, backward(&boom, fused, Preactivations::Recompute, &grad, nan), "{what}: again");
            let [dz, dx, dweight, dbias] = &grads;
            assert_near(&format!("{what} dz"), dz, &dz64, 1e-5);
            assert_near(&format!("{what} dbias"), dbias, &sums_of_columns(&dz64, d_ff), 1e-5);
            // From the rounded gradient of z itself: one that lies on the edge may be rounded to either side, which is
            // no error. So bfloat16 needs no other tolerance.
            let dz = rounded(dz, operands);
            assert_near(&format!("{what} dx"), dx, &matmul(&dz, &w64, [rows, d_ff, d]), 1e-5);
            let want = matmul(&transposed(&dz, rows), &x64, [d_ff, rows, d]);
            assert_near(&format!("{what} dweight"), dweight, &want, 1e-5);
            (y, grads)
        });
        // Few rows are summed in another order where they are not fused, which they never are.
        assert!(rows <= FEW || results[0] == results[1], "{what}: results depend on the division of work");
    }

    #[test]
    fn forward_and_gradients_agree_with_double_precision() {
        let mask = test_mask(9);
        for (seq_len, lanes, d, d_ff) in [
            (1, 1, 1, 1),
            (1, 1, 5, 16),
            (3, 1, 16, 64),
            (1, 3, 17, 70),
            (17, 1, 33, 130),
            (26, 5, 16, 33),
            (13, 10, 70, 256),
            (10, 13, 256, 1100),
            (0, 4, 5, 10),
            (seq_for_all_threads(), 2, 5, 18),
        ] {
            for mask in [None, Some(&mask)] {
                for operands in [Operands::F32, Operands::Bf16] {
                    check(seq_len, lanes, d, d_ff, mask, operands);
                }
            }
        }
    }

    /// Rows of two lanes that are divided into blocks alone.
    fn seq_for_all_threads() -> usize {
        let rows = BLOCK * 4 * team::threads() + 2;
        assert!(enough_blocks(rows));
        rows / 2
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (rows, d, d_ff) = if skip(30_000) { (102, 1, 3) } else { (300, 24, 100) };
        let [x, weight] = [random(rows * d, 1), random(d_ff * d, 2)];
        let [bias, grad] = [random(d_ff, 3), random(rows * d, 4)];
        let (mask, weight) = (test_mask(1), Mat::row_major(&weight, d_ff, d));
        let boom = Boom { x: &x, lanes: 3, weight, bias: &bias, mask: Some(&mask), operands: Operands::F32 };
        let all = || {
            let (z, y) = forward(&boom, true, true);
            (backward(&boom, true, Preactivations::InPlace, &grad, z), y)
        };
        assert_eq!(all(), alone(all));
    }

    #[test]
    #[should_panic(expected = "a Boom from 3 to 2 dimensions")]
    fn the_wide_side_must_be_wide_enough() {
        let weight = Mat::row_major(&[0.0; 6], 2, 3);
        let boom = Boom { x: &[], lanes: 1, weight, bias: &[0.0; 2], mask: None, operands: Operands::F32 };
        boom.forward(None, &mut []);
    }
}
