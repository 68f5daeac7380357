//! Dropout masks, computed where they are needed.

use burn::tensor::Tensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::{OnCube, arg, for_elements, is_f32, room, tensor, values};
use crate::ops::{Dropout, LaneAxis, dropout as generic};

/// What a kernel needs to know of a mask.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Mask {
    pub(super) key0: u32,
    pub(super) key1: u32,
    pub(super) step: u32,
    pub(super) first_lane: u32,
    pub(super) threshold: u32,
    pub(super) scale: f32,
}

/// The mask as an argument; one that keeps all where there is no dropout.
pub(super) fn mask<R: CubeRuntime>(dropout: Option<&Dropout>) -> MaskLaunch<R> {
    match dropout {
        Some(dropout) => {
            let ([key0, key1], step) = dropout.key.philox_key();
            let (lane, threshold) = (dropout.key.stream.first_lane, u32::from(dropout.threshold()));
            MaskLaunch::new(key0, key1, step, lane, threshold, dropout.scale())
        }
        None => MaskLaunch::new(0, 0, 0, 0, 0, 1.0),
    }
}

/// What the element at `(lane, row, column)` is multiplied by: the same bits as [`Dropout::host_mask`] gives.
#[cube]
pub(super) fn factor(mask: &Mask, lane: u32, row: u32, column: u32) -> f32 {
    let mut c0 = column / 8;
    let mut c1 = row;
    let mut c2 = lane + mask.first_lane;
    let mut c3 = mask.step;
    let mut key0 = mask.key0;
    let mut key1 = mask.key1;
    #[unroll]
    for _ in 0..10 {
        let high0 = u32::mul_hi(0xD251_1F53u32, c0);
        let low0 = 0xD251_1F53u32 * c0;
        let high1 = u32::mul_hi(0xCD9E_8D57u32, c2);
        let low1 = 0xCD9E_8D57u32 * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E37_79B9u32;
        key1 += 0xBB67_AE85u32;
    }
    let word = (column % 8) / 2;
    let words = select(word < 2, select(word == 0, c0, c1), select(word == 2, c2, c3));
    let bits = (words >> (16 * (column % 2))) & 0xFFFFu32;
    select(bits < mask.threshold, 0.0f32, mask.scale)
}

/// `LANES_FIRST`: rows of `x` are counted `[lanes, inner]`, else `[inner rows, lanes]`.
#[cube(launch)]
pub(super) fn apply_kernel(
    x: &Array<f32>,
    out: &mut Array<f32>,
    mask: &Mask,
    inner: u32,
    columns: u32,
    first_row: u32,
    #[comptime] lanes_first: bool,
) {
    if ABSOLUTE_POS < out.len() {
        let at = ABSOLUTE_POS as u32;
        let (line, column) = (at / columns, at % columns);
        let (first, second) = (line / inner, line % inner);
        let kept = if comptime!(lanes_first) {
            factor(mask, first, second + first_row, column)
        } else {
            factor(mask, second, first + first_row, column)
        };
        out[ABSOLUTE_POS] = x[ABSOLUTE_POS] * kept;
    }
}

/// `x`, of f32, with elements dropped and the rest scaled; lanes are counted by `lane_axis`, rows from `first_row` on.
pub(super) fn apply_from<B: OnCube>(
    first_row: usize,
    x: Tensor<B, 3>,
    dropout: Dropout,
    lane_axis: LaneAxis,
) -> Tensor<B, 3> {
    let [outer, inner, columns] = x.dims();
    let x = values(x);
    let out = room(&x, [outer, inner, columns]);
    let n = outer * inner * columns;
    if n > 0 {
        let (count, dim) = for_elements(&x, n);
        apply_kernel::launch::<B::Runtime>(
            &x.client,
            count,
            dim,
            arg(&x),
            arg(&out),
            mask(Some(&dropout)),
            inner as u32,
            columns as u32,
            first_row as u32,
            lane_axis == LaneAxis::First,
        );
    }
    tensor(out)
}

pub(super) fn apply<B: OnCube>(x: Tensor<B, 3>, dropout: Dropout) -> Tensor<B, 3> {
    if !is_f32(&x) {
        return generic::apply(x, dropout);
    }
    apply_from(0, x, dropout, LaneAxis::Second)
}
