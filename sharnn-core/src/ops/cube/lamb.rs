//! The step of min-trust LAMB on all parameters in three launches, and the squared norm of all gradients in two; more only
//! where a kernel can't be given so many tensors. Parameters and moments change in place. Nothing waits for the device.

use burn::tensor::{Tensor, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::calculate_cube_count_elemwise;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::{OnCube, UNITS, arg, is_f32, reduce, room, tensor, values};
use crate::ops::lamb::{self as generic, MAX_WEIGHT_NORM};
use crate::ops::{LambOptions, LambParam, LambRatios, LambStep, LambUpdate};

/// Elements that a cube goes through.
const SHARE: usize = 32 * UNITS as usize;

/// Tensors of each kind that a kernel is given, at most. Its code grows with them, and one takes up to 68 bytes of a kernel's
/// parameters (four addresses, four lengths, a count), of which CUDA before 12.1 has 4,096.
pub(super) const MAX_TENSORS: usize = 48;

/// Arguments of a kernel besides its tensors, at most.
const OTHER_ARGUMENTS: usize = 5;

/// The options of a step.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Options {
    pub(super) lr: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) one_minus_beta1: f32,
    pub(super) one_minus_beta2: f32,
    pub(super) eps: f32,
    pub(super) weight_decay: f32,
    pub(super) max_weight_norm: f32,
    pub(super) min_trust: f32,
    pub(super) max_trust: f32,
}

#[cube]
fn update_of(p: f32, m: f32, v: f32, options: &Options) -> f32 {
    m / (v.sqrt() + options.eps) + p * options.weight_decay
}

/// The moments of all elements, in place, and each cube's sums of squares, of parameters and of updates. `ends` counts the
/// cubes of the tensors up to each one.
#[cube(launch)]
pub(super) fn moments_kernel(
    params: &Sequence<Array<f32>>,
    grads: &Sequence<Array<f32>>,
    firsts: &mut Sequence<Array<f32>>,
    seconds: &mut Sequence<Array<f32>>,
    scale: &Array<f32>,
    counts: &Array<f32>,
    sums: &mut Array<f32>,
    ends: &Sequence<u32>,
    options: &Options,
) {
    let cube = CUBE_POS as u32;
    let mut shared = reduce::shared();
    let mut of_param = 0.0f32;
    let mut of_update = 0.0f32;
    let mut begin = 0u32;
    #[unroll]
    for k in 0..params.len() {
        let end = *ends.index(k);
        if cube >= begin && cube < end {
            let param = params.index(k);
            let grad = grads.index(k);
            let first = firsts.index_mut(k);
            let second = seconds.index_mut(k);
            let start = (cube - begin) as usize * comptime!(SHARE);
            let stop = min(start + comptime!(SHARE), param.len());
            let mut i = start + UNIT_POS as usize;
            while i < stop {
                let p = param[i];
                let mut m = first[i];
                let mut v = second[i];
                // A step that does not count keeps its moments as they are, whatever the gradient is.
                if counts[0] != 0.0f32 {
                    let g = grad[i] * scale[0];
                    m = options.beta1 * m + options.one_minus_beta1 * g;
                    v = options.beta2 * v + options.one_minus_beta2 * g * g;
                    first[i] = m;
                    second[i] = v;
                }
                let u = update_of(p, m, v, options);
                of_param += p * p;
                of_update += u * u;
                i += comptime!(UNITS as usize);
            }
        }
        begin = end;
    }
    let of_param = reduce::sum(of_param, &mut shared);
    let of_update = reduce::sum(of_update, &mut shared);
    if UNIT_POS == 0 && cube < begin {
        sums[2 * cube as usize] = of_param;
        sums[2 * cube as usize + 1] = of_update;
    }
}

/// Norms and trust ratio of each parameter, by a cube each.
#[cube(launch)]
pub(super) fn ratio_kernel(
    sums: &Array<f32>,
    weight_norm: &mut Array<f32>,
    adam_norm: &mut Array<f32>,
    trust_ratio: &mut Array<f32>,
    ends: &Sequence<u32>,
    first_param: u32,
    options: &Options,
) {
    let cube = CUBE_POS as u32;
    let mut begin = 0u32;
    let mut end = 0u32;
    let mut before = 0u32;
    #[unroll]
    for k in 0..ends.len() {
        if cube == comptime!(k as u32) {
            begin = before;
            end = *ends.index(k);
        }
        before = *ends.index(k);
    }
    let mut shared = reduce::shared();
    let mut of_param = 0.0f32;
    let mut of_update = 0.0f32;
    let mut i = begin + UNIT_POS;
    while i < end {
        of_param += sums[2 * i as usize];
        of_update += sums[2 * i as usize + 1];
        i += comptime!(UNITS);
    }
    let of_param = reduce::sum(of_param, &mut shared);
    let of_update = reduce::sum(of_update, &mut shared);
    if UNIT_POS == 0 && cube < comptime!(ends.len() as u32) {
        let at = (first_param + cube) as usize;
        let weight = min(of_param.sqrt(), options.max_weight_norm);
        let update = of_update.sqrt();
        let mut ratio = 1.0f32;
        if weight != 0.0f32 && update != 0.0f32 {
            ratio = weight / update;
        }
        weight_norm[at] = weight;
        adam_norm[at] = update;
        trust_ratio[at] = min(max(ratio, options.min_trust), options.max_trust);
    }
}

