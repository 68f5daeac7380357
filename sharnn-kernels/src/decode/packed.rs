//! A matrix whose products with a vector read it once, from front to back.
//!
//! Rows are packed in groups of [`GROUP`], and in a group column after column: a column's weights are some vectors, which one
//! broadcast value of `x` multiplies. So no sum ends across lanes. The layout is the same for every set of instructions.

use half::bf16;

use crate::buffer::Shared;
use crate::simd::{Vector, kernel};
use crate::team;

/// Rows of a group.
pub(super) const GROUP: usize = 32;

/// Bytes of weights below which another thread is not worth waking.
pub(super) const SMALL: usize = 1 << 16;

/// How far ahead weights are fetched, in bytes: the CPU's own prefetch stops where a page ends.
const AHEAD: usize = 4096;

/// How weights are kept. Products and sums are f32 for all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// f32, as they are.
    F32,
    /// bfloat16, to nearest with ties to even: half of the bytes.
    #[default]
    Bf16,
    /// Integers in -127..=127 times one f32 for each row, the largest magnitude over 127: a quarter of the bytes.
    Int8,
}

impl WeightFormat {
    /// Every format, and its name.
    pub const ALL: [(Self, &'static str); 3] = [(Self::F32, "f32"), (Self::Bf16, "bf16"), (Self::Int8, "int8")];

    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A matrix `[rows, cols]` and a bias, packed for `y = W x + b`.
pub struct PackedRows {
    /// `[groups, cols, GROUP]`
    weights: Vec<Line>,
    /// One a packed row; empty where the format has none.
    scales: Vec<f32>,
    /// One a packed row.
    bias: Vec<f32>,
    rows: usize,
    cols: usize,
    format: WeightFormat,
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
        let packed = Self::in_order(padded, place, cols, format, |row, out| {
            out.copy_from_slice(&weight[row * cols..][..cols]);
            bias.map_or(0.0, |bias| bias[row])
        });
        Self { rows, ..packed }
    }

    /// Packs rows in any order: place `i` of `0..rows` holds row `row_of(i)`, or zeros. `row` writes a row's weights and
    /// returns its bias.
    pub(super) fn in_order(
        rows: usize,
        row_of: impl Fn(usize) -> Option<usize>,
        cols: usize,
        format: WeightFormat,
        row: impl Fn(usize, &mut [f32]) -> f32,
    ) -> Self {
        assert!(rows.is_multiple_of(GROUP));
        let bytes = rows * cols * format.bytes();
        let mut weights = vec![Line([0; 64]); bytes.div_ceil(64)];
        let mut scales = vec![0.0; if format == WeightFormat::Int8 { rows } else { 0 }];
        let mut bias = vec![0.0; rows];
        let mut values = vec![0.0; cols];
        let base = weights.as_mut_ptr().cast::<u8>();
        for (place, bias) in bias.iter_mut().enumerate() {
            let Some(source) = row_of(place) else { continue };
            *bias = row(source, &mut values);
            let scale = scale(&values);
            if let Some(to) = scales.get_mut(place) {
                *to = scale;
            }
            for (col, &w) in values.iter().enumerate() {
                let (column, lane) = ((place / GROUP * cols + col) * GROUP, place % GROUP);
                // SAFETY: `column + lane` is below rows * cols. Of a word of two bf16 the low half is in the first half of
                // the group; a word is aligned, as the column is.
                unsafe {
                    match format {
                        WeightFormat::F32 => base.cast::<f32>().add(column + lane).write(w),
                        WeightFormat::Bf16 => {
                            let word = base.cast::<u32>().add(column / 2 + lane % (GROUP / 2));
                            let bits = u32::from(bf16::from_f32(w).to_bits());
                            word.write(word.read() | bits << (lane / (GROUP / 2) * 16));
                        }
                        WeightFormat::Int8 => base.cast::<i8>().add(column + lane).write(quantised(w, scale)),
                    }
                }
            }
        }
        Self { weights, scales, bias, rows, cols, format }
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
        let y = Shared::new(y);
        let members = if self.bytes() < SMALL { 1 } else { usize::MAX };
        team::run(members, |member| {
            for group in member.share(self.groups()) {
                let n = GROUP.min(self.rows - group * GROUP);
                // SAFETY: each group is one member's.
                unsafe { y.slice(group * GROUP, n) }.copy_from_slice(&self.group(group, x)[..n]);
            }
        });
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.bias.len() / GROUP
    }

    /// The values of `W x + b` of one group.
    #[inline]
    pub(super) fn group(&self, group: usize, x: &[f32]) -> [f32; GROUP] {
        assert!(x.len() == self.cols && group < self.groups());
        let mut y = [0.0; GROUP];
        let rows = group * GROUP..(group + 1) * GROUP;
        let scales = self.scales.get(rows.clone()).unwrap_or(&[]);
        // SAFETY: the group is `cols` columns of GROUP weights from there on; slices are GROUP long, or empty.
        unsafe {
            let weights = self.weights.as_ptr().cast::<u8>().add(rows.start * self.cols * self.format.bytes());
            product(weights, self.format, x, scales, &self.bias[rows], &mut y);
        }
        y
    }
}

/// What one step of a row's integers is worth.
pub(super) fn scale(values: &[f32]) -> f32 {
    // A value that is not finite makes the whole row NaN: integers could not say which it was.
    let largest = |largest: f32, w: &f32| if w.is_finite() { largest.max(w.abs()) } else { f32::NAN };
    let largest = values.iter().try_fold(0.0, |so_far, w| match largest(so_far, w) {
        nan if nan.is_nan() => None,
        largest => Some(largest),
    });
    largest.map_or(f32::NAN, |largest| largest / 127.0)
}

pub(super) fn quantised(w: f32, scale: f32) -> i8 {
    // A row of zeros has scale 0, and 0 / 0 becomes 0. The smallest scales are rounded so much that 127 has to be held.
    (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

/// How the weights of a column become vectors.
trait Columns {
    const BYTES: usize;

    /// The vectors of a column.
    ///
    /// # Safety
    /// As [`Vector`]'s; `GROUP` weights lie at `at`, and `VECTORS` vectors are as long as they.
    unsafe fn load<V: Vector, const VECTORS: usize>(at: *const u8) -> [V; VECTORS];
}

struct F32;
struct Bf16;
struct Int8;

impl Columns for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Vector, const VECTORS: usize>(at: *const u8) -> [V; VECTORS] {
        // SAFETY: the caller's.
        unsafe {
            let mut vectors = [V::splat(0.0); VECTORS];
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = V::load(at.cast::<f32>().add(i * V::LANES));
            }
            vectors
        }
    }
}

impl Columns for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Vector, const VECTORS: usize>(at: *const u8) -> [V; VECTORS] {
        // SAFETY: the caller's.
        unsafe {
            let mut vectors = [V::splat(0.0); VECTORS];
            for i in 0..VECTORS / 2 {
                let words = V::load(at.cast::<f32>().add(i * V::LANES));
                vectors[i] = words.low_half_up();
                vectors[i + VECTORS / 2] = words.and_bits(V::splat_bits(0xFFFF_0000));
            }
            vectors
        }
    }
}

impl Columns for Int8 {
    const BYTES: usize = 1;

