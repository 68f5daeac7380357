//! The step of min-trust LAMB on one parameter in three launches, and the squared norm in two. Nothing waits for the device.

use burn::tensor::Tensor;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{OnCube, UNITS, arg, for_elements, is_f32, reduce, room, tensor, values};
use crate::ops::lamb::{self as generic, MAX_WEIGHT_NORM};
use crate::ops::{LambOptions, LambStep, LambUpdate};

/// Cubes that sum, at most: as many partial sums as one cube adds up at once.
const MAX_CUBES: usize = UNITS as usize;

/// The options of a step that its moments need.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Options {
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) one_minus_beta1: f32,
    pub(super) one_minus_beta2: f32,
    pub(super) eps: f32,
    pub(super) weight_decay: f32,
}

/// Moments and update of all elements, and each cube's sums of squares: of parameters, and after all of those, of updates.
#[cube(launch)]
pub(super) fn moments_kernel(
    param: &Array<f32>,
    grad: &Array<f32>,
    first: &Array<f32>,
    second: &Array<f32>,
    scale: &Array<f32>,
    counts: &Array<f32>,
    new_first: &mut Array<f32>,
    new_second: &mut Array<f32>,
    update: &mut Array<f32>,
    sums: &mut Array<f32>,
    options: &Options,
    #[comptime] has_moments: bool,
) {
    let mut shared = reduce::shared();
    let mut of_param = 0.0f32;
    let mut of_update = 0.0f32;
    let mut i = ABSOLUTE_POS;
    while i < param.len() {
        let p = param[i];
        let mut m = 0.0f32;
        let mut v = 0.0f32;
        if comptime!(has_moments) {
            m = first[i];
            v = second[i];
        }
        // A step that does not count keeps its moments as they are, whatever the gradient is.
        if counts[0] != 0.0f32 {
            let g = grad[i] * scale[0];
            m = options.beta1 * m + options.one_minus_beta1 * g;
            v = options.beta2 * v + options.one_minus_beta2 * g * g;
        }
        let u = m / (v.sqrt() + options.eps) + p * options.weight_decay;
        new_first[i] = m;
        new_second[i] = v;
        update[i] = u;
        of_param += p * p;
        of_update += u * u;
        i += CUBE_COUNT * comptime!(UNITS as usize);
    }
    let of_param = reduce::sum(of_param, &mut shared);
    let of_update = reduce::sum(of_update, &mut shared);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = of_param;
        sums[CUBE_COUNT + CUBE_POS] = of_update;
    }
}

/// Norm of the parameter, norm of the update and trust ratio, by one cube.
#[cube(launch)]
pub(super) fn ratio_kernel(
    sums: &Array<f32>,
    weight_norm: &mut Array<f32>,
    adam_norm: &mut Array<f32>,
    trust_ratio: &mut Array<f32>,
    max_weight_norm: f32,
    min_trust: f32,
) {
    let n = sums.len() / 2;
    let mut shared = reduce::shared();
    let unit = UNIT_POS as usize;
    let mut of_param = 0.0f32;
    let mut of_update = 0.0f32;
    if unit < n {
        of_param = sums[unit];
        of_update = sums[n + unit];
    }
    let of_param = reduce::sum(of_param, &mut shared);
    let of_update = reduce::sum(of_update, &mut shared);
    if unit == 0 {
        let weight = min(of_param.sqrt(), max_weight_norm);
        let update = of_update.sqrt();
        let mut ratio = 1.0f32;
        if weight != 0.0f32 && update != 0.0f32 {
            ratio = weight / update;
        }
        weight_norm[0] = weight;
        adam_norm[0] = update;
        trust_ratio[0] = max(ratio, min_trust);
    }
}

#[cube(launch)]
pub(super) fn apply_kernel(
    param: &Array<f32>,
    update: &Array<f32>,
    trust_ratio: &Array<f32>,
    counts: &Array<f32>,
    out: &mut Array<f32>,
    lr: f32,
) {
    if ABSOLUTE_POS < out.len() {
        let mut p = param[ABSOLUTE_POS];
        if counts[0] != 0.0f32 {
            p -= update[ABSOLUTE_POS] * (trust_ratio[0] * lr);
        }
        out[ABSOLUTE_POS] = p;
    }
}

#[cube(launch)]
pub(super) fn squares_kernel(x: &Array<f32>, sums: &mut Array<f32>) {
    let mut shared = reduce::shared();
    let mut part = 0.0f32;
    let mut i = ABSOLUTE_POS;
    while i < x.len() {
        part += x[i] * x[i];
        i += CUBE_COUNT * comptime!(UNITS as usize);
    }
    let sum = reduce::sum(part, &mut shared);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = sum;
    }
}

