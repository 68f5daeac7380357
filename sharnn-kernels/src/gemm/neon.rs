//! Tiles of bfloat16 by the matrix products of 64-bit ARM.

// SAFETY of the unsafe blocks below: the instructions are there and pointers valid by the trait's contract: those of operands until
// they have been multiplied.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
#![allow(unused_unsafe, reason = "which intrinsics are safe differs between compilers")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::Product;
use super::tiles::{TILE, TileUnit, on_tiles};
use crate::simd::Neon;

/// Two rows and two columns of sums: the first row, and the one after it.
type Square = float32x4_t;

/// Rows and columns of squares whose sums are in registers together.
const SIDE: usize = 4;

/// Tiles of sums in squares, and the products of two rows and two columns of four terms, which read operands where they lie.
///
/// A product rounds each sum of two terms, and what it adds it to, to odd: an error of at most one unit in the last place where
/// other sums have half of one. What is too small for a normal number counts as zero.
struct Squares {
    sums: [[[Square; TILE / 2]; TILE / 2]; SUMS],
    /// Where the rows of a tile of an operand are, and how many bytes apart.
    operands: [(*const u8, usize); 8 - SUMS],
}

/// Tiles that are sums; those after them are operands.
const SUMS: usize = 4;

/// The lower and the upper halves of two registers.
#[inline(always)]
unsafe fn halves(a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
    unsafe {
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        [vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b))]
    }
}

/// 16 bytes of a row of a tile.
#[inline(always)]
unsafe fn part((tile, stride): (*const u8, usize), row: usize, part: usize) -> float32x4_t {
    unsafe { vld1q_f32(tile.add(row * stride + 16 * part).cast()) }
}

/// `C += A B` with two rows of four terms of A, and two columns of four terms of B, all of bfloat16. There is no intrinsic.
#[inline(always)]
unsafe fn add_product(sums: &mut Square, a: float32x4_t, b: float32x4_t) {
    unsafe {
        asm!(
            ".arch_extension bf16",
            "bfmmla {:v}.4s, {:v}.8h, {:v}.8h",
            inout(vreg) *sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

impl TileUnit for Squares {
    #[inline(always)]
    unsafe fn new() -> Self {
        let zeros = unsafe { vdupq_n_f32(0.0) };
        Self { sums: [[[zeros; TILE / 2]; TILE / 2]; SUMS], operands: [(std::ptr::null(), 0); 8 - SUMS] }
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>(&mut self) {
        self.sums[T] = [[unsafe { vdupq_n_f32(0.0) }; TILE / 2]; TILE / 2];
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        if T >= SUMS {
            self.operands[T - SUMS] = (from, stride);
            return;
        }
        for (i, squares) in self.sums[T].iter_mut().enumerate() {
            for (j, squares) in squares.chunks_exact_mut(2).enumerate() {
                unsafe {
                    let (first, second) = (part((from, stride), 2 * i, j), part((from, stride), 2 * i + 1, j));
                    squares.copy_from_slice(&halves(first, second));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        for (i, squares) in self.sums[T].iter().enumerate() {
            for (j, squares) in squares.chunks_exact(2).enumerate() {
                unsafe {
                    for (row, part) in halves(squares[0], squares[1]).into_iter().enumerate() {
                        vst1q_f32(to.add((2 * i + row) * stride + 16 * j).cast(), part);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let [a, b] = [A, B].map(|tile| self.operands[tile - SUMS]);
        for row in (0..TILE / 2).step_by(SIDE) {
            for col in (0..TILE / 2).step_by(SIDE) {
                unsafe {
                    let mut sums = [[vdupq_n_f32(0.0); SIDE]; SIDE];
                    for (i, sums) in sums.iter_mut().enumerate() {
                        sums.copy_from_slice(&self.sums[C][row + i][col..col + SIDE]);
                    }
                    // Eight terms of rows, as two of four.
                    for eight in 0..TILE / 4 {
                        let mut rows = [[vdupq_n_f32(0.0); 2]; SIDE];
                        for (i, rows) in rows.iter_mut().enumerate() {
                            let first = 2 * (row + i);
                            *rows = halves(part(a, first, eight), part(a, first + 1, eight));
                        }
                        for four in 0..2 {
                            let pair = 4 * eight + 2 * four;
                            let mut cols = [vdupq_n_f32(0.0); SIDE];
                            for (j, cols) in cols.chunks_exact_mut(2).enumerate() {
                                let (x, y) = (part(b, pair, col / 2 + j), part(b, pair + 1, col / 2 + j));
                                cols.copy_from_slice(&[vzip1q_f32(x, y), vzip2q_f32(x, y)]);
                            }
                            for (sums, rows) in sums.iter_mut().zip(rows) {
                                for (sum, cols) in sums.iter_mut().zip(cols) {
                                    add_product(sum, rows[four], cols);
                                }
                            }
                        }
                    }
                    for (i, sums) in sums.into_iter().enumerate() {
                        self.sums[C][row + i][col..col + SIDE].copy_from_slice(&sums);
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`super::product`]; the CPU has products of bfloat16.
#[target_feature(enable = "neon,bf16")]
pub(super) unsafe fn product_by_squares(product: &Product, scratch: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { on_tiles::<Neon, Squares>(product, scratch) }
}
