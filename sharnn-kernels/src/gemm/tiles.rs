//! Products of bfloat16 on matrix tiles.
//!
//! What a tile can do is a [`TileUnit`]: the plain one here, which every CPU has, and those of instructions beside it. Two by
//! two tiles of sums stay in the unit while all terms of a block are added to them.

use super::left::{high_half, lines};
use super::{Format, Left, Product, ROW_BLOCK, Start};
use crate::Isa;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::isa::Bf16Unit;
use crate::math::round_bf16;
use crate::simd::{Vector, kernel};

/// Rows and columns of a tile of sums.
pub(super) const TILE: usize = 16;

/// Terms of a tile of the left operand: pairs of them are [`TILE`] rows of one of the right operand.
const TERMS: usize = 32;

/// Terms of a block: of the left operand, as many as are packed at once; of a panel, what the first cache holds.
const K_BLOCK: usize = 512;

/// Values of a packed block, two of which take the place of one f32.
pub(super) const SCRATCH: usize = ROW_BLOCK * K_BLOCK / 2;

/// Eight tiles of 16 rows of 64 bytes, and what multiplies them.
///
/// # Safety
/// Methods may be called only where the CPU has the instructions, and pointers must be valid for 16 rows of 64 bytes, so many
/// bytes apart.
pub(super) trait TileUnit {
    /// Ready for work on this thread, until it is dropped.
    unsafe fn new() -> Self;
    /// Zeros.
    unsafe fn zero<const T: usize>(&mut self);
    /// Reads now, or until the next load of this tile: what is read stays as it is meanwhile.
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize);
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize);
    /// Adds the product of two tiles of bfloat16 to one of f32: `C[i][j] += Σ A[i][2 p] B[p][2 j] + A[i][2 p + 1] B[p][2 j + 1]`.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// The tiles in plain Rust: the reference, for every CPU and for Miri.
struct Software([[[u32; TILE]; TILE]; 8]);

