//! A matrix whose products with a vector read it once, from front to back.
//!
//! Rows are packed in groups of [`GROUP`], and in a group column after column: a column's weights are some vectors, which one
//! broadcast value of `x` multiplies. So no sum ends across lanes. The layout is the same for every set of instructions.

use half::bf16;

use crate::buffer::Shared;
use crate::int8;
use crate::isa::{Integers, Isa};
use crate::simd::{Vector, kernel};
use crate::team;

use super::whole::{self, SLACK, Whole};

/// Rows of a group.
pub(super) const GROUP: usize = 32;

/// Bytes of weights below which another thread is not worth waking.
pub(super) const SMALL: usize = 1 << 16;

/// How far ahead weights are fetched, in bytes: the CPU's own prefetch stops where a page ends.
pub(super) const AHEAD: usize = 4096;

/// Activations that are multiplied in one call, at most.
pub(super) const TOGETHER: usize = 8;

/// How weights are kept, and what is computed with them. Sums of products are f32 but for weights of 8 bits, which are multiplied as
/// whole numbers, with activations of 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// f32, as they are.
    F32,
    /// bfloat16, to nearest with ties to even: half of the bytes.
    #[default]
    Bf16,
    /// Integers in -127..=127 times one f32 for each row, see [`int8`]: a quarter of the bytes.
    Int8,
    /// The same, and all else so that the results are the same bits on every CPU.
    Exact,
}

