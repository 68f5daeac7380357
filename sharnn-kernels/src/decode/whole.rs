//! Products of whole numbers: weights of 8 bits, activations of 16, sums of 32, which no order changes.
//!
//! ```text
//! Q = min(32767, ⌊(2³¹ - 1) / (127 k)⌋)             k the terms of a sum, which so cannot leave 32 bits
//! s = max |x| / Q;   q = round(x (Q / max |x|))      to nearest, ties to even; s = 0 and q = 0 where max |x| < 2⁻¹⁰⁰
//! W x = (f32(Σ w q) scale) s                         scale: what one of the row's weights is worth
//! ```

#[cfg(target_arch = "aarch64")]
mod dot;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod squares;
#[cfg(target_arch = "wasm32")]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::packed::{AHEAD, GROUP};
use crate::Isa;
use crate::isa::Integers;
use crate::simd::{self, Vector, kernel};

/// Values below which all of a vector are taken for zeros: `Q / max |x|` would be infinite soon after.
const TINY: f32 = f32::from_bits((127 - 100) << 23);

/// Values that are written at once, beyond the last one of a vector too.
pub(super) const SLACK: usize = 16;

/// The largest activation as a whole number, where a sum has `terms`.
fn largest(terms: usize) -> f32 {
    (i32::MAX as usize / (127 * terms.max(1))).min(i16::MAX as usize) as f32
}

/// Places that `terms` whole numbers take at most, whatever multiplies them.
pub(super) fn room(terms: usize) -> usize {
    terms.next_multiple_of(8)
}

/// How weights and activations lie depends on what multiplies them.
impl Integers {
    /// Columns whose weights lie side by side, row after row: those that are multiplied at once.
    fn columns(self) -> usize {
        match self {
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => <dot::Dot as Sums>::COLUMNS,
            #[cfg(target_arch = "aarch64")]
            Self::NeonSquares => <squares::Squares as Sums>::COLUMNS,
            _ => 2,
        }
    }

    /// Where the weight of a row and a column lies in a part of a group.
    pub(super) fn place(self, row: usize, col: usize) -> usize {
        let columns = self.columns();
        (col / columns * GROUP + row) * columns + col % columns
    }

    /// Places that `terms` whole numbers take: pairs, or eights where they are split into digits.
    pub(super) fn padded(self, terms: usize) -> usize {
        if self.columns() == 2 { terms.next_multiple_of(2) } else { room(terms) }
    }

    /// Makes of rounded activations what is multiplied: pairs as they are, or of each eight their digits, which `dot` explains.
    fn prepare(self, values: &mut [i16]) {
        if self.columns() > 2 {
            values.as_chunks_mut().0.iter_mut().for_each(|eight| *eight = digits(*eight));
        }
    }
}

/// The upper digits of eight values, then the lower ones.
fn digits(values: [i16; 8]) -> [i16; 8] {
    let mut digits = [0; 16];
    for (i, value) in values.into_iter().enumerate() {
        let [lower, upper] = value.to_le_bytes();
        // To flip the highest bit of a byte is to subtract 128, as what is left has a sign.
        (digits[i], digits[8 + i]) = (upper, lower ^ 0x80);
    }
    std::array::from_fn(|i| i16::from_le_bytes([digits[2 * i], digits[2 * i + 1]]))
}

/// An activation as whole numbers, in parts of one length that have a scale each.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a> {
    /// `[parts, padded(terms)]`, [prepared](Integers::prepare)
    pub(super) values: &'a [i16],
    /// `[parts]`
    pub(super) scales: &'a [f32],
}

/// Rounds the parts of `x` to whole numbers.
///
/// # Panics
/// If there is no room for them, and [`SLACK`] after them.
pub(super) fn round<'a>(x: &[f32], values: &'a mut [i16], scales: &'a mut [f32]) -> Whole<'a> {
    let terms = x.len() / scales.len();
    let integers = Isa::current().integers();
    let places = integers.padded(terms);
    assert!(values.len() >= scales.len() * places + SLACK, "no room for {} whole numbers", x.len());
    for (part, scale) in scales.iter_mut().enumerate() {
        // SAFETY: there is room for whole vectors from each part on; the next part is written after what hangs over.
        *scale = unsafe { round_part(&x[part * terms..][..terms], largest(terms), &mut values[part * places..]) };
        integers.prepare(&mut values[part * places..][..places]);
    }
    Whole { values, scales }
}