/// Takes the updates off the parameters, in place.
#[cube(launch)]
pub(super) fn apply_kernel(
    params: &mut Sequence<Array<f32>>,
    firsts: &Sequence<Array<f32>>,
    seconds: &Sequence<Array<f32>>,
    trust_ratio: &Array<f32>,
    counts: &Array<f32>,
    ends: &Sequence<u32>,
    first_param: u32,
    options: &Options,
) {
    let cube = CUBE_POS as u32;
    let mut begin = 0u32;
    #[unroll]
    for k in 0..firsts.len() {
        let end = *ends.index(k);
        if cube >= begin && cube < end && counts[0] != 0.0f32 {
            let param = params.index_mut(k);
            let first = firsts.index(k);
            let second = seconds.index(k);
            let rate = trust_ratio[first_param as usize + k] * options.lr;
            let start = (cube - begin) as usize * comptime!(SHARE);
            let stop = min(start + comptime!(SHARE), first.len());
            let mut i = start + UNIT_POS as usize;
            while i < stop {
                let p = param[i];
                param[i] = p - update_of(p, first[i], second[i], options) * rate;
                i += comptime!(UNITS as usize);
            }
        }
        begin = end;
    }
}

/// Each cube's sum of squares, written from `first_sum` on.
#[cube(launch)]
pub(super) fn squares_kernel(xs: &Sequence<Array<f32>>, sums: &mut Array<f32>, ends: &Sequence<u32>, first_sum: u32) {
    let cube = CUBE_POS as u32;
    let mut shared = reduce::shared();
    let mut part = 0.0f32;
    let mut begin = 0u32;
    #[unroll]
    for k in 0..xs.len() {
        let end = *ends.index(k);
        if cube >= begin && cube < end {
            let x = xs.index(k);
            let start = (cube - begin) as usize * comptime!(SHARE);
            let stop = min(start + comptime!(SHARE), x.len());
            let mut i = start + UNIT_POS as usize;
            while i < stop {
                part += x[i] * x[i];
                i += comptime!(UNITS as usize);
            }
        }
        begin = end;
    }
    let sum = reduce::sum(part, &mut shared);
    if UNIT_POS == 0 && cube < begin {
        sums[(first_sum + cube) as usize] = sum;
    }
}

/// The sum of all values, by one cube.
#[cube(launch)]
pub(super) fn add_up_kernel(x: &Array<f32>, sum: &mut Array<f32>) {
    let mut shared = reduce::shared();
    let mut part = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < x.len() {
        part += x[i];
        i += comptime!(UNITS as usize);
    }
    let total = reduce::sum(part, &mut shared);
    if UNIT_POS == 0 {
        sum[0] = total;
    }
}

/// So many cubes, or some more.
fn cubes<R: CubeRuntime>(like: &CubeTensor<R>, n: u32) -> (CubeCount, CubeDim) {
    (calculate_cube_count_elemwise(&like.client, n as usize, CubeDim::new_1d(1)), CubeDim::new_1d(UNITS))
}

/// How many tensors a kernel can be given that has `kinds` of them.
fn group_size<R: CubeRuntime>(like: &CubeTensor<R>, kinds: usize) -> usize {
    let bindings = like.client.properties().hardware.max_bindings as usize;
    (bindings.saturating_sub(OTHER_ARGUMENTS) / kinds).clamp(1, MAX_TENSORS)
}

/// The cubes of the tensors up to each one.
fn ends<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> Vec<u32> {
    let mut end = 0;
    let next = |x: &CubeTensor<R>| {
        end += x.shape().num_elements().div_ceil(SHARE) as u32;
        end
    };
    tensors.iter().map(next).collect()
}

fn args<R: CubeRuntime>(tensors: &[CubeTensor<R>]) -> SequenceArg<R, Array<f32>> {
    tensors.iter().map(arg).collect()
}

fn numbers<R: CubeRuntime>(numbers: &[u32]) -> SequenceArg<R, u32> {
    numbers.iter().copied().collect()
}

/// Memory that may be written to: the tensor's own where nothing else needs it.
fn owned<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    if x.can_mut() { x } else { x.copy() }
}

