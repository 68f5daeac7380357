//! The LSTM: one launch a step, which holds the recurrent product, the gates and the cell; forward and backward.
//!
//! A cube owns some hidden units of some lanes. It goes along the terms of the product in tiles that all its units bring into
//! shared memory, row by row, so that each value of the weights is read once for all lanes. In the forward pass a unit's four
//! gates are four rows of `W_hh`; in the backward pass, which sums over all gates, a unit is one row of its transpose.
//!
//! With operands of bfloat16 the planes of a cube multiply tiles of 16 x 16 terms on tensor cores, each plane its own terms,
//! and their sums are added up in the end.
//!
//! On CUDA all steps of a segment may be one launch instead: see `persistent`.

use burn::tensor::Tensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::features::MmaConfig;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use half::bf16;

#[cfg(feature = "cuda")]
use super::persistent;
use super::{OnCube, UNITS, arg, is_f32, linear, operand_values, product, room, sigmoid, tensor, values};
use crate::ops::{LinearGrads, LstmGrads, LstmInputs, LstmSaved, LstmWanted, Precision, lstm as generic};

/// Lanes of a cube: the rows of a tensor core's tile.
const LANES: usize = 16;

/// Hidden units of a cube, forward.
const HIDDEN: usize = 8;

/// Rows of the weights that a cube multiplies, forward.
const ROWS: usize = 4 * HIDDEN;

/// Units of a plane, where tensor cores are used; results are the same for any other number where they are not.
const PLANE: usize = 32;

/// Rows, columns and terms of a tensor core's tile.
const TILE: usize = 16;

/// Values that a tensor core's tile has.
const TILE_LEN: usize = TILE * TILE;

/// Planes of a cube, where tensor cores are used.
const PLANES: usize = UNITS as usize / PLANE;

/// Rows of the transposed weights that a cube multiplies, backward: its hidden units.
fn hidden_back(mma: bool) -> usize {
    if mma { TILE } else { HIDDEN }
}

/// Terms that are brought into shared memory at once. Planes have tiles of their own.
fn depth_back(mma: bool) -> usize {
    if mma { PLANES * TILE } else { DEPTH }
}

/// The same, forward.
const DEPTH: usize = 64;

/// Distance of rows in shared memory. An odd one puts neighbouring rows into other banks; tensor cores want a multiple of 16 bytes.
fn stride(depth: usize, mma: bool) -> usize {
    depth + if mma { 8 } else { 1 }
}

/// Shared memory for rows of operands.
#[cube]
fn operands<E: Float>(#[comptime] rows: usize, #[comptime] stride: usize, #[comptime] mma: bool) -> SharedMemory<E> {
    if comptime!(mma) {
        SharedMemory::<E>::new_aligned(comptime!(rows * stride), 32usize)
    } else {
        SharedMemory::<E>::new(comptime!(rows * stride))
    }
}

/// Adds the products of 16 rows of `a` and 16 rows of `b`, from the given values on, over 16 terms.
#[cube]
fn add_tile<E: Float>(
    sums: &cmma::Matrix<f32>,
    a: &SharedMemory<E>,
    b: &SharedMemory<E>,
    from_a: usize,
    from_b: usize,
    #[comptime] stride: usize,
) {
    let a = cmma::Matrix::<E>::from_slice(
        cmma::MatrixIdent::A,
        TILE,
        TILE,
        TILE,
        cmma::MatrixLayout::RowMajor,
        &a.slice(from_a, a.len()),
        comptime!(stride as u32),
    );
    let b = cmma::Matrix::<E>::from_slice(
        cmma::MatrixIdent::B,
        TILE,
        TILE,
        TILE,
        cmma::MatrixLayout::ColMajor,
        &b.slice(from_b, b.len()),
        comptime!(stride as u32),
    );
    cmma::execute::<E, E, f32, f32>(&a, &b, sums, sums);
}

/// A tile of zeros.
#[cube]
fn zero_tile() -> cmma::Matrix<f32> {
    cmma::Matrix::<f32>::from_value(
        cmma::MatrixIdent::Accumulator,
        TILE,
        TILE,
        TILE,
        cmma::MatrixLayout::Undefined,
        0.0f32,
    )
}

