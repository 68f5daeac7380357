//! Layer normalisation of rows (Ba, Kiros and Hinton 2016): `y = (x - mean) / sqrt(var + eps) ⊙ weight + bias`.

use crate::blocks::{ColumnSums, for_each_block, sum_of};
use crate::buffer::Shared;
use crate::dropout::{Mask, drop_rows};
use crate::simd::{Vector, kernel};

/// Number of rows.
fn rows_of(what: &str, x: &[f32], d: usize) -> usize {
    let rows = x.len().checked_div(d).unwrap_or(0);
    assert_eq!(rows * d, x.len(), "{} values of {what} are not rows of {d}", x.len());
    rows
}

/// Normalises each row.
///
/// # Shapes
/// - `x` and `out`: `[rows, d]`
/// - `weight` and `bias`: `[d]`
///
/// # Panics
/// If the shapes do not agree.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    let rows = rows_of("x", x, d);
    assert_eq!(bias.len(), d, "bias {} and weight {d}", bias.len());
    assert_eq!(out.len(), x.len(), "{} values are normalised into {}", x.len(), out.len());
    let out = Shared::new(out);
    for_each_block(
        rows,
        d,
        || (),
        |(), row, n| {
            let x = &x[row * d..][..n * d];
            // SAFETY: lengths were checked, and each block is written by one task.
            unsafe { forward(x, weight, bias, eps, out.slice(row * d, n * d)) }
        },
    );
}

/// A dropout mask over rows that are counted `[rows, lanes]`.
#[derive(Clone, Copy, Debug)]
pub struct LaneMask<'a> {
    /// The mask.
    pub mask: &'a Mask,
    /// Number of lanes.
    pub lanes: usize,
}

impl LaneMask<'_> {
    /// # Panics
    /// If so many rows are not those of all lanes.
    fn check(&self, rows: usize) {
        assert!(self.lanes > 0 && rows.is_multiple_of(self.lanes), "{rows} rows are not [_, {}]", self.lanes);
    }
}

/// `sum = layer_norm(x) + sum ⊙ mask`.
///
/// # Shapes
/// - `x` and `sum`: `[rows, d]`
/// - `weight` and `bias`: `[d]`
///
/// # Panics
/// If the shapes do not agree.
pub fn norm_residual(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, mask: Option<LaneMask>, sum: &mut [f32]) {
    let d = weight.len();
    let rows = rows_of("x", x, d);
    assert_eq!(bias.len(), d, "bias {} and weight {d}", bias.len());
    assert_eq!(sum.len(), x.len(), "{} values are added to {}", x.len(), sum.len());
    if let Some(mask) = &mask {
        mask.check(rows);
    }
    let sum = Shared::new(sum);
    for_each_block(
        rows,
        2 * d,
        || (),
        |(), row, n| {
            let x = &x[row * d..][..n * d];
            // SAFETY: lengths were checked, and each block is written by one task.
            unsafe {
                let sum = sum.slice(row * d, n * d);
                if let Some(LaneMask { mask, lanes }) = mask {
                    drop_rows(mask, row, lanes, d, sum);
                }
                add_forward(x, weight, bias, eps, sum);
            }
        },
    );
}

/// Where the gradients of a layer norm go.
pub struct LayerNormGrads<'a> {
    /// Of `x`, `[rows, d]`.
    pub x: &'a mut [f32],
    /// Of the weight, `[d]`.
    pub weight: &'a mut [f32],
    /// Of the bias, `[d]`.
    pub bias: &'a mut [f32],
}

/// Gradients of [`layer_norm`] given that of its result. With `u = grad ⊙ weight`:
/// `dx = (u - mean(u) - x̂ mean(u ⊙ x̂)) / sqrt(var + eps)`, `dweight = Σ grad ⊙ x̂`, `dbias = Σ grad`.
///
/// # Shapes
/// - `x` and `grad`: `[rows, d]`
/// - `weight`: `[d]`
///
/// # Panics
/// If the shapes do not agree.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], eps: f32, grad: &[f32], grads: LayerNormGrads) {
    backward_blocks(x, weight, eps, grad, grads, |_, _| ());
}

/// Gradients of [`norm_residual`], given that of the sum: those of the norm, and `dsum = grad ⊙ mask` of what it was added to.
///
/// # Shapes
/// - `x`, `grad` and `dsum`: `[rows, d]`
/// - `weight`: `[d]`
///
/// # Panics
/// If the shapes do not agree.
pub fn norm_residual_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &[f32],
    grads: LayerNormGrads,
    mask: LaneMask,
    dsum: &mut [f32],
) {
    assert_eq!(dsum.len(), x.len(), "{} values have {} gradients", x.len(), dsum.len());
    let d = weight.len();
    mask.check(x.len().checked_div(d).unwrap_or(0));
    let dsum = Shared::new(dsum);
    backward_blocks(x, weight, eps, grad, grads, |row, grad| {
        // SAFETY: as many values as `x` has; each block is written by one task.
        unsafe {
            let dsum = dsum.slice(row * d, grad.len());
            dsum.copy_from_slice(grad);
            drop_rows(mask.mask, row, mask.lanes, d, dsum);
        }
    });
}

