//! Min-trust LAMB on one flattened parameter, after You et al. 2019 (arXiv 1904.00962, version 1).
//!
//! ```text
//! g = scale g                    m = β₁ m + (1 - β₁) g          v = β₂ v + (1 - β₂) g²
//! u = m / (√v + ε) + weight_decay p                             p = p - rate u
//! ```
//!
//! One pass updates the moments and gives the norms that the trust ratio is made of; another takes the step, `u` computed
//! again. Norms are sums in double precision over fixed blocks.

use crate::blocks::for_each_with;
use crate::buffer::Shared;
use crate::simd::{Vector, kernel};

/// Values of a block.
const BLOCK: usize = 4096;

/// Values of `u` between being computed and being summed up.
const PART: usize = 256;

/// What all parameters share in a step.
#[derive(Clone, Copy, Debug)]
pub struct LambStep {
    /// What the gradient is multiplied by: the clip by the global norm.
    pub scale: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, part of the update.
    pub weight_decay: f64,
}

/// Squared Euclidean norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LambNorms {
    /// Of the parameter, before the step.
    pub param: f64,
    /// Of the update `u`.
    pub update: f64,
}

impl LambStep {
    /// Updates the moments, and gives the norms.
    ///
    /// # Panics
    /// If not all are of one length.
    pub fn moments(&self, param: &[f32], grad: &[f32], first: &mut [f32], second: &mut [f32]) -> LambNorms {
        let n = param.len();
        assert!(
            grad.len() == n && first.len() == n && second.len() == n,
            "a parameter of {n} values has a gradient of {} and moments of {} and {}",
            grad.len(),
            first.len(),
            second.len()
        );
        let mut norms = vec![[0.0f64; 2]; n.div_ceil(BLOCK)];
        let (norms_shared, first, second) = (Shared::new(&mut norms), Shared::new(first), Shared::new(second));
        for_each_with(
            n.div_ceil(BLOCK),
            n,
            || (),
            |(), block| {
                let start = block * BLOCK;
                let len = BLOCK.min(n - start);
                let (param, grad) = (&param[start..][..len], &grad[start..][..len]);
                // SAFETY: lengths were checked, and each block is written by one task.
                unsafe {
                    let moments = [first.slice(start, len), second.slice(start, len)];
                    *norms_shared.at(block) = update_moments(self, param, grad, moments);
                }
            },
        );
        let sum = |which: usize| norms.iter().map(|norms| norms[which]).sum();
        LambNorms { param: sum(0), update: sum(1) }
    }

    /// `param -= rate u`, with `rate` the learning rate times the trust ratio, and the moments as
    /// [`moments`](Self::moments) left them.
    ///
    /// # Panics
    /// If not all are of one length.
    pub fn apply(&self, rate: f64, param: &mut [f32], first: &[f32], second: &[f32]) {
        let n = param.len();
        assert!(
            first.len() == n && second.len() == n,
            "a parameter of {n} values has moments of {} and {}",
            first.len(),
            second.len()
        );
        let param = Shared::new(param);
        for_each_with(
            n.div_ceil(BLOCK),
            n,
            || (),
            |(), block| {
                let start = block * BLOCK;
                let len = BLOCK.min(n - start);
                // SAFETY: lengths were checked, and each block is written by one task.
                unsafe {
                    apply(self, rate as f32, param.slice(start, len), &first[start..][..len], &second[start..][..len])
                };
            },
        );
    }

    /// `m / (√v + ε) + weight_decay p`.
    #[inline(always)]
    unsafe fn update<V: Vector>(&self, param: V, first: V, second: V) -> V {
        // SAFETY: the instructions are the caller's.
        unsafe {
            let adam = first.div(second.sqrt().add(V::splat(self.eps as f32)));
            // Without decay the parameter stays out of it, infinite as it may be.
            match self.weight_decay == 0.0 {
                true => adam,
                false => param.mul_add(V::splat(self.weight_decay as f32), adam),
            }
        }
    }
}