/// Writes each plane's tile into shared memory, one after another.
#[cube]
fn gather(tile: &cmma::Matrix<f32>) -> SharedMemory<f32> {
    let mut tiles = SharedMemory::<f32>::new_aligned(comptime!(PLANES * TILE_LEN), 32usize);
    let from = UNIT_POS as usize / comptime!(PLANE) * comptime!(TILE_LEN);
    cmma::store(
        &mut tiles.slice_mut(from, from + comptime!(TILE_LEN)),
        tile,
        comptime!(TILE as u32),
        cmma::MatrixLayout::RowMajor,
    );
    sync_cube();
    tiles
}

/// Some rows of a matrix.
#[derive(CubeType, Clone, Copy)]
struct Block {
    first: usize,
    /// How many there are: those after them count as zeros.
    rows: usize,
    /// Length of a row.
    terms: usize,
}

/// Brings `depth` terms, from `from` on, of `rows` rows into shared memory, from row `to` on.
#[cube]
fn bring<S: Float, E: Float>(
    tile: &mut SharedMemory<E>,
    source: &Array<S>,
    block: Block,
    from: usize,
    to: usize,
    #[comptime] rows: usize,
    #[comptime] depth: usize,
    #[comptime] stride: usize,
) {
    #[unroll]
    for i in 0..comptime!((rows * depth).div_ceil(UNITS as usize)) {
        let at = UNIT_POS as usize + i * comptime!(UNITS as usize);
        let (row, term) = (at / depth, at % depth);
        let mut value = E::from_int(0);
        if row < block.rows && from + term < block.terms {
            value = E::cast_from(source[(block.first + row) * block.terms + from + term]);
        }
        tile[(to + row) * stride + term] = value;
    }
}

/// Lanes, hidden units, steps.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) seq_len: u32,
    pub(super) lanes: u32,
    pub(super) d: u32,
}

fn sizes<R: CubeRuntime>([seq_len, lanes, d]: [usize; 3]) -> SizesLaunch<R> {
    SizesLaunch::new(seq_len as u32, lanes as u32, d as u32)
}

/// Brings a step's terms from `from` on into shared memory: this cube's rows of all four gates, and its lanes' hidden states.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a part of a kernel")]
fn bring_step<E: Float>(
    of_weight: &mut SharedMemory<E>,
    of_state: &mut SharedMemory<E>,
    weight: &Array<E>,
    h0: &Array<f32>,
    output: &Array<f32>,
    sizes: &Sizes,
    step: usize,
    from: usize,
    #[comptime] first: bool,
    #[comptime] stride: usize,
) {
    let (d, lanes) = (sizes.d as usize, sizes.lanes as usize);
    let first_hidden = CUBE_POS_X as usize * comptime!(HIDDEN);
    let first_lane = CUBE_POS_Y as usize * comptime!(LANES);
    #[unroll]
    for gate in 0..4usize {
        let rows = Block { first: gate * d + first_hidden, rows: d - first_hidden, terms: d };
        bring::<E, E>(of_weight, weight, rows, from, comptime!(gate * HIDDEN), HIDDEN, DEPTH, stride);
    }
    if comptime!(first) {
        let rows = Block { first: first_lane, rows: lanes - first_lane, terms: d };
        bring::<f32, E>(of_state, h0, rows, from, 0usize, LANES, DEPTH, stride);
    } else {
        let rows = Block { first: (step - 1) * lanes + first_lane, rows: lanes - first_lane, terms: d };
        bring::<f32, E>(of_state, output, rows, from, 0usize, LANES, DEPTH, stride);
    }
}

