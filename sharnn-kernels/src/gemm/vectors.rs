//! Products by vectors of f32: tiles of some rows and two vectors stay in registers.

use super::{Format, Left, Product, ROW_BLOCK, Start};
use crate::math::round_bf16;
use crate::simd::{Vector, kernel};

/// Terms that are summed in registers before a tile of `C` is written: a panel's block then fills half of a small L1 cache.
const K_BLOCK: usize = 256;

/// Values between the packed panels of a left operand, and between its rows where they are copied. Without a gap their
/// distance would be such that the same few sets of the cache hold the beginnings of all of them.
const GAP: usize = 16;

/// Columns of a left operand that are fetched ahead of the one being packed: each may begin a page of its own, where the
/// processor does not foresee it.
const AHEAD: usize = 8;

/// Values of a packed block, in whichever of the two ways.
pub(super) const SCRATCH: usize = (ROW_BLOCK + 8) * (K_BLOCK + GAP);

/// How tiles find their left operand.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// Where it lies.
    Place,
    /// In a rounded copy of its rows.
    Rows,
    /// In panels of a tile's height.
    Panels,
}

/// Runs `body` with the number of a tile's rows, at most `V::TILE_ROWS`, as a constant.
macro_rules! by_rows {
    ($V:ident, $rows:expr, $R:ident => $body:expr) => {
        by_rows!(@ $V, $rows, $R, $body, 1 2 3 4 5 6 7 8)
    };
    (@ $V:ident, $rows:expr, $R:ident, $body:expr, $($n:literal)*) => {
        match $rows {
            $($n if $n <= $V::TILE_ROWS => {
                const $R: usize = $n;
                $body
            })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use by_rows;

#[inline(always)]
unsafe fn product_body<V: Vector>(product: &Product, scratch: &mut [f32]) {
    let &Product { left, rows, k, format, c, c_row, .. } = product;
    let width = 2 * V::LANES;
    let n_panels = product.cols.panels(width);
    let rounds = format == Format::Rounded && !left.is_copy;
    let source = match (left.col, rounds) {
        (1, false) => Source::Place,
        (1, true) => Source::Rows,
        _ => Source::Panels,
    };
    let row_block = if source == Source::Place { rows.max(1) } else { ROW_BLOCK };
    // SAFETY: the caller's for all pointers; tiles stay inside of rows, cols and k.
    unsafe {
        for row in (0..rows).step_by(row_block) {
            let rows = row_block.min(rows - row);
            let c = c.add(row * c_row);
            for first_term in (0..k).step_by(K_BLOCK) {
                let terms = K_BLOCK.min(k - first_term);
                let left = left.from(row, first_term, format);
                let start = if first_term > 0 { Start::Result } else { product.start };
                let (a, a_row) = match source {
                    Source::Place => (left.at, left.row),
                    Source::Rows => (round_rows::<V>(left, rows, terms, scratch), terms + GAP),
                    Source::Panels => (pack::<V>(left, rows, terms, rounds, scratch), 0),
                };
                for panel in 0..n_panels {
                    let (offset, cols) = product.cols.of_panel(panel, width);
                    let start = start.at_col(offset);
                    let panel = product.panels.add(panel * product.panel_len + format.places(first_term) * width);
                    // The block after this one: weights may lie in a far cache.
                    let block = format.places(terms) * width;
                    let next = panel.wrapping_add(if n_panels > 1 { product.panel_len } else { block });
                    // Tiles as equal as can be: few rows would leave the multipliers waiting for their own results.
                    let n_tiles = rows.div_ceil(V::TILE_ROWS);
                    for tile in 0..n_tiles {
                        let (i, end) = match source {
                            Source::Panels => (tile * V::TILE_ROWS, rows.min((tile + 1) * V::TILE_ROWS)),
                            Source::Place | Source::Rows => (rows * tile / n_tiles, rows * (tile + 1) / n_tiles),
                        };
                        let a = match source {
                            Source::Panels => a.add(tile * panel_stride::<V>(terms)),
                            Source::Place | Source::Rows => a.add(i * a_row),
                        };
                        let ahead = if tile + 1 == n_tiles { next } else { panel };
                        let c = c.add(i * c_row + offset);
                        let tile = Tile { a, a_row, terms, panel, ahead, c, c_row, cols, start };
                        match (source, format) {
                            (Source::Panels, Format::F32) => tile.compute::<V, true, false>(end - i),
                            (Source::Panels, _) => tile.compute::<V, true, true>(end - i),
                            (Source::Place | Source::Rows, Format::F32) => tile.compute::<V, false, false>(end - i),
                            (Source::Place | Source::Rows, _) => tile.compute::<V, false, true>(end - i),
                        }
                    }
                }
            }
        }
    }
}
kernel!(
    /// [`super::product`] in these formats.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn product(product: &Product, scratch: &mut [f32]) => product_body
);

/// Distance of the packed panels of a left operand.
#[inline(always)]
fn panel_stride<V: Vector>(terms: usize) -> usize {
    terms * V::TILE_ROWS + GAP
}

/// A rounded copy of contiguous rows.
#[inline(always)]
unsafe fn round_rows<V: Vector>(left: Left, rows: usize, terms: usize, scratch: &mut [f32]) -> *const f32 {
    let out = scratch[..rows * (terms + GAP)].as_mut_ptr();
    for i in 0..rows {
        for k in (0..terms).step_by(V::LANES) {
            // SAFETY: inside of the left operand, which is the caller's, and of the copy.
            unsafe {
                let x = V::load_up_to(left.at.add(i * left.row + k), terms - k);
                round_bf16(x).store_up_to(out.add(i * (terms + GAP) + k), terms - k);
            }
        }
    }
    out
}

/// Packs rows into panels of a tile's height, `[terms][height]` each.
#[inline(always)]
unsafe fn pack<V: Vector>(left: Left, rows: usize, terms: usize, rounds: bool, scratch: &mut [f32]) -> *const f32 {
    let height = V::TILE_ROWS;
    let stride = panel_stride::<V>(terms);
    let panels = &mut scratch[..rows.div_ceil(height) * stride];
    let (out, len) = (panels.as_mut_ptr(), panels.len());
    // SAFETY: inside of the left operand, which is the caller's, and of the panels.
    unsafe {
        if left.row == 1 {
            // Along the columns, each of which is a contiguous piece: to go along the rows would miss the cache at each.
            for k in 0..terms {
                let column = left.at.add(k * left.col);
                for i in (0..rows).step_by(16) {
                    V::prefetch(column.wrapping_add(AHEAD * left.col + i));
                }
                for i in (0..rows).step_by(height) {
                    let to = out.add(i / height * stride + k * height);
                    if i + height <= rows {
                        std::ptr::copy_nonoverlapping(column.add(i), to, V::TILE_ROWS);
                    } else {
                        std::ptr::copy_nonoverlapping(column.add(i), to, rows - i);
                    }
                }
            }
        } else {
            for i in 0..rows {
                let to = out.add(i / height * stride + i % height);
                for k in 0..terms {
                    *to.add(k * height) = *left.at.add(i * left.row + k * left.col);
                }
            }
        }
        if rounds {
            for i in (0..len).step_by(V::LANES) {
                round_bf16(V::load_up_to(out.add(i), len - i)).store_up_to(out.add(i), len - i);
            }
        }
    }
    out
}

struct Tile {
    a: *const f32,
    a_row: usize,
    terms: usize,
    panel: *const f32,
    /// What will be read next, or the panel itself.
    ahead: *const f32,
    c: *mut f32,
    c_row: usize,
    cols: usize,
    start: Start,
}

impl Tile {
    /// `PACKED`: the left operand lies in a panel of a tile's height; otherwise its rows are contiguous. `PAIRS`: the panel holds
    /// pairs of bfloat16.
    #[inline(always)]
    unsafe fn compute<V: Vector, const PACKED: bool, const PAIRS: bool>(self, rows: usize) {
        // SAFETY: the caller's.
        by_rows!(V, rows, R => unsafe { self.rows::<V, PACKED, PAIRS, R>() });
    }

    #[inline(always)]
    unsafe fn rows<V: Vector, const PACKED: bool, const PAIRS: bool, const R: usize>(&self) {
        // SAFETY: the caller's: `terms` columns of `R` rows of `a`, `terms` rows of the panel, `cols` columns of `c`.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; R];
            let rows: [*const f32; R] = std::array::from_fn(|r| self.a.add(if PACKED { r } else { r * self.a_row }));
            let step = if PACKED { V::TILE_ROWS } else { 1 };
            let mut k = 0;
            // Four terms a turn, at constant distances from one running index.
            while k + 4 <= self.terms {
                if PAIRS {
                    self.pair(&mut sums, &rows, k, k * step, step);
                    self.pair(&mut sums, &rows, k + 2, (k + 2) * step, step);
                } else {
                    for unrolled in 0..4 {
                        self.term(&mut sums, &rows, k + unrolled, (k + unrolled) * step);
                    }
                }
                k += 4;
            }
            while k < self.terms {
                if !PAIRS {
                    self.term(&mut sums, &rows, k, k * step);
                    k += 1;
                } else if k + 2 <= self.terms {
                    self.pair(&mut sums, &rows, k, k * step, step);
                    k += 2;
                } else {
                    let panel = self.panel.add(k * V::LANES);
                    let (pair0, pair1) = (V::load(panel), V::load(panel.add(V::LANES)));
                    add_term(&mut sums, &rows, k * step, pair0.low_half_up(), pair1.low_half_up());
                    k += 1;
                }
            }
            write_tile(&sums, self.c, self.c_row, self.cols, self.start);
        }
    }

    /// One term, `k`, of which the left operand's values are at `at`.
    #[inline(always)]
    unsafe fn term<V: Vector, const R: usize>(
        &self,
        sums: &mut [[V; 2]; R],
        rows: &[*const f32; R],
        k: usize,
        at: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let panel = self.panel.add(k * 2 * V::LANES);
            V::prefetch(self.ahead.wrapping_add(k * 2 * V::LANES));
            add_term(sums, rows, at, V::load(panel), V::load(panel.add(V::LANES)));
        }
    }

    /// Two terms, `k` and the one after it, which is `step` further in the left operand.
    #[inline(always)]
    unsafe fn pair<V: Vector, const R: usize>(
        &self,
        sums: &mut [[V; 2]; R],
        rows: &[*const f32; R],
        k: usize,
        at: usize,
        step: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let panel = self.panel.add(k * V::LANES);
            V::prefetch(self.ahead.wrapping_add(k * V::LANES));
            let (pair0, pair1) = (V::load(panel), V::load(panel.add(V::LANES)));
            add_term(sums, rows, at, pair0.low_half_up(), pair1.low_half_up());
            // Read twice: to be kept meanwhile, the pairs would push sums out of their registers.
            let panel = seen_anew(panel);
            let (pair0, pair1) = (V::load(panel), V::load(panel.add(V::LANES)));
            let high = V::splat_bits(0xffff_0000);
            add_term(sums, rows, at + step, pair0.and_bits(high), pair1.and_bits(high));
        }
    }
}

