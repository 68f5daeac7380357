//! The affine map `y = x Wᵀ + b`, with the weight in PyTorch's layout `[d_out, d_in]`.

use std::ops::Range;

use crate::blocks::{ColumnSums, add_rows, for_each_block};
use crate::buffer::Buffer;
use crate::gemm::{Left, Mat, Operands, Packed, Product, Start, multiply, product};

/// `out = x Wᵀ + b`.
///
/// # Shapes
/// - `x`: `[rows, d_in]`
/// - `weight`: `[d_out, d_in]`
/// - `bias`: `[d_out]`
/// - `out`: `[rows, d_out]`
///
/// # Panics
/// If the shapes do not agree.
pub fn affine(x: Mat, weight: Mat, bias: &[f32], operands: Operands, out: &mut [f32]) {
    let (rows, d_out) = (x.rows(), weight.rows());
    assert_eq!(x.cols(), weight.cols(), "x has {} columns, the weight {}", x.cols(), weight.cols());
    assert_eq!(bias.len(), d_out, "bias {} of {d_out} columns", bias.len());
    assert_eq!(out.len(), rows * d_out, "the result is {rows} x {d_out}");
    multiply(x, weight.t(), operands, out, |col| Start::Row(bias[col..].as_ptr()));
}

/// Columns `cols` of `x Wᵀ + b` on the calling thread. They begin with a panel.
///
/// # Safety
/// `x` and `bias` fit the weight, and row `i` of `out` is at `out + i * out_row`, for no one else's use.
pub(crate) unsafe fn affine_into(
    x: Mat,
    weight: &Packed,
    bias: &[f32],
    cols: Range<usize>,
    out: *mut f32,
    out_row: usize,
    scratch: &mut Buffer,
) {
    let start = Start::Row(bias[cols.clone()].as_ptr());
    let of_weight = weight.panels().product(0..weight.k(), cols);
    // SAFETY: the caller's.
    unsafe {
        product(&Product { left: Left::of(x), rows: x.rows(), c: out, c_row: out_row, start, ..of_weight }, scratch)
    };
}

/// Gradients of [`affine`] given that of its result, those that are wanted: `dx = grad W`, `dweight = gradᵀ x`,
/// `dbias = Σ grad`.
///
/// # Shapes
/// - `x` and `dx`: `[rows, d_in]`
/// - `weight` and `dweight`: `[d_out, d_in]`
/// - `grad`: `[rows, d_out]`
/// - `dbias`: `[d_out]`
///
/// # Panics
/// If the shapes do not agree.
pub fn affine_backward(
    x: Mat,
    weight: Mat,
    grad: &[f32],
    operands: Operands,
    dx: Option<&mut [f32]>,
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) {
    let (rows, d_out) = (x.rows(), weight.rows());
    assert_eq!(x.cols(), weight.cols(), "x has {} columns, the weight {}", x.cols(), weight.cols());
    assert_eq!(grad.len(), rows * d_out, "the gradient is {rows} x {d_out}");
    let g = Mat::row_major(grad, rows, d_out);
    if let Some(dx) = dx {
        multiply(g, weight, operands, dx, |_| Start::Zero);
    }
    if let Some(dweight) = dweight {
        multiply(g.t(), x, operands, dweight, |_| Start::Zero);
    }
    if let Some(dbias) = dbias {
        column_sums(grad, d_out, dbias);
    }
}