#[inline(always)]
unsafe fn round_part_body<V: Vector>(x: &[f32], limit: f32, to: &mut [i16]) -> f32 {
    let vectors = || (0..x.len()).step_by(V::LANES);
    // SAFETY: `left` values are left at `i`, and `to` has room for a whole vector there.
    unsafe {
        let magnitude = V::splat_bits(0x7FFF_FFFF);
        let (mut largest, mut nan) = (V::splat(0.0), V::splat(0.0));
        for i in vectors() {
            let x = V::load_up_to(x.as_ptr().add(i), x.len() - i);
            largest = x.and_bits(magnitude).max(largest);
            // Anything but a finite number makes it NaN.
            nan = x.mul(V::splat(0.0)).add(nan);
        }
        let (largest, nan) = (largest.largest(), nan.sum());
        let inverse = if largest < TINY || nan.is_nan() { 0.0 } else { limit / largest };
        for i in vectors() {
            let x = V::load_up_to(x.as_ptr().add(i), x.len() - i);
            // Of what is no number nothing is kept but that in the scale.
            let whole = if nan.is_nan() { V::splat(0.0) } else { x.mul(V::splat(inverse)).round() };
            whole.store_i16(to.as_mut_ptr().add(i));
        }
        match inverse {
            _ if nan.is_nan() => f32::NAN,
            0.0 => 0.0,
            _ => largest / limit,
        }
    }
}
kernel!(
    /// # Safety
    /// `to` has room for the values of `x`, and [`SLACK`] more.
    unsafe fn round_part(x: &[f32], limit: f32, to: &mut [i16]) -> f32 => round_part_body
);

/// How many activations, and how many vectors of rows of each, are summed at the same time: as many as there are registers for.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "each target has some of them")]
enum Together {
    EightByTwo,
    FourByTwo,
    FourByOne,
    TwoByTwo,
}

/// Sums of products, one a row.
trait Sums: Copy {
    /// As many f32.
    type Floats: Vector;
    /// Rows.
    const ROWS: usize = Self::Floats::LANES;
    /// Columns that lie side by side.
    const COLUMNS: usize;
    const TOGETHER: Together;

    unsafe fn zeros() -> Self;
    /// Adds the products of some pairs of columns with as many pairs of each activation.
    unsafe fn add_part<const VECTORS: usize, const S: usize>(
        sums: &mut [[Self; VECTORS]; S],
        weights: *const i8,
        values: [*const i16; S],
        pairs: usize,
    );
    /// The sums as f32. `of_weights` are the sums of each row's weights.
    unsafe fn floats(self, of_weights: *const i32) -> Self::Floats;
}

/// Sums of products of pairs of 16 bits, one a row.
trait Pairs: Copy {
    /// As many f32.
    type Floats: Vector;
    const TOGETHER: Together;

    unsafe fn zeros() -> Self;
    /// Two weights of each row.
    unsafe fn weights(from: *const i8) -> Self;
    /// The same two values for each row.
    unsafe fn values(from: *const i16) -> Self;
    /// Sums with the products of pairs added.
    unsafe fn add_products(self, weights: Self, values: Self) -> Self;
    /// The sums as f32.
    unsafe fn floats(self) -> Self::Floats;
    unsafe fn prefetch(at: *const i8);
}