/// The squared Euclidean norm, in double precision.
pub fn squared_norm(x: &[f32]) -> f64 {
    let mut sums = vec![0.0; x.len().div_ceil(BLOCK)];
    let shared = Shared::new(&mut sums);
    for_each_with(
        x.len().div_ceil(BLOCK),
        x.len(),
        || (),
        |(), block| {
            let start = block * BLOCK;
            // SAFETY: each sum is written by one task.
            unsafe { *shared.at(block) = sum_of_squares(&x[start..x.len().min(start + BLOCK)]) };
        },
    );
    sums.iter().sum()
}

/// In sixteen sums, which the compiler turns into vectors.
#[inline(always)]
pub(crate) fn squares(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let add = |sums: &mut [f64; 16], x: &[f32]| {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += f64::from(x) * f64::from(x);
        }
    };
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    chunks.for_each(|chunk| add(&mut sums, chunk));
    add(&mut sums, rest);
    sums.iter().sum()
}

#[inline(always)]
unsafe fn sum_of_squares_body<V: Vector>(x: &[f32]) -> f64 {
    squares(x)
}
kernel!(
    /// # Safety
    /// None beyond the instructions.
    unsafe fn sum_of_squares(x: &[f32]) -> f64 => sum_of_squares_body
);

#[inline(always)]
unsafe fn update_moments_body<V: Vector>(
    step: &LambStep,
    param: &[f32],
    grad: &[f32],
    [first, second]: [&mut [f32]; 2],
) -> [f64; 2] {
    let mut norm = 0.0;
    let mut update = [0.0; PART];
    // SAFETY: `left` values are left of all at `i`, and at least as many of the part; the instructions are the caller's.
    unsafe {
        let (keep_first, keep_second) = (V::splat(step.beta1 as f32), V::splat(step.beta2 as f32));
        let add_first = V::splat((step.scale * (1.0 - step.beta1)) as f32);
        let add_second = V::splat((step.scale * step.scale * (1.0 - step.beta2)) as f32);
        for start in (0..param.len()).step_by(PART) {
            let n = PART.min(param.len() - start);
            for j in (0..n).step_by(V::LANES) {
                let (i, left) = (start + j, n - j);
                let g = V::load_up_to(grad.as_ptr().add(i), left);
                let (m, v) = (first.as_mut_ptr().add(i), second.as_mut_ptr().add(i));
                let new_m = V::load_up_to(m, left).mul_add(keep_first, g.mul(add_first));
                let new_v = V::load_up_to(v, left).mul_add(keep_second, g.mul(g).mul(add_second));
                new_m.store_up_to(m, left);
                new_v.store_up_to(v, left);
                let u = step.update(V::load_up_to(param.as_ptr().add(i), left), new_m, new_v);
                u.store_up_to(update.as_mut_ptr().add(j), left);
            }
            norm += squares(&update[..n]);
        }
    }
    [squares(param), norm]
}
kernel!(
    /// Moments of a block, and the squared norms of its parameters and of their updates.
    ///
    /// # Safety
    /// All are of one length.
    unsafe fn update_moments(step: &LambStep, param: &[f32], grad: &[f32], moments: [&mut [f32]; 2]) -> [f64; 2]
        => update_moments_body
);

