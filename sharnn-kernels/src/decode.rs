//! One token at a time: the whole model on packed weights, for a few streams side by side.
//!
//! With one token a weight is used once for each stream, so a step takes as long as its weights take to arrive from memory.
//! They are packed in the order of use, in f32, in bfloat16 or in eight bits, and widened to f32 in registers; activations,
//! sums, states and memories are f32. A step is one operation of the team with a barrier between dependent phases: every
//! member has rows of each matrix to itself and applies what follows from them, and small things (norms) are computed by
//! every member for itself. No sum is divided by thread, nor by stream: a stream's logits are the same, bit for bit, for
//! every number of threads and of other streams.
//!
//! The equations are those of the modules of `sharnn-core`, without dropout:
//!
//! ```text
//! x = LN_start(x)
//! h, c = LSTM(x, h, c)                                            [W_ih | W_hh] is one matrix
//! memory += LN_mem(h);  y = LN_mid(h);  h' = y + r ⊙ attention     in blocks that attend
//! x = LN_ff(h') + Σ chunks of GELU(W LN_xff(h') + b)
//! ```
//!
//! Where there is a memory of n-grams, what its rows add is computed before the first block and added there and before the decoder.
//!
//! Attention sees what it sees where a segment is one token long: the newest `mem_len - 1` rows and the token's own.

mod kernels;
mod look;
mod ngrams;
mod packed;
mod step;
mod streams;
#[cfg(test)]
mod tests;
mod whole;

pub use self::kernels::value_gate;
pub use self::ngrams::NGramWeights;
use self::ngrams::NGrams;
use self::packed::GROUP;
pub use self::packed::{PackedRows, WeightFormat};
pub use self::streams::Streams;

/// Units of an LSTM whose four gates make a group of packed rows.
const UNITS: usize = GROUP / 4;

/// Weight and bias of a layer norm, `[d_model]` each.
#[derive(Clone, Copy, Debug)]
pub struct NormWeights<'a> {
    /// Weight.
    pub weight: &'a [f32],
    /// Bias.
    pub bias: &'a [f32],
}

/// What an attending block has beside the others. All vectors are `[d_model]`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionWeights<'a> {
    /// Norm of the queries' input.
    pub norm_mid: NormWeights<'a>,
    /// Norm of the rows that enter the memory.
    pub norm_mem: NormWeights<'a>,
    /// `[d_model, d_model]`
    pub query: &'a [f32],
    /// Bias of the query.
    pub query_bias: &'a [f32],
    /// Norm of the query.
    pub query_norm: NormWeights<'a>,
    /// The query's gate, before its sigmoid.
    pub q_gate: &'a [f32],
    /// The keys' gate, before its sigmoid.
    pub k_gate: &'a [f32],
    /// The values' gate, collapsed: the vector that multiplies them.
    pub value_gate: &'a [f32],
    /// Number of heads, which divides `d_model`.
    pub n_heads: usize,
}

/// The parameters of a block, in PyTorch's layouts.
#[derive(Clone, Copy, Debug)]
pub struct BlockWeights<'a> {
    /// Norm of the LSTM's input.
    pub norm_start: NormWeights<'a>,
    /// `[4 d_model, d_model]`, gates in the order i, f, g, o
    pub weight_ih: &'a [f32],
    /// `[4 d_model, d_model]`
    pub weight_hh: &'a [f32],
    /// `[4 d_model]`
    pub bias_ih: &'a [f32],
    /// `[4 d_model]`
    pub bias_hh: &'a [f32],
    /// Attention, where the block attends.
    pub attention: Option<AttentionWeights<'a>>,
    /// Norm of the Boom's residual.
    pub norm_ff: NormWeights<'a>,
    /// Norm of the Boom's input.
    pub norm_xff: NormWeights<'a>,
    /// `[d_ff, d_model]`
    pub boom: &'a [f32],
    /// `[d_ff]`
    pub boom_bias: &'a [f32],
}

