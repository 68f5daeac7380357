//! The decoder's affine map and the softmax cross-entropy in one operation: `logits = h Wᵀ + b`,
//! `loss = -mean log softmax(logits)[target]`, in nats.

use std::fmt::Display;

use crate::blocks::{BLOCK, ColumnSums, add_rows, enough_blocks, for_each_block, product_work, sum_of};
use crate::buffer::Shared;
use crate::gemm::{Mat, Operands, Packed, Product, Start, multiply, product, scratch};
use crate::linear::{affine, affine_into};
use crate::math::exp;
use crate::simd::{Vector, kernel};

/// The inputs that both passes share. `T` is any type of integer.
#[derive(Clone, Copy)]
pub struct DecoderLoss<'a, T> {
    /// `[rows, d]`
    pub h: &'a [f32],
    /// `[vocab_size, d]`
    pub weight: Mat<'a>,
    /// `[rows]`, each in `0 .. vocab_size`
    pub targets: &'a [T],
    /// What the operands of all products are rounded to.
    pub operands: Operands,
}

/// Where the gradients are written.
pub struct DecoderLossGrads<'a> {
    /// Of the logits, `[rows, vocab_size]`: room that the other gradients need.
    pub logits: &'a mut [f32],
    /// `[rows, d]`, if wanted
    pub h: Option<&'a mut [f32]>,
    /// `[vocab_size, d]`, if wanted
    pub weight: Option<&'a mut [f32]>,
    /// `[vocab_size]`, if wanted
    pub bias: Option<&'a mut [f32]>,
}