#[inline(always)]
unsafe fn apply_body<V: Vector>(step: &LambStep, rate: f32, param: &mut [f32], first: &[f32], second: &[f32]) {
    let n = param.len();
    for i in (0..n).step_by(V::LANES) {
        // SAFETY: `left` values are left of all; the instructions are the caller's.
        unsafe {
            let left = n - i;
            let (m, v) = (V::load_up_to(first.as_ptr().add(i), left), V::load_up_to(second.as_ptr().add(i), left));
            let to = param.as_mut_ptr().add(i);
            let p = V::load_up_to(to, left);
            step.update(p, m, v).mul_add(V::splat(-rate), p).store_up_to(to, left);
        }
    }
}
kernel!(
    /// The step of a block.
    ///
    /// # Safety
    /// All are of one length.
    unsafe fn apply(step: &LambStep, rate: f32, param: &mut [f32], first: &[f32], second: &[f32]) => apply_body
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{alone, assert_near, f64s, random, skip};

    const STEP: LambStep = LambStep { scale: 0.3, beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.01 };

    #[test]
    fn steps_agree_with_double_precision() {
        for n in [0, 1, 5, 16, 17, 255, 256, 257, 4095, 4097, 20_000] {
            for weight_decay in [0.0, 0.01] {
                if skip(n) {
                    continue;
                }
                let what = format!("{n}, weight decay {weight_decay}");
                let step = LambStep { weight_decay, ..STEP };
                let mut param = random(n, 1);
                let (mut first, mut second) = (vec![0.0; n], vec![0.0; n]);
                let [mut p, mut m, mut v] = [f64s(&param), vec![0.0; n], vec![0.0; n]];
                for seed in 2..5 {
                    let grad = random(n, seed);
                    let norms = step.moments(&param, &grad, &mut first, &mut second);
                    let mut u = vec![0.0; n];
                    for (i, &g) in grad.iter().enumerate() {
                        let g = 0.3 * f64::from(g);
                        m[i] = 0.9 * m[i] + 0.1 * g;
                        v[i] = 0.99 * v[i] + 0.01 * g * g;
                        u[i] = m[i] / (v[i].sqrt() + 1e-6) + weight_decay * p[i];
                    }
                    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
                    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b;
                    assert!(near(norms.param, norm(&p)) && near(norms.update, norm(&u)), "{what}: {norms:?}");
                    step.apply(0.02, &mut param, &first, &second);
                    p.iter_mut().zip(&u).for_each(|(p, u)| *p -= 0.02 * u);
                    assert_near(&format!("{what} first"), &first, &m, 1e-6);
                    assert_near(&format!("{what} second"), &second, &v, 1e-6);
                    assert_near(&format!("{what} param"), &param, &p, 1e-5);
                }
            }
        }
    }

    #[test]
    fn norms_are_sums_in_double_precision() {
        for n in [0, 1, 15, 16, 17, 4096, 4097, 100_000].into_iter().filter(|&n| !skip(n)) {
            let x = random(n, 1);
            let want: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            // Squares are exact, and n sums of double precision are good to n 2⁻⁵³.
            assert!((squared_norm(&x) - want).abs() <= 1e-11 * want, "{n}");
        }
        // Beyond the range of f32.
        assert!((squared_norm(&[1e30; 3]) / 3e60 - 1.0).abs() < 1e-6);
        assert!(squared_norm(&[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let n = if skip(100_001) { 300 } else { 100_001 };
        let (param, grad) = (random(n, 1), random(n, 2));
        let all = || {
            let (mut param, mut first, mut second) = (param.clone(), vec![0.0; n], vec![0.0; n]);
            let norms = STEP.moments(&param, &grad, &mut first, &mut second);
            STEP.apply(0.02, &mut param, &first, &second);
            (norms, squared_norm(&param).to_bits(), param, first, second)
        };
        assert_eq!(all(), alone(all));
    }

    #[test]
    fn nan_reaches_moments_norms_and_parameter() {
        let (mut param, mut first, mut second) = ([1.0; 20], [0.0; 20], [0.0; 20]);
        let mut grad = [0.5; 20];
        grad[18] = f32::NAN;
        let norms = STEP.moments(&param, &grad, &mut first, &mut second);
        STEP.apply(0.1, &mut param, &first, &second);
        assert!(norms.update.is_nan() && !norms.param.is_nan());
        for x in [param, first, second] {
            assert!(x.iter().enumerate().all(|(i, x)| x.is_nan() == (i == 18)));
        }
    }

    #[test]
    #[should_panic(expected = "a parameter of 2 values has a gradient of 3")]
    fn lengths_must_agree() {
        STEP.moments(&[0.0; 2], &[0.0; 3], &mut [0.0; 2], &mut [0.0; 2]);
    }
}