/// The gradients, block by block; `beside` is called with each block's first row and its gradients.
fn backward_blocks(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &[f32],
    grads: LayerNormGrads,
    beside: impl Fn(usize, &[f32]) + Sync,
) {
    let LayerNormGrads { x: dx, weight: dweight, bias: dbias } = grads;
    let d = weight.len();
    let rows = rows_of("x", x, d);
    assert_eq!(grad.len(), x.len(), "{} gradients of {} values", grad.len(), x.len());
    assert_eq!(dx.len(), x.len(), "{} values have {} gradients", x.len(), dx.len());
    let (mut weight_sums, mut bias_sums) = (ColumnSums::new(rows, d), ColumnSums::new(rows, d));
    let (dx, weight_shared, bias_shared) = (Shared::new(dx), weight_sums.share(), bias_sums.share());
    for_each_block(
        rows,
        2 * d,
        || (),
        |(), row, n| {
            let (x, grad) = (&x[row * d..][..n * d], &grad[row * d..][..n * d]);
            // SAFETY: lengths were checked, and each block is written by one task.
            unsafe {
                let dx = dx.slice(row * d, n * d);
                backward(x, weight, eps, grad, dx, weight_shared.block(row), bias_shared.block(row));
            }
            beside(row, grad);
        },
    );
    weight_sums.finish(dweight);
    bias_sums.finish(dbias);
}

/// `mean` and `1 / sqrt(var + eps)` of a row, the variance from centred values.
///
/// # Safety
/// As [`Vector`]'s.
#[inline(always)]
pub(crate) unsafe fn statistics<V: Vector>(x: &[f32], eps: f32) -> (f32, f32) {
    let (d, x) = (x.len(), x.as_ptr());
    // SAFETY: `left` values are left at `i`; the instructions are the caller's.
    unsafe {
        let mean = sum_of!(V, d, |i, left| V::load_up_to(x.add(i), left)) / d as f32;
        let centre = V::splat(mean);
        let squares = sum_of!(V, d, |i, left| {
            let centred = V::load_up_to(x.add(i), left).sub(centre).keep_up_to(left);
            centred.mul(centred)
        });
        (mean, 1.0 / (squares / d as f32 + eps).sqrt())
    }
}

/// One row, from its [`statistics`].
///
/// # Safety
/// As [`Vector`]'s; `weight`, `bias` and `out` are as long as `x`.
#[inline(always)]
pub(crate) unsafe fn normalise<V: Vector>(
    x: &[f32],
    statistics: (f32, f32),
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    // SAFETY: the caller's.
    unsafe { normalise_onto::<V, false>(x, statistics, weight, bias, out) }
}

/// As [`normalise`]; `ADD`ed to what is there.
///
/// # Safety
/// As [`normalise`]'s.
#[inline(always)]
unsafe fn normalise_onto<V: Vector, const ADD: bool>(
    x: &[f32],
    (mean, inverse): (f32, f32),
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    // SAFETY: all are as long as `x`, of which `left` values are left; the instructions are the caller's.
    unsafe {
        let (mean, inverse) = (V::splat(mean), V::splat(inverse));
        for i in (0..x.len()).step_by(V::LANES) {
            let left = x.len() - i;
            let normed = V::load_up_to(x.as_ptr().add(i), left).sub(mean).mul(inverse);
            let (weight, bias) = (weight.as_ptr().add(i), bias.as_ptr().add(i));
            let y = normed.mul_add(V::load_up_to(weight, left), V::load_up_to(bias, left));
            let out = out.as_mut_ptr().add(i);
            let y = if ADD { y.add(V::load_up_to(out, left)) } else { y };
            y.store_up_to(out, left);
        }
    }
}

#[inline(always)]
unsafe fn forward_body<V: Vector>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        // SAFETY: all rows are `d` long; the instructions are the caller's.
        unsafe {
            normalise::<V>(x, statistics::<V>(x, eps), weight, bias, out);
        }
    }
}
kernel!(
    /// # Safety
    /// `bias` is as long as `weight`, `out` as `x`.
    unsafe fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) => forward_body
);

