//! The architecture as data: every choice is an option, every preset a constructor.

use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::{NGRAM_MODULUS, ShaRnn};

/// Which blocks have an attention head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attend {
    /// No block: a plain LSTM language model.
    None,
    /// The second-last block only: the paper's main model.
    #[default]
    SecondLast,
    /// Every block.
    All,
    /// The blocks of this list, counted from 0.
    Blocks(Vec<usize>),
}

impl Attend {
    /// Whether block `block` of `n_layers` attends.
    pub fn contains(&self, block: usize, n_layers: usize) -> bool {
        match self {
            Attend::None => false,
            Attend::SecondLast => block + 2 == n_layers,
            Attend::All => block < n_layers,
            Attend::Blocks(blocks) => block < n_layers && blocks.contains(&block),
        }
    }

    /// The blocks of `n_layers` that attend, in rising order.
    pub fn blocks(&self, n_layers: usize) -> Vec<usize> {
        // A list is not looked through once a block: it may come from a file, and be long.
        let mut blocks = match self {
            Attend::Blocks(blocks) => blocks.iter().copied().filter(|&block| block < n_layers).collect(),
            _ => (0..n_layers).filter(|&block| self.contains(block, n_layers)).collect::<Vec<_>>(),
        };
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// The option that stands for these blocks of `n_layers`, by name where it has one.
    pub fn of(blocks: impl IntoIterator<Item = usize>, n_layers: usize) -> Self {
        let list = Attend::Blocks(blocks.into_iter().collect());
        let blocks = list.blocks(n_layers);
        [Attend::None, Attend::SecondLast, Attend::All]
            .into_iter()
            .find(|named| named.blocks(n_layers) == blocks)
            .unwrap_or(Attend::Blocks(blocks))
    }
}

/// Configuration of a [`ShaRnn`].
///
/// ```
/// use sharnn_core::{Attend, ShaRnnConfig};
///
/// let config = ShaRnnConfig::s().with_attend(Attend::All).with_dropout(0.1);
/// assert!(config.validate().is_ok());
/// let error = config.with_heads(3).validate().unwrap_err();
/// assert!(error.to_string().contains("n_heads"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShaRnnConfig {
    /// Number of distinct tokens. 256 by default: raw bytes.
    pub vocab_size: usize,
    /// Width of the embedding, of every LSTM and of the memory.
    pub d_model: usize,
    /// Width of the Boom's activations; at least `d_model`. The paper uses 4 `d_model`.
    pub d_ff: usize,
    /// Number of blocks, at most [`ShaRnnConfig::MOST_LAYERS`]. The paper uses 4.
    pub n_layers: usize,
    /// Number of attention heads; it divides `d_model`. The paper's point is that 1 is enough.
    pub n_heads: usize,
    /// Which blocks attend.
    pub attend: Attend,
    /// Rows of memory kept for attention, in tokens. 0 keeps none: attention then sees the current segment alone. Else no
    /// segment may be longer than this. The paper uses 5000; more than [`ShaRnnConfig::MOST_MEM_LEN`] are refused.
    pub mem_len: usize,
    /// Probability of dropping an element of the embedding output, in `[0, 1)`.
    pub dropout_input: f64,
    /// Probability of dropping an element anywhere inside a block, in `[0, 1)`.
    pub dropout_hidden: f64,
    /// Probability of dropping an element of the last block's output, in `[0, 1)`.
    pub dropout_output: f64,
    /// Whether the decoder uses the embedding's weight.
    pub tied: bool,
    /// A memory of n-grams beside the embedding; `None`, as in the paper, for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ngrams: Option<NGramConfig>,
}

/// A memory of n-grams: for each order a table of rows, of which the last tokens choose one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NGramConfig {
    /// How many tokens choose a row, the newest among them: rising numbers, of at most [`NGramConfig::MOST_ORDER`].
    pub orders: Vec<usize>,
    /// Rows of each table, at most [`NGRAM_MODULUS`](crate::NGRAM_MODULUS).
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
    /// Where they are added.
    #[serde(default)]
    pub at: NGramSite,
}

/// Where the rows of n-grams are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NGramSite {
    /// To the embedding.
    Embedding,
    /// To what the decoder reads.
    Decoder,
    /// To both.
    #[default]
    Both,
}

impl NGramSite {
    /// Whether they are added to the embedding.
    pub fn is_input(self) -> bool {
        self != Self::Decoder
    }

    /// Whether they are added to what the decoder reads.
    pub fn is_output(self) -> bool {
        self != Self::Embedding
    }
}

