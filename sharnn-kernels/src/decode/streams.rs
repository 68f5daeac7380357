//! What streams carry from one token to the next, and the room that a step works in.

use super::kernels::{MEMORY_BLOCK, Partial};
use super::ngrams::NGrams;
use super::packed::{GROUP, Input};
use super::whole::{self, SLACK, room};
use super::{Attention, DecodeModel, WeightFormat};
use crate::team;

/// A few streams of one model, side by side. Everything that a step needs is allocated here.
#[derive(Clone)]
pub struct Streams {
    pub(super) n: usize,
    pub(super) d: usize,
    pub(super) mem_len: usize,
    /// `[blocks, n, d]`
    pub(super) h: Vec<f32>,
    /// `[blocks, n, d]`
    pub(super) c: Vec<f32>,
    /// Rows of memory, `[attending blocks, n, capacity, d]`: rings.
    pub(super) memory: Vec<f32>,
    /// `[attending blocks, n]`
    pub(super) rings: Vec<Ring>,
    /// The newest tokens, `[n, context]`, oldest first; -1 before the start.
    recent: Vec<i32>,
    pub(super) room: Room,
    /// The streams that take part in a step; room for all of them.
    pub(super) active: Vec<usize>,
    /// For each block, its number among those that attend.
    attending: Vec<Option<usize>>,
}

/// Where a ring of rows stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ring {
    /// Rows that are kept, from place 0 on.
    pub(super) len: usize,
    /// The place of the next row: that of the oldest one where the ring is full.
    pub(super) next: usize,
}

/// Room for one step.
#[derive(Clone)]
pub(super) struct Room {
    /// A block's input, `[n, d]`.
    pub(super) input: Vec<f32>,
    /// The LSTM's output, `[n, d]`.
    pub(super) lstm: Vec<f32>,
    /// The query before its norm, `[n, d]`.
    pub(super) query: Vec<f32>,
    /// Attention's output and its residual, `[n, d]`.
    pub(super) attended: Vec<f32>,
    /// `[n, blocks of memory rows, partial]`
    pub(super) partials: Vec<f32>,
    /// What each member has to itself: `[members, n, OWN * own_stride]`.
    pub(super) own: Vec<f32>,
    /// A vector of those as whole numbers: `[members, n, whole_stride]`; empty where the format has none.
    pub(super) whole: Vec<i16>,
    /// What one of them is worth, of each part: `[members, n, SCALES]`.
    pub(super) scales: Vec<f32>,
    /// The rows of n-grams of a stream's token.
    rows: Vec<f32>,
    /// The same as whole numbers.
    whole_rows: Vec<i16>,
    /// What they add before the decoder, `[n, d]`; empty where nothing is added.
    pub(super) added: Vec<f32>,
    /// `[n, vocab_size]`
    pub(super) logits: Vec<f32>,
}

/// Vectors that a member has to itself for each stream: inputs and residuals, and then the [four gates](GATES) of an LSTM.
pub(super) const OWN: usize = GATES + 4;

/// The first of the gates.
pub(super) const GATES: usize = 4;

/// The distance of a member's vectors: whole groups, and so whole cache lines.
pub(super) fn own_stride(d: usize) -> usize {
    d.next_multiple_of(GROUP)
}

/// The distance of a member's whole numbers: the two parts of an LSTM's input.
pub(super) fn whole_stride(d: usize) -> usize {
    (2 * room(d) + SLACK).next_multiple_of(2 * GROUP)
}

/// The distance of their scales: a cache line.
pub(super) const SCALES: usize = 16;

/// Rows that a memory has room for. The token's own is one of them even where none is kept.
pub(super) fn capacity(mem_len: usize) -> usize {
    mem_len.max(1)
}

/// A number of values that is allocated. A step writes without looking, so that it must not have wrapped.
fn product(sizes: &[usize]) -> usize {
    let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    product.unwrap_or_else(|| panic!("there is no room for {sizes:?} values"))
}

