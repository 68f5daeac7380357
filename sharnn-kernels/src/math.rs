//! Elementary functions on vectors. The largest relative error of [`exp`] and [`sigmoid`], and the largest absolute one of
//! [`tanh`], is 4e-7 over all finite inputs whose result is a normal number; the tests below hold them to it.

use crate::simd::Vector;

/// Slope of the sigmoid in the GELU: `x σ(1.702 x)`.
pub const GELU_SLOPE: f32 = 1.702;

/// `eˣ`. Below -87.33 the result is that at -87.33, a normal number near 10⁻³⁸; above 88.37 it is that at 88.37.
///
/// Range reduction by ln 2 in two parts and a polynomial of degree 6 (Cephes' `expf`).
///
/// # Safety
/// As [`Vector`]'s.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the published constants")]
pub unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe {
        // min and max take their second operand where the first is NaN, so NaN has to come second to stay.
        let x = V::splat(88.376_26).min(V::splat(-87.336_54).max(x));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(V::splat(-0.693_359_375), x);
        let r = n.mul_add(V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1] {
            p = p.mul_add(r, V::splat(c));
        }
        let r2 = r.mul(r);
        p.mul_add(r2, r).add(V::splat(1.0)).mul(n.exp2_integral())
    }
}

/// `1 / (1 + e⁻ˣ)`.
///
/// # Safety
/// As [`Vector`]'s.
#[inline(always)]
pub unsafe fn sigmoid<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe {
        let one = V::splat(1.0);
        one.div(one.add(exp(V::splat(0.0).sub(x))))
    }
}

/// `tanh x = 2 σ(2x) - 1`; its error is absolute, and near 0 a polynomial keeps it relative too.
///
/// # Safety
/// As [`Vector`]'s.
#[inline(always)]
pub unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe {
        // (1 - e) / (1 + e) with e = exp(-2|x|), the sign put back.
        let sign = x.and_bits(V::splat_bits(0x8000_0000));
        let one = V::splat(1.0);
        let magnitude = x.xor_bits(sign);
        let e = exp(magnitude.mul(V::splat(-2.0)));
        one.sub(e).div(one.add(e)).xor_bits(sign)
    }
}

/// Rounded to bfloat16, to nearest with ties to even, as f32. NaN stays NaN.
///
/// # Safety
/// As [`Vector`]'s.
#[inline(always)]
pub unsafe fn round_bf16<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe {
        let high = V::splat_bits(0xFFFF_0000);
        let odd = x.high_half().and_bits(V::splat_bits(1));
        let rounded = x.add_bits(V::splat_bits(0x7FFF)).add_bits(odd).and_bits(high);
        // In a NaN the sum may have carried: truncated, with a bit that stays, it is one still.
        let magnitude = x.and_bits(V::splat_bits(0x7FFF_FFFF));
        let quiet = x.and_bits(V::splat_bits(0xFFBF_0000)).xor_bits(V::splat_bits(0x0040_0000));
        magnitude.select_if_bits_below(V::splat_bits(0x7F80_0001), rounded, quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::kernel;

    const MAX_ERROR: f64 = 4e-7;

    #[inline(always)]
    unsafe fn all_body<V: Vector>(x: &[f32], which: usize, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(V::LANES).zip(y.chunks_exact_mut(V::LANES)) {
            // SAFETY: chunks are LANES long; the instructions are the caller's.
            unsafe {
                let v = V::load(x.as_ptr());
                [exp(v), sigmoid(v), tanh(v), round_bf16(v)][which].store(y.as_mut_ptr());
            }
        }
    }
    kernel!(unsafe fn all(x: &[f32], which: usize, y: &mut [f32]) => all_body);

    fn apply(x: &[f32], which: usize) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        // SAFETY: lengths agree and are multiples of 16.
        unsafe { all(x, which, &mut y) };
        y
    }

    #[test]
    fn errors_are_within_the_stated_bounds() {
        // Every 4001st float in magnitude up to 100, both signs.
        let step = if cfg!(miri) { 40_000_003 } else { 4001 };
        let mut x: Vec<f32> = (0..100f32.to_bits()).step_by(step).map(f32::from_bits).collect();
        x.extend(x.clone().iter().map(|x| -x));
        x.resize(x.len().next_multiple_of(16), 0.0);
        let relative = |y: f32, exact: f64| ((f64::from(y) - exact) / exact).abs();
        for (&x, y) in x.iter().zip(apply(&x, 0)) {
            if (-87.0..88.0).contains(&x) {
                assert!(relative(y, f64::from(x).exp()) <= MAX_ERROR, "exp {x} = {y}");
            }
        }
        for (&x, y) in x.iter().zip(apply(&x, 1)) {
            if x > -87.0 {
                assert!(relative(y, 1.0 / (1.0 + (-f64::from(x)).exp())) <= MAX_ERROR, "sigmoid {x} = {y}");
            }
        }
        for (&x, y) in x.iter().zip(apply(&x, 2)) {
            assert!((f64::from(y) - f64::from(x).tanh()).abs() <= MAX_ERROR, "tanh {x} = {y}");
        }
    }

    #[test]
    fn extremes_saturate_and_nan_stays() {
        let mut x = [0.0; 16];
        x[..6].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::NAN, 0.0]);
        let sigmoid = apply(&x, 1);
        assert!(sigmoid[0] == 1.0 && sigmoid[2] == 1.0 && sigmoid[1] < 1e-37 && sigmoid[3] < 1e-37, "{sigmoid:?}");
        assert!(sigmoid[4].is_nan() && sigmoid[5] == 0.5, "{sigmoid:?}");
        let tanh = apply(&x, 2);
        assert!(tanh[0] == 1.0 && tanh[1] == -1.0 && tanh[4].is_nan() && tanh[5] == 0.0, "{tanh:?}");
        assert!(apply(&x, 0)[4].is_nan());
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        let step = if cfg!(miri) { 80_000_003 } else { 4001 };
        let mut x: Vec<f32> = (0..=u32::MAX).step_by(step).map(f32::from_bits).collect();
        // Ties to both sides, the largest number, which becomes infinite, infinities and NaN with all kinds of bits.
        x.extend([0x3F80_8000, 0x3F81_8000, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000].map(f32::from_bits));
        x.extend([0x7FFF_FFFF, 0xFFFF_FFFF, 0x7F80_0001, 0xFFC0_0000].map(f32::from_bits));
        x.resize(x.len().next_multiple_of(16), 0.0);
        for (&x, y) in x.iter().zip(apply(&x, 3)) {
            let want = half::bf16::from_f32(x).to_f32();
            assert!(y.to_bits() == want.to_bits() || x.is_nan() && y.is_nan(), "{x} = {y}, not {want}");
            assert_eq!(y.to_bits() & 0xFFFF, 0);
        }
    }
}