/// A model that decodes: packed weights, nothing that changes. [`Streams`] hold what does.
pub struct DecodeModel {
    d: usize,
    mem_len: usize,
    format: WeightFormat,
    embedding: Vec<f32>,
    decoder: PackedRows,
    ngrams: Option<NGrams>,
    blocks: Vec<Block>,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Block {
    norm_start: Norm,
    /// Groups of [`UNITS`] units: their gates i, then f, g and o.
    lstm: PackedRows,
    attention: Option<Attention>,
    norm_ff: Norm,
    norm_xff: Norm,
    /// For each [`GROUP`] of outputs the groups of all chunks.
    boom: PackedRows,
    chunks: usize,
}

struct Attention {
    norm_mid: Norm,
    norm_mem: Norm,
    query: PackedRows,
    /// Its norm, times the sigmoids of both gates and the scale of the scores.
    query_norm: Norm,
    value_gate: Vec<f32>,
    n_heads: usize,
    /// Which of the attending blocks it is in.
    index: usize,
}

/// The bytes of some values, little-endian.
fn feed_floats(values: &[f32], feed: &mut dyn FnMut(&[u8])) {
    for part in values.chunks(1 << 10) {
        feed(&part.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect::<Vec<_>>());
    }
}

/// The bytes of some sizes, of 64 bits each.
fn feed_sizes(sizes: impl IntoIterator<Item = usize>, feed: &mut dyn FnMut(&[u8])) {
    sizes.into_iter().for_each(|size| feed(&(size as u64).to_le_bytes()));
}

fn check(what: &str, got: usize, want: usize) {
    assert_eq!(got, want, "{what} has {got} values, {want} are expected");
}

impl Norm {
    fn new(what: &str, from: NormWeights, d: usize) -> Self {
        check(what, from.weight.len(), d);
        check(what, from.bias.len(), d);
        Self { weight: from.weight.to_vec(), bias: from.bias.to_vec() }
    }

    fn digest(&self, feed: &mut dyn FnMut(&[u8])) {
        [&self.weight, &self.bias].into_iter().for_each(|values| feed_floats(values, feed));
    }
}

impl Attention {
    fn new(from: AttentionWeights, d: usize, index: usize, format: WeightFormat) -> Self {
        let n_heads = from.n_heads;
        assert!(n_heads > 0 && d.is_multiple_of(n_heads), "{n_heads} heads do not divide d_model = {d}");
        check("q_gate", from.q_gate.len(), d);
        check("k_gate", from.k_gate.len(), d);
        check("value_gate", from.value_gate.len(), d);
        let mut query_norm = Norm::new("query_norm", from.query_norm, d);
        let [q_gate, k_gate] = [from.q_gate, from.k_gate].map(kernels::sigmoids);
        let scale = 1.0 / ((d / n_heads) as f32).sqrt();
        for i in 0..d {
            let gates = q_gate[i] * k_gate[i] * scale;
            query_norm.weight[i] *= gates;
            query_norm.bias[i] *= gates;
        }
        Self {
            norm_mid: Norm::new("norm_mid", from.norm_mid, d),
            norm_mem: Norm::new("norm_mem", from.norm_mem, d),
            query: PackedRows::new(from.query, Some(from.query_bias), [d, d], format),
            query_norm,
            value_gate: from.value_gate.to_vec(),
            n_heads,
            index,
        }
    }
}

impl Block {
    fn new(from: BlockWeights, d: usize, attending: usize, format: WeightFormat) -> Self {
        for (what, got) in [("weight_ih", from.weight_ih), ("weight_hh", from.weight_hh)] {
            check(what, got.len(), 4 * d * d);
        }
        for (what, got) in [("bias_ih", from.bias_ih), ("bias_hh", from.bias_hh)] {
            check(what, got.len(), 4 * d);
        }
        let d_ff = from.boom_bias.len();
        check("boom", from.boom.len(), d_ff * d);
        assert!(d_ff >= d, "d_ff = {d_ff} is less than d_model = {d}");

        let units = d.div_ceil(UNITS);
        let gate_of = |place: usize| {
            let unit = place / GROUP * UNITS + place % UNITS;
            (unit < d).then_some(place % GROUP / UNITS * d + unit)
        };
        let scales = |weight: &[f32], rows: usize| match format.is_whole() {
            true => crate::int8::scales(weight, [rows, d]),
            false => Vec::new(),
        };
        let [ih, hh] = [from.weight_ih, from.weight_hh].map(|weight| scales(weight, 4 * d));
        let lstm = PackedRows::in_order(units * GROUP, gate_of, 2 * d, format, [&ih, &hh], |row, out| {
            out[..d].copy_from_slice(&from.weight_ih[row * d..][..d]);
            out[d..].copy_from_slice(&from.weight_hh[row * d..][..d]);
            from.bias_ih[row] + from.bias_hh[row]
        });

        // What is left of `d_ff` after the last whole chunk is never used.
        let chunks = d_ff / d;
        let output_of = |place: usize| {
            let output = place / (GROUP * chunks) * GROUP + place % GROUP;
            (output < d).then_some(place / GROUP % chunks * d + output)
        };
        let of_boom = scales(from.boom, d_ff);
        let places = d.div_ceil(GROUP) * chunks * GROUP;
        let boom = PackedRows::in_order(places, output_of, d, format, [&of_boom], |row, out| {
            out.copy_from_slice(&from.boom[row * d..][..d]);
            from.boom_bias[row]
        });
        Self {
            norm_start: Norm::new("norm_start", from.norm_start, d),
            lstm,
            attention: from.attention.map(|attention| Attention::new(attention, d, attending, format)),
            norm_ff: Norm::new("norm_ff", from.norm_ff, d),
            norm_xff: Norm::new("norm_xff", from.norm_xff, d),
            boom,
            chunks,
        }
    }
}

impl Block {
    fn matrices(&self) -> impl Iterator<Item = &PackedRows> {
        let query = self.attention.as_ref().map(|attention| &attention.query);
        [&self.lstm, &self.boom].into_iter().chain(query)
    }
}

impl DecodeModel {
    /// A model without blocks yet: add them with [`push`](Self::push), first to last. `mem_len` is the rows of memory that
    /// are kept. The embedding stays f32, of which a step reads one row.
    ///
    /// # Shapes
    /// - `embedding` and `decoder`: `[vocab_size, d_model]`; without `decoder` the embedding serves
    /// - `decoder_bias`: `[vocab_size]`
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn new(
        d_model: usize,
        mem_len: usize,
        embedding: Vec<f32>,
        decoder: Option<&[f32]>,
        decoder_bias: &[f32],
        format: WeightFormat,
    ) -> Self {
        let vocab_size = decoder_bias.len();
        assert!(
            d_model > 0 && vocab_size > 0,
            "d_model = {d_model} and vocab_size = {vocab_size}: both must be positive"
        );
        check("embedding", embedding.len(), vocab_size * d_model);
        let weight = decoder.unwrap_or(&embedding);
        let decoder = PackedRows::new(weight, Some(decoder_bias), [vocab_size, d_model], format);
        // The rows of a tied embedding are those that the decoder has.
        let embedding = match format.is_whole() {
            true => crate::int8::rounded(&embedding, [vocab_size, d_model]),
            false => embedding,
        };
        Self { d: d_model, mem_len, format, embedding, decoder, ngrams: None, blocks: Vec::new() }
    }