impl Default for NGramConfig {
    /// What the recipe `budget` uses: orders 2 to 6, 65,536 rows of 32, at both places.
    fn default() -> Self {
        Self { orders: (2..=6).collect(), rows: 1 << 16, width: 32, at: NGramSite::Both }
    }
}

impl NGramConfig {
    /// The most tokens that choose a row.
    pub const MOST_ORDER: usize = 16;

    /// The widest that a row can be.
    pub const MOST_WIDTH: usize = 4096;

    /// Checks every field; errors name them as a field of the model's configuration.
    fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |field, value: String, hint: String| Err(ConfigError { field, value, hint });
        let Self { orders, rows, width, at: _ } = self;
        let most = Self::MOST_ORDER;
        let rise = orders.is_sorted_by(|a, b| a < b);
        if orders.is_empty() || !rise || orders.iter().any(|order| !(2..=most).contains(order)) {
            let hint = format!("use numbers from 2 to {most} that rise, as [2,3,4]");
            return refuse("ngrams.orders", shown(orders), hint);
        }
        for (field, value, most) in [("ngrams.rows", *rows, NGRAM_MODULUS), ("ngrams.width", *width, Self::MOST_WIDTH)]
        {
            if !(1..=most).contains(&value) {
                return refuse(field, value.to_string(), format!("use a number from 1 to {most}"));
            }
        }
        Ok(())
    }

    /// How many tokens before a token its rows depend on.
    pub fn context(&self) -> usize {
        context(&self.orders)
    }

    /// Values of all tables.
    pub fn table_size(&self) -> usize {
        self.orders.len() * self.rows * self.width
    }

    /// Values of the rows of one token, one of each order.
    pub fn width_of_all(&self) -> usize {
        self.orders.len() * self.width
    }

    fn maps(&self) -> usize {
        usize::from(self.at.is_input()) + usize::from(self.at.is_output())
    }
}

/// How many tokens before a token the rows of these rising orders depend on.
pub(crate) fn context(orders: &[usize]) -> usize {
    orders.last().map_or(0, |order| order - 1)
}

/// A list for a message, or its beginning: a file may list a million numbers.
fn shown(list: &[usize]) -> String {
    const MOST: usize = 64;
    match list.get(..MOST) {
        Some(beginning) if list.len() > MOST => {
            format!("{}, ... ({} numbers)]", format!("{beginning:?}").trim_end_matches(']'), list.len())
        }
        _ => format!("{list:?}"),
    }
}

/// A configuration that cannot be built: which field, what it holds, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value} cannot be used: {hint}")]
pub struct ConfigError {
    /// Name of the field.
    pub field: &'static str,
    /// What it holds.
    pub value: String,
    /// What would do.
    pub hint: String,
}

impl Default for ShaRnnConfig {
    /// The paper's model: [`ShaRnnConfig::enwik8`].
    fn default() -> Self {
        Self::enwik8()
    }
}

impl ShaRnnConfig {
    /// The longest memory that can be used, in tokens: streams on packed weights have room for all of it from their start.
    pub const MOST_MEM_LEN: usize = 1 << 20;

    /// The most blocks that a model can have.
    pub const MOST_LAYERS: usize = 1 << 16;

    /// The widest that a model and its Boom can be, and the most symbols: numbers of parameters stay countable.
    pub const MOST_WIDTH: usize = 1 << 20;

    /// Four blocks, the second-last attends, memory 5000, no dropout, bytes, tied.
    fn sized(d_model: usize) -> Self {
        Self {
            vocab_size: 256,
            d_model,
            d_ff: 4 * d_model,
            n_layers: 4,
            n_heads: 1,
            attend: Attend::SecondLast,
            mem_len: 5000,
            dropout_input: 0.0,
            dropout_hidden: 0.0,
            dropout_output: 0.0,
            tied: true,
            ngrams: None,
        }
    }

    /// 128 wide, 4 blocks: 0.9 million parameters, for tests and slow machines.
    pub fn xs() -> Self {
        Self::sized(128)
    }

    /// 256 wide, 4 blocks: 3.4 million parameters.
    pub fn s() -> Self {
        Self::sized(256)
    }

    /// 512 wide, 4 blocks: 13.5 million parameters.
    pub fn m() -> Self {
        Self::sized(512)
    }

    /// The paper's enwik8 model on raw bytes: 1024 wide, 4 blocks, the second-last attends, dropout 0.1; 53.8 million
    /// parameters.
    pub fn enwik8() -> Self {
        Self::sized(1024).with_dropout(0.1)
    }

    /// The paper's larger enwik8 model: as [`enwik8`](Self::enwik8) with attention in every block; 63.3 million parameters.
    pub fn enwik8_all() -> Self {
        Self::enwik8().with_attend(Attend::All)
    }