/// The same address, of which the compiler does not know that it is.
#[inline(always)]
fn seen_anew(at: *const f32) -> *const f32 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut at = at;
        // SAFETY: no instruction at all.
        #[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through it")]
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) at, options(pure, nomem, nostack, preserves_flags))
        };
        at
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    at
}

/// Adds the products of a value of each row, at `at`, with a row of the panel.
#[inline(always)]
pub(super) unsafe fn add_term<V: Vector, const R: usize>(
    sums: &mut [[V; 2]; R],
    rows: &[*const f32; R],
    at: usize,
    b0: V,
    b1: V,
) {
    for ([sum0, sum1], row) in sums.iter_mut().zip(rows) {
        // SAFETY: the caller's.
        unsafe {
            let x = V::splat(*row.add(at));
            *sum0 = x.mul_add(b0, *sum0);
            *sum1 = x.mul_add(b1, *sum1);
        }
    }
}

/// Writes the sums of a tile, added to `start`, to the first `cols` columns at `c`, of which rows are `c_row` apart.
#[inline(always)]
pub(super) unsafe fn write_tile<V: Vector, const R: usize>(
    sums: &[[V; 2]; R],
    c: *mut f32,
    c_row: usize,
    cols: usize,
    start: Start,
) {
    for (r, sums) in sums.iter().enumerate() {
        for (half, &sum) in sums.iter().enumerate() {
            let from = half * V::LANES;
            if cols > from {
                let n = cols - from;
                // SAFETY: the caller's.
                unsafe {
                    let c = c.add(r * c_row + from);
                    let sum = match start {
                        Start::Zero => sum,
                        Start::Result => sum.add(V::load_up_to(c, n)),
                        Start::Row(row) => sum.add(V::load_up_to(row.add(from), n)),
                    };
                    sum.store_up_to(c, n);
                }
            }
        }
    }
}
