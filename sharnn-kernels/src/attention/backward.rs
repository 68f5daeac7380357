//! The backward pass.
//!
//! With the cotangent `g` and values `V = K ⊙ M_v`: `dP = (g Vᵀ) ⊙ M_w`, `dS = P ⊙ (dP - Σ P ⊙ dP)`, `dq = dS K`,
//! `dK = dSᵀ q + ((P ⊙ M_w)ᵀ g) ⊙ M_v`.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Attention, Place, RowMask, Run, Scratch, Sizes, multiply, padded, take, without_traces};
use crate::buffer::{Buffer, Shared};
use crate::gemm::{Left, Packed, Panels, Product, Start, product};
use crate::math;
use crate::rows::{Rows, RowsMut, SharedRows};
use crate::simd::{Vector, kernel};
use crate::team::{self, Member};

/// Where the gradients go.
pub(super) struct Gradients<'a> {
    pub query: RowsMut<'a>,
    pub current: RowsMut<'a>,
    pub memory: Option<RowsMut<'a>>,
}

impl Attention<'_> {
    /// The gradients of queries, current rows and, where it is wanted, of the memory, from that of the output, `grad`, and
    /// from what [`forward`](Self::forward) left.
    ///
    /// # Shapes
    /// - `log_sum_exp`: `[lanes * heads * seq_len]`
    /// - `grad`, `d_query`, `d_current`: `[lanes, seq_len, d]`
    /// - `d_memory`: `[lanes, mem_len, d]`
    ///
    /// # Panics
    /// If shapes do not agree.
    pub fn backward(
        &self,
        log_sum_exp: &[f32],
        grad: Rows,
        d_query: RowsMut,
        d_current: RowsMut,
        d_memory: Option<RowsMut>,
    ) {
        let gradients = Gradients { query: d_query, current: d_current, memory: d_memory };
        self.backward_on(&|wanted, work| team::run(wanted, work), log_sum_exp, grad, gradients);
    }

    pub(super) fn backward_on(&self, run: Run, log_sum_exp: &[f32], grad: Rows, mut gradients: Gradients) {
        let sizes = self.sizes();
        let Sizes { lanes, queries, memory, keys, heads, d_head } = sizes;
        let shape = self.query.shape();
        assert_eq!(log_sum_exp.len(), lanes * heads * queries, "one sum a query and head");
        for (what, found) in [
            ("cotangent", grad.shape()),
            ("d_query", gradients.query.shape()),
            ("d_current", gradients.current.shape()),
        ] {
            assert_eq!(found, shape, "{what} and queries");
        }
        if let Some(d_memory) = &gradients.memory {
            assert_eq!(d_memory.shape(), [lanes, memory, shape[2]], "d_memory and the memory");
        }
        if sizes.is_empty() {
            return;
        }
        if self.has_few_queries() {
            return self.backward_few(run, log_sum_exp, grad, &mut gradients);
        }
        let first_wanted = if gradients.memory.is_some() { 0 } else { memory };
        let stride = padded(keys - first_wanted);
        let pack = |k, n| Packed::room(k, n, self.operands);
        let mut keys_by_column = pack(d_head, keys);
        let mut keys_by_row = pack(keys, d_head);
        let mut values_by_column = self.value_dropout.map(|_| pack(d_head, keys));
        let mut query = pack(queries, d_head);
        let mut cotangent = pack(queries, d_head);
        let mut d_scores = Buffer::room(queries * stride);
        let mut weights = Buffer::room(queries * stride);
        let pass = Backward {
            attention: self,
            sizes,
            log_sum_exp,
            grad,
            keys_by_column: keys_by_column.share(),
            keys_by_row: keys_by_row.share(),
            values_by_column: values_by_column.as_mut().map(Packed::share),
            query: query.share(),
            cotangent: cotangent.share(),
            first_wanted,
            stride,
            d_scores: Shared::new(&mut d_scores),
            weights: Shared::new(&mut weights),
            d_query: gradients.query.share(),
            d_current: gradients.current.share(),
            d_memory: gradients.memory.as_mut().map(RowsMut::share),
            next_queries: AtomicUsize::new(0),
            next_keys: AtomicUsize::new(0),
        };
        run(sizes.members(), &|member: &Member| pass.work(member));
    }
}

struct Backward<'a> {
    attention: &'a Attention<'a>,
    sizes: Sizes,
    log_sum_exp: &'a [f32],
    grad: Rows<'a>,
    /// `Kᵀ`, `[d_head, keys]`
    keys_by_column: Panels,
    /// `K`, `[keys, d_head]`
    keys_by_row: Panels,
    /// `Vᵀ`, `[d_head, keys]`, where it is not `Kᵀ`.
    values_by_column: Option<Panels>,
    /// `[queries, d_head]`
    query: Panels,
    /// `[queries, d_head]`
    cotangent: Panels,
    /// The first key whose gradient is wanted.
    first_wanted: usize,
    /// Distance of rows in the two that follow.
    stride: usize,
    /// `dS` of the wanted keys, `[queries, wanted]`, zeros where a query does not see the key.
    d_scores: Shared<f32>,
    /// `P ⊙ M_w`, as `d_scores`.
    weights: Shared<f32>,
    d_query: SharedRows,
    d_current: SharedRows,
    d_memory: Option<SharedRows>,
    next_queries: AtomicUsize,
    next_keys: AtomicUsize,
}