/// One step forward. `output` holds the hidden states of all steps and, at the end, the last cells.
#[cube(launch)]
pub(super) fn forward_kernel<E: Float>(
    projected: &Array<f32>,
    weight: &Array<E>,
    bias_ih: &Array<f32>,
    bias_hh: &Array<f32>,
    h0: &Array<f32>,
    c0: &Array<f32>,
    output: &mut Array<f32>,
    gates: &mut Array<f32>,
    cells: &mut Array<f32>,
    sizes: &Sizes,
    step: u32,
    #[comptime] first: bool,
    #[comptime] keeps: Keeps,
    #[comptime] mma: bool,
) {
    let (d, lanes, step) = (sizes.d as usize, sizes.lanes as usize, step as usize);
    let unit = UNIT_POS as usize;
    let first_hidden = CUBE_POS_X as usize * comptime!(HIDDEN);
    let first_lane = CUBE_POS_Y as usize * comptime!(LANES);
    let stride = comptime!(stride(DEPTH, mma));
    let mut of_weight = operands::<E>(ROWS, stride, mma);
    let mut of_state = operands::<E>(LANES, stride, mma);
    let mut z = SharedMemory::<f32>::new(comptime!(LANES * ROWS));
    let mut from = 0usize.runtime();
    if comptime!(mma) {
        // A plane multiplies one half of the rows with all lanes, over a part of the terms.
        let plane = unit / comptime!(PLANE);
        let (half, term) = (plane % 2, plane / 2 * comptime!(TILE));
        let tile = zero_tile();
        while from < d {
            bring_step(&mut of_weight, &mut of_state, weight, h0, output, sizes, step, from, first, stride);
            sync_cube();
            add_tile(&tile, &of_state, &of_weight, term, half * comptime!(TILE * stride) + term, stride);
            sync_cube();
            from += comptime!(DEPTH);
        }
        let tiles = gather(&tile);
        let (lane, column) = (unit / comptime!(TILE), unit % comptime!(TILE));
        #[unroll]
        for half in 0..2usize {
            let mut sum = 0.0f32;
            #[unroll]
            for part in 0..comptime!(PLANES / 2) {
                sum += tiles[comptime!((2 * part + half) * TILE_LEN) + unit];
            }
            z[lane * comptime!(ROWS) + comptime!(half * TILE) + column] = sum;
        }
    } else {
        // A unit multiplies one row with two lanes.
        let row = unit % comptime!(ROWS);
        let lane0 = unit / comptime!(ROWS) * 2;
        let mut sum0 = 0.0f32;
        let mut sum1 = 0.0f32;
        while from < d {
            bring_step(&mut of_weight, &mut of_state, weight, h0, output, sizes, step, from, first, stride);
            sync_cube();
            for term in 0..comptime!(DEPTH) {
                let w = f32::cast_from(of_weight[row * stride + term]);
                sum0 += w * f32::cast_from(of_state[lane0 * stride + term]);
                sum1 += w * f32::cast_from(of_state[(lane0 + 1) * stride + term]);
            }
            sync_cube();
            from += comptime!(DEPTH);
        }
        z[lane0 * comptime!(ROWS) + row] = sum0;
        z[(lane0 + 1) * comptime!(ROWS) + row] = sum1;
    }
    sync_cube();

    let (own_lane, own_hidden) = (unit / comptime!(HIDDEN), unit % comptime!(HIDDEN));
    let (lane, hidden) = (first_lane + own_lane, first_hidden + own_hidden);
    if own_lane < comptime!(LANES) && lane < lanes && hidden < d {
        let at_gates = (step * lanes + lane) * 4 * d + hidden;
        let mut activated = Array::<f32>::new(4usize);
        #[unroll]
        for gate in 0..4usize {
            let x = z[own_lane * comptime!(ROWS) + gate * comptime!(HIDDEN) + own_hidden]
                + projected[at_gates + gate * d]
                + bias_ih[gate * d + hidden]
                + bias_hh[gate * d + hidden];
            let a = if comptime!(gate == 2) { x.tanh() } else { sigmoid(x) };
            activated[gate] = a;
            if comptime!(keeps.gates) {
                gates[at_gates + gate * d] = a;
            }
        }
        let at = lane * d + hidden;
        let before = if comptime!(first) {
            c0[at]
        } else if comptime!(keeps.cells) {
            cells[(step - 1) * lanes * d + at]
        } else {
            cells[at]
        };
        let cell = activated[1] * before + activated[0] * activated[2];
        if comptime!(keeps.cells) {
            cells[step * lanes * d + at] = cell;
        } else {
            cells[at] = cell;
        }
        output[step * lanes * d + at] = activated[3] * cell.tanh();
        if step + 1 == sizes.seq_len as usize {
            output[(step + 1) * lanes * d + at] = cell;
        }
    }
}