impl<P: Pairs> Sums for P {
    type Floats = P::Floats;
    const COLUMNS: usize = 2;
    const TOGETHER: Together = <P as Pairs>::TOGETHER;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        // SAFETY: the caller's.
        unsafe { <P as Pairs>::zeros() }
    }
    /// Loops are written out: what a closure holds is not compiled for the instructions.
    #[inline(always)]
    unsafe fn add_part<const VECTORS: usize, const S: usize>(
        sums: &mut [[Self; VECTORS]; S],
        mut weights: *const i8,
        values: [*const i16; S],
        pairs: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            for pair in 0..pairs {
                P::prefetch(weights.wrapping_add(AHEAD));
                let mut x = [<P as Pairs>::zeros(); S];
                for (x, values) in x.iter_mut().zip(values) {
                    *x = P::values(values.add(2 * pair));
                }
                for v in 0..VECTORS {
                    let weights = P::weights(weights.add(v * Self::ROWS * 2));
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[v] = sums[v].add_products(weights, x);
                    }
                }
                weights = weights.add(2 * GROUP);
            }
        }
    }
    #[inline(always)]
    unsafe fn floats(self, _of_weights: *const i32) -> Self::Floats {
        // SAFETY: the caller's.
        unsafe { <P as Pairs>::floats(self) }
    }
}

/// Pairs of 16 bits, and sums, in plain Rust.
#[derive(Clone, Copy)]
struct Portable([i32; 8]);

#[allow(clippy::undocumented_unsafe_blocks, reason = "the callers': pointers are valid for as many values")]
impl Pairs for Portable {
    type Floats = simd::Portable;
    const TOGETHER: Together = Together::FourByTwo;

    #[inline(always)]
    unsafe fn zeros() -> Self {
        Self([0; 8])
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> Self {
        Self(std::array::from_fn(|i| unsafe { pair(i16::from(*from.add(2 * i)), i16::from(*from.add(2 * i + 1))) }))
    }
    #[inline(always)]
    unsafe fn values(from: *const i16) -> Self {
        Self([unsafe { pair(*from, *from.add(1)) }; 8])
    }
    #[inline(always)]
    unsafe fn add_products(self, weights: Self, values: Self) -> Self {
        let mut sums = self.0;
        for ((sum, w), x) in sums.iter_mut().zip(weights.0).zip(values.0) {
            *sum += i32::from(w as i16) * i32::from(x as i16) + (w >> 16) * (x >> 16);
        }
        Self(sums)
    }
    // Where this is compiled with the loop before it, the loop keeps its sums in single registers.
    #[inline(never)]
    unsafe fn floats(self) -> Self::Floats {
        simd::Portable(self.0.map(|sum| sum as f32))
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const i8) {}
}

/// Two values of 16 bits in one of 32, the first one low.
#[inline(always)]
fn pair(first: i16, second: i16) -> i32 {
    i32::from(second) << 16 | i32::from(first.cast_unsigned())
}

/// A group of rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// What multiplies them.
    pub(super) integers: Integers,
    /// `[parts, padded(terms) / columns, GROUP, columns]`
    pub(super) weights: *const i8,
    /// Pairs of a part.
    pub(super) pairs: usize,
    /// What a weight of each part and row is worth: `GROUP` from `part * scale_stride` on.
    pub(super) scales: *const f32,
    pub(super) scale_stride: usize,
    /// The sums of the weights of each part and row, as the scales lie.
    pub(super) weight_sums: *const i32,
    pub(super) parts: usize,
    pub(super) bias: &'a [f32],
}

/// Products of rows of a group, from the vector `first` on, with `S` activations.
#[inline(always)]
unsafe fn several<T: Sums, const VECTORS: usize, const S: usize>(
    rows: Rows,
    first: usize,
    x: &[Whole],
    y: &mut [[f32; GROUP]],
) {
    // SAFETY: the caller's.
    unsafe {
        let row = first * T::ROWS;
        for part in 0..rows.parts {
            let mut sums = [[T::zeros(); VECTORS]; S];
            let mut values = [std::ptr::null(); S];
            for (values, x) in values.iter_mut().zip(x) {
                *values = x.values.as_ptr().add(part * 2 * rows.pairs);
            }
            let weights = rows.weights.add(part * rows.pairs * 2 * GROUP + T::COLUMNS * row);
            T::add_part(&mut sums, weights, values, rows.pairs);
            let of_part = part * rows.scale_stride + row;
            for ((sums, x), y) in sums.into_iter().zip(x).zip(y.iter_mut()) {
                let own = T::Floats::splat(x.scales[part]);
                for (v, sums) in sums.into_iter().enumerate() {
                    let (of_part, row) = (of_part + v * T::ROWS, row + v * T::ROWS);
                    let scales = T::Floats::load(rows.scales.add(of_part));
                    let mut product = sums.floats(rows.weight_sums.add(of_part)).mul(scales).mul(own);
                    let y = y[row..row + T::ROWS].as_mut_ptr();
                    if part > 0 {
                        product = T::Floats::load(y).add(product);
                    }
                    if part + 1 == rows.parts {
                        product = product.add(T::Floats::load(rows.bias[row..row + T::ROWS].as_ptr()));
                    }
                    product.store(y);
                }
            }
        }
    }
}