    /// Sets which blocks attend.
    pub fn with_attend(mut self, attend: Attend) -> Self {
        self.attend = attend;
        self
    }

    /// Sets the three dropouts to one probability.
    pub fn with_dropout(mut self, prob: f64) -> Self {
        (self.dropout_input, self.dropout_hidden, self.dropout_output) = (prob, prob, prob);
        self
    }

    /// Sets the length of the memory.
    pub fn with_mem_len(mut self, mem_len: usize) -> Self {
        self.mem_len = mem_len;
        self
    }

    /// Sets the number of attention heads.
    pub fn with_heads(mut self, n_heads: usize) -> Self {
        self.n_heads = n_heads;
        self
    }

    /// Sets the number of distinct tokens.
    pub fn with_vocab_size(mut self, vocab_size: usize) -> Self {
        self.vocab_size = vocab_size;
        self
    }

    /// Sets whether the decoder uses the embedding's weight.
    pub fn with_tied(mut self, tied: bool) -> Self {
        self.tied = tied;
        self
    }

    /// Gives the model a memory of n-grams.
    pub fn with_ngrams(mut self, ngrams: NGramConfig) -> Self {
        self.ngrams = Some(ngrams);
        self
    }

    /// Checks every field and every combination of them.
    ///
    /// # Errors
    /// The first field that cannot be used, with its value and what would do.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |field, value: String, hint: String| Err(ConfigError { field, value, hint });
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
        ] {
            if value == 0 {
                return refuse(field, "0".into(), "use at least 1".into());
            }
        }
        for (field, value, most) in [
            ("mem_len", self.mem_len, Self::MOST_MEM_LEN),
            ("n_layers", self.n_layers, Self::MOST_LAYERS),
            ("vocab_size", self.vocab_size, Self::MOST_WIDTH),
            ("d_model", self.d_model, Self::MOST_WIDTH),
            ("d_ff", self.d_ff, Self::MOST_WIDTH),
        ] {
            if value > most {
                return refuse(field, value.to_string(), format!("use at most {most}"));
            }
        }
        if self.d_ff < self.d_model {
            let hint = format!("use at least the model's width, {}, best a multiple of it", self.d_model);
            return refuse("d_ff", self.d_ff.to_string(), hint);
        }
        if !self.d_model.is_multiple_of(self.n_heads) {
            let divisors: Vec<_> = (1..=self.d_model.min(64)).filter(|&n| self.d_model.is_multiple_of(n)).collect();
            let hint = format!("use a divisor of the model's width, {}: one of {divisors:?}", self.d_model);
            return refuse("n_heads", self.n_heads.to_string(), hint);
        }
        if self.attend == Attend::SecondLast && self.n_layers < 2 {
            let hint = "a model of one block has no second-last: use all or none, or at least 2 blocks";
            return refuse("attend", "second-last".into(), hint.into());
        }
        if let Attend::Blocks(blocks) = &self.attend {
            if let Some(block) = blocks.iter().find(|&&block| block >= self.n_layers) {
                let hint = format!("block {block} does not exist, blocks are 0 to {}", self.n_layers - 1);
                return refuse("attend", shown(blocks), hint);
            }
            let mut distinct = blocks.clone();
            distinct.sort_unstable();
            distinct.dedup();
            if distinct.len() < blocks.len() {
                return refuse("attend", shown(blocks), format!("name each block once: {}", shown(&distinct)));
            }
        }
        for (field, prob) in [
            ("dropout_input", self.dropout_input),
            ("dropout_hidden", self.dropout_hidden),
            ("dropout_output", self.dropout_output),
        ] {
            if !(0.0..1.0).contains(&prob) {
                return refuse(field, prob.to_string(), "use a probability from 0 up to, but not including, 1".into());
            }
        }
        if self.ngrams.is_some() && self.vocab_size >= NGRAM_MODULUS {
            let hint = format!("with a memory of n-grams use less than {NGRAM_MODULUS}, or set ngrams to null");
            return refuse("vocab_size", self.vocab_size.to_string(), hint);
        }
        self.ngrams.as_ref().map_or(Ok(()), NGramConfig::validate)
    }

    /// Whether block `block` attends.
    pub fn attends(&self, block: usize) -> bool {
        self.attend.contains(block, self.n_layers)
    }

    /// Number of blocks that attend.
    pub fn n_attending(&self) -> usize {
        // Not gone through block by block: a file may claim any number of them.
        match &self.attend {
            Attend::None => 0,
            Attend::SecondLast => usize::from(self.n_layers > 1),
            Attend::All => self.n_layers,
            list @ Attend::Blocks(_) => list.blocks(self.n_layers).len(),
        }
    }

    /// How many tokens before a segment its memory of n-grams depends on; 0 where it has none.
    pub fn context(&self) -> usize {
        self.ngrams.as_ref().map_or(0, NGramConfig::context)
    }

    /// Number of parameters of the model before its value gates are collapsed.
    pub fn num_params(&self) -> usize {
        self.params_by_part().iter().map(|(_, params)| params).sum()
    }

    /// Number of parameters of each part, before value gates are collapsed; those of the same kind in all blocks together.
    pub fn params_by_part(&self) -> [(&'static str, usize); 9] {
        let Self { d_model: d, d_ff, vocab_size, n_layers, .. } = *self;
        let [tables, maps] = self
            .ngrams
            .as_ref()
            .map_or([0, 0], |ngrams| [ngrams.table_size(), ngrams.maps() * ngrams.width_of_all() * d]);
        let attending = self.n_attending();
        [
            ("embedding", vocab_size * d),
            ("LSTMs", n_layers * (8 * d * d + 8 * d)),
            // The query's map and its norm, three gates.
            ("attention", attending * ((d * d + d) + 2 * d + 3 * d)),
            ("value gates' maps", attending * (2 * d * d + 2 * d)),
            ("Booms", n_layers * (d_ff * d + d_ff)),
            // Three a block, and those of query and memory.
            ("layer norms", n_layers * 3 * 2 * d + attending * 2 * 2 * d),
            ("decoder", vocab_size + if self.tied { 0 } else { vocab_size * d }),
            ("n-grams' tables", tables),
            ("n-grams' maps", maps),
        ]
    }

    /// A model with fresh weights from an unpredictable seed, printed nowhere: use [`init_seeded`](Self::init_seeded) to
    /// be able to repeat it.
    ///
    /// # Panics
    /// If the configuration is invalid; [`validate`](Self::validate) tells without panicking.
    pub fn init<B: Backend>(&self, device: &B::Device) -> ShaRnn<B> {
        self.init_seeded(rand::random(), device)
    }

    /// A model with fresh weights drawn from a portable generator: the same seed gives the same weights everywhere.
    ///
    /// # Panics
    /// If the configuration is invalid; [`validate`](Self::validate) tells without panicking.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> ShaRnn<B> {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        ShaRnn::new(self, seed, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn parameters_of_whatever_is_valid_can_be_counted() {
        let most = ShaRnnConfig {
            vocab_size: ShaRnnConfig::MOST_WIDTH,
            d_model: ShaRnnConfig::MOST_WIDTH,
            d_ff: ShaRnnConfig::MOST_WIDTH,
            n_layers: ShaRnnConfig::MOST_LAYERS,
            attend: Attend::All,
            tied: false,
            ..ShaRnnConfig::xs()
        };
        assert_eq!(most.validate(), Ok(()));
        assert!(most.num_params() > 8 << 56);
        for config in [
            ShaRnnConfig { d_model: usize::MAX / 2, d_ff: usize::MAX / 2, ..most.clone() },
            ShaRnnConfig { d_ff: usize::MAX, ..most.clone() },
            ShaRnnConfig { vocab_size: usize::MAX, ..most.clone() },
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.ends_with("use at most 1048576"), "{error}");
        }
    }

    /// Those of the published code less the ones that it never uses: 53,825,792 and 63,299,840 parameters at 256 tokens, 53,773,517 and
    /// 63,247,565 at 205.
    #[test]
    fn the_papers_models_have_the_papers_parameters() {
        assert_eq!(ShaRnnConfig::enwik8().num_params(), 53_825_792);
        assert_eq!(ShaRnnConfig::enwik8_all().num_params(), 63_299_840);
        assert_eq!(ShaRnnConfig::enwik8().with_vocab_size(205).num_params(), 53_773_517);
        assert_eq!(ShaRnnConfig::enwik8_all().with_vocab_size(205).num_params(), 63_247_565);
    }

    #[test]
    fn every_preset_is_valid() {
        for config in [
            ShaRnnConfig::xs(),
            ShaRnnConfig::s(),
            ShaRnnConfig::m(),
            ShaRnnConfig::enwik8(),
            ShaRnnConfig::enwik8_all(),
        ] {
            config.validate().unwrap();
        }
    }

    #[test]
    fn an_invalid_combination_is_refused_by_name() {
        let base = ShaRnnConfig::xs;
        let ngrams = || NGramConfig { orders: vec![2, 3], rows: 100, width: 4, at: NGramSite::Both };
        let cases = [
            (ShaRnnConfig { vocab_size: 0, ..base() }, "vocab_size", "0"),
            (ShaRnnConfig { d_model: 0, ..base() }, "d_model", "0"),
            (ShaRnnConfig { n_layers: 0, ..base() }, "n_layers", "0"),
            (ShaRnnConfig { d_ff: 127, ..base() }, "d_ff", "127"),
            (base().with_heads(0), "n_heads", "0"),
            (base().with_heads(3), "n_heads", "3"),
            (ShaRnnConfig { n_layers: 1, ..base() }, "attend", "second-last"),
            (base().with_attend(Attend::Blocks(vec![1, 4])), "attend", "[1, 4]"),
            (base().with_attend(Attend::Blocks(vec![1, 1])), "attend", "[1, 1]"),
            (base().with_dropout(1.5), "dropout_input", "1.5"),
            (base().with_dropout(1.0), "dropout_input", "1"),
            (ShaRnnConfig { dropout_hidden: -0.1, ..base() }, "dropout_hidden", "-0.1"),
            (ShaRnnConfig { dropout_output: f64::NAN, ..base() }, "dropout_output", "NaN"),
            (base().with_ngrams(NGramConfig { orders: vec![], ..ngrams() }), "ngrams.orders", "[]"),
            (base().with_ngrams(NGramConfig { orders: vec![3, 2], ..ngrams() }), "ngrams.orders", "[3, 2]"),
            (base().with_ngrams(NGramConfig { orders: vec![1, 2], ..ngrams() }), "ngrams.orders", "[1, 2]"),
            (base().with_ngrams(NGramConfig { orders: vec![2, 17], ..ngrams() }), "ngrams.orders", "[2, 17]"),
            (base().with_ngrams(NGramConfig { rows: 0, ..ngrams() }), "ngrams.rows", "0"),
            (base().with_ngrams(NGramConfig { rows: 524_288, ..ngrams() }), "ngrams.rows", "524288"),
            (base().with_ngrams(NGramConfig { width: 4097, ..ngrams() }), "ngrams.width", "4097"),
            (base().with_vocab_size(524_287).with_ngrams(ngrams()), "vocab_size", "524287"),
        ];
        for (config, field, value) in cases {
            let error = config.validate().unwrap_err();
            assert_eq!((error.field, error.value.as_str()), (field, value), "{error}");
        }
    }

    #[test]
    fn a_long_list_is_not_quoted_whole() {
        let long: Vec<usize> = (0..2000).collect();
        let of = |orders| NGramConfig { orders, rows: 1, width: 1, at: NGramSite::Both };
        let twice = [long.clone(), long.clone()].concat();
        for config in [
            ShaRnnConfig::xs().with_attend(Attend::Blocks(long.clone())),
            ShaRnnConfig { n_layers: 2000, ..ShaRnnConfig::xs() }.with_attend(Attend::Blocks(twice)),
            ShaRnnConfig::xs().with_ngrams(of(long)),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.len() < 1000 && error.contains("00 numbers)]"), "{error}");
        }
    }

    #[test]
    fn attending_blocks_are_where_the_option_says() {
        let which = |attend: Attend| (0..4).filter(|&block| attend.contains(block, 4)).collect::<Vec<_>>();
        assert!(which(Attend::None).is_empty());
        assert_eq!(which(Attend::SecondLast), [2]);
        assert_eq!(which(Attend::All), [0, 1, 2, 3]);
        assert_eq!(which(Attend::Blocks(vec![3, 0])), [0, 3]);
    }

    #[test]
    fn a_set_of_blocks_gets_its_name() {
        for attend in [Attend::None, Attend::SecondLast, Attend::All, Attend::Blocks(vec![0, 3])] {
            assert_eq!(Attend::of(attend.blocks(4), 4), attend);
        }
        assert_eq!(Attend::Blocks(vec![3, 0, 3, 9]).blocks(4), [0, 3]);
        for attend in [Attend::None, Attend::SecondLast, Attend::All, Attend::Blocks(vec![0, 9])] {
            for n_layers in 1..5 {
                let config = ShaRnnConfig { n_layers, attend: attend.clone(), ..ShaRnnConfig::xs() };
                assert_eq!(config.n_attending(), attend.blocks(n_layers).len(), "{attend:?} of {n_layers}");
            }
        }
        assert_eq!(Attend::of([0], 1), Attend::All);
        assert_eq!(Attend::of([], 1), Attend::None);
        assert_eq!(Attend::of([0], 2), Attend::SecondLast);
    }
}
