//! What the tests of all kernels share.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
