//! What the tests of all kernels share.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Mask, Operands, round_bf16};

/// Values between -1 and 1.
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Within `tolerance` of the larger of 1 and the largest expected value.
pub fn assert_near(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(g) - w).abs() <= tolerance * largest, "{what}[{i}]: got {g}, want {w}");
    }
}

/// Philox4x32-10, one counter at a time.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = 0xD251_1F53 * u64::from(counter[0]);
        let p1 = 0xCD9E_8D57 * u64::from(counter[2]);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Some mask that drops three elements of ten.
pub fn test_mask(seed: u32) -> Mask {
    Mask { key: [seed, 0x8000_0001], step: 77, first_lane: 5, threshold: 19_661 }
}

/// The multipliers of a mask, time-major: `[rows, lanes, d]`.
pub fn scalar_mask(mask: &Mask, rows: usize, lanes: usize, d: usize) -> Vec<f32> {
    let multiplier = |i: usize| {
        let (row, lane, col) = (i / d / lanes, i / d % lanes, i % d);
        let lane = mask.first_lane.wrapping_add(lane as u32);
        let words = philox4x32([(col / 8) as u32, row as u32, lane, mask.step], mask.key);
        let bits = (words[col % 8 / 2] >> (16 * (col % 2))) as u16;
        if bits < mask.threshold { 0.0 } else { 65536.0 / (65536.0 - f32::from(mask.threshold)) }
    };
    (0..rows * lanes * d).map(multiplier).collect()
}

/// Whether a test of so many values would take Miri too long.
pub fn skip(values: usize) -> bool {
    cfg!(miri) && values > 300
}

/// In double precision.
pub fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// As a matrix product sees them, in double precision.
pub fn rounded(x: &[f32], operands: Operands) -> Vec<f64> {
    match operands {
        Operands::F32 => f64s(x),
        Operands::Bf16 => x.iter().map(|&x| f64::from(round_bf16(x))).collect(),
    }
}

/// The transpose of `rows` rows.
pub fn transposed(x: &[f64], rows: usize) -> Vec<f64> {
    let cols = x.len().checked_div(rows).unwrap_or(0);
    (0..x.len()).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// `a b`, of `[m, k]` and `[k, n]`.
pub fn matmul(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    assert!(a.len() == m * k && b.len() == k * n);
    (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
}

/// Sums of columns of rows of `cols`.
pub fn sums_of_columns(x: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).map(|j| x.iter().skip(j).step_by(cols).sum()).collect()
}

/// What `work` gives where the team is busy, so that it works alone.
pub fn alone<T: Send>(work: impl Fn() -> T + Sync) -> T {
    let result = std::sync::Mutex::new(None);
    crate::team::run(2, |member| {
        if member.index == 0 {
            let value = work();
            *result.lock().expect("nobody else locks it") = Some(value);
        }
    });
    result.into_inner().expect("nobody panicked").expect("member 0 always works")
}
