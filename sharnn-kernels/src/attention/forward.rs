//! The forward pass.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Attention, Place, RowMask, Run, Scratch, Sizes, take, without_traces};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{Left, Packed, Panels, Product, product};
use crate::math;
use crate::rows::{RowsMut, SharedRows};
use crate::simd::{Vector, kernel};
use crate::team::{self, Member};

impl Attention<'_> {
    /// The attention's output, and for the backward the logarithm of each query's sum of exponentials.
    ///
    /// # Shapes
    /// - `out`: `[lanes, seq_len, d]`
    /// - `log_sum_exp`: `[lanes * heads * seq_len]`
    ///
    /// # Panics
    /// If shapes do not agree.
    pub fn forward(&self, out: RowsMut, log_sum_exp: Option<&mut [f32]>) {
        self.forward_on(&|wanted, work| team::run(wanted, work), out, log_sum_exp);
    }

    /// The weights of one query, in place of its scores, with zeros as far as queries before `end` see keys.
    ///
    /// # Safety
    /// `scores` has room for so many, rounded up to a multiple of 16, and no one else uses the query's sum.
    pub(super) unsafe fn softmax(
        &self,
        Place { lane, head }: Place,
        query: usize,
        end: usize,
        scores: *mut f32,
        log_sum_exp: Option<Shared<f32>>,
    ) {
        let sizes = self.sizes();
        let row = head * sizes.queries + query;
        let mask = self.weight_dropout.map(|mask| RowMask { mask, lane, row });
        // SAFETY: the caller's.
        unsafe {
            let sum = softmax(scores, sizes.visible(query + 1), sizes.visible(end), mask);
            if let Some(log_sum_exp) = log_sum_exp {
                *log_sum_exp.at(lane * sizes.heads * sizes.queries + row) = sum;
            }
        }
    }

    pub(super) fn forward_on(&self, run: Run, mut out: RowsMut, log_sum_exp: Option<&mut [f32]>) {
        let sizes = self.sizes();
        assert_eq!(out.shape(), self.query.shape(), "output and queries");
        if let Some(log_sum_exp) = &log_sum_exp {
            assert_eq!(log_sum_exp.len(), sizes.lanes * sizes.heads * sizes.queries, "one sum a query and head");
        }
        if sizes.is_empty() {
            return;
        }
        if self.has_few_queries() {
            return self.forward_few(run, out.share(), log_sum_exp.map(Shared::new));
        }
        let mut keys = Packed::room(sizes.d_head, sizes.keys, self.operands);
        let mut values = Packed::room(sizes.keys, sizes.d_head, self.operands);
        let pass = Forward {
            attention: self,
            sizes,
            keys: keys.share(),
            values: values.share(),
            out: out.share(),
            log_sum_exp: log_sum_exp.map(Shared::new),
            next: AtomicUsize::new(0),
        };
        run(sizes.members(), &|member: &Member| pass.work(member));
    }
}

struct Forward<'a> {
    attention: &'a Attention<'a>,
    sizes: Sizes,
    /// `[d_head, keys]`
    keys: Panels,
    /// `[keys, d_head]`
    values: Panels,
    out: SharedRows,
    log_sum_exp: Option<Shared<f32>>,
    next: AtomicUsize,
}