impl<T: Copy + Display + Sync + TryInto<usize>> DecoderLoss<'_, T> {
    /// Rows, `d` and the size of the vocabulary.
    fn shape(&self) -> [usize; 3] {
        let (rows, d, vocab_size) = (self.targets.len(), self.weight.cols(), self.weight.rows());
        assert_eq!(self.h.len(), rows * d, "h has {} values, not {rows} rows of {d}", self.h.len());
        for (row, &target) in self.targets.iter().enumerate() {
            let valid = target.try_into().is_ok_and(|target| target < vocab_size);
            assert!(valid, "target {target} of row {row} is not below the vocabulary's size {vocab_size}");
        }
        [rows, d, vocab_size]
    }

    /// A target that [`shape`](Self::shape) has checked.
    fn target(&self, row: usize) -> usize {
        self.targets[row].try_into().unwrap_or_else(|_| unreachable!("targets were checked"))
    }

    /// The loss, and the log-probabilities that the backward pass needs. The mean over no rows is NaN.
    ///
    /// # Shapes
    /// - `bias`: `[vocab_size]`
    /// - `log_probs`: `[rows, vocab_size]`
    ///
    /// # Panics
    /// If the shapes do not agree, or a target is not in `0 .. vocab_size`.
    pub fn forward(&self, bias: &[f32], log_probs: &mut [f32]) -> f64 {
        self.forward_with(enough_blocks(self.targets.len()), bias, log_probs)
    }

    /// [`forward`](Self::forward), logits computed in the pass over blocks where `fused`, else before it.
    fn forward_with(&self, fused: bool, bias: &[f32], log_probs: &mut [f32]) -> f64 {
        let [rows, d, vocab_size] = self.shape();
        assert_eq!(bias.len(), vocab_size, "bias {} and a vocabulary of {vocab_size}", bias.len());
        assert_eq!(log_probs.len(), rows * vocab_size, "log-probabilities are {rows} x {vocab_size}");
        let weight = fused.then(|| Packed::new(self.weight.t(), self.operands));
        let h = Mat::row_major(self.h, rows, d);
        if !fused {
            affine(h, self.weight, bias, self.operands, log_probs);
        }
        let mut losses = vec![0.0f64; rows.div_ceil(BLOCK)];
        let (shared_losses, shared) = (Shared::new(&mut losses), Shared::new(log_probs));
        let row_work = 2 * vocab_size + if fused { product_work(1, d, vocab_size) } else { 0 };
        for_each_block(
            rows,
            row_work,
            || fused.then(scratch),
            |scratch, row, n| {
                // SAFETY: shapes were checked, and each block is written by one task.
                unsafe {
                    if let (Some(weight), Some(scratch)) = (&weight, scratch) {
                        let to = shared.at(row * vocab_size);
                        affine_into(h.narrow_rows(row, n), weight, bias, 0..vocab_size, to, vocab_size, scratch);
                    }
                    let log_probs = shared.slice(row * vocab_size, n * vocab_size);
                    log_softmax(vocab_size, log_probs);
                    let loss = |i: usize| -f64::from(log_probs[i * vocab_size + self.target(row + i)]);
                    *shared_losses.at(row / BLOCK) = (0..n).map(loss).sum();
                }
            },
        );
        losses.iter().sum::<f64>() / rows as f64
    }

    /// Gradients given `grad`, that of the loss: `dlogits = (softmax - onehot(target)) grad / rows`, then those of the affine
    /// map.
    ///
    /// # Shapes
    /// - `log_probs`: `[rows, vocab_size]`
    ///
    /// # Panics
    /// If the shapes do not agree, or a target is not in `0 .. vocab_size`.
    pub fn backward(&self, log_probs: &[f32], grad: f32, grads: DecoderLossGrads) {
        self.backward_with(enough_blocks(self.targets.len()), log_probs, grad, grads);
    }

    fn backward_with(&self, fused: bool, log_probs: &[f32], grad: f32, grads: DecoderLossGrads) {
        let [rows, d, vocab_size] = self.shape();
        let DecoderLossGrads { logits: dlogits, h: mut dh, weight: dweight, bias: dbias } = grads;
        assert_eq!(log_probs.len(), rows * vocab_size, "log-probabilities are {rows} x {vocab_size}");
        assert_eq!(dlogits.len(), rows * vocab_size, "the gradient of the logits is {rows} x {vocab_size}");
        if let Some(dh) = &dh {
            assert_eq!(dh.len(), rows * d, "the gradient of h is {rows} x {d}");
        }
        let weight = (fused && dh.is_some()).then(|| Packed::new(self.weight, self.operands));
        let mut bias_sums = dbias.is_some().then(|| ColumnSums::new(rows, vocab_size));
        let sums = bias_sums.as_mut().map(ColumnSums::share);
        let shared = Shared::new(dlogits);
        // What the pass over blocks has to do for the gradient of h.
        let shared_dh = if fused { dh.as_deref_mut().map(Shared::new) } else { None };
        let scale = grad / rows as f32;
        let row_work = vocab_size + if shared_dh.is_some() { product_work(1, d, vocab_size) } else { 0 };
        for_each_block(
            rows,
            row_work,
            || shared_dh.map(|_| scratch()),
            |scratch, row, n| {
                // SAFETY: shapes were checked, and each block is written by one task.
                unsafe {
                    let block = shared.slice(row * vocab_size, n * vocab_size);
                    scaled_exp(&log_probs[row * vocab_size..][..n * vocab_size], scale, block);
                    for i in 0..n {
                        block[i * vocab_size + self.target(row + i)] -= scale;
                    }
                    if let Some(sums) = sums {
                        add_rows(block, sums.block(row));
                    }
                    if let (Some(dh), Some(weight), Some(scratch)) = (shared_dh, &weight, scratch) {
                        let block = Mat::row_major(block, n, vocab_size);
                        product(&Product { c: dh.at(row * d), c_row: d, ..weight.product(block) }, scratch);
                    }
                }
            },
        );
        if let (Some(sums), Some(dbias)) = (bias_sums, dbias) {
            sums.finish(dbias);
        }
        let dlogits = Mat::row_major(dlogits, rows, vocab_size);
        if let (false, Some(dh)) = (fused, dh) {
            multiply(dlogits, self.weight, self.operands, dh, |_| Start::Zero);
        }
        if let Some(dweight) = dweight {
            multiply(dlogits.t(), Mat::row_major(self.h, rows, d), self.operands, dweight, |_| Start::Zero);
        }
    }
}

#[inline(always)]
unsafe fn log_softmax_body<V: Vector>(cols: usize, x: &mut [f32]) {
    for row in x.chunks_exact_mut(cols) {
        let x = row.as_mut_ptr();
        // SAFETY: a row is `cols` long, of which `left` values are left at `i`; the instructions are the caller's.
        unsafe {
            // NaN may be lost here, and comes back with the sum.
            let mut largest = V::splat(f32::NEG_INFINITY);
            let whole = cols / V::LANES * V::LANES;
            for i in (0..whole).step_by(V::LANES) {
                largest = largest.max(V::load(x.add(i)));
            }
            let largest = row[whole..].iter().copied().fold(largest.largest(), f32::max);
            let shift = V::splat(largest);
            let sum = sum_of!(V, cols, |i, left| exp(V::load_up_to(x.add(i), left).sub(shift)).keep_up_to(left));
            let log_sum = V::splat(sum.ln());
            for i in (0..cols).step_by(V::LANES) {
                let (x, left) = (x.add(i), cols - i);
                V::load_up_to(x, left).sub(shift).sub(log_sum).store_up_to(x, left);
            }
        }
    }
}
kernel!(
    /// In place, of rows of `cols`.
    ///
    /// # Safety
    /// None beyond the instructions.
    unsafe fn log_softmax(cols: usize, x: &mut [f32]) => log_softmax_body
);

