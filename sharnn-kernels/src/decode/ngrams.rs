//! The memory of n-grams: rows that the newest tokens of a stream choose.

use half::bf16;

use super::{PackedRows, WeightFormat, check};
use crate::int8;

/// The memory of n-grams of a model. Of tokens x, -1 before the stream's start, the row of order n at t is `H_n(t) mod rows` with
/// `H_1(t) = x_t + 1` and `H_n(t) = (multiplier H_{n-1}(t - 1) + x_t + 1) mod modulus`.
#[derive(Clone, Copy, Debug)]
pub struct NGramWeights<'a> {
    /// The orders, rising, from 2 on.
    pub orders: &'a [usize],
    /// Rows of each order's table.
    pub rows: usize,
    /// `[orders x rows, width]`
    pub table: &'a [f32],
    /// What makes of the rows what is added to the embedding, `[d_model, orders x width]`.
    pub input: Option<&'a [f32]>,
    /// What makes of them what is added to the last block's output, `[d_model, orders x width]`.
    pub output: Option<&'a [f32]>,
    /// What the hash of the tokens before is multiplied by.
    pub multiplier: usize,
    /// The modulus of the hash.
    pub modulus: usize,
}

/// The same, packed.
pub(super) struct NGrams {
    orders: Vec<usize>,
    rows: usize,
    width: usize,
    table: Rows,
    pub(super) input: Option<PackedRows>,
    pub(super) output: Option<PackedRows>,
    multiplier: usize,
    modulus: usize,
}

/// Rows of a table, of which a step reads few.
enum Rows {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    /// Integers in -127..=127, and what one is worth in each of so many rows.
    Int8(Vec<i8>, Vec<f32>, usize),
}

impl Rows {
    fn new(table: &[f32], width: usize, format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => Self::F32(table.to_vec()),
            WeightFormat::Bf16 => Self::Bf16(table.iter().map(|&w| bf16::from_f32(w)).collect()),
            WeightFormat::Int8 | WeightFormat::Exact => {
                let rows = int8::rows_of_a_scale([table.len() / width, width]);
                let scales: Vec<_> = table.chunks_exact(rows * width).map(int8::scale).collect();
                let whole = |(values, &scale): (&[f32], &f32)| {
                    values.iter().map(|&w| int8::whole(w, scale)).collect::<Vec<_>>()
                };
                Self::Int8(table.chunks_exact(rows * width).zip(&scales).flat_map(whole).collect(), scales, rows)
            }
        }
    }

    fn read(&self, row: usize, to: &mut [f32]) {
        let at = row * to.len()..(row + 1) * to.len();
        match self {
            Self::F32(table) => to.copy_from_slice(&table[at]),
            Self::Bf16(table) => to.iter_mut().zip(&table[at]).for_each(|(to, w)| *to = w.to_f32()),
            Self::Int8(table, scales, rows) => {
                to.iter_mut().zip(&table[at]).for_each(|(to, &w)| *to = f32::from(w) * scales[row / rows]);
            }
        }
    }

    fn digest(&self, feed: &mut dyn FnMut(&[u8])) {
        match self {
            Self::F32(table) => super::feed_floats(table, feed),
            Self::Bf16(table) => table.iter().for_each(|w| feed(&w.to_bits().to_le_bytes())),
            Self::Int8(table, scales, _) => {
                table
                    .chunks(1 << 12)
                    .for_each(|part| feed(&part.iter().map(|w| w.cast_unsigned()).collect::<Vec<_>>()));
                super::feed_floats(scales, feed);
            }
        }
    }
}

impl NGrams {
    pub(super) fn new(from: NGramWeights, d: usize, format: WeightFormat) -> Self {
        let NGramWeights { orders, rows, table, input, output, multiplier, modulus } = from;
        assert!(
            !orders.is_empty() && orders[0] > 1 && orders.is_sorted_by(|a, b| a < b),
            "orders are {orders:?}: they must rise, from 2 on"
        );
        assert!(rows > 0 && rows <= modulus, "{rows} rows of a table: there must be some, and at most {modulus}");
        let tables = orders.len() * rows;
        assert!(
            !table.is_empty() && table.len().is_multiple_of(tables),
            "{} values are not {tables} rows of n-grams",
            table.len()
        );
        let width = table.len() / tables;
        let map = |what: &str, weight: &[f32]| {
            check(what, weight.len(), d * orders.len() * width);
            PackedRows::new(weight, None, [d, orders.len() * width], format)
        };
        Self {
            orders: orders.to_vec(),
            rows,
            width,
            table: Rows::new(table, width, format),
            input: input.map(|weight| map("the n-grams' input", weight)),
            output: output.map(|weight| map("the n-grams' output", weight)),
            multiplier,
            modulus,
        }
    }

    /// Everything that decides what it adds.
    pub(super) fn digest(&self, feed: &mut dyn FnMut(&[u8])) {
        let sizes = [self.rows, self.width, self.multiplier, self.modulus];
        super::feed_sizes(self.orders.iter().chain(&sizes).copied(), feed);
        self.table.digest(feed);
        for map in [&self.input, &self.output] {
            feed(&[u8::from(map.is_some())]);
            map.iter().for_each(|map| map.digest(feed));
        }
    }

    /// How many tokens before the newest one choose rows with it.
    pub(super) fn context(&self) -> usize {
        self.orders.last().map_or(0, |order| order - 1)
    }

    /// Values of the rows of a token.
    pub(super) fn len(&self) -> usize {
        self.orders.len() * self.width
    }

    /// Reads the rows of the newest of these tokens, of which there are `context` before it.
    pub(super) fn read(&self, tokens: impl Fn(usize) -> i32, to: &mut [f32]) {
        let context = self.context();
        for ((table, &order), to) in self.orders.iter().enumerate().zip(to.chunks_exact_mut(self.width)) {
            let hash = (context + 1 - order..=context).fold(0, |hash, place| {
                let token = (tokens(place) + 1) as usize;
                if place == context + 1 - order { token } else { (hash * self.multiplier + token) % self.modulus }
            });
            self.table.read(table * self.rows + hash % self.rows, to);
        }
    }
}
