//! The step.

use super::kernels::{MEMORY_BLOCK, Partial, add_gelu, attend, lstm_units, merge, norm, statistics};
use super::packed::{GROUP, Input, PackedRows, SMALL};
use super::streams::{GATES, OWN, Ring, SCALES, capacity, own_stride, whole_stride};
use super::{Attention, Block, DecodeModel, Norm, Streams, UNITS, WeightFormat, whole};
use crate::buffer::Shared;
use crate::team::{self, Member};

/// What the members of a step share. Where they write and where they read is set apart by the barriers.
#[derive(Clone, Copy)]
struct Places<'a> {
    n: usize,
    d: usize,
    mem_len: usize,
    format: WeightFormat,
    /// The streams that take part.
    active: &'a [usize],
    rings: &'a [Ring],
    h: Shared<f32>,
    c: Shared<f32>,
    memory: Shared<f32>,
    input: Shared<f32>,
    lstm: Shared<f32>,
    query: Shared<f32>,
    attended: Shared<f32>,
    partials: Shared<f32>,
    own: Shared<f32>,
    whole: Shared<i16>,
    scales: Shared<f32>,
    /// What n-grams add before the decoder, `[n, d]`; `None` where they add nothing.
    added: Option<&'a [f32]>,
    logits: Shared<f32>,
}

/// Values that no one writes to.
///
/// # Safety
/// They are in bounds, and not written to while the slice lives.
unsafe fn read<'a>(from: Shared<f32>, i: usize, len: usize) -> &'a [f32] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts(from.at(i), len) }
}

impl DecodeModel {
    /// Feeds each stream its next token, or none, and returns the logits of the token after it, `[n, vocab_size]`. A
    /// stream without a token stays as it is, its logits too, and costs nothing. Nothing is allocated.
    ///
    /// # Panics
    /// If the streams are another model's, there are not as many tokens as streams, or a token is not in the vocabulary.
    pub fn step<'a>(&self, streams: &'a mut Streams, tokens: &[Option<usize>]) -> &'a [f32] {
        let (n, d, vocab_size) = (streams.n, self.d, self.vocab_size());
        assert!(streams.fit(self), "these streams are not of this model");
        assert_eq!(tokens.len(), n, "{} tokens for {n} streams", tokens.len());
        streams.active.clear();
        for (stream, input) in streams.room.input.chunks_exact_mut(d).enumerate() {
            let Some(token) = tokens[stream] else { continue };
            assert!(token < vocab_size, "token {token} of a vocabulary of {vocab_size}");
            input.copy_from_slice(&self.embedding[token * d..][..d]);
            streams.active.push(stream);
        }
        if let Some(ngrams) = &self.ngrams {
            streams.add_ngrams(ngrams, self.format, tokens);
        }
        if streams.active.is_empty() {
            return &streams.room.logits;
        }
        let Streams { h, c, memory, rings, room, active, .. } = &mut *streams;
        let places = Places {
            n,
            d,
            mem_len: self.mem_len,
            format: self.format,
            active,
            rings,
            h: Shared::new(h),
            c: Shared::new(c),
            memory: Shared::new(memory),
            input: Shared::new(&mut room.input),
            lstm: Shared::new(&mut room.lstm),
            query: Shared::new(&mut room.query),
            attended: Shared::new(&mut room.attended),
            partials: Shared::new(&mut room.partials),
            own: Shared::new(&mut room.own),
            whole: Shared::new(&mut room.whole),
            scales: Shared::new(&mut room.scales),
            added: (!room.added.is_empty()).then_some(&room.added),
            logits: Shared::new(&mut room.logits),
        };
        let members = if self.weight_bytes() < SMALL { 1 } else { usize::MAX };
        team::run(members, |member| {
            for (index, block) in self.blocks.iter().enumerate() {
                places.lstm(block, index, member);
                member.wait();
                // Nothing reads it before the next step.
                places.keep_h(index, member);
                let hidden = match &block.attention {
                    None => places.lstm,
                    Some(attention) => {
                        places.query(attention, member);
                        member.wait();
                        places.attend(attention, member);
                        member.wait();
                        places.merge(attention, member);
                        member.wait();
                        places.attended
                    }
                };
                places.boom(block, hidden, member);
                member.wait();
            }
            places.decode(self, member);
        });
        for rings in rings.chunks_exact_mut(n) {
            for &stream in &*active {
                let ring = &mut rings[stream];
                *ring = Ring { len: self.mem_len.min(ring.len + 1), next: (ring.next + 1) % capacity(self.mem_len) };
            }
        }
        &streams.room.logits
    }
}