/// One step backward: the gradients of a step's gates from those of the step after it. `weight` is transposed, `[d, 4 d]`.
#[cube(launch)]
pub(super) fn backward_kernel<E: Float>(
    weight: &Array<E>,
    gates: &Array<f32>,
    cells: &Array<f32>,
    c0: &Array<f32>,
    grad: &Array<f32>,
    dgates: &mut Array<f32>,
    dcells: &mut Array<f32>,
    sizes: &Sizes,
    step: u32,
    #[comptime] first: bool,
    #[comptime] last: bool,
    #[comptime] mma: bool,
) {
    let (d, lanes, step) = (sizes.d as usize, sizes.lanes as usize, step as usize);
    let terms = 4 * d;
    let unit = UNIT_POS as usize;
    let rows = comptime!(hidden_back(mma));
    let depth = comptime!(depth_back(mma));
    let stride = comptime!(stride(depth, mma));
    let first_hidden = CUBE_POS_X as usize * rows;
    let first_lane = CUBE_POS_Y as usize * comptime!(LANES);
    let own_hidden = unit % rows;
    let own_lane = unit / rows % comptime!(LANES);
    let half = unit / comptime!(rows * LANES);
    let (hidden, lane) = (first_hidden + own_hidden, first_lane + own_lane);
    let mut total = 0.0f32;

    if comptime!(!last) {
        let mut of_weight = operands::<E>(rows, stride, mma);
        let mut of_grads = operands::<E>(LANES, stride, mma);
        let weights = Block { first: first_hidden, rows: d - first_hidden, terms };
        let grads = Block { first: (step + 1) * lanes + first_lane, rows: lanes - first_lane, terms };
        let mut from = 0usize.runtime();
        if comptime!(mma) {
            // A plane multiplies all rows with all lanes, over a part of the terms.
            let term = unit / comptime!(PLANE) * comptime!(TILE);
            let tile = zero_tile();
            while from < terms {
                bring::<E, E>(&mut of_weight, weight, weights, from, 0usize, rows, depth, stride);
                bring::<f32, E>(&mut of_grads, dgates, grads, from, 0usize, LANES, depth, stride);
                sync_cube();
                add_tile(&tile, &of_grads, &of_weight, term, term, stride);
                sync_cube();
                from += depth;
            }
            let tiles = gather(&tile);
            #[unroll]
            for plane in 0..comptime!(PLANES) {
                total += tiles[comptime!(plane * TILE_LEN) + unit];
            }
        } else {
            // A unit multiplies one row with one lane, over one half of the terms.
            let mut sum = 0.0f32;
            while from < terms {
                bring::<E, E>(&mut of_weight, weight, weights, from, 0usize, rows, depth, stride);
                bring::<f32, E>(&mut of_grads, dgates, grads, from, 0usize, LANES, depth, stride);
                sync_cube();
                for i in 0..comptime!(depth / 2) {
                    let term = half * comptime!(depth / 2) + i;
                    sum += f32::cast_from(of_weight[own_hidden * stride + term])
                        * f32::cast_from(of_grads[own_lane * stride + term]);
                }
                sync_cube();
                from += depth;
            }
            let mut sums = SharedMemory::<f32>::new(comptime!(UNITS as usize));
            sums[unit] = sum;
            sync_cube();
            if half == 0 {
                total = sum + sums[unit + comptime!(rows * LANES)];
            }
        }
    }

    if half == 0 && lane < lanes && hidden < d {
        let at = lane * d + hidden;
        let at_step = step * lanes * d + at;
        let at_gates = (step * lanes + lane) * terms + hidden;
        let mut dh = grad[at_step];
        dh += total;
        let mut dc = if comptime!(last) { grad[(step + 1) * lanes * d + at] } else { dcells[at] };
        let before = if comptime!(first) { c0[at] } else { cells[at_step - lanes * d] };
        let (i, f) = (gates[at_gates], gates[at_gates + d]);
        let (g, o) = (gates[at_gates + 2 * d], gates[at_gates + 3 * d]);
        let tanh_c = cells[at_step].tanh();
        dc += dh * o * (1.0f32 - tanh_c * tanh_c);
        dgates[at_gates] = dc * g * i * (1.0f32 - i);
        dgates[at_gates + d] = dc * before * f * (1.0f32 - f);
        dgates[at_gates + 2 * d] = dc * i * (1.0f32 - g * g);
        dgates[at_gates + 3 * d] = dh * tanh_c * o * (1.0f32 - o);
        dcells[at] = dc * f;
    }
}