impl WeightFormat {
    /// Every format, and its name.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::F32, "f32"), (Self::Bf16, "bf16"), (Self::Int8, "int8"), (Self::Exact, "exact")];

    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 | Self::Exact => 1,
        }
    }

    /// Whether weights are whole numbers.
    pub fn is_whole(self) -> bool {
        self.bytes() == 1
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A matrix `[rows, cols]` and a bias, packed for `y = W x + b`.
pub struct PackedRows {
    /// `[groups, cols, GROUP]`; of whole numbers `[groups, parts, places / columns, GROUP, columns]`, see [`Integers`].
    weights: Vec<Line>,
    /// `[parts, packed rows]`; empty where the format has none.
    scales: Vec<f32>,
    /// The sums of each part's and row's whole numbers, `[parts, packed rows]`, which products by digits of activations need
    /// (`whole::dot`, on 64-bit ARM).
    weight_sums: Vec<i32>,
    /// One a packed row.
    bias: Vec<f32>,
    rows: usize,
    cols: usize,
    /// Columns lie side by side in so many parts, each of which has scales of its own.
    parts: usize,
    format: WeightFormat,
    /// What multiplies whole numbers.
    integers: Integers,
}

/// What a matrix is multiplied with, in the form that its format wants.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    Floats(&'a [f32]),
    Whole(Whole<'a>),
}

impl<'a> Input<'a> {
    /// Of values and, where the format wants whole numbers, of these, which were made of them.
    pub(super) fn of(format: WeightFormat, floats: &'a [f32], values: &'a [i16], scales: &'a [f32]) -> Self {
        if format.is_whole() { Self::Whole(Whole { values, scales }) } else { Self::Floats(floats) }
    }
}

impl PackedRows {
    /// Packs a matrix.
    ///
    /// # Shapes
    /// - `weight`: `[rows, cols]`
    /// - `bias`: `[rows]`; zeros where there is none
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn new(weight: &[f32], bias: Option<&[f32]>, [rows, cols]: [usize; 2], format: WeightFormat) -> Self {
        assert_eq!(weight.len(), rows * cols, "{} values are not a matrix of {rows} x {cols}", weight.len());
        if let Some(bias) = bias {
            assert_eq!(bias.len(), rows, "{} biases of {rows} rows", bias.len());
        }
        let padded = rows.next_multiple_of(GROUP);
        let place = |i: usize| (i < rows).then_some(i);
        let scales = if format.is_whole() { int8::scales(weight, [rows, cols]) } else { Vec::new() };
        let packed = Self::in_order(padded, place, cols, format, [&scales], |row, out| {
            out.copy_from_slice(&weight[row * cols..][..cols]);
            bias.map_or(0.0, |bias| bias[row])
        });
        Self { rows, ..packed }
    }

    /// Packs rows in any order: place `i` of `0..rows` holds row `row_of(i)`, or zeros. `row` writes a row's weights and
    /// returns its bias. Of each part of the columns the rows' scales are there, where the format has some.
    pub(super) fn in_order<const PARTS: usize>(
        rows: usize,
        row_of: impl Fn(usize) -> Option<usize>,
        cols: usize,
        format: WeightFormat,
        of_rows: [&[f32]; PARTS],
        row: impl Fn(usize, &mut [f32]) -> f32,
    ) -> Self {
        assert!(rows.is_multiple_of(GROUP) && cols.is_multiple_of(PARTS));
        let (parts, integers) = (PARTS, Isa::current().integers());
        let (terms, places) = (cols / parts, integers.padded(cols / parts));
        let bytes = rows * if format.is_whole() { parts * places } else { cols * format.bytes() };
        let mut weights = vec![Line([0; 64]); bytes.div_ceil(64)];
        let mut scales = vec![0.0; if format.is_whole() { parts * rows } else { 0 }];
        let mut weight_sums = vec![0; scales.len()];
        let mut bias = vec![0.0; rows];
        let mut values = vec![0.0; cols];
        let base = weights.as_mut_ptr().cast::<u8>();
        for (place, bias) in bias.iter_mut().enumerate() {
            let Some(source) = row_of(place) else { continue };
            *bias = row(source, &mut values);
            if format.is_whole() {
                for part in 0..parts {
                    let values = &values[part * terms..][..terms];
                    let scale = of_rows[part][source];
                    scales[part * rows + place] = scale;
                    for (col, &w) in values.iter().enumerate() {
                        let of_part = (place / GROUP * parts + part) * places * GROUP;
                        let at = of_part + integers.place(place % GROUP, col);
                        let whole = int8::whole(w, scale);
                        weight_sums[part * rows + place] += i32::from(whole);
                        // SAFETY: that is below the number of bytes.
                        unsafe { base.cast::<i8>().add(at).write(whole) };
                    }
                }
                continue;
            }
            for (col, &w) in values.iter().enumerate() {
                let (column, lane) = ((place / GROUP * cols + col) * GROUP, place % GROUP);
                // SAFETY: `column + lane` is below rows * cols. Of a word of two bf16 the low half is in the first half of
                // the group; a word is aligned, as the column is.
                unsafe {
                    if format == WeightFormat::F32 {
                        base.cast::<f32>().add(column + lane).write(w);
                    } else {
                        let word = base.cast::<u32>().add(column / 2 + lane % (GROUP / 2));
                        let bits = u32::from(bf16::from_f32(w).to_bits());
                        word.write(word.read() | bits << (lane / (GROUP / 2) * 16));
                    }
                }
            }
        }
        Self { weights, scales, weight_sums, bias, rows, cols, parts, format, integers }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.weights.len() * 64
    }

    /// `y = W x + b`.
    ///
    /// # Shapes
    /// - `x`: `[cols]`
    /// - `y`: `[rows]`
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub fn multiply(&self, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), self.cols, "{} values times {} columns", x.len(), self.cols);
        assert_eq!(y.len(), self.rows, "{} values of {} rows", y.len(), self.rows);
        let (mut values, mut scales) = (vec![0; self.parts * self.places() + SLACK], vec![0.0; self.parts]);
        if self.format.is_whole() {
            whole::round(x, &mut values, &mut scales);
        }
        let x = Input::of(self.format, x, &values, &scales);
        let y = Shared::new(y);
        let members = if self.bytes() < SMALL { 1 } else { usize::MAX };
        team::run(members, |member| {
            for group in member.share(self.groups()) {
                let n = GROUP.min(self.rows - group * GROUP);
                // SAFETY: each group is one member's.
                let y = unsafe { y.slice(group * GROUP, n) };
                self.products(group, 1, |_| x, |_, products| y.copy_from_slice(&products[..n]));
            }
        });
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.bias.len() / GROUP
    }

    /// Places that the columns of a part take, of whole numbers.
    fn places(&self) -> usize {
        self.integers.padded(self.cols / self.parts)
    }

    /// Everything that decides what its products are. Whole numbers are fed in pairs of columns, however they lie.
    pub(super) fn digest(&self, feed: &mut dyn FnMut(&[u8])) {
        if self.format.is_whole() {
            for part in 0..self.groups() * self.parts {
                for col in (0..self.cols / self.parts).step_by(2) {
                    feed(&std::array::from_fn::<_, { 2 * GROUP }, _>(|i| {
                        let at = part * self.places() * GROUP + self.integers.place(i / 2, col + i % 2);
                        self.weights[at / 64].0[at % 64]
                    }));
                }
            }
        } else {
            self.weights.iter().for_each(|line| feed(&line.0));
        }
        super::feed_floats(&self.scales, feed);
        super::feed_floats(&self.bias, feed);
    }

    /// How many parts its columns have.
    pub(super) fn parts(&self) -> usize {
        self.parts
    }

    /// The values of `W x + b` of one group, for `n` activations: each is a sum of its own, whatever is beside it.
    #[inline]
    pub(super) fn products<'a>(
        &self,
        group: usize,
        n: usize,
        input: impl Fn(usize) -> Input<'a>,
        each: impl FnMut(usize, &[f32; GROUP]),
    ) {
        match n {
            // Room for more would take a while to be filled with zeros.
            1 => self.products_by::<1>(group, n, input, each),
            _ => self.products_by::<TOGETHER>(group, n, input, each),
        }
    }

    /// [`products`](Self::products), `N` activations at once.
    #[inline]
    fn products_by<'a, const N: usize>(
        &self,
        group: usize,
        n: usize,
        input: impl Fn(usize) -> Input<'a>,
        mut each: impl FnMut(usize, &[f32; GROUP]),
    ) {
        assert!(group < self.groups());
        let mut y = [[0.0; GROUP]; N];
        for first in (0..n).step_by(N) {
            let n = N.min(n - first);
            let y = &mut y[..n];
            if self.format.is_whole() {
                let none = Whole { values: &[], scales: &[] };
                let mut x = [none; N];
                let places = self.parts * self.places();
                for (k, x) in x[..n].iter_mut().enumerate() {
                    let Input::Whole(whole) = input(first + k) else { unreachable!("it was rounded") };
                    assert!(whole.values.len() >= places && whole.scales.len() == self.parts);
                    *x = whole;
                }
                // SAFETY: lengths were checked, and the group is there.
                unsafe { whole::products(self.whole_rows(group), &x[..n], y) };
            } else {
                let mut x: [&[f32]; N] = [&[]; N];
                for (k, x) in x[..n].iter_mut().enumerate() {
                    let Input::Floats(floats) = input(first + k) else { unreachable!("it was not rounded") };
                    assert_eq!(floats.len(), self.cols, "{} values times {} columns", floats.len(), self.cols);
                    *x = floats;
                }
                let rows = group * GROUP;
                // SAFETY: the group is `cols` columns of GROUP weights from there on, and all of `x` is as long.
                unsafe {
                    let weights = self.weights.as_ptr().cast::<u8>().add(rows * self.cols * self.format.bytes());
                    product(weights, self.format, &x[..n], &self.bias[rows..rows + GROUP], y);
                }
            }
            y.iter().enumerate().for_each(|(k, y)| each(first + k, y));
        }
    }

    /// A group of whole numbers.
    fn whole_rows(&self, group: usize) -> whole::Rows<'_> {
        let pairs = self.places() / 2;
        let row = group * GROUP;
        whole::Rows {
            integers: self.integers,
            weights: self.weights.as_ptr().cast::<i8>().wrapping_add(row * self.parts * 2 * pairs),
            pairs,
            scales: self.scales.as_ptr().wrapping_add(row),
            scale_stride: self.bias.len(),
            weight_sums: self.weight_sums.as_ptr().wrapping_add(row),
            parts: self.parts,
            bias: &self.bias[row..row + GROUP],
        }
    }
}