pub(super) fn update<B: OnCube>(step: &LambStep<B>, params: Vec<LambParam<B>>) -> (Vec<LambUpdate<B>>, LambRatios<B>) {
    if params.is_empty() || !params.iter().all(|param| is_f32(&param.param)) {
        return generic::update(step, params);
    }
    let n = params.len();
    let [scale, counts] = [&step.scale, &step.counts].map(|x| values(x.clone()));
    let norms = [(); 3].map(|()| room(&scale, [n]));
    let mut updates = Vec::with_capacity(n);
    let mut params = params.into_iter();
    while params.len() > 0 {
        let first_param = n - params.len();
        let group: Vec<_> = params.by_ref().take(group_size(&scale, 4)).collect();
        updates.extend(update_group(step.options, group, first_param as u32, [&scale, &counts], &norms));
    }
    let [weight_norm, adam_norm, trust_ratio] = norms.map(tensor);
    (updates, LambRatios { weight_norm, adam_norm, trust_ratio })
}

/// Parameters that one kernel is given, the first of which is number `first_param` of all.
fn update_group<B: OnCube>(
    options: LambOptions,
    group: Vec<LambParam<B>>,
    first_param: u32,
    [scale, counts]: [&CubeTensor<B::Runtime>; 2],
    [weight_norm, adam_norm, trust_ratio]: &[CubeTensor<B::Runtime>; 3],
) -> Vec<LambUpdate<B>> {
    let (mut params, mut grads, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for LambParam { param, grad, moments } in group {
        let (first, second) = moments.unwrap_or_else(|| (param.zeros_like(), param.zeros_like()));
        params.push(owned(values(param)));
        grads.push(values(grad));
        firsts.push(owned(values(first)));
        seconds.push(owned(values(second)));
    }
    let ends = ends(&params);
    let all_cubes = ends.last().copied().unwrap_or(0);
    let sums = room(scale, [2 * all_cubes.max(1) as usize]);
    let client = &scale.client;
    let options = || {
        let LambOptions { lr, beta1, beta2, eps, weight_decay, min_trust, max_trust } = options;
        OptionsLaunch::new(
            lr as f32,
            beta1 as f32,
            beta2 as f32,
            (1.0 - beta1) as f32,
            (1.0 - beta2) as f32,
            eps as f32,
            weight_decay as f32,
            MAX_WEIGHT_NORM as f32,
            // No ratio is below 0.
            min_trust.unwrap_or(0.0) as f32,
            max_trust.map_or(f32::MAX, |max| max as f32),
        )
    };
    if all_cubes > 0 {
        let (count, dim) = cubes(scale, all_cubes);
        moments_kernel::launch::<B::Runtime>(
            client,
            count,
            dim,
            args(&params),
            args(&grads),
            args(&firsts),
            args(&seconds),
            arg(scale),
            arg(counts),
            arg(&sums),
            numbers(&ends),
            options(),
        );
    }
    let (count, dim) = cubes(scale, params.len() as u32);
    ratio_kernel::launch::<B::Runtime>(
        client,
        count,
        dim,
        arg(&sums),
        arg(weight_norm),
        arg(adam_norm),
        arg(trust_ratio),
        numbers(&ends),
        first_param,
        options(),
    );
    if all_cubes > 0 {
        let (count, dim) = cubes(scale, all_cubes);
        apply_kernel::launch::<B::Runtime>(
            client,
            count,
            dim,
            args(&params),
            args(&firsts),
            args(&seconds),
            arg(trust_ratio),
            arg(counts),
            numbers(&ends),
            first_param,
            options(),
        );
    }
    let updates = params.into_iter().zip(firsts).zip(seconds);
    updates
        .map(|((param, first), second)| LambUpdate {
            param: tensor(param),
            first: tensor(first),
            second: tensor(second),
        })
        .collect()
}

pub(super) fn squared_norm<B: OnCube>(xs: Vec<Tensor<B, 1>>) -> Tensor<B, 1> {
    if xs.is_empty() || !xs.iter().all(is_f32) {
        return generic::squared_norm(xs);
    }
    let xs: Vec<_> = xs.into_iter().map(values).collect();
    let like = &xs[0];
    let all_cubes = ends(&xs).last().copied().unwrap_or(0);
    let [sums, sum] = [room(like, [all_cubes as usize]), room(like, [1])];
    let mut first_sum = 0;
    for group in xs.chunks(group_size(like, 1)) {
        let ends = ends(group);
        let n = ends.last().copied().unwrap_or(0);
        if n > 0 {
            let (count, dim) = cubes(like, n);
            squares_kernel::launch::<B::Runtime>(
                &like.client,
                count,
                dim,
                args(group),
                arg(&sums),
                numbers(&ends),
                first_sum,
            );
        }
        first_sum += n;
    }
    let (count, dim) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(UNITS));
    add_up_kernel::launch::<B::Runtime>(&like.client, count, dim, arg(&sums), arg(&sum));
    tensor(sum)
}