#[inline(always)]
unsafe fn scaled_exp_body<V: Vector>(x: &[f32], scale: f32, out: &mut [f32]) {
    let n = x.len();
    debug_assert_eq!(n, out.len());
    for i in (0..n).step_by(V::LANES) {
        // SAFETY: `n - i` values are left of both; the instructions are the caller's.
        unsafe {
            let x = V::load_up_to(x.as_ptr().add(i), n - i);
            exp(x).mul(V::splat(scale)).store_up_to(out.as_mut_ptr().add(i), n - i);
        }
    }
}
kernel!(
    /// `out = eˣ scale`.
    ///
    /// # Safety
    /// Both are as long.
    unsafe fn scaled_exp(x: &[f32], scale: f32, out: &mut [f32]) => scaled_exp_body
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::FEW;
    use crate::team;
    use crate::testing::{alone, assert_near, matmul, random, rounded, skip, sums_of_columns, transposed};

    type Loss<'a> = DecoderLoss<'a, i64>;

    fn forward(loss: &Loss, fused: bool, bias: &[f32]) -> (f64, Vec<f32>) {
        let mut log_probs = vec![f32::NAN; loss.targets.len() * loss.weight.rows()];
        (loss.forward_with(fused, bias, &mut log_probs), log_probs)
    }

    /// Gradients of logits, h, weight and bias.
    fn backward(loss: &Loss, fused: bool, log_probs: &[f32], grad: f32) -> [Vec<f32>; 4] {
        let [rows, d, vocab_size] = loss.shape();
        let mut all = [rows * vocab_size, rows * d, vocab_size * d, vocab_size].map(|n| vec![f32::NAN; n]);
        let [logits, h, weight, bias] = &mut all;
        let grads = DecoderLossGrads { logits, h: Some(h), weight: Some(weight), bias: Some(bias) };
        loss.backward_with(fused, log_probs, grad, grads);
        all
    }

    fn targets(rows: usize, vocab_size: usize) -> Vec<i64> {
        (0..rows).map(|row| (row * 37 % vocab_size) as i64).collect()
    }

    fn check(rows: usize, d: usize, vocab_size: usize, operands: Operands) {
        if skip(rows * vocab_size) {
            return;
        }
        let what = format!("{rows} x {d} to {vocab_size} {operands:?}");
        let [h, weight, bias] = [random(rows * d, 1), random(vocab_size * d, 2), random(vocab_size, 3)];
        let targets = targets(rows, vocab_size);
        let loss = Loss { h: &h, weight: Mat::row_major(&weight, vocab_size, d), targets: &targets, operands };

        let (h64, w64) = (rounded(&h, operands), rounded(&weight, operands));
        let mut log_probs64 = matmul(&h64, &transposed(&w64, vocab_size), [rows, d, vocab_size]);
        for row in log_probs64.chunks_exact_mut(vocab_size) {
            row.iter_mut().zip(&bias).for_each(|(x, &b)| *x += f64::from(b));
            let log_sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            row.iter_mut().for_each(|x| *x -= log_sum);
        }
        let target_of = |row: usize| row * vocab_size + targets[row] as usize;
        let loss64 = -(0..rows).map(|row| log_probs64[target_of(row)]).sum::<f64>() / rows as f64;
        // As many times the number of rows: gradients of the size of 1.
        let grad = 0.7 * rows as f32;
        let mut dlogits64: Vec<f64> = log_probs64.iter().map(|x| x.exp() * 0.7).collect();
        (0..rows).for_each(|row| dlogits64[target_of(row)] -= 0.7);

        let results = [false, true].map(|fused| {
            let (value, log_probs) = forward(&loss, fused, &bias);
            assert!(rows == 0 && value.is_nan() || (value - loss64).abs() <= 1e-6 * loss64.max(1.0), "{what}: {value}");
            assert_near(&format!("{what} log_probs"), &log_probs, &log_probs64, 1e-5);
            let grads = backward(&loss, fused, &log_probs, grad);
            let [dlogits, dh, dweight, dbias] = &grads;
            assert_near(&format!("{what} dlogits"), dlogits, &dlogits64, 1e-5);
            assert_near(&format!("{what} dbias"), dbias, &sums_of_columns(&dlogits64, vocab_size), 1e-5);
            // From the rounded gradient of the logits itself: one that lies on the edge may be rounded to either side,
            // which is no error. So bfloat16 needs no other tolerance.
            let dlogits = rounded(dlogits, operands);
            assert_near(&format!("{what} dh"), dh, &matmul(&dlogits, &w64, [rows, vocab_size, d]), 1e-5);
            let want = matmul(&transposed(&dlogits, rows), &h64, [vocab_size, rows, d]);
            assert_near(&format!("{what} dweight"), dweight, &want, 1e-5);
            (value.to_bits(), log_probs, grads)
        });
        // Few rows are summed in another order where they are not fused, which they never are.
        assert!(rows <= FEW || results[0] == results[1], "{what}: results depend on the division of work");
    }

    #[test]
    fn forward_and_gradients_agree_with_double_precision() {
        for (rows, d, vocab_size) in [
            (1, 1, 1),
            (1, 5, 5),
            (3, 16, 16),
            (17, 17, 33),
            (3, 33, 17),
            (130, 70, 256),
            (130, 256, 70),
            (0, 3, 5),
            (BLOCK * 4 * team::threads() + 1, 5, 7),
        ] {
            for operands in [Operands::F32, Operands::Bf16] {
                check(rows, d, vocab_size, operands);
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (rows, d, vocab_size) = if skip(30_000) { (101, 1, 3) } else { (301, 40, 100) };
        let [h, weight, bias] = [random(rows * d, 1), random(vocab_size * d, 2), random(vocab_size, 3)];
        let targets = targets(rows, vocab_size);
        let weight = Mat::row_major(&weight, vocab_size, d);
        let loss = Loss { h: &h, weight, targets: &targets, operands: Operands::F32 };
        let all = || {
            let (value, log_probs) = forward(&loss, true, &bias);
            (value.to_bits(), backward(&loss, true, &log_probs, 1.0), log_probs)
        };
        assert_eq!(all(), alone(all));
    }

    #[test]
    fn far_and_missing_logits() {
        // A weight of zeros: the bias alone makes the logits.
        let run = |bias: &[f32], target: i32| {
            let (weight, n) = (vec![0.0; bias.len()], bias.len());
            let weight = Mat::row_major(&weight, n, 1);
            let loss = DecoderLoss { h: &[1.0], weight, targets: &[target], operands: Operands::F32 };
            let mut log_probs = vec![0.0; n];
            (loss.forward(bias, &mut log_probs), log_probs)
        };
        let (far, _) = run(&[-2000.0; 9], 8);
        assert!((far - 9f64.ln()).abs() < 1e-6, "{far}");
        let mut bias = [0.0; 17];
        bias[16] = 1000.0;
        assert_eq!(run(&bias, 16).0, 0.0);
        assert_eq!(run(&bias, 0).0, 1000.0);
        for place in [0, 3, 16] {
            bias[place] = f32::NAN;
            let (loss, log_probs) = run(&bias, 1);
            assert!(loss.is_nan() && log_probs.iter().all(|x| x.is_nan()), "{place}");
            bias[place] = 0.0;
        }
    }

    #[test]
    fn only_the_wanted_gradients_are_written() {
        let (rows, d, vocab_size) = (5, 4, 6);
        let [h, weight] = [random(rows * d, 1), random(vocab_size * d, 2)];
        let targets = targets(rows, vocab_size);
        let weight = Mat::row_major(&weight, vocab_size, d);
        let loss = Loss { h: &h, weight, targets: &targets, operands: Operands::F32 };
        let (_, log_probs) = forward(&loss, false, &vec![0.0; vocab_size]);
        let [want_logits, _, _, want_bias] = backward(&loss, false, &log_probs, 1.0);
        let (mut logits, mut bias) = (vec![f32::NAN; rows * vocab_size], vec![f32::NAN; vocab_size]);
        let grads = DecoderLossGrads { logits: &mut logits, h: None, weight: None, bias: Some(&mut bias) };
        loss.backward(&log_probs, 1.0, grads);
        assert_eq!((logits, bias), (want_logits, want_bias));
    }

    fn with_target(target: i64) {
        let weight = Mat::row_major(&[0.0; 3], 3, 1);
        let loss = Loss { h: &[0.0; 2], weight, targets: &[0, target], operands: Operands::F32 };
        loss.forward(&[0.0; 3], &mut [0.0; 6]);
    }

    #[test]
    #[should_panic(expected = "target 3 of row 1 is not below the vocabulary's size 3")]
    fn a_target_past_the_vocabulary() {
        with_target(3);
    }

    #[test]
    #[should_panic(expected = "target -1 of row 1")]
    fn a_negative_target() {
        with_target(-1);
    }
}