impl Streams {
    /// `n` empty streams of a model.
    ///
    /// # Panics
    /// If `n` is 0, or if what they carry is larger than any memory.
    pub fn new(model: &DecodeModel, n: usize) -> Self {
        assert!(n > 0, "there must be a stream");
        let (d, mem_len, n_blocks) = (model.d, model.mem_len, model.blocks.len());
        let index = |attention: &Option<Attention>| attention.as_ref().map(|attention| attention.index);
        let attending: Vec<_> = model.blocks.iter().map(|block| index(&block.attention)).collect();
        let rings = model.attending() * n;
        let blocks = capacity(mem_len).div_ceil(MEMORY_BLOCK);
        let largest =
            model.blocks.iter().filter_map(|block| block.attention.as_ref()).map(|attention| attention.n_heads);
        let adds = model.ngrams.as_ref().is_some_and(|ngrams| ngrams.output.is_some());
        let (whole, rows) = (model.format.is_whole(), model.ngrams.as_ref().map_or(0, NGrams::len));
        let members = if whole { team::threads() } else { 0 };
        let partial = largest.max().map_or(0, |n_heads| Partial { d, n_heads }.len());
        Self {
            n,
            d,
            mem_len,
            h: vec![0.0; product(&[n_blocks, n, d])],
            c: vec![0.0; product(&[n_blocks, n, d])],
            memory: vec![0.0; product(&[rings, capacity(mem_len), d])],
            rings: vec![Ring::default(); rings],
            recent: vec![-1; product(&[n, model.context()])],
            room: Room {
                input: vec![0.0; n * d],
                lstm: vec![0.0; n * d],
                query: vec![0.0; n * d],
                attended: vec![0.0; n * d],
                partials: vec![0.0; product(&[n, blocks, partial])],
                own: vec![0.0; product(&[team::threads(), n, OWN, own_stride(d)])],
                whole: vec![0; product(&[members, n, whole_stride(d)])],
                scales: vec![0.0; product(&[members, n, SCALES])],
                rows: vec![0.0; rows],
                whole_rows: vec![0; if whole { room(rows) + SLACK } else { 0 }],
                added: vec![0.0; if adds { n * d } else { 0 }],
                logits: vec![0.0; product(&[n, model.vocab_size()])],
            },
            active: Vec::with_capacity(n),
            attending,
        }
    }

    /// Number of streams.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Always false: there is a stream.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The logits after the last step, `[n, vocab_size]`; zeros before the first.
    pub fn logits(&self) -> &[f32] {
        &self.room.logits
    }

