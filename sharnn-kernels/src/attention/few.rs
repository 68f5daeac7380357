//! Attention of a few queries, which read keys and values once each as they lie: to pack them would take longer. Members take
//! lanes and heads in turn.

use std::sync::atomic::AtomicUsize;

use super::backward::{Gradients, d_softmax};
use super::{Attention, Place, RowMask, Run, Sizes, VALUES, multiply, padded, take};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{FEW, Mat, Operands, add_few, round_bf16, rounded};
use crate::rows::{Rows, RowsMut, SharedRows};

/// What one member keeps for itself.
struct Room {
    /// Rows of scores, then of weights.
    scores: Buffer,
    /// Gradients of weights, then the weights after their dropout.
    d_weights: Buffer,
    /// One row of the weights' mask.
    mask: Buffer,
    /// Masked values of a few keys.
    values: Buffer,
    /// Rounded queries and cotangents.
    left: [Buffer; 2],
    stride: usize,
}

impl Room {
    fn new(sizes: Sizes) -> Self {
        let Sizes { queries, keys, d_head, .. } = sizes;
        let stride = padded(keys);
        let [scores, d_weights, mask] = [queries, queries, 1].map(|rows| Buffer::zeros(rows * stride));
        let left = [(); 2].map(|()| Buffer::room(queries * d_head));
        Self { scores, d_weights, mask, values: Buffer::room(VALUES * d_head), left, stride }
    }
}

/// Rounds values in place where operands are rounded.
fn round(x: &mut [f32], operands: Operands) {
    if operands == Operands::Bf16 {
        x.iter_mut().for_each(|x| *x = round_bf16(*x));
    }
}