/// A member's blocks of query rows.
struct Block {
    /// Scores, then their gradients.
    scores: Buffer,
    /// Gradients of weights, then the weights after their dropout.
    d_weights: Buffer,
    /// One row of the weights' mask.
    mask: Buffer,
}

impl Backward<'_> {
    fn work(&self, member: &Member) {
        let sizes = self.sizes;
        let rows = sizes.block_rows(member.count);
        let n_blocks = sizes.queries.div_ceil(rows);
        // The first query of a block of keys decides where the sums over queries begin, so blocks are the same for every
        // number of members.
        let wanted = sizes.keys - self.first_wanted;
        let keys = wanted.div_ceil(16).next_multiple_of(12).min(96);
        let n_memory = (sizes.memory - self.first_wanted).div_ceil(keys);
        let n_key_blocks = n_memory + sizes.queries.div_ceil(keys);

        let mut scratch = Scratch::new(sizes);
        let room = |rows: usize| Buffer::room(rows * scratch.stride);
        let mut block = Block { scores: room(rows), d_weights: room(rows), mask: room(1) };
        for place in sizes.places() {
            if member.index == 0 {
                self.next_queries.store(0, Relaxed);
                self.next_keys.store(0, Relaxed);
            }
            self.pack(member, place, &mut scratch);
            member.wait();
            // The last rows see most: they come first.
            while let Some(task) = take(&self.next_queries, n_blocks) {
                let start = (n_blocks - 1 - task) * rows;
                self.query_block(place, start..sizes.queries.min(start + rows), &mut block, &mut scratch);
            }
            member.wait();
            while let Some(task) = take(&self.next_keys, n_key_blocks) {
                let (first, end) = match task < n_memory {
                    true => (task * keys, sizes.memory),
                    false => (sizes.memory + (task - n_memory) * keys, sizes.keys),
                };
                self.key_block(place, first..end.min(first + keys), &mut scratch);
            }
            member.wait();
        }
    }

    fn pack(&self, member: &Member, place: Place, scratch: &mut Scratch) {
        let Self { attention, sizes, .. } = self;
        let share = sizes.share_of_keys(member);
        // SAFETY: keys and queries of this member's share.
        unsafe {
            attention.pack_columns(place, share.clone(), self.keys_by_column);
            attention.pack_rows(place, share.clone(), self.keys_by_row);
            if let (Some(values), Some(mask)) = (self.values_by_column, attention.value_dropout) {
                let room = &mut scratch.values;
                attention.for_masked_values(mask, place, share, room, |key, rows| values.set(rows.t(), [0, key]));
            }
            let queries = member.share(sizes.queries);
            let cols = place.head * sizes.d_head..(place.head + 1) * sizes.d_head;
            for (panels, rows) in [(self.query, attention.query), (self.cotangent, self.grad)] {
                panels.set(rows.mat(place.lane, queries.clone(), cols.clone()), [queries.start, 0]);
            }
        }
    }

    /// The gradients of some queries, and what the keys' will be computed from.
    fn query_block(&self, place: Place, queries: Range<usize>, block: &mut Block, scratch: &mut Scratch) {
        let Self { attention, sizes, .. } = self;
        let Place { lane, head } = place;
        let (stride, rows, d_head) = (scratch.stride, queries.len(), sizes.d_head);
        let visible = sizes.visible(queries.end);
        let values = self.values_by_column.unwrap_or(self.keys_by_column);
        for (left, right, out) in
            [(attention.query, self.keys_by_column, &mut block.scores), (self.grad, values, &mut block.d_weights)]
        {
            let left = Left::rows(left.from_row(lane, queries.start)[head * d_head..].as_ptr(), left.row_stride());
            let (c, c_row) = (out.as_mut_ptr(), stride);
            // SAFETY: rows and columns of the block and head; `out` has `rows` rows, and the panels are packed.
            unsafe {
                let right = right.product(0..d_head, 0..visible);
                product(&Product { left, rows, c, c_row, ..right }, &mut scratch.left);
            }
        }
        for (i, query) in queries.clone().enumerate() {
            let row = head * sizes.queries + query;
            let mask = attention.weight_dropout.map(|mask| RowMask { mask, lane, row });
            let seen = sizes.visible(query + 1);
            let log_sum_exp = self.log_sum_exp[lane * sizes.heads * sizes.queries + row];
            let wanted = seen - self.first_wanted;
            // SAFETY: rows of this member's block. The wanted keys of a query, of which it sees `wanted`, are its own too.
            unsafe {
                let (scores, d_weights) =
                    (block.scores.as_mut_ptr().add(i * stride), block.d_weights.as_mut_ptr().add(i * stride));
                d_softmax(scores, d_weights, seen, visible, log_sum_exp, mask, &mut block.mask);
                for (from, to) in [(scores, self.d_scores), (d_weights, self.weights)] {
                    let to = to.slice(query * self.stride, sizes.keys - self.first_wanted);
                    to[..wanted].copy_from_slice(std::slice::from_raw_parts(from.add(self.first_wanted), wanted));
                    to[wanted..].fill(0.0);
                }
            }
        }
        // SAFETY: as above; no one else writes these queries' gradients.
        unsafe {
            let c = self.d_query.row(lane, queries.start).add(head * d_head);
            let (left, c_row) = (Left::rows(block.scores.as_ptr(), stride), self.d_query.row_stride());
            let right = self.keys_by_row.product(0..visible, 0..d_head);
            product(&Product { left, rows, c, c_row, ..right }, &mut scratch.left);
        }
    }

    /// The gradients of some keys, all of the memory or all current.
    fn key_block(&self, place: Place, keys: Range<usize>, scratch: &mut Scratch) {
        let Self { attention, sizes, .. } = self;
        let Place { lane, head } = place;
        let (d_head, first_col) = (sizes.d_head, head * sizes.d_head);
        let (out, first) = match self.d_memory {
            Some(d_memory) if keys.start < sizes.memory => (d_memory, keys.start),
            _ => (self.d_current, keys.start - sizes.memory),
        };
        // Queries before it see none of the keys.
        let queries = keys.start.saturating_sub(sizes.memory)..sizes.queries;
        let (rows, c_row) = (keys.len(), out.row_stride());
        // SAFETY: all queries' rows have been written, and no one else writes these keys' gradients.
        unsafe {
            let c = out.row(lane, first).add(first_col);
            let mut add = |left: Shared<f32>, right: Panels, start: Start| {
                let at = left.at(queries.start * self.stride + keys.start - self.first_wanted);
                let left = Left::columns(at, self.stride);
                let right = right.product(queries.clone(), 0..d_head);
                product(&Product { left, rows, c, c_row, start, ..right }, &mut scratch.left);
            };
            add(self.weights, self.cotangent, Start::Zero);
            if let Some(mask) = attention.value_dropout {
                for (i, key) in keys.clone().enumerate() {
                    multiply(RowMask { mask, lane, row: key }, first_col, c.add(i * c_row), d_head);
                }
            }
            add(self.d_scores, self.query, Start::Result);
        }
    }
}