/// How the weights of a column become vectors.
trait Columns {
    const BYTES: usize;

    /// The vectors of half of a column.
    ///
    /// # Safety
    /// As [`Vector`]'s; `GROUP` weights lie at `at`, and `VECTORS` vectors are as long as half of them.
    unsafe fn load<V: Vector, const VECTORS: usize>(at: *const u8, half: usize) -> [V; VECTORS];
}

struct F32;
struct Bf16;

impl Columns for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Vector, const VECTORS: usize>(at: *const u8, half: usize) -> [V; VECTORS] {
        // SAFETY: the caller's.
        unsafe {
            let mut vectors = [V::splat(0.0); VECTORS];
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = V::load(at.cast::<f32>().add(half * GROUP / 2 + i * V::LANES));
            }
            vectors
        }
    }
}

impl Columns for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector, const VECTORS: usize>(at: *const u8, half: usize) -> [V; VECTORS] {
        // SAFETY: the caller's.
        unsafe {
            let mut vectors = [V::splat(0.0); VECTORS];
            for (i, vector) in vectors.iter_mut().enumerate() {
                let words = V::load(at.cast::<f32>().add(i * V::LANES));
                *vector = if half == 0 { words.low_half_up() } else { words.and_bits(V::splat_bits(0xFFFF_0000)) };
            }
            vectors
        }
    }
}

/// Sums of the products of columns, of `HALVES` halves of a group, with `S` activations.
type Sums<V, const VECTORS: usize, const HALVES: usize, const S: usize> = [[[V; VECTORS]; HALVES]; S];

/// Adds the products of the column at `at` with a value of each activation.
#[inline(always)]
unsafe fn add_column<V: Vector, C: Columns, const VECTORS: usize, const HALVES: usize, const S: usize>(
    sums: &mut Sums<V, VECTORS, HALVES, S>,
    at: *const u8,
    first_half: usize,
    x: [*const f32; S],
    col: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        for half in 0..HALVES {
            let columns = C::load::<V, VECTORS>(at, first_half + half);
            for (sums, x) in sums.iter_mut().zip(x) {
                let value = V::splat(*x.add(col));
                for (sum, w) in sums[half].iter_mut().zip(columns) {
                    *sum = w.mul_add(value, *sum);
                }
            }
        }
    }
}