/// Sum of at most [`UNITS`] values, by one cube.
#[cube(launch)]
pub(super) fn add_up_kernel(x: &Array<f32>, sum: &mut Array<f32>) {
    let mut shared = reduce::shared();
    let unit = UNIT_POS as usize;
    let mut part = 0.0f32;
    if unit < x.len() {
        part = x[unit];
    }
    let total = reduce::sum(part, &mut shared);
    if unit == 0 {
        sum[0] = total;
    }
}

/// Cubes that go through `n` elements.
fn cubes(n: usize) -> u32 {
    n.div_ceil(4 * UNITS as usize).clamp(1, MAX_CUBES) as u32
}

fn static_cubes(n: u32) -> (CubeCount, CubeDim) {
    (CubeCount::Static(n, 1, 1), CubeDim::new_1d(UNITS))
}

pub(super) fn update<B: OnCube>(
    step: &LambStep<B>,
    param: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    moments: Option<(Tensor<B, 1>, Tensor<B, 1>)>,
) -> LambUpdate<B> {
    let [n] = param.dims();
    if !is_f32(&param) || n == 0 {
        return generic::update(step, param, grad, moments);
    }
    let LambOptions { lr, beta1, beta2, eps, weight_decay, min_trust } = step.options;
    let has_moments = moments.is_some();
    let [param, grad] = [param, grad].map(values);
    let (first, second) = moments
        .map_or_else(|| (room(&param, [1]), room(&param, [1])), |(first, second)| (values(first), values(second)));
    let [scale, counts] = [&step.scale, &step.counts].map(|x| values(x.clone()));
    let [new_first, new_second, update, out] = std::array::from_fn(|_| room(&param, [n]));
    let sums = room(&param, [2 * cubes(n) as usize]);
    let client = &param.client;
    let [beta1, one_minus_beta1] = [beta1 as f32, (1.0 - beta1) as f32];
    let [beta2, one_minus_beta2] = [beta2 as f32, (1.0 - beta2) as f32];
    let rest = [eps as f32, weight_decay as f32];
    let options = OptionsLaunch::new(beta1, beta2, one_minus_beta1, one_minus_beta2, rest[0], rest[1]);
    let (count, dim) = static_cubes(cubes(n));
    moments_kernel::launch::<B::Runtime>(
        client,
        count,
        dim,
        arg(&param),
        arg(&grad),
        arg(&first),
        arg(&second),
        arg(&scale),
        arg(&counts),
        arg(&new_first),
        arg(&new_second),
        arg(&update),
        arg(&sums),
        options,
        has_moments,
    );
    let [weight_norm, adam_norm, trust_ratio] = std::array::from_fn(|_| room(&param, [1]));
    let (count, dim) = static_cubes(1);
    ratio_kernel::launch::<B::Runtime>(
        client,
        count,
        dim,
        arg(&sums),
        arg(&weight_norm),
        arg(&adam_norm),
        arg(&trust_ratio),
        MAX_WEIGHT_NORM as f32,
        // No ratio is below it.
        min_trust.unwrap_or(0.0) as f32,
    );
    let (count, dim) = for_elements(&param, n);
    apply_kernel::launch::<B::Runtime>(
        client,
        count,
        dim,
        arg(&param),
        arg(&update),
        arg(&trust_ratio),
        arg(&counts),
        arg(&out),
        lr as f32,
    );
    LambUpdate {
        param: tensor(out),
        first: tensor(new_first),
        second: tensor(new_second),
        weight_norm: tensor(weight_norm),
        adam_norm: tensor(adam_norm),
        trust_ratio: tensor(trust_ratio),
    }
}

pub(super) fn squared_norm<B: OnCube>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    let [n] = x.dims();
    if !is_f32(&x) || n == 0 {
        return generic::squared_norm(x);
    }
    let x = values(x);
    let (sums, sum): (CubeTensor<_>, CubeTensor<_>) = (room(&x, [cubes(n) as usize]), room(&x, [1]));
    let (count, dim) = static_cubes(cubes(n));
    squares_kernel::launch::<B::Runtime>(&x.client, count, dim, arg(&x), arg(&sums));
    let (count, dim) = static_cubes(1);
    add_up_kernel::launch::<B::Runtime>(&x.client, count, dim, arg(&sums), arg(&sum));
    tensor(sum)
}