    /// A stream's logits, `[vocab_size]`, to write to: those of a stream that is copied.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn logits_mut(&mut self, stream: usize) -> &mut [f32] {
        assert!(stream < self.n, "stream {stream} of {}", self.n);
        let vocab_size = self.room.logits.len() / self.n;
        &mut self.room.logits[stream * vocab_size..][..vocab_size]
    }

    /// Whether the streams have as many blocks as the model, and all is of its size.
    pub(super) fn fit(&self, model: &DecodeModel) -> bool {
        let same = |(index, block): (&Option<usize>, &super::Block)| {
            let of = block.attention.as_ref();
            let heads = of.map_or(0, |attention| Partial { d: self.d, n_heads: attention.n_heads }.len());
            let blocks = self.n * capacity(self.mem_len).div_ceil(MEMORY_BLOCK);
            *index == of.map(|attention| attention.index) && blocks.saturating_mul(heads) <= self.room.partials.len()
        };
        (self.d, self.mem_len) == (model.d, model.mem_len)
            && self.room.logits.len() == self.n * model.vocab_size()
            && self.recent.len() == self.n * model.context()
            && self.room.rows.len() == model.ngrams.as_ref().map_or(0, NGrams::len)
            && self.room.whole.is_empty() != model.format.is_whole()
            && self.room.added.is_empty() != model.ngrams.as_ref().is_some_and(|ngrams| ngrams.output.is_some())
            && self.attending.len() == model.blocks.len()
            && self.attending.iter().zip(&model.blocks).all(same)
    }

    /// Starts a stream anew.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn reset(&mut self, stream: usize) {
        for block in 0..self.attending.len() {
            let (h, c) = self.lstm_mut(block, stream);
            h.fill(0.0);
            c.fill(0.0);
            self.set_memory(block, stream, &[], 0);
        }
        self.set_recent(stream, &[]);
    }

    /// The newest tokens of a stream, oldest first: as many as the model's memory of n-grams looks back, or as there were.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn recent(&self, stream: usize) -> impl Iterator<Item = usize> + '_ {
        assert!(stream < self.n, "stream {stream} of {}", self.n);
        let context = self.recent.len() / self.n;
        self.recent[stream * context..][..context].iter().filter_map(|&token| usize::try_from(token).ok())
    }

    /// Replaces them, by as many or fewer.
    ///
    /// # Panics
    /// If there is no such stream, there are more than it looks back, or one is no token.
    pub fn set_recent(&mut self, stream: usize, tokens: &[usize]) {
        assert!(stream < self.n, "stream {stream} of {}", self.n);
        let (context, vocab_size) = (self.recent.len() / self.n, self.room.logits.len() / self.n);
        assert!(tokens.len() <= context, "{} newest tokens, {context} are kept", tokens.len());
        let (before, newest) = self.recent[stream * context..][..context].split_at_mut(context - tokens.len());
        before.fill(-1);
        for (to, &token) in newest.iter_mut().zip(tokens) {
            assert!(token < vocab_size, "token {token} of a vocabulary of {vocab_size}");
            *to = token as i32;
        }
    }

    /// Adds to the inputs of a step what n-grams add, computes what they add before the decoder, and notes the tokens.
    pub(super) fn add_ngrams(&mut self, ngrams: &NGrams, format: WeightFormat, tokens: &[Option<usize>]) {
        let (d, context) = (self.d, ngrams.context());
        for &stream in &self.active {
            let token = tokens[stream].map_or(-1, |token| token as i32);
            let recent = &mut self.recent[stream * context..][..context];
            let rows = &mut self.room.rows;
            ngrams.read(|place| recent.get(place).copied().unwrap_or(token), rows);
            recent.rotate_left(1);
            recent[context - 1] = token;
            let place = stream * d..(stream + 1) * d;
            let (whole, mut scale) = (&mut self.room.whole_rows, [0.0]);
            if format.is_whole() {
                whole::round(rows, whole, &mut scale);
            }
            let rows = Input::of(format, rows, whole, &scale);
            if let Some(map) = &ngrams.input {
                let input = &mut self.room.input[place.clone()];
                for (group, to) in input.chunks_mut(GROUP).enumerate() {
                    let add = |_, added: &[f32; GROUP]| to.iter_mut().zip(added).for_each(|(to, added)| *to += added);
                    map.products(group, 1, |_| rows, add);
                }
            }
            if let Some(map) = &ngrams.output {
                for (group, to) in self.room.added[place].chunks_mut(GROUP).enumerate() {
                    map.products(group, 1, |_| rows, |_, added| to.copy_from_slice(&added[..to.len()]));
                }
            }
        }
    }

    fn at(&self, block: usize, stream: usize) -> std::ops::Range<usize> {
        let n_blocks = self.attending.len();
        assert!(stream < self.n, "stream {stream} of {}", self.n);
        assert!(block < n_blocks, "block {block} of {n_blocks}");
        let start = (block * self.n + stream) * self.d;
        start..start + self.d
    }

    /// `h` and `c` of an LSTM, `[d_model]` each.
    ///
    /// # Panics
    /// If there is no such block or stream.
    pub fn lstm(&self, block: usize, stream: usize) -> (&[f32], &[f32]) {
        let at = self.at(block, stream);
        (&self.h[at.clone()], &self.c[at])
    }

    /// [`lstm`](Self::lstm), to write to.
    ///
    /// # Panics
    /// As [`lstm`](Self::lstm).
    pub fn lstm_mut(&mut self, block: usize, stream: usize) -> (&mut [f32], &mut [f32]) {
        let at = self.at(block, stream);
        (&mut self.h[at.clone()], &mut self.c[at])
    }

    /// A block's memory: the older rows and the newer ones, `[rows, d_model]` each. Empty where the block does not attend.
    ///
    /// # Panics
    /// As [`lstm`](Self::lstm).
    pub fn memory(&self, block: usize, stream: usize) -> [&[f32]; 2] {
        let _ = self.at(block, stream);
        let Some(index) = self.attending[block] else { return [&[], &[]] };
        let (ring, size) = (index * self.n + stream, capacity(self.mem_len) * self.d);
        let Ring { len, next } = self.rings[ring];
        let rows = &self.memory[ring * size..][..len * self.d];
        // Before the ring is full its next place is the one after its last row, and there are no newer ones.
        let (newer, older) = rows.split_at(if next < len { next * self.d } else { 0 });
        [older, newer]
    }

    /// The place of a stream's oldest row of memory in its rings, which is the same in all of them: 0 until they are full.
    ///
    /// # Panics
    /// If there is no such stream.
    pub fn oldest(&self, stream: usize) -> usize {
        assert!(stream < self.n, "stream {stream} of {}", self.n);
        match self.rings.get(stream) {
            Some(ring) if ring.len == self.mem_len => ring.next,
            _ => 0,
        }
    }

    /// Replaces a block's memory by the newest `mem_len` of these rows, oldest first, of which the first comes to lie at
    /// `oldest` of the ring. Sums go in the order of places: a copy gives the same bits where it takes over
    /// [`oldest`](Self::oldest) too, which has to be the same for all blocks of a stream.
    ///
    /// # Shapes
    /// - `rows`: `[any number of rows, d_model]`
    ///
    /// # Panics
    /// As [`lstm`](Self::lstm), or if the rows are not whole, or if the block does not attend and there are some, or if
    /// `oldest` is not a place of a full ring, and not 0.
    pub fn set_memory(&mut self, block: usize, stream: usize, rows: &[f32], oldest: usize) {
        let _ = self.at(block, stream);
        assert!(rows.len().is_multiple_of(self.d), "{} values are not rows of {}", rows.len(), self.d);
        let Some(index) = self.attending[block] else {
            assert!(rows.is_empty(), "block {block} does not attend, and has no memory");
            return;
        };
        let (ring, size) = (index * self.n + stream, capacity(self.mem_len) * self.d);
        let len = (rows.len() / self.d).min(self.mem_len);
        assert!(
            oldest == 0 || (len == self.mem_len && oldest < len),
            "the oldest of {len} rows cannot lie at {oldest} of a ring of {}",
            self.mem_len
        );
        let rows = &rows[rows.len() - len * self.d..];
        let (older, newer) = rows.split_at(rows.len() - oldest * self.d);
        let places = &mut self.memory[ring * size..][..rows.len()];
        places[oldest * self.d..].copy_from_slice(older);
        places[..newer.len()].copy_from_slice(newer);
        self.rings[ring] = Ring { len, next: (oldest + len) % capacity(self.mem_len) };
    }
}