impl Forward<'_> {
    fn work(&self, member: &Member) {
        let sizes = self.sizes;
        let block = sizes.block_rows(member.count);
        let n_blocks = sizes.queries.div_ceil(block);
        let mut scratch = Scratch::new(sizes);
        let mut scores = Buffer::room(block * scratch.stride);
        for place in sizes.places() {
            if member.index == 0 {
                self.next.store(0, Relaxed);
            }
            self.pack(member, place, &mut scratch);
            member.wait();
            // The last rows see most: they come first, and the short ones fill up at the end.
            while let Some(task) = take(&self.next, n_blocks) {
                let start = (n_blocks - 1 - task) * block;
                self.block(place, start..sizes.queries.min(start + block), &mut scores, &mut scratch);
            }
            member.wait();
        }
    }

    fn pack(&self, member: &Member, place: Place, scratch: &mut Scratch) {
        let &Self { attention, sizes, keys, values, .. } = self;
        let share = sizes.share_of_keys(member);
        // SAFETY: keys of this member's share.
        unsafe {
            attention.pack_columns(place, share.clone(), keys);
            match attention.value_dropout {
                None => attention.pack_rows(place, share, values),
                Some(mask) => {
                    let room = &mut scratch.values;
                    attention.for_masked_values(mask, place, share, room, |key, rows| values.set(rows, [key, 0]));
                }
            }
        }
    }

    /// The output of some queries.
    fn block(&self, place: Place, queries: Range<usize>, scores: &mut Buffer, scratch: &mut Scratch) {
        let Self { attention, sizes, .. } = self;
        let Place { lane, head } = place;
        let (stride, rows) = (scratch.stride, queries.len());
        let visible = sizes.visible(queries.end);
        let query = &attention.query.from_row(lane, queries.start)[head * sizes.d_head..];
        // SAFETY: rows and columns of the queries' block and head; `scores` has `rows` rows, and the panels are packed.
        // No one else writes these rows of the output, or these sums.
        unsafe {
            let left = Left::rows(query.as_ptr(), attention.query.row_stride());
            let (c, c_row) = (scores.as_mut_ptr(), stride);
            let of_keys = self.keys.product(0..sizes.d_head, 0..visible);
            product(&Product { left, rows, c, c_row, ..of_keys }, &mut scratch.left);
            for (i, query) in queries.clone().enumerate() {
                let scores = scores.as_mut_ptr().add(i * stride);
                attention.softmax(place, query, queries.end, scores, self.log_sum_exp);
            }
            let c = self.out.row(lane, queries.start).add(head * sizes.d_head);
            let (left, c_row) = (Left::rows(scores.as_ptr(), stride), self.out.row_stride());
            let of_values = self.values.product(0..visible, 0..sizes.d_head);
            product(&Product { left, rows, c, c_row, ..of_values }, &mut scratch.left);
        }
    }
}

#[inline(always)]
unsafe fn softmax_body<V: Vector>(x: *mut f32, visible: usize, end: usize, mask: Option<RowMask>) -> f32 {
    let whole = visible.next_multiple_of(V::LANES);
    // SAFETY: there is room for whole vectors.
    unsafe {
        for i in visible..whole {
            *x.add(i) = f32::NEG_INFINITY;
        }
        let mut largest = V::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(V::LANES) {
            largest = largest.max(V::load(x.add(i)));
        }
        let largest = largest.largest();
        // What lies behind the last key adds 10⁻³⁸, and the largest 1.
        let mut sums = V::splat(0.0);
        for i in (0..whole).step_by(V::LANES) {
            let e = math::exp(V::load(x.add(i)).sub(V::splat(largest)));
            sums = sums.add(e);
            without_traces(e).store(x.add(i));
        }
        let sum = sums.sum();
        let scale = V::splat(1.0 / sum);
        for i in (0..whole).step_by(V::LANES) {
            V::load(x.add(i)).mul(scale).store(x.add(i));
        }
        for i in visible..end {
            *x.add(i) = 0.0;
        }
        if let Some(mask) = mask {
            mask.apply::<V>(x, visible);
        }
        largest + sum.ln()
    }
}

kernel!(
    /// Softmax of the first `visible` scores, zeros from there to `end`, and the weights' dropout. Returns the logarithm of
    /// the sum of exponentials.
    ///
    /// # Safety
    /// `x` is valid for `visible` and `end` values, rounded up to a multiple of 16, and `visible` is not 0.
    unsafe fn softmax(x: *mut f32, visible: usize, end: usize, mask: Option<RowMask>) -> f32 => softmax_body
);