/// Sums of the columns of rows of `cols`.
///
/// # Shapes
/// - `x`: `[rows, cols]`
/// - `out`: `[cols]`
///
/// # Panics
/// If the shapes do not agree.
pub fn column_sums(x: &[f32], cols: usize, out: &mut [f32]) {
    let rows = x.len().checked_div(cols).unwrap_or(0);
    assert_eq!(rows * cols, x.len(), "{} values are not rows of {cols}", x.len());
    let mut sums = ColumnSums::new(rows, cols);
    let shared = sums.share();
    for_each_block(
        rows,
        cols,
        || (),
        |(), row, n| {
            // SAFETY: each block is summed by one task.
            unsafe { add_rows(&x[row * cols..][..n * cols], shared.block(row)) }
        },
    );
    sums.finish(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{alone, assert_near, f64s, matmul, random, rounded, skip, sums_of_columns, transposed};

    fn gradients(x: Mat, weight: Mat, grad: &[f32], operands: Operands) -> [Vec<f32>; 3] {
        let (rows, d_in, d_out) = (x.rows(), x.cols(), weight.rows());
        let mut grads = [vec![f32::NAN; rows * d_in], vec![f32::NAN; d_out * d_in], vec![f32::NAN; d_out]];
        let [dx, dweight, dbias] = &mut grads;
        affine_backward(x, weight, grad, operands, Some(dx), Some(dweight), Some(dbias));
        grads
    }

    #[test]
    fn forward_and_gradients_agree_with_double_precision() {
        for (rows, d_in, d_out) in
            [(1, 1, 1), (3, 5, 16), (17, 16, 5), (130, 33, 70), (3, 256, 17), (130, 70, 256), (0, 3, 5), (700, 17, 33)]
        {
            for operands in [Operands::F32, Operands::Bf16] {
                if skip(rows * (d_in + d_out)) {
                    continue;
                }
                let what = format!("{rows} x {d_in} x {d_out} {operands:?}");
                let [x, weight] = [random(rows * d_in, 1), random(d_out * d_in, 2)];
                let [bias, grad] = [random(d_out, 3), random(rows * d_out, 4)];
                let [x64, w64, g64] = [&x, &weight, &grad].map(|x| rounded(x, operands));
                let (x, w) = (Mat::row_major(&x, rows, d_in), Mat::row_major(&weight, d_out, d_in));

                // Operands are rounded alike in the reference, so bfloat16 needs no other tolerance.
                let mut y = vec![f32::NAN; rows * d_out];
                affine(x, w, &bias, operands, &mut y);
                let mut want = matmul(&x64, &transposed(&w64, d_out), [rows, d_in, d_out]);
                want.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(bias[i % d_out]));
                assert_near(&what, &y, &want, 1e-5);

                let [dx, dweight, dbias] = gradients(x, w, &grad, operands);
                assert_near(&format!("{what} dx"), &dx, &matmul(&g64, &w64, [rows, d_out, d_in]), 1e-5);
                let want = matmul(&transposed(&g64, rows), &x64, [d_out, rows, d_in]);
                assert_near(&format!("{what} dweight"), &dweight, &want, 1e-5);
                assert_near(&format!("{what} dbias"), &dbias, &sums_of_columns(&f64s(&grad), d_out), 1e-5);
            }
        }
    }

    #[test]
    fn strided_operands_are_those_of_their_copies() {
        let (rows, d_in, d_out) = (19, 23, 37);
        let [x, weight, bias] = [random(rows * d_in, 1), random(d_out * d_in, 2), random(d_out, 3)];
        let [x_t, w_t] = [(&x, rows), (&weight, d_out)]
            .map(|(x, rows)| transposed(&f64s(x), rows).into_iter().map(|x| x as f32).collect::<Vec<_>>());
        let mut want = vec![f32::NAN; rows * d_out];
        affine(Mat::row_major(&x, rows, d_in), Mat::row_major(&weight, d_out, d_in), &bias, Operands::F32, &mut want);
        let mut y = vec![f32::NAN; rows * d_out];
        let (x, weight) = (Mat::row_major(&x_t, d_in, rows).t(), Mat::row_major(&w_t, d_in, d_out).t());
        affine(x, weight, &bias, Operands::F32, &mut y);
        assert_eq!(y, want);
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (rows, d_in, d_out) = if skip(30_000) { (100, 2, 3) } else { (701, 40, 50) };
        let [x, weight] = [random(rows * d_in, 1), random(d_out * d_in, 2)];
        let [bias, grad] = [random(d_out, 3), random(rows * d_out, 4)];
        let (x, weight) = (Mat::row_major(&x, rows, d_in), Mat::row_major(&weight, d_out, d_in));
        let all = || {
            let mut y = vec![0.0; rows * d_out];
            affine(x, weight, &bias, Operands::F32, &mut y);
            (y, gradients(x, weight, &grad, Operands::F32))
        };
        assert_eq!(all(), alone(all));
    }

    #[test]
    #[should_panic(expected = "x has 2 columns, the weight 3")]
    fn operands_must_fit() {
        affine(Mat::row_major(&[0.0; 2], 1, 2), Mat::row_major(&[0.0; 3], 1, 3), &[0.0], Operands::F32, &mut [0.0]);
    }
}