impl Attention<'_> {
    pub(super) fn has_few_queries(&self) -> bool {
        self.sizes().queries <= FEW
    }

    /// Runs `work` for each lane and head.
    fn for_each_place(&self, run: Run, work: impl Fn(Place, &mut Room) + Sync) {
        let sizes = self.sizes();
        let next = AtomicUsize::new(0);
        run(sizes.members().min(sizes.lanes * sizes.heads), &|_| {
            let mut room = Room::new(sizes);
            while let Some(task) = take(&next, sizes.lanes * sizes.heads) {
                work(Place { lane: task / sizes.heads, head: task % sizes.heads }, &mut room);
            }
        });
    }

    /// Calls `work` with all values, as many rows at once as it likes, and the key of the first.
    fn for_values(&self, place: Place, room: &mut [f32], mut work: impl FnMut(usize, Mat)) {
        let keys = 0..self.sizes().keys;
        match self.value_dropout {
            Some(mask) => self.for_masked_values(mask, place, keys, room, work),
            None => {
                let [memory, current] = self.keys(place, keys);
                work(0, memory);
                work(memory.rows(), current);
            }
        }
    }

    pub(super) fn forward_few(&self, run: Run, out: SharedRows, log_sum_exp: Option<Shared<f32>>) {
        let Sizes { queries, d_head, .. } = self.sizes();
        self.for_each_place(run, |place, room| {
            let Place { lane, head } = place;
            let Room { scores, values, left: [query, _], stride, .. } = room;
            let cols = head * d_head..(head + 1) * d_head;
            let query = rounded(self.query.mat(lane, 0..queries, cols.clone()), self.operands, query);
            scores.fill(0.0);
            // SAFETY: rows of `scores`, and the place's own rows of the output and sums.
            unsafe {
                self.add_scores(place, query, scores, *stride);
                for i in 0..queries {
                    let scores = scores.as_mut_ptr().add(i * *stride);
                    self.softmax(place, i, queries, scores, log_sum_exp);
                }
                round(scores, self.operands);
                let (c, c_row) = (out.row(lane, 0).add(cols.start), out.row_stride());
                zero(c, c_row, queries, d_head);
                self.for_values(place, values, |key, rows| {
                    let weights = Mat::new(&scores[key..], [queries, rows.rows()], [*stride, 1]);
                    add_few(weights, rows, self.operands, 0..d_head, c, c_row);
                });
            }
        });
    }

    /// Adds the products of all keys with the queries.
    ///
    /// # Safety
    /// There is a row of scores for each query.
    unsafe fn add_scores(&self, place: Place, query: Mat, scores: &mut [f32], stride: usize) {
        let [memory, current] = self.keys(place, 0..self.sizes().keys);
        for (first, keys) in [(0, memory), (memory.rows(), current)] {
            // SAFETY: inside of the rows.
            unsafe {
                let c = scores.as_mut_ptr().add(first);
                add_few(query, keys.t(), self.operands, 0..keys.rows(), c, stride);
            }
        }
    }

    pub(super) fn backward_few(&self, run: Run, log_sum_exp: &[f32], grad: Rows, gradients: &mut Gradients) {
        let sizes = self.sizes();
        let Sizes { queries, memory, keys, heads, d_head, .. } = sizes;
        let (d_query, d_current) = (gradients.query.share(), gradients.current.share());
        let d_memory = gradients.memory.as_mut().map(RowsMut::share);
        self.for_each_place(run, |place, room| {
            let Place { lane, head } = place;
            let Room { scores, d_weights, mask: ones, values, left: [query, cotangent], stride } = room;
            let stride = *stride;
            let cols = head * d_head..(head + 1) * d_head;
            let query = rounded(self.query.mat(lane, 0..queries, cols.clone()), self.operands, query);
            let cotangent = rounded(grad.mat(lane, 0..queries, cols.clone()), self.operands, cotangent);
            scores.fill(0.0);
            d_weights.fill(0.0);
            // SAFETY: rows of `scores` and `d_weights`, and the place's own rows of the gradients.
            unsafe {
                self.add_scores(place, query, scores, stride);
                self.for_values(place, values, |key, rows| {
                    let c = d_weights.as_mut_ptr().add(key);
                    add_few(cotangent, rows.t(), self.operands, 0..rows.rows(), c, stride);
                });
                for i in 0..queries {
                    let row = head * queries + i;
                    let mask = self.weight_dropout.map(|mask| RowMask { mask, lane, row });
                    let (seen, sum) = (sizes.visible(i + 1), log_sum_exp[lane * heads * queries + row]);
                    let at = i * stride;
                    let (scores, d_weights_row) = (scores.as_mut_ptr().add(at), d_weights.as_mut_ptr().add(at));
                    d_softmax(scores, d_weights_row, seen, keys, sum, mask, ones);
                    d_weights[at + seen..at + keys].fill(0.0);
                }
                round(scores, self.operands);
                round(d_weights, self.operands);

                let (c, c_row) = (d_query.row(lane, 0).add(cols.start), d_query.row_stride());
                zero(c, c_row, queries, d_head);
                let of_keys = self.keys(place, 0..keys);
                for (first, rows) in [(0, of_keys[0]), (memory, of_keys[1])] {
                    let left = Mat::new(&scores[first..], [queries, rows.rows()], [stride, 1]);
                    add_few(left, rows, self.operands, 0..d_head, c, c_row);
                }
                for (out, first, n) in [(d_memory, 0, memory), (Some(d_current), memory, queries)] {
                    let Some(out) = out.filter(|_| n > 0) else { continue };
                    let (c, c_row) = (out.row(lane, 0).add(cols.start), out.row_stride());
                    let [d_scores, weights] =
                        [&*scores, &*d_weights].map(|x| Mat::new(&x[first..], [queries, n], [stride, 1]).t());
                    zero(c, c_row, n, d_head);
                    add_few(weights, cotangent, self.operands, 0..d_head, c, c_row);
                    if let Some(mask) = self.value_dropout {
                        for i in 0..n {
                            let mask = RowMask { mask, lane, row: first + i };
                            multiply(mask, cols.start, c.add(i * c_row), d_head);
                        }
                    }
                    add_few(d_scores, query, self.operands, 0..d_head, c, c_row);
                }
            }
        });
    }
}

/// Zeros in the first `n` values of some rows.
///
/// # Safety
/// There are as many, and no one else uses them.
unsafe fn zero(c: *mut f32, c_row: usize, rows: usize, n: usize) {
    for i in 0..rows {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(c.add(i * c_row), n) }.fill(0.0);
    }
}
