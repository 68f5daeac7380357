//! Vectors of f32 that a kernel is generic over, and the macro that compiles it once for each set of instructions.
//!
//! A kernel is an `#[inline(always)]` function over [`Vector`]; `kernel!` makes the safe or unsafe function that runs it
//! compiled for the instructions of [`Isa::current`](crate::Isa::current). Bits that are compared or shifted travel in a
//! `Vector` as well, reinterpreted.

#![allow(clippy::missing_safety_doc, reason = "the one condition is in the trait's documentation")]

mod exact;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "wasm32")]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use exact::Exact;
pub(crate) use exact::exact_kernel;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;
#[cfg(target_arch = "wasm32")]
pub use wasm::Simd128;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// A vector of f32.
///
/// # Safety
/// Methods may be called only where the CPU has the instructions of the implementation, and pointers must be valid for
/// [`LANES`](Self::LANES) (or the stated number of) values. They need no alignment.
pub trait Vector: Copy {
    /// Number of f32.
    const LANES: usize;
    /// Rows of the tile of a matrix product, which is two vectors wide.
    const TILE_ROWS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn splat_bits(x: u32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Stores values that are whole numbers of 16 bits.
    unsafe fn store_i16(self, to: *mut i16);
    /// Brings the cache line of `at`, which may be any address, nearer.
    unsafe fn prefetch(at: *const f32);
    /// The first `n <= LANES` values, zeros after them.
    unsafe fn load_part(from: *const f32, n: usize) -> Self;
    /// Stores the first `n <= LANES` values.
    unsafe fn store_part(self, to: *mut f32, n: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// `self * b + c`, fused where the instructions are.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of integral values in -126..=127.
    unsafe fn exp2_integral(self) -> Self;
    /// `yes` where the unsigned 32-bit integers of `self` are below those of `other`, both below 2³¹.
    unsafe fn select_if_bits_below(self, other: Self, yes: Self, no: Self) -> Self;
    unsafe fn and_bits(self, other: Self) -> Self;
    unsafe fn xor_bits(self, other: Self) -> Self;
    /// Shifts 32-bit integers right by 16.
    unsafe fn high_half(self) -> Self;
    /// Shifts 32-bit integers left by 16.
    unsafe fn low_half_up(self) -> Self;
    /// Wrapping sum of 32-bit integers.
    unsafe fn add_bits(self, other: Self) -> Self;
    /// Products of the unsigned 32-bit integers in even lanes, 64 bits wide: the low word there, the high word after it.
    unsafe fn mul_even_bits(self, other: Self) -> Self;
    /// Each odd lane moved to the even one before it, zeros in its place.
    unsafe fn odd_to_even(self) -> Self;
    /// The even lanes of both: those of `self` where they are, those of `other` after them.
    unsafe fn join_even(self, other: Self) -> Self;
    /// Sum of all lanes, halves first.
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// Columns of lines of eight values, as the lines one after another: value `8 i + k` of the concatenated result is lane
    /// `i` of `columns[k]`.
    unsafe fn interleave(columns: [Self; 8]) -> [Self; 8];

    /// [`load`](Self::load) where there are `n >= LANES` values, [`load_part`](Self::load_part) where there are fewer.
    #[inline(always)]
    unsafe fn load_up_to(from: *const f32, n: usize) -> Self {
        // SAFETY: the caller's.
        unsafe { if n >= Self::LANES { Self::load(from) } else { Self::load_part(from, n) } }
    }
    /// [`store`](Self::store) where there is room for `n >= LANES` values, [`store_part`](Self::store_part) where for fewer.
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut f32, n: usize) {
        // SAFETY: the caller's.
        unsafe { if n >= Self::LANES { self.store(to) } else { self.store_part(to, n) } }
    }
    /// The first `n` lanes, or all where there are fewer; zeros after them.
    #[inline(always)]
    unsafe fn keep_up_to(self, n: usize) -> Self {
        static ONES: [u32; 16] = [u32::MAX; 16];
        // SAFETY: the caller's; no vector is longer than 16 lanes.
        unsafe { if n >= Self::LANES { self } else { self.and_bits(Self::load_part(ONES.as_ptr().cast(), n)) } }
    }
}

/// Makes the function that runs a kernel compiled for the instructions of this process.
///
/// `body` must be an `#[inline(always)]` `unsafe fn` generic over [`Vector`] alone.
macro_rules! kernel {
    ($($kernel:tt)*) => {
        $crate::simd::compiled! {
            [
                $crate::simd::Portable,
                $crate::simd::Avx2,
                $crate::simd::Avx512,
                $crate::simd::Neon,
                $crate::simd::Simd128
            ] $($kernel)*
        }
    };
}
pub(crate) use kernel;

/// A kernel compiled for the vectors of plain Rust, and of each set of instructions of the target.
macro_rules! compiled {
    (
        [$portable:ty, $avx2:ty, $avx512:ty, $neon:ty, $simd128:ty]
        $(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:ident
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel takes what it takes")]
        $vis unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$avx2>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$avx512>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn neon($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$neon>($($arg),*) }
            }
            #[cfg(target_arch = "wasm32")]
            #[target_feature(enable = "simd128")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn simd128($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's.
                unsafe { $body::<$simd128>($($arg),*) }
            }
            // SAFETY: the instructions were detected; everything else is the caller's.
            unsafe {
                match $crate::Isa::current().vectors() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Vectors::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Vectors::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::isa::Vectors::Neon => neon($($arg),*),
                    #[cfg(target_arch = "wasm32")]
                    $crate::isa::Vectors::Simd128 => simd128($($arg),*),
                    _ => $body::<$portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use compiled;