/// Whether the device multiplies tiles of such operands, in planes as the kernels expect them.
fn has_tensor_cores<R: CubeRuntime, E: Float>(client: &ComputeClient<R>) -> bool {
    let operand = E::as_type_native_unchecked().storage_type();
    let sum = f32::as_type_native_unchecked().storage_type();
    let size = TILE as u32;
    let tile = MmaConfig { a_type: operand, b_type: operand, cd_type: sum, m: size, n: size, k: size };
    let properties = client.properties();
    let planes = [properties.hardware.plane_size_min, properties.hardware.plane_size_max];
    operand != sum && planes == [PLANE as u32; 2] && properties.features.matmul.cmma.contains(&tile)
}

/// Cubes of a step, of so many hidden units each.
fn cubes([_, lanes, d]: [usize; 3], hidden: usize) -> (CubeCount, CubeDim) {
    (CubeCount::Static(d.div_ceil(hidden) as u32, lanes.div_ceil(LANES) as u32, 1), CubeDim::new_1d(UNITS))
}

/// What the recurrence leaves.
pub(super) struct Outputs<R: CubeRuntime> {
    /// `[seq_len + 1, lanes, d]`
    pub(super) output: CubeTensor<R>,
    /// `[seq_len, lanes, 4 d]`, where they are kept.
    pub(super) gates: CubeTensor<R>,
    /// `[seq_len, lanes, d]`, where they are kept.
    pub(super) cells: CubeTensor<R>,
}

/// What is kept of each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Keeps {
    pub(super) gates: bool,
    pub(super) cells: bool,
}

/// The recurrence over a segment.
fn run<B: OnCube>(inputs: LstmInputs<B>, precision: Precision, keeps: Keeps) -> Outputs<B::Runtime> {
    let ([seq_len, lanes, d_in], [_, d]) = (inputs.x.dims(), inputs.h0.dims());
    let LstmInputs { x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, .. } = inputs;
    let projected = values(product(x.reshape([seq_len * lanes, d_in]), weight_ih.transpose(), precision));
    let weight = operand_values(weight_hh, precision);
    let rest = [values(bias_ih), values(bias_hh), values(h0), values(c0)];
    match precision {
        Precision::F32 => steps::<_, f32>(&projected, &weight, &rest, [seq_len, lanes, d], keeps),
        Precision::Bf16 => steps::<_, bf16>(&projected, &weight, &rest, [seq_len, lanes, d], keeps),
    }
}

/// The steps of the recurrence; `E` is the type of the operands.
///
/// # Shapes
/// - `projected`: `x W_ihᵀ`, `[seq_len * lanes, 4 d]`
/// - `weight`: `W_hh`, `[4 d, d]`
/// - `rest`: both biases, `[4 d]`, `h0` and `c0`, `[lanes, d]`
fn steps<R: CubeRuntime, E: Float>(
    projected: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    rest: &[CubeTensor<R>; 4],
    shape: [usize; 3],
    keeps: Keeps,
) -> Outputs<R> {
    let [seq_len, lanes, d] = shape;
    let output = room(projected, [seq_len + 1, lanes, d]);
    let gates = if keeps.gates { room(projected, [seq_len, lanes, 4 * d]) } else { room(projected, [1, 1, 1]) };
    let cells = room(projected, [if keeps.cells { seq_len } else { 1 }, lanes, d]);
    let outputs = Outputs { output, gates, cells };
    #[cfg(feature = "cuda")]
    if persistent::forward(projected, weight, rest, &outputs, shape, keeps) {
        return outputs;
    }
    let [bias_ih, bias_hh, h0, c0] = rest;
    let mma = has_tensor_cores::<R, E>(&projected.client);
    for step in 0..seq_len {
        let (count, dim) = cubes(shape, HIDDEN);
        forward_kernel::launch::<E, R>(
            &projected.client,
            count,
            dim,
            arg(projected),
            arg(weight),
            arg(bias_ih),
            arg(bias_hh),
            arg(h0),
            arg(c0),
            arg(&outputs.output),
            arg(&outputs.gates),
            arg(&outputs.cells),
            sizes(shape),
            step as u32,
            step == 0,
            keeps,
            mma,
        );
    }
    outputs
}