#[allow(clippy::undocumented_unsafe_blocks, reason = "pointers are valid by the trait's contract")]
impl TileUnit for Software {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self([[[0; TILE]; TILE]; 8])
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>(&mut self) {
        self.0[T] = [[0; TILE]; TILE];
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        for (i, row) in self.0[T].iter_mut().enumerate() {
            *row = unsafe { from.add(i * stride).cast::<[u32; TILE]>().read_unaligned() };
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        for (i, row) in self.0[T].iter().enumerate() {
            unsafe { to.add(i * stride).cast::<[u32; TILE]>().write_unaligned(*row) };
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let [low, high] = [|x: u32| f32::from_bits(x << 16), |x: u32| f32::from_bits(x & 0xFFFF_0000)];
        for i in 0..TILE {
            let mut sums = self.0[C][i].map(f32::from_bits);
            for (p, &a) in self.0[A][i].iter().enumerate() {
                for (sum, &b) in sums.iter_mut().zip(&self.0[B][p]) {
                    *sum += low(a) * low(b);
                    *sum += high(a) * high(b);
                }
            }
            self.0[C][i] = sums.map(f32::to_bits);
        }
    }
}

#[inline(always)]
unsafe fn software_body<V: Vector>(product: &Product, scratch: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { on_tiles::<V, Software>(product, scratch) }
}
kernel!(unsafe fn software(product: &Product, scratch: &mut [f32]) => software_body);

/// [`super::product`] in pairs.
///
/// # Safety
/// As there.
pub(super) unsafe fn product(product: &Product, scratch: &mut [f32]) {
    // SAFETY: the caller's; the unit is there.
    unsafe {
        match Isa::current().bf16_unit() {
            #[cfg(target_arch = "x86_64")]
            Bf16Unit::Avx512 => super::x86::product_by_pairs(product, scratch),
            #[cfg(target_arch = "x86_64")]
            Bf16Unit::Amx => super::x86::product_by_amx(product, scratch),
            #[cfg(target_arch = "aarch64")]
            Bf16Unit::Neon => super::neon::product_by_squares(product, scratch),
            _ => software(product, scratch),
        }
    }
}

/// The product on one unit.
#[inline(always)]
pub(super) unsafe fn on_tiles<V: Vector, U: TileUnit>(product: &Product, scratch: &mut [f32]) {
    let &Product { left, rows, k, panels, panel_len, cols, c, c_row, .. } = product;
    let width = 2 * TILE;
    let row_block = if left.is_copy { rows.max(1) } else { ROW_BLOCK };
    // SAFETY: the caller's for all pointers; blocks stay inside of rows, cols and k.
    unsafe {
        let mut unit = U::new();
        for row in (0..rows).step_by(row_block) {
            let rows = row_block.min(rows - row);
            for first_term in (0..k).step_by(K_BLOCK) {
                let terms = K_BLOCK.min(k - first_term);
                let left = left.from(row, first_term, Format::Pairs);
                let (a, a_row) = match left.is_copy {
                    true => (left.at.cast::<u16>(), left.row),
                    false => pack::<V>(left, rows, terms, scratch),
                };
                let start = if first_term > 0 { Start::Result } else { product.start };
                for panel in 0..cols.panels(width) {
                    let (offset, cols) = cols.of_panel(panel, width);
                    for i in (0..rows).step_by(2 * TILE) {
                        Block {
                            a: a.add(i * a_row).cast(),
                            a_stride: 2 * a_row,
                            panel: panels.add(panel * panel_len + first_term / 2 * width),
                            terms,
                            c: c.add((row + i) * c_row + offset),
                            c_row,
                            rows: (2 * TILE).min(rows - i),
                            cols,
                            start: start.at_col(offset),
                        }
                        .compute(&mut unit);
                    }
                }
            }
        }
    }
}

/// Two by two tiles of the result, or fewer at its edges.
struct Block {
    a: *const u8,
    /// In bytes.
    a_stride: usize,
    panel: *const f32,
    terms: usize,
    c: *mut f32,
    c_row: usize,
    rows: usize,
    cols: usize,
    start: Start,
}

/// A block of a result whose edge is no tile's, beside which there may be nothing to read or write.
type Margin = [[f32; 2 * TILE]; 2 * TILE];

impl Block {
    #[inline(always)]
    unsafe fn compute<U: TileUnit>(&self, unit: &mut U) {
        let &Self { rows, cols, c, c_row, start, .. } = self;
        // SAFETY: the caller's.
        unsafe {
            if rows.is_multiple_of(TILE) && cols.is_multiple_of(TILE) {
                return self.on(unit, start, c, c_row);
            }
            let mut margin: Margin = [[0.0; 2 * TILE]; 2 * TILE];
            for (i, line) in margin.iter_mut().enumerate().take(rows) {
                let from = match start {
                    Start::Zero => break,
                    Start::Result => c.add(i * c_row).cast_const(),
                    Start::Row(row) => row,
                };
                std::ptr::copy_nonoverlapping(from, line.as_mut_ptr(), cols);
            }
            self.on(unit, Start::Result, margin.as_mut_ptr().cast(), 2 * TILE);
            for (i, line) in margin.iter().enumerate().take(rows) {
                std::ptr::copy_nonoverlapping(line.as_ptr(), c.add(i * c_row), cols);
            }
        }
    }

    /// Whole tiles of the result at `c`.
    #[inline(always)]
    unsafe fn on<U: TileUnit>(&self, unit: &mut U, start: Start, c: *mut f32, c_row: usize) {
        let (second_row, second_col) = (self.rows > TILE, self.cols > TILE);
        let c_stride = 4 * c_row;
        // SAFETY: the caller's: tiles 0 to 3 are sums, 4 and 5 of the left operand, 6 and 7 of the right one.
        unsafe {
            let below = c.wrapping_add(TILE * c_row);
            match start {
                Start::Zero => {
                    unit.zero::<0>();
                    unit.zero::<1>();
                    unit.zero::<2>();
                    unit.zero::<3>();
                }
                Start::Result | Start::Row(_) => {
                    let (first, second, stride) = match start {
                        // The same row again and again.
                        Start::Row(row) => (row, row, 0),
                        _ => (c.cast_const(), below.cast_const(), c_stride),
                    };
                    unit.load::<0>(first.cast(), stride);
                    if second_col {
                        unit.load::<1>(first.add(TILE).cast(), stride);
                    }
                    if second_row {
                        unit.load::<2>(second.cast(), stride);
                    }
                    if second_row && second_col {
                        unit.load::<3>(second.add(TILE).cast(), stride);
                    }
                }
            }
            let places = self.terms.div_ceil(2);
            for place in (0..places).step_by(TILE) {
                let a = self.a.add(4 * place);
                let panel = self.panel.add(place * 2 * TILE);
                let end: [[f32; 2 * TILE]; TILE];
                let b: *const u8 = match places - place {
                    n if n < TILE => {
                        // Who knows what lies behind the last pair of a panel. The left operand is padded with zeros.
                        let mut part = [[0.0; 2 * TILE]; TILE];
                        std::ptr::copy_nonoverlapping(panel, part.as_mut_ptr().cast(), n * 2 * TILE);
                        end = part;
                        end.as_ptr().cast()
                    }
                    _ => panel.cast(),
                };
                const B_STRIDE: usize = 4 * 2 * TILE;
                unit.load::<4>(a, self.a_stride);
                unit.load::<6>(b, B_STRIDE);
                unit.dot::<0, 4, 6>();
                if second_col {
                    unit.load::<7>(b.add(4 * TILE), B_STRIDE);
                    unit.dot::<1, 4, 7>();
                }
                if second_row {
                    unit.load::<5>(a.add(TILE * self.a_stride), self.a_stride);
                    unit.dot::<2, 5, 6>();
                }
                if second_row && second_col {
                    unit.dot::<3, 5, 7>();
                }
            }
            unit.store::<0>(c.cast(), c_stride);
            if second_col {
                unit.store::<1>(c.add(TILE).cast(), c_stride);
            }
            if second_row {
                unit.store::<2>(below.cast(), c_stride);
            }
            if second_row && second_col {
                unit.store::<3>(below.add(TILE).cast(), c_stride);
            }
        }
    }
}

/// Rounds rows into rows of bfloat16, padded with zeros to whole tiles of terms. Where they begin, and their distance.
#[inline(always)]
unsafe fn pack<V: Vector>(left: Left, rows: usize, terms: usize, scratch: &mut [f32]) -> (*const u16, usize) {
    let stride = terms.next_multiple_of(TERMS);
    let out = scratch[..rows.next_multiple_of(TILE) * stride / 2].as_mut_ptr().cast::<u16>();
    // SAFETY: inside of the left operand, which is the caller's, and of the rows.
    unsafe {
        if left.col == 1 {
            for i in 0..rows {
                let (from, to) = (left.at.add(i * left.row), out.add(i * stride));
                for k in (0..terms).step_by(V::LANES) {
                    // Behind the last term are zeros, as far as a vector reaches.
                    let mut values = [0.0; 16];
                    round_bf16(V::load_up_to(from.add(k), terms - k)).store(values.as_mut_ptr());
                    (0..V::LANES).for_each(|e| *to.add(k + e) = high_half(values[e]));
                }
            }
        } else if left.row == 1 {
            // Squares of eight terms, each a contiguous column, and a vector's width of rows.
            for k in (0..terms).step_by(8) {
                for i in (0..rows).step_by(V::LANES) {
                    let from = left.at.add(k * left.col + i);
                    let lines = lines::<V, true>(from, left.col, terms - k, rows - i);
                    for (e, line) in lines.iter().enumerate().take(V::LANES.min(rows - i)) {
                        out.add((i + e) * stride + k).cast::<[u16; 8]>().write_unaligned(line.map(high_half));
                    }
                }
            }
        } else {
            for i in 0..rows {
                for k in 0..terms {
                    let x = super::round_bf16(*left.at.add(i * left.row + k * left.col));
                    *out.add(i * stride + k) = high_half(x);
                }
            }
        }
        for i in 0..rows {
            (terms..stride).for_each(|k| *out.add(i * stride + k) = 0);
        }
    }
    (out, stride)
}