    /// Gives the model a memory of n-grams. Streams made before are no longer of this model.
    ///
    /// # Panics
    /// If the shapes do not agree, or orders do not rise from 2 on.
    pub fn with_ngrams(mut self, ngrams: NGramWeights) -> Self {
        self.ngrams = Some(NGrams::new(ngrams, self.d, self.format));
        self
    }

    /// Adds a block. Streams made before are no longer of this model.
    ///
    /// # Panics
    /// If the shapes do not agree, `n_heads` does not divide `d_model`, or `d_ff` is less than `d_model`.
    pub fn push(&mut self, block: BlockWeights) {
        let attending = self.attending();
        self.blocks.push(Block::new(block, self.d, attending, self.format));
    }

    /// Width of the model.
    pub fn d_model(&self) -> usize {
        self.d
    }

    /// Number of distinct tokens.
    pub fn vocab_size(&self) -> usize {
        self.decoder.rows()
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    /// Rows of memory that a stream keeps.
    pub fn mem_len(&self) -> usize {
        self.mem_len
    }

    /// How weights are kept.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes of packed weights, all of which a step reads; tables of n-grams, of which it reads some rows, are not among them.
    pub fn weight_bytes(&self) -> usize {
        self.matrices().map(PackedRows::bytes).sum()
    }

    /// How many tokens before the newest one a stream keeps for its memory of n-grams; 0 where there is none.
    pub fn context(&self) -> usize {
        self.ngrams.as_ref().map_or(0, NGrams::context)
    }

    /// Feeds everything that decides the logits, but for the number of streams: of two models that feed the same bytes in format
    /// [`Exact`](WeightFormat::Exact) all logits are the same. The bytes are the same on every machine.
    pub fn digest(&self, feed: &mut dyn FnMut(&[u8])) {
        let Self { d, mem_len, format, embedding, decoder, ngrams, blocks } = self;
        feed_sizes([*d, *mem_len, *format as usize, self.vocab_size(), blocks.len()], feed);
        feed_floats(embedding, feed);
        decoder.digest(feed);
        for block in blocks {
            feed_sizes([block.chunks, block.attention.as_ref().map_or(0, |attention| attention.n_heads)], feed);
            [&block.norm_start, &block.norm_ff, &block.norm_xff].into_iter().for_each(|norm| norm.digest(feed));
            block.matrices().for_each(|matrix| matrix.digest(feed));
            if let Some(Attention { norm_mid, norm_mem, query_norm, value_gate, .. }) = &block.attention {
                [norm_mid, norm_mem, query_norm].into_iter().for_each(|norm| norm.digest(feed));
                feed_floats(value_gate, feed);
            }
        }
        if let Some(ngrams) = ngrams {
            ngrams.digest(feed);
        }
    }

    /// Number of blocks that attend.
    fn attending(&self) -> usize {
        self.blocks.iter().filter(|block| block.attention.is_some()).count()
    }

    fn matrices(&self) -> impl Iterator<Item = &PackedRows> {
        let ngrams = self.ngrams.iter().flat_map(|ngrams| ngrams.input.iter().chain(&ngrams.output));
        self.blocks.iter().flat_map(Block::matrices).chain([&self.decoder]).chain(ngrams)
    }
}