impl Places<'_> {
    /// Two neighbouring vectors of those that a member has to itself for a stream, from `which` on.
    #[allow(clippy::mut_from_ref, reason = "the member's own")]
    fn own<'a>(&self, member: &'a Member, stream: usize, which: usize, len: usize) -> &'a mut [f32] {
        let stride = own_stride(self.d);
        debug_assert!(which * stride + len <= OWN * stride);
        // SAFETY: no other member uses them, and this one holds each of them once at a time.
        unsafe { self.own.slice(((member.index * self.n + stream) * OWN + which) * stride, len) }
    }

    /// The columns that are a member's: whole cache lines.
    fn columns(&self, member: &Member) -> std::ops::Range<usize> {
        let lines = member.share(self.d.div_ceil(16));
        (lines.start * 16).min(self.d)..(lines.end * 16).min(self.d)
    }

    /// What a matrix is multiplied with: one of a member's own vectors, as whole numbers where the format wants them.
    /// [`round`](Self::round) came before.
    fn input<'a>(&self, member: &'a Member, stream: usize, which: usize, matrix: &PackedRows) -> Input<'a> {
        let (parts, place) = (matrix.parts(), member.index * self.n + stream);
        let floats = self.own(member, stream, which, matrix.cols());
        if !self.format.is_whole() {
            return Input::Floats(floats);
        }
        // SAFETY: no other member uses them, and this one writes to them no more while it multiplies.
        let (values, scales) = unsafe {
            let stride = whole_stride(self.d);
            (self.whole.slice(place * stride, stride), self.scales.slice(place * SCALES, parts))
        };
        Input::of(self.format, floats, values, scales)
    }

    /// Makes whole numbers of one of a member's own vectors for each stream, where the format wants them.
    fn round(&self, member: &Member, which: usize, matrix: &PackedRows) {
        if !self.format.is_whole() {
            return;
        }
        let stride = whole_stride(self.d);
        for &stream in self.active {
            let place = member.index * self.n + stream;
            // SAFETY: no other member uses them.
            let (values, scales) = unsafe {
                (self.whole.slice(place * stride, stride), self.scales.slice(place * SCALES, matrix.parts()))
            };
            whole::round(self.own(member, stream, which, matrix.cols()), values, scales);
        }
    }

    /// `y`, the norm of `x`.
    fn norm(&self, x: &[f32], by: &Norm, y: &mut [f32]) {
        assert!(x.len() == by.weight.len() && x.len() == by.bias.len() && x.len() == y.len());
        // SAFETY: the lengths agree.
        unsafe { norm(self.format, x, statistics(self.format, x), &by.weight, &by.bias, y) }
    }

    /// Some units each: `h, c = LSTM(LN_start(x), h, c)`, the new `h` beside the old one.
    fn lstm(&self, block: &Block, index: usize, member: &Member) {
        let &Self { n, d, .. } = self;
        let state = |stream: usize| (index * n + stream) * d;
        for &stream in self.active {
            let (x, h) = self.own(member, stream, 0, 2 * d).split_at_mut(d);
            // SAFETY: the input was written before the last barrier, `h` in an earlier step.
            let (input, old) = unsafe { (read(self.input, stream * d, d), read(self.h, state(stream), d)) };
            self.norm(input, &block.norm_start, x);
            h.copy_from_slice(old);
        }
        self.round(member, 0, &block.lstm);
        let groups = member.share(block.lstm.groups());
        let gate = |stream: usize, gate: usize| self.own(member, stream, GATES + gate, own_stride(d));
        for group in groups.clone() {
            let unit = group * UNITS;
            let input = |k: usize| self.input(member, self.active[k], 0, &block.lstm);
            block.lstm.products(group, self.active.len(), input, |k, gates| {
                for (which, gates) in gates.chunks_exact(UNITS).enumerate() {
                    gate(self.active[k], which)[unit..unit + UNITS].copy_from_slice(gates);
                }
            });
        }
        let units = groups.start * UNITS..d.min(groups.end * UNITS);
        if units.is_empty() {
            return;
        }
        for &stream in self.active {
            let [i, f, g, o] = [0, 1, 2, 3].map(|which| &gate(stream, which)[units.clone()]);
            // SAFETY: these units are this member's.
            unsafe {
                let c = self.c.slice(state(stream) + units.start, units.len());
                lstm_units(self.format, [i, f, g, o], c, self.lstm.slice(stream * d + units.start, units.len()));
            }
        }
    }

    /// Some columns each: the LSTM's output becomes its state.
    fn keep_h(&self, index: usize, member: &Member) {
        let columns = self.columns(member);
        for &stream in self.active {
            let at = stream * self.d + columns.start;
            // SAFETY: these columns of `h` are this member's; the output was written before the last barrier.
            unsafe {
                let h = self.h.slice(index * self.n * self.d + at, columns.len());
                h.copy_from_slice(read(self.lstm, at, columns.len()));
            }
        }
    }

    /// Where a stream's memory begins, and its ring.
    fn ring(&self, attention: &Attention, stream: usize) -> (usize, Ring) {
        let index = attention.index * self.n + stream;
        (index * capacity(self.mem_len) * self.d, self.rings[index])
    }

    /// Rows of memory that the token sees, its own among them.
    fn seen(&self, ring: Ring) -> usize {
        capacity(self.mem_len).min(ring.len + 1)
    }

    /// Some columns of the memory's new row and some rows of the query's product each, and `LN_mid`.
    fn query(&self, attention: &Attention, member: &Member) {
        let d = self.d;
        let columns = self.columns(member);
        for &stream in self.active {
            let (memory, ring) = self.ring(attention, stream);
            let (mid, mem) = (&attention.norm_mid, &attention.norm_mem);
            // SAFETY: the LSTM's output was written before the last barrier. These columns of the row are this member's;
            // no one reads the row before the next barrier. Norms are `d` long.
            unsafe {
                let y = read(self.lstm, stream * d, d);
                let of = statistics(self.format, y);
                norm(self.format, y, of, &mid.weight, &mid.bias, self.own(member, stream, 2, d));
                let row = self.memory.slice(memory + ring.next * d + columns.start, columns.len());
                let columns = columns.clone();
                norm(self.format, &y[columns.clone()], of, &mem.weight[columns.clone()], &mem.bias[columns], row);
            }
        }
        self.rows(&attention.query, 2, self.query, member);
    }

    /// Some rows of `W x + b` each, of a vector that each member has to itself.
    fn rows(&self, matrix: &PackedRows, which: usize, to: Shared<f32>, member: &Member) {
        self.round(member, which, matrix);
        for group in member.share(matrix.groups()) {
            let rows = GROUP.min(matrix.rows() - group * GROUP);
            let input = |k: usize| self.input(member, self.active[k], which, matrix);
            matrix.products(group, self.active.len(), input, |k, y| {
                // SAFETY: these rows are this member's.
                let to = unsafe { to.slice(self.active[k] * matrix.rows() + group * GROUP, rows) };
                to.copy_from_slice(&y[..rows]);
            });
        }
    }

    /// Blocks of memory rows of a stream, and where the first one's partial result lies.
    fn blocks(&self, ring: Ring) -> usize {
        self.seen(ring).div_ceil(MEMORY_BLOCK)
    }

    fn partials(&self, stream: usize, of: Partial) -> usize {
        stream * capacity(self.mem_len).div_ceil(MEMORY_BLOCK) * of.len()
    }

    /// Attention to some blocks of memory rows each.
    fn attend(&self, attention: &Attention, member: &Member) {
        let d = self.d;
        let of = Partial { d, n_heads: attention.n_heads };
        for &stream in self.active {
            // SAFETY: the product was written before the last barrier.
            let query = unsafe { read(self.query, stream * d, d) };
            self.norm(query, &attention.query_norm, self.own(member, stream, 3, d));
        }
        let total = self.active.iter().map(|&stream| self.blocks(self.ring(attention, stream).1)).sum();
        let share = member.share(total);
        let mut first = 0;
        for &stream in self.active {
            let (memory, ring) = self.ring(attention, stream);
            let blocks = self.blocks(ring);
            for block in share.start.max(first)..share.end.min(first + blocks) {
                let block = block - first;
                let row = block * MEMORY_BLOCK;
                let rows = MEMORY_BLOCK.min(self.seen(ring) - row);
                // SAFETY: the rows are of earlier steps or were written before the last barrier; the partial result is this
                // member's.
                unsafe {
                    let rows = read(self.memory, memory + row * d, rows * d);
                    let partial = self.partials.slice(self.partials(stream, of) + block * of.len(), of.len());
                    attend(self.format, rows, self.own(member, stream, 3, d), of, partial);
                }
            }
            first += blocks;
        }
    }

    /// Some columns each of attention's output and its residual.
    fn merge(&self, attention: &Attention, member: &Member) {
        let of = Partial { d: self.d, n_heads: attention.n_heads };
        let columns = self.columns(member);
        for &stream in self.active {
            let blocks = self.blocks(self.ring(attention, stream).1);
            let residual = self.own(member, stream, 2, self.d);
            // SAFETY: the partial results were written before the last barrier; these columns are this member's.
            unsafe {
                let partials = read(self.partials, self.partials(stream, of), blocks * of.len());
                let y = self.attended.slice(stream * self.d + columns.start, columns.len());
                merge(self.format, partials, of, columns.start, residual, &attention.value_gate, y);
            }
        }
    }

    /// Some outputs each: `LN_ff(h) + Σ chunks of GELU(W LN_xff(h) + b)`.
    fn boom(&self, block: &Block, hidden: Shared<f32>, member: &Member) {
        let d = self.d;
        for &stream in self.active {
            let (xff, ff) = (&block.norm_xff, &block.norm_ff);
            // SAFETY: the hidden vector was written before the last barrier; norms are `d` long.
            unsafe {
                let y = read(hidden, stream * d, d);
                let of = statistics(self.format, y);
                norm(self.format, y, of, &xff.weight, &xff.bias, self.own(member, stream, 0, d));
                norm(self.format, y, of, &ff.weight, &ff.bias, self.own(member, stream, 1, d));
            }
        }
        self.round(member, 0, &block.boom);
        for panel in member.share(d.div_ceil(GROUP)) {
            let start = panel * GROUP;
            for chunk in 0..block.chunks {
                let input = |k: usize| self.input(member, self.active[k], 0, &block.boom);
                block.boom.products(panel * block.chunks + chunk, self.active.len(), input, |k, z| {
                    // What is past the end of the last panel is added to nothing that is used.
                    let sums = &mut self.own(member, self.active[k], 1, own_stride(d))[start..start + GROUP];
                    // SAFETY: both are a group.
                    unsafe { add_gelu(self.format, z, sums) };
                });
            }
            let n = GROUP.min(d - start);
            for &stream in self.active {
                // SAFETY: these outputs are this member's; all have read the block's input before the last barrier.
                let to = unsafe { self.input.slice(stream * d + start, n) };
                to.copy_from_slice(&self.own(member, stream, 1, d)[start..start + n]);
            }
        }
    }

    /// Some logits each.
    fn decode(&self, model: &DecodeModel, member: &Member) {
        for &stream in self.active {
            let y = self.own(member, stream, 0, self.d);
            // SAFETY: the last block's output was written before the last barrier.
            y.copy_from_slice(unsafe { read(self.input, stream * self.d, self.d) });
            if let Some(added) = self.added {
                y.iter_mut().zip(&added[stream * self.d..]).for_each(|(y, added)| *y += added);
            }
        }
        self.rows(&model.decoder, 0, self.logits, member);
    }
}
