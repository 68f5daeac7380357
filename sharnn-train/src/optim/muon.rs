//! Muon: momentum whose update is made orthogonal, for the matrices inside the blocks and the maps of n-grams.
//!
//! ```text
//! m = μ m + g;   u = g + μ m                                      Nesterov's momentum
//! p = (1 - lr weight_decay) p - lr rate √max(rows, cols) X        X the orthogonal factor of u, about: sharnn_core::ops
//! ```
//!
//! After Jordan et al. 2024 (<https://kellerjordan.github.io/posts/muon/>); the factor √max(rows, cols) with a rate of 0.2 gives
//! updates the size of AdamW's (Liu et al. 2025, arXiv 2502.16982). The four gates of an LSTM's weight are four matrices.

use burn::tensor::{Bool, Tensor};
use sharnn_core::{Backend, Precision};

use super::MuonConfig;

impl MuonConfig {
    /// A step of some matrices of one size, and their momentum after it. Where `skip` is set both stay as they are.
    ///
    /// # Shapes
    /// - `param`, `grad`, `momentum` and the results: `[matrices, rows, cols]`; `scale` and `skip`: `[1]`
    pub(crate) fn step<B: Backend>(
        &self,
        lr: f64,
        [param, grad, momentum]: [Tensor<B, 3>; 3],
        scale: Tensor<B, 1>,
        skip: Tensor<B, 1, Bool>,
        precision: Precision,
    ) -> [Tensor<B, 3>; 2] {
        let [matrices, rows, cols] = param.dims();
        let skip = skip.reshape([1, 1, 1]).expand([matrices, rows, cols]);
        let grad = grad * scale.reshape([1, 1, 1]);
        let moved = momentum.clone() * self.momentum + grad.clone();
        let update = B::orthogonalize(grad + moved.clone() * self.momentum, precision);
        let rate = lr * self.rate * (rows.max(cols) as f64).sqrt();
        let stepped = param.clone() * (1.0 - lr * self.weight_decay) - update * rate;
        [stepped.mask_where(skip.clone(), param), moved.mask_where(skip, momentum)]
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;

    use super::*;

    type Matrices = Tensor<Flex, 3>;

    fn values(x: Matrices) -> Vec<f32> {
        x.into_data().to_vec().unwrap()
    }

    fn random(dims: [usize; 3]) -> Matrices {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Default::default())
    }

    fn flag(value: bool) -> Tensor<Flex, 1, Bool> {
        Tensor::from_data([value], &Default::default())
    }

    /// Momentum and decay by hand, with the orthogonal factor from the operation.
    #[test]
    fn two_steps_follow_the_formula() {
        let (config, lr, dims) = (MuonConfig { momentum: 0.9, rate: 0.2, weight_decay: 0.1 }, 0.01, [4, 3, 8]);
        let [param, g1, g2] = [random(dims), random(dims), random(dims)];
        let scale = || Tensor::from_data([0.5], &Default::default());
        let zeros = param.zeros_like();
        let [p1, m1] = config.step(lr, [param.clone(), g1.clone(), zeros], scale(), flag(false), Precision::F32);
        let [p2, m2] = config.step(lr, [p1.clone(), g2.clone(), m1], scale(), flag(false), Precision::F32);
        let (g1, g2) = (g1 * 0.5, g2 * 0.5);
        let m = g1.clone() * 0.9 + g2.clone();
        let size = 0.01 * 0.2 * 8f64.sqrt();
        let want_p1 = param * (1.0 - 0.001) - Flex::orthogonalize(g1.clone() + g1 * 0.9, Precision::F32) * size;
        let want_p2 = p1.clone() * (1.0 - 0.001) - Flex::orthogonalize(g2 + m.clone() * 0.9, Precision::F32) * size;
        for (got, want) in [(p1, want_p1), (p2, want_p2), (m2, m)] {
            for (got, want) in values(got).into_iter().zip(values(want)) {
                assert!((got - want).abs() < 1e-5, "{got}, {want}");
            }
        }
    }

    #[test]
    fn a_step_that_is_not_finite_changes_no_bit() {
        let [param, momentum] = [random([1, 3, 3]), random([1, 3, 3])];
        let all = [param.clone(), random([1, 3, 3]) * f64::NAN, momentum.clone()];
        let got = MuonConfig::default().step(
            0.1,
            all,
            Tensor::from_data([0.0], &Default::default()),
            flag(true),
            Precision::F32,
        );
        assert_eq!(got.map(values), [param, momentum].map(values));
    }

    #[test]
    fn a_gradient_of_zeros_moves_nothing() {
        let param = random([2, 3, 5]);
        let all = [param.clone(), param.zeros_like(), param.zeros_like()];
        let [got, _] = MuonConfig::default().step(
            0.1,
            all,
            Tensor::from_data([1.0], &Default::default()),
            flag(false),
            Precision::F32,
        );
        assert_eq!(values(got), values(param));
    }
}
