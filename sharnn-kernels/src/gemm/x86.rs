//! Tiles of bfloat16 by the instructions of x86-64.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    _xgetbv,
};
use std::sync::OnceLock;

use super::Product;
use super::tiles::{TILE, TileUnit, on_tiles};
use crate::isa::cpuid;
use crate::simd::Avx512;

/// Tiles of sums in rows of vectors, and AVX-512's dot products of pairs, which read operands where they lie.
struct Pairs {
    sums: [[__m512; TILE]; SUMS],
    /// Where the rows of a tile of an operand are, and how many bytes apart.
    operands: [(*const u8, usize); 8 - SUMS],
}

/// Tiles that are sums; those after them are operands.
const SUMS: usize = 4;

// SAFETY of the unsafe blocks below: the instructions are there and pointers valid by the trait's contract: those of operands until
// they have been multiplied.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
impl TileUnit for Pairs {
    #[inline(always)]
    unsafe fn new() -> Self {
        unsafe { Self { sums: [[_mm512_setzero_ps(); TILE]; SUMS], operands: [(std::ptr::null(), 0); 8 - SUMS] } }
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>(&mut self) {
        unsafe { self.sums[T] = [_mm512_setzero_ps(); TILE] }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        if T >= SUMS {
            self.operands[T - SUMS] = (from, stride);
            return;
        }
        for (i, row) in self.sums[T].iter_mut().enumerate() {
            *row = unsafe { _mm512_loadu_ps(from.add(i * stride).cast()) };
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        for (i, row) in self.sums[T].iter().enumerate() {
            unsafe { _mm512_storeu_ps(to.add(i * stride).cast(), *row) };
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        unsafe {
            let mut sums = self.sums[C];
            let [(a, a_stride), (b, b_stride)] = [A, B].map(|tile| self.operands[tile - SUMS]);
            for p in 0..TILE {
                let b: __m512bh = std::mem::transmute(_mm512_loadu_ps(b.add(p * b_stride).cast()));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let pair = a.add(i * a_stride).cast::<i32>().add(p).read_unaligned();
                    let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                    *sum = _mm512_dpbf16_ps(*sum, pair, b);
                }
            }
            self.sums[C] = sums;
        }
    }
}

/// # Safety
/// As [`super::product`]; the CPU has AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
pub(super) unsafe fn product_by_pairs(product: &Product, scratch: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { on_tiles::<Avx512, Pairs>(product, scratch) }
}

/// The tile registers of AMX.
struct Amx;

/// What the tile registers are configured to: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

// SAFETY of the unsafe blocks below: the instructions are there and pointers valid by the trait's contract. The compiler
// knows nothing of what the tiles hold and uses none of them, so they keep it from one block to the next.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them")]
impl TileUnit for Amx {
    #[inline(always)]
    unsafe fn new() -> Self {
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly, preserves_flags)) }
        Self
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>(&mut self) {
        unsafe { asm!("tilezero tmm{}", const T, options(nostack, nomem, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        unsafe {
            asm!(
                "tileloadd tmm{}, [{} + {}]",
                const T, in(reg) from, in(reg) stride,
                options(nostack, readonly, preserves_flags)
            )
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        unsafe {
            asm!(
                "tilestored [{} + {}], tmm{}",
                in(reg) to, in(reg) stride, const T,
                options(nostack, preserves_flags)
            )
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        unsafe {
            asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const C, const A, const B, options(nostack, nomem, preserves_flags))
        }
    }
}

impl Drop for Amx {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: who has made it has the instruction.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// # Safety
/// As [`super::product`]; the CPU has AMX, and the system has [granted](amx_is_granted) it.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn product_by_amx(product: &Product, scratch: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { on_tiles::<Avx512, Amx>(product, scratch) }
}

/// Whether the CPU has AMX for bfloat16, and the system lets this process use it. The first call asks for the permission,
/// which all of its threads have then.
pub(crate) fn amx_is_granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| cpu_has_amx() && ask_for_tiles())
}

fn cpu_has_amx() -> bool {
    /// In leaf 7: tiles, and their bfloat16 products.
    const AMX: u32 = 1 << 24 | 1 << 22;
    /// In leaf 1: the system uses XSAVE, so that XGETBV can be asked which states it saves.
    const OSXSAVE: u32 = 1 << 27;
    /// The tiles' configuration and data among these states.
    const TILE_STATES: u64 = 1 << 17 | 1 << 18;
    #[target_feature(enable = "xsave")]
    fn saved_states() -> u64 {
        // SAFETY: register 0 is there where the instruction is.
        unsafe { _xgetbv(0) }
    }
    if cpuid(0).eax < 7 || cpuid(1).ecx & OSXSAVE == 0 || cpuid(7).edx & AMX != AMX {
        return false;
    }
    // SAFETY: the system uses XSAVE, so the CPU has it.
    unsafe { saved_states() & TILE_STATES == TILE_STATES }
}

#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: it changes only what this process may use; systems that do not know it answer with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems have other ways, which have not been tried.
#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}