/// Products of `HALVES` halves of a group with `S` activations: `CHAINS` sums of columns in turn, which need not wait for each other, and
/// then of all. Loops are written out: what a closure holds is not compiled for the instructions.
#[inline(always)]
unsafe fn several<
    V: Vector,
    C: Columns,
    const CHAINS: usize,
    const VECTORS: usize,
    const HALVES: usize,
    const S: usize,
>(
    weights: *const u8,
    first_half: usize,
    x: &[&[f32]],
    bias: &[f32],
    y: &mut [[f32; GROUP]],
) {
    let column = GROUP * C::BYTES;
    let cols = x[0].len();
    // SAFETY: there are as many columns as values of each of `x`; any address may be fetched; the rest is the caller's.
    unsafe {
        let mut values = [std::ptr::null(); S];
        for (values, x) in values.iter_mut().zip(x) {
            *values = x.as_ptr();
        }
        let mut chains: [Sums<V, VECTORS, HALVES, S>; CHAINS] = [[[[V::splat(0.0); VECTORS]; HALVES]; S]; CHAINS];
        let mut at = weights;
        let in_turn = cols / CHAINS * CHAINS;
        for col in (0..in_turn).step_by(CHAINS) {
            for line in 0..CHAINS * column / 64 {
                V::prefetch(at.wrapping_add(AHEAD + line * 64).cast());
            }
            for (k, sums) in chains.iter_mut().enumerate() {
                add_column::<V, C, VECTORS, HALVES, S>(sums, at, first_half, values, col + k);
                at = at.add(column);
            }
        }
        for (sums, col) in chains.iter_mut().zip(in_turn..cols) {
            add_column::<V, C, VECTORS, HALVES, S>(sums, at, first_half, values, col);
            at = at.add(column);
        }
        for (s, y) in y.iter_mut().enumerate().take(S) {
            for half in 0..HALVES {
                for i in 0..VECTORS {
                    let mut sum = chains[0][s][half][i];
                    for sums in &chains[1..] {
                        sum = sum.add(sums[s][half][i]);
                    }
                    let at = (first_half + half) * GROUP / 2 + i * V::LANES;
                    sum.add(V::load(bias.as_ptr().add(at))).store(y.as_mut_ptr().add(at));
                }
            }
        }
    }
}

/// As many activations at once as there are registers for.
#[inline(always)]
unsafe fn product_of<V: Vector, C: Columns>(
    weights: *const u8,
    mut x: &[&[f32]],
    bias: &[f32],
    mut y: &mut [[f32; GROUP]],
) {
    macro_rules! while_there_are {
        ($chains:literal, $vectors:literal, $n:literal) => {
            while x.len() >= $n {
                // SAFETY: the caller's.
                unsafe {
                    if $n == 1 {
                        several::<V, C, $chains, $vectors, 2, 1>(weights, 0, x, bias, y);
                    } else {
                        several::<V, C, $chains, $vectors, 1, $n>(weights, 0, x, bias, y);
                        several::<V, C, $chains, $vectors, 1, $n>(weights, 1, x, bias, y);
                    }
                }
                x = &x[$n..];
                y = &mut std::mem::take(&mut y)[$n..];
            }
        };
    }
    match V::LANES {
        // Two chains are eight vectors: sixteen registers, where a vector is two, which leaves none of those that engines of
        // WebAssembly have on x86.
        8 if 2 * V::TILE_ROWS < 8 => {
            while_there_are!(1, 2, 2);
            while_there_are!(1, 2, 1);
        }
        8 => {
            while_there_are!(2, 2, 2);
            while_there_are!(2, 2, 1);
        }
        16 => {
            while_there_are!(2, 1, 8);
            while_there_are!(2, 1, 4);
            while_there_are!(2, 1, 1);
        }
        _ => unreachable!("vectors have 8 or 16 lanes"),
    }
}

#[inline(always)]
unsafe fn product_body<V: Vector>(
    weights: *const u8,
    format: WeightFormat,
    x: &[&[f32]],
    bias: &[f32],
    y: &mut [[f32; GROUP]],
) {
    // SAFETY: the caller's; a group is four vectors of eight lanes or two of sixteen.
    unsafe {
        match format {
            WeightFormat::F32 => product_of::<V, F32>(weights, x, bias, y),
            _ => product_of::<V, Bf16>(weights, x, bias, y),
        }
    }
}
kernel!(
    /// # Safety
    /// `weights` is one group, of f32 or bfloat16 and of as many columns as each of `x` has values; `bias` is [`GROUP`] long, and `y` has
    /// as many groups as there are in `x`.
    unsafe fn product(
        weights: *const u8,
        format: WeightFormat,
        x: &[&[f32]],
        bias: &[f32],
        y: &mut [[f32; GROUP]],
    ) => product_body
);