    #[inline(always)]
    unsafe fn load<V: Vector, const VECTORS: usize>(at: *const u8) -> [V; VECTORS] {
        // SAFETY: the caller's.
        unsafe {
            let mut vectors = [V::splat(0.0); VECTORS];
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = V::load_i8(at.cast::<i8>().add(i * V::LANES));
            }
            vectors
        }
    }
}

/// Sums of even and of odd columns, which need not wait for each other, and then of both.
#[inline(always)]
unsafe fn sums<V: Vector, C: Columns, const VECTORS: usize>(weights: *const u8, x: &[f32]) -> [V; VECTORS] {
    let column = GROUP * C::BYTES;
    let mut at = weights;
    let pairs = x.chunks_exact(2);
    // SAFETY: there are as many columns as values of `x`; any address may be fetched; the rest is the caller's.
    unsafe {
        let (mut even, mut odd) = ([V::splat(0.0); VECTORS], [V::splat(0.0); VECTORS]);
        let last = pairs.remainder();
        for pair in pairs {
            for line in 0..2 * column / 64 {
                V::prefetch(at.wrapping_add(AHEAD + line * 64).cast());
            }
            let (first, second) = (V::splat(pair[0]), V::splat(pair[1]));
            let columns = C::load::<V, VECTORS>(at);
            for (sum, w) in even.iter_mut().zip(columns) {
                *sum = w.mul_add(first, *sum);
            }
            let columns = C::load::<V, VECTORS>(at.add(column));
            for (sum, w) in odd.iter_mut().zip(columns) {
                *sum = w.mul_add(second, *sum);
            }
            at = at.add(2 * column);
        }
        if let [last] = last {
            let (last, columns) = (V::splat(*last), C::load::<V, VECTORS>(at));
            for (sum, w) in even.iter_mut().zip(columns) {
                *sum = w.mul_add(last, *sum);
            }
        }
        for (sum, other) in even.iter_mut().zip(odd) {
            *sum = sum.add(other);
        }
        even
    }
}

#[inline(always)]
unsafe fn finished<V: Vector, const VECTORS: usize>(
    weights: *const u8,
    format: WeightFormat,
    x: &[f32],
    scales: &[f32],
    bias: &[f32],
    y: &mut [f32; GROUP],
) {
    // SAFETY: the caller's; scales and bias are as long as a group.
    unsafe {
        let mut sums = match format {
            WeightFormat::F32 => sums::<V, F32, VECTORS>(weights, x),
            WeightFormat::Bf16 => sums::<V, Bf16, VECTORS>(weights, x),
            WeightFormat::Int8 => sums::<V, Int8, VECTORS>(weights, x),
        };
        if !scales.is_empty() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = sum.mul(V::load(scales.as_ptr().add(i * V::LANES)));
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            let at = i * V::LANES;
            sum.add(V::load(bias.as_ptr().add(at))).store(y.as_mut_ptr().add(at));
        }
    }
}

#[inline(always)]
unsafe fn product_body<V: Vector>(
    weights: *const u8,
    format: WeightFormat,
    x: &[f32],
    scales: &[f32],
    bias: &[f32],
    y: &mut [f32; GROUP],
) {
    // SAFETY: the caller's; a group is four vectors of eight lanes or two of sixteen.
    unsafe {
        match V::LANES {
            8 => finished::<V, 4>(weights, format, x, scales, bias, y),
            16 => finished::<V, 2>(weights, format, x, scales, bias, y),
            _ => unreachable!("vectors have 8 or 16 lanes"),
        }
    }
}
kernel!(
    /// # Safety
    /// `weights` is one group, of as many columns as `x` has values; `bias` is [`GROUP`] long, `scales` too or empty.
    unsafe fn product(
        weights: *const u8,
        format: WeightFormat,
        x: &[f32],
        scales: &[f32],
        bias: &[f32],
        y: &mut [f32; GROUP],
    ) => product_body
);