/// As many activations at once as there are registers for.
#[inline(always)]
unsafe fn products_body<T: Sums>(rows: Rows, mut x: &[Whole], mut y: &mut [[f32; GROUP]]) {
    macro_rules! while_there_are {
        ($n:literal, $vectors:literal from $($first:literal),*) => {
            while x.len() >= $n {
                // SAFETY: the caller's.
                unsafe { $(several::<T, $vectors, $n>(rows, $first, x, y);)* }
                x = &x[$n..];
                y = &mut std::mem::take(&mut y)[$n..];
            }
        };
    }
    match T::TOGETHER {
        Together::FourByTwo => {
            while_there_are!(4, 2 from 0, 2);
            while_there_are!(1, 4 from 0);
        }
        Together::TwoByTwo => {
            while_there_are!(2, 2 from 0, 2);
            while_there_are!(1, 4 from 0);
        }
        Together::FourByOne => {
            while_there_are!(4, 1 from 0, 1, 2, 3);
            while_there_are!(2, 2 from 0, 2);
            while_there_are!(1, 4 from 0);
        }
        Together::EightByTwo => {
            while_there_are!(8, 2 from 0);
            while_there_are!(4, 2 from 0);
            while_there_are!(1, 2 from 0);
        }
    }
}

/// `W x + b` of one group of rows, for some activations.
///
/// # Safety
/// The group and all activations are as long as it says, and `y` has as many groups as there are activations.
pub(super) unsafe fn products(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
        // SAFETY: the caller's.
        unsafe { products_body::<x86::Avx2<false>>(rows, x, y) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn avx_vnni(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
        // SAFETY: the caller's.
        unsafe { products_body::<x86::Avx2<true>>(rows, x, y) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2")]
    unsafe fn avx512(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
        // SAFETY: the caller's.
        unsafe { products_body::<x86::Avx512>(rows, x, y) }
    }
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn neon(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
        // SAFETY: the caller's.
        unsafe { products_body::<neon::Neon>(rows, x, y) }
    }
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dot(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
        // SAFETY: the caller's.
        unsafe { products_body::<dot::Dot>(rows, x, y) }
    }
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,i8mm")]
    unsafe fn squares(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
        // SAFETY: the caller's.
        unsafe { products_body::<squares::Squares>(rows, x, y) }
    }
    #[cfg(target_arch = "wasm32")]
    #[target_feature(enable = "simd128")]
    unsafe fn simd128(rows: Rows, x: &[Whole], y: &mut [[f32; GROUP]]) {
        // SAFETY: the caller's.
        unsafe { products_body::<wasm::Simd128>(rows, x, y) }
    }
    // SAFETY: the instructions were detected; the rest is the caller's.
    unsafe {
        match rows.integers {
            #[cfg(target_arch = "x86_64")]
            Integers::Avx2 => avx2(rows, x, y),
            #[cfg(target_arch = "x86_64")]
            Integers::AvxVnni => avx_vnni(rows, x, y),
            #[cfg(target_arch = "x86_64")]
            Integers::Avx512 => avx512(rows, x, y),
            #[cfg(target_arch = "aarch64")]
            Integers::Neon => neon(rows, x, y),
            #[cfg(target_arch = "aarch64")]
            Integers::NeonDot => dot(rows, x, y),
            #[cfg(target_arch = "aarch64")]
            Integers::NeonSquares => squares(rows, x, y),
            #[cfg(target_arch = "wasm32")]
            Integers::Simd128 => simd128(rows, x, y),
            _ => products_body::<Portable>(rows, x, y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, skip};

    /// Some whole numbers up to `largest`, of which every fifth is one of the largest.
    fn numbers(n: usize, seed: u64, largest: f32) -> Vec<i16> {
        let number = |(i, x): (usize, &f32)| match i % 5 {
            0 => largest.copysign(*x) as i16,
            _ => (x * largest) as i16,
        };
        random(n, seed).iter().enumerate().map(number).collect()
    }

    /// What multiplies whole numbers on this CPU, and what it has of the same kind.
    fn all_integers() -> Vec<Integers> {
        match Isa::current().integers() {
            #[cfg(target_arch = "x86_64")]
            integers @ Integers::AvxVnni => vec![Integers::Avx2, integers],
            #[cfg(target_arch = "aarch64")]
            integers @ Integers::NeonDot => vec![Integers::Neon, integers],
            #[cfg(target_arch = "aarch64")]
            integers @ Integers::NeonSquares => vec![Integers::Neon, Integers::NeonDot, integers],
            integers => vec![integers],
        }
    }

    #[test]
    fn sums_are_those_of_plain_rust() {
        for pairs in [1, 2, 3, 7, 8, 9, 14, 15, 16, 23, 64, 258] {
            for (parts, n) in [(1, 1), (1, 8), (2, 3), (2, 7)] {
                let (terms, seed) = (2 * pairs, (pairs * 10 + n) as u64);
                if skip(parts * terms * GROUP * n) {
                    continue;
                }
                // -128 is no weight, but there would be room for it.
                let weights = numbers(parts * GROUP * terms, seed, 127.0);
                let weights: Vec<_> = weights.into_iter().map(|w| if w == -127 { i8::MIN } else { w as i8 }).collect();
                let weight_sums: Vec<_> =
                    weights.chunks(terms).map(|row| row.iter().map(|&w| i32::from(w)).sum()).collect();
                let (scales, bias) = (random(parts * GROUP, 1), random(GROUP, 2));
                let of_parts = random(parts, 3);
                // The largest that there are, and those of which f32 holds all sums to the last unit.
                for largest in [largest(terms), (f32::from(u16::MAX) / terms as f32).min(largest(terms))] {
                    let values: Vec<_> = (0..n).map(|i| numbers(parts * terms, i as u64, largest)).collect();
                    let products = |integers: Integers| {
                        let places = integers.padded(terms);
                        let mut packed = vec![0; parts * places * GROUP];
                        for (i, &w) in weights.iter().enumerate() {
                            let (row, col) = (i / terms, i % terms);
                            packed[row / GROUP * places * GROUP + integers.place(row % GROUP, col)] = w;
                        }
                        let prepared = |values: &Vec<i16>| {
                            // What lies behind the last one is anything.
                            let mut prepared = vec![i16::MAX; parts * places];
                            for (to, values) in prepared.chunks_mut(places).zip(values.chunks(terms)) {
                                to[..terms].copy_from_slice(values);
                                integers.prepare(to);
                            }
                            prepared
                        };
                        let values: Vec<_> = values.iter().map(prepared).collect();
                        let rows = Rows {
                            integers,
                            weights: packed.as_ptr(),
                            pairs: places / 2,
                            scales: scales.as_ptr(),
                            scale_stride: GROUP,
                            weight_sums: weight_sums.as_ptr(),
                            parts,
                            bias: &bias,
                        };
                        let x: Vec<_> = values.iter().map(|values| Whole { values, scales: &of_parts }).collect();
                        let mut y = vec![[f32::NAN; GROUP]; n];
                        // SAFETY: all is as long as `rows` says.
                        unsafe { super::products(rows, &x, &mut y) };
                        y
                    };
                    let want = products(Integers::Portable);
                    for integers in all_integers() {
                        let what = format!("{pairs} pairs in {parts} parts, {n} activations up to {largest}");
                        assert_eq!(products(integers), want, "{integers:?}: {what}");
                    }
                }
            }
        }
    }
}