#[inline(always)]
unsafe fn d_softmax_body<V: Vector>(
    scores: *mut f32,
    d_weights: *mut f32,
    visible: usize,
    end: usize,
    log_sum_exp: f32,
    mask: Option<RowMask>,
    ones: &mut [f32],
) {
    let whole = visible.next_multiple_of(V::LANES);
    // SAFETY: there is room for whole vectors.
    unsafe {
        for i in visible..whole {
            *scores.add(i) = f32::NEG_INFINITY;
            *d_weights.add(i) = 0.0;
        }
        let multipliers = mask.map(|mask| {
            ones[..whole].fill(1.0);
            mask.apply::<V>(ones.as_mut_ptr(), visible);
            ones.as_ptr()
        });
        let mut sums = V::splat(0.0);
        for i in (0..whole).step_by(V::LANES) {
            let weight = without_traces(math::exp(V::load(scores.add(i)).sub(V::splat(log_sum_exp))));
            let mut d_weight = V::load(d_weights.add(i));
            if let Some(multipliers) = multipliers {
                d_weight = d_weight.mul(V::load(multipliers.add(i)));
                d_weight.store(d_weights.add(i));
            }
            sums = weight.mul_add(d_weight, sums);
            weight.store(scores.add(i));
        }
        let sum = V::splat(sums.sum());
        for i in (0..whole).step_by(V::LANES) {
            let weight = V::load(scores.add(i));
            weight.mul(V::load(d_weights.add(i)).sub(sum)).store(scores.add(i));
            let dropped = match multipliers {
                Some(multipliers) => weight.mul(V::load(multipliers.add(i))),
                None => weight,
            };
            dropped.store(d_weights.add(i));
        }
        for i in visible..end {
            *scores.add(i) = 0.0;
        }
    }
}

kernel!(
    /// Of one query: `scores` become their gradients, with zeros from `visible` to `end`, and `d_weights` the weights after
    /// their dropout.
    ///
    /// # Safety
    /// `scores`, `d_weights` and `ones` are valid for `visible` and `end` values, rounded up to a multiple of 16.
    pub(super) unsafe fn d_softmax(
        scores: *mut f32,
        d_weights: *mut f32,
        visible: usize,
        end: usize,
        log_sum_exp: f32,
        mask: Option<RowMask>,
        ones: &mut [f32],
    ) => d_softmax_body
);