/// The steps backward: gradients of the gates before their activation, `[seq_len * lanes, 4 d]`, and of `c0`.
///
/// # Shapes
/// - `weight`: `W_hh`, `[4 d, d]`
/// - `kept`: gates, `[seq_len, lanes, 4 d]`, cells, `[seq_len, lanes, d]`, and `c0`, `[lanes, d]`
/// - `grad`: `[seq_len + 1, lanes, d]`
fn steps_back<B: OnCube, E: Float>(
    weight: Tensor<B, 2>,
    kept: &[CubeTensor<B::Runtime>; 3],
    grad: &CubeTensor<B::Runtime>,
    shape: [usize; 3],
    precision: Precision,
) -> [CubeTensor<B::Runtime>; 2] {
    let [seq_len, lanes, d] = shape;
    let grads = [room(grad, [seq_len * lanes, 4 * d]), room(grad, [lanes, d])];
    #[cfg(feature = "cuda")]
    if persistent::backward(|| operand_values(weight.clone(), precision), kept, grad, &grads, shape, precision) {
        return grads;
    }
    let weight = operand_values(weight.transpose(), precision);
    let ([gates, cells, c0], [dgates, dcells]) = (kept, &grads);
    let mma = has_tensor_cores::<B::Runtime, E>(&grad.client);
    for step in (0..seq_len).rev() {
        let (count, dim) = cubes(shape, hidden_back(mma));
        backward_kernel::launch::<E, B::Runtime>(
            &grad.client,
            count,
            dim,
            arg(&weight),
            arg(gates),
            arg(cells),
            arg(c0),
            arg(grad),
            arg(dgates),
            arg(dcells),
            sizes(shape),
            step as u32,
            step == 0,
            step + 1 == seq_len,
            mma,
        );
    }
    grads
}

pub(super) fn infer<B: OnCube>(inputs: LstmInputs<B>, precision: Precision) -> Tensor<B, 3> {
    if !is_f32(&inputs.x) {
        return generic::infer(inputs, precision);
    }
    tensor(run(inputs, precision, Keeps { gates: false, cells: false }).output)
}

pub(super) fn forward<B: OnCube>(inputs: LstmInputs<B>, precision: Precision) -> (Tensor<B, 3>, LstmSaved<B>) {
    if !is_f32(&inputs.x) {
        return generic::forward(inputs, precision);
    }
    let keeps = Keeps { gates: !inputs.recompute, cells: true };
    let Outputs { output, gates, cells } = run(inputs.clone(), precision, keeps);
    let output: Tensor<B, 3> = tensor(output);
    let gates = keeps.gates.then(|| tensor(gates));
    (output.clone(), LstmSaved { inputs, output, gates, cells: tensor(cells), precision })
}

pub(super) fn backward<B: OnCube>(saved: LstmSaved<B>, grad: Tensor<B, 3>, wanted: LstmWanted) -> LstmGrads<B> {
    if !is_f32(&saved.inputs.x) {
        return generic::backward(saved, grad, wanted);
    }
    let LstmSaved { inputs, output, gates, cells, precision } = saved;
    let ([seq_len, lanes, d_in], [_, d]) = (inputs.x.dims(), inputs.h0.dims());
    let gates = gates.unwrap_or_else(|| generic::gates_again(&inputs, output.clone(), precision));
    let LstmInputs { x, weight_ih, weight_hh, h0, c0, .. } = inputs;
    let shape = [seq_len, lanes, d];
    let (kept, grad) = ([values(gates), values(cells), values(c0)], values(grad));
    let [dgates, c0] = match precision {
        Precision::F32 => steps_back::<_, f32>(weight_hh.clone(), &kept, &grad, shape, precision),
        Precision::Bf16 => steps_back::<_, bf16>(weight_hh.clone(), &kept, &grad, shape, precision),
    };
    let dgates: Tensor<B, 2> = tensor(dgates);
    let of_weight = |hidden: Tensor<B, 2>| product(dgates.clone().transpose(), hidden, precision);
    let before = generic::before(h0, output, seq_len).reshape([seq_len * lanes, d]);
    let h0 = product(dgates.clone().narrow(0, 0, lanes), weight_hh, precision);
    let of_recurrence = wanted.weight_hh.then(|| of_weight(before));
    let x = x.reshape([seq_len * lanes, d_in]);
    let wanted = [wanted.x, wanted.weight_ih, wanted.bias];
    let LinearGrads { x, weight, bias } = linear::backward(x, weight_ih, dgates.clone(), wanted, precision);
    LstmGrads {
        x: x.map(|x| x.reshape([seq_len, lanes, d_in])),
        weight_ih: weight,
        weight_hh: of_recurrence,
        bias,
        h0,
        c0: tensor(c0),
    }
}