#[inline(always)]
unsafe fn add_forward_body<V: Vector>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        // SAFETY: all rows are `d` long; the instructions are the caller's.
        unsafe {
            normalise_onto::<V, true>(x, statistics::<V>(x, eps), weight, bias, out);
        }
    }
}
kernel!(
    /// Adds to `out`.
    ///
    /// # Safety
    /// `bias` is as long as `weight`, `out` as `x`.
    unsafe fn add_forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) => add_forward_body
);

#[inline(always)]
unsafe fn backward_body<V: Vector>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let d = weight.len();
    let (weight, dweight, dbias) = (weight.as_ptr(), dweight.as_mut_ptr(), dbias.as_mut_ptr());
    for ((x, grad), dx) in x.chunks_exact(d).zip(grad.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
        // SAFETY: all rows are `d` long, of which `left` values are left at `i`; the instructions are the caller's.
        unsafe {
            let (mean, inverse) = statistics::<V>(x, eps);
            let (mean, inverse) = (V::splat(mean), V::splat(inverse));
            let (x, grad, dx) = (x.as_ptr(), grad.as_ptr(), dx.as_mut_ptr());
            macro_rules! at {
                ($i:expr, $left:expr) => {{
                    let normed = V::load_up_to(x.add($i), $left).sub(mean).keep_up_to($left).mul(inverse);
                    let g = V::load_up_to(grad.add($i), $left);
                    (normed, g, g.mul(V::load_up_to(weight.add($i), $left)))
                }};
            }
            let mean_u = sum_of!(V, d, |i, left| at!(i, left).2) / d as f32;
            let mean_ux = sum_of!(V, d, |i, left| {
                let (normed, _, u) = at!(i, left);
                normed.mul(u)
            }) / d as f32;
            let (mean_u, minus_mean_ux) = (V::splat(mean_u), V::splat(-mean_ux));
            for i in (0..d).step_by(V::LANES) {
                let left = d - i;
                let (normed, g, u) = at!(i, left);
                normed.mul_add(minus_mean_ux, u.sub(mean_u)).mul(inverse).store_up_to(dx.add(i), left);
                let (dweight, dbias) = (dweight.add(i), dbias.add(i));
                normed.mul_add(g, V::load_up_to(dweight, left)).store_up_to(dweight, left);
                g.add(V::load_up_to(dbias, left)).store_up_to(dbias, left);
            }
        }
    }
}
kernel!(
    /// Adds to `dweight` and `dbias`.
    ///
    /// # Safety
    /// `grad` and `dx` are as long as `x`, `dweight` and `dbias` as `weight`.
    unsafe fn backward(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        grad: &[f32],
        dx: &mut [f32],
        dweight: &mut [f32],
        dbias: &mut [f32],
    ) => backward_body
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dropout::dropout;
    use crate::testing::{alone, assert_near, f64s, random, skip, sums_of_columns, test_mask};

    const EPS: f32 = 1e-12;

    /// Normalised rows and `sqrt(var + eps)` of each.
    fn normalise(x: &[f32], d: usize) -> (Vec<f64>, Vec<f64>) {
        let (mut normed, mut stds) = (Vec::new(), Vec::new());
        for row in f64s(x).chunks_exact(d) {
            let mean = row.iter().sum::<f64>() / d as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            let std = (variance + f64::from(EPS)).sqrt();
            normed.extend(row.iter().map(|x| (x - mean) / std));
            stds.push(std);
        }
        (normed, stds)
    }

    fn gradients(x: &[f32], weight: &[f32], grad: &[f32]) -> [Vec<f32>; 3] {
        let d = weight.len();
        let [mut dx, mut dweight, mut dbias] = [vec![f32::NAN; x.len()], vec![f32::NAN; d], vec![f32::NAN; d]];
        let grads = LayerNormGrads { x: &mut dx, weight: &mut dweight, bias: &mut dbias };
        layer_norm_backward(x, weight, EPS, grad, grads);
        [dx, dweight, dbias]
    }

    #[test]
    fn forward_and_gradients_agree_with_double_precision() {
        for rows in [0, 1, 3, 17, 130] {
            for d in [1, 5, 16, 17, 33, 70, 256] {
                if skip(rows * d) {
                    continue;
                }
                let what = format!("{rows} x {d}");
                // Off centre, where a variance from sums of squares would lose digits.
                let x: Vec<f32> = random(rows * d, 1).iter().map(|x| x + 3.0).collect();
                let [weight, bias, grad] = [random(d, 2), random(d, 3), random(rows * d, 4)];
                let (normed, stds) = normalise(&x, d);
                let [w, b, g] = [f64s(&weight), f64s(&bias), f64s(&grad)];

                let mut y = vec![f32::NAN; rows * d];
                layer_norm(&x, &weight, &bias, EPS, &mut y);
                let want: Vec<f64> = normed.iter().enumerate().map(|(i, n)| n * w[i % d] + b[i % d]).collect();
                assert_near(&what, &y, &want, 1e-5);

                let mean =
                    |row: usize, f: &dyn Fn(usize) -> f64| (row * d..(row + 1) * d).map(f).sum::<f64>() / d as f64;
                let u = |i: usize| g[i] * w[i % d];
                let want: Vec<f64> = (0..rows * d)
                    .map(|i| {
                        let (mean_u, mean_ux) = (mean(i / d, &u), mean(i / d, &|i| u(i) * normed[i]));
                        (u(i) - mean_u - normed[i] * mean_ux) / stds[i / d]
                    })
                    .collect();
                let [dx, dweight, dbias] = gradients(&x, &weight, &grad);
                assert_near(&format!("{what} dx"), &dx, &want, 1e-5);
                let gn: Vec<f64> = g.iter().zip(&normed).map(|(g, n)| g * n).collect();
                assert_near(&format!("{what} dweight"), &dweight, &sums_of_columns(&gn, d), 1e-5);
                assert_near(&format!("{what} dbias"), &dbias, &sums_of_columns(&g, d), 1e-5);
            }
        }
    }

    #[test]
    fn a_residual_sum_is_the_norm_and_the_dropout() {
        for (rows, lanes, d) in [(0, 2, 5), (1, 1, 1), (3, 3, 7), (18, 3, 33), (132, 4, 70)] {
            if skip(rows * d) {
                continue;
            }
            let what = format!("{rows} x {d}");
            let [x, y, grad] = [random(rows * d, 1), random(rows * d, 2), random(rows * d, 3)];
            let [weight, bias] = [random(d, 4), random(d, 5)];
            let mask = LaneMask { mask: &test_mask(1), lanes };
            let [mut normed, mut dropped] = [vec![0.0; rows * d], vec![0.0; rows * d]];
            layer_norm(&x, &weight, &bias, EPS, &mut normed);
            for given in [None, Some(mask)] {
                match given {
                    Some(LaneMask { mask, lanes }) => dropout(&y, lanes, d, mask, &mut dropped),
                    None => dropped.copy_from_slice(&y),
                }
                let mut sum = y.clone();
                norm_residual(&x, &weight, &bias, EPS, given, &mut sum);
                let want: Vec<f32> = normed.iter().zip(&dropped).map(|(a, b)| a + b).collect();
                assert_eq!(sum, want, "{what}, {given:?}");
            }
            let [mut dx, mut dweight, mut dbias] = [vec![f32::NAN; rows * d], vec![f32::NAN; d], vec![f32::NAN; d]];
            let grads = LayerNormGrads { x: &mut dx, weight: &mut dweight, bias: &mut dbias };
            let mut dsum = vec![f32::NAN; rows * d];
            norm_residual_backward(&x, &weight, EPS, &grad, grads, mask, &mut dsum);
            assert_eq!([dx, dweight, dbias], gradients(&x, &weight, &grad), "{what}");
            dropout(&grad, lanes, d, mask.mask, &mut dropped);
            assert_eq!(dsum, dropped, "{what}");
        }
    }

    #[test]
    #[should_panic(expected = "3 rows are not [_, 2]")]
    fn a_mask_covers_whole_rows_of_all_lanes() {
        let mask = LaneMask { mask: &test_mask(1), lanes: 2 };
        norm_residual(&[0.0; 6], &[0.0; 2], &[0.0; 2], EPS, Some(mask), &mut [0.0; 6]);
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (rows, d) = if skip(49_000) { (100, 2) } else { (700, 70) };
        let [x, weight, bias, grad] = [random(rows * d, 1), random(d, 2), random(d, 3), random(rows * d, 4)];
        let all = || {
            let mut y = vec![0.0; rows * d];
            layer_norm(&x, &weight, &bias, EPS, &mut y);
            (y, gradients(&x, &weight, &grad))
        };
        assert_eq!(all(), alone(all));
    }

    #[test]
    fn nan_stays_in_its_row() {
        let mut x = random(3 * 21, 1);
        x[21 + 20] = f32::NAN;
        let mut y = vec![0.0; x.len()];
        layer_norm(&x, &[1.0; 21], &[0.0; 21], EPS, &mut y);
        assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i / 21 == 1)));
    }

    #[test]
    fn a_constant_row_becomes_the_bias() {
        let mut y = [0.0; 32];
        layer_norm(&[0.5; 32], &[1.0; 32], &[0.25; 32], EPS, &mut y);
        assert_eq!(y, [0.25; 32]);
    }

    #[test]
    #[should_panic(expected = "7 values of x are not rows of 3")]
    fn values_must_be_whole_rows() {
        layer_norm(&[0.0; 7], &[0.0; 3], &[0.0; 3], EPS, &mut [0.0; 7]);
    }
}
