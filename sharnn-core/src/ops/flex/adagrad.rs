//! Adagrad on rows, in place.

use burn::tensor::Tensor;
use burn_flex::Flex;

use super::memory::{Owned, Values, is_f32};
use crate::ops::{AdagradStep, adagrad as generic};

type Updated = (Tensor<Flex, 2>, Tensor<Flex, 1>);

pub(super) fn rows(table: Tensor<Flex, 2>, squares: Tensor<Flex, 1>, step: AdagradStep<Flex>) -> Updated {
    if !(is_f32(&table) && is_f32(&squares) && is_f32(&step.grad)) {
        return generic::rows(table, squares, step);
    }
    let AdagradStep { lr, eps, rows, grad, skip } = step;
    if skip.into_data().iter::<bool>().any(|skip| skip) {
        return (table, squares);
    }
    let [n_rows, width] = table.dims();
    let rows: Vec<usize> = rows.into_data().iter::<i64>().map(|row| row as usize).collect();
    let (dims, expected) = (grad.dims(), [rows.len(), width]);
    assert_eq!(dims, expected, "gradients have shape {dims:?}, expected {expected:?}");
    assert_eq!(squares.dims(), [n_rows], "squares have shape {:?}, expected [{n_rows}]", squares.dims());
    if let Some(row) = rows.iter().find(|&&row| row >= n_rows) {
        panic!("row {row} of a table of {n_rows}");
    }
    let grad = Values::of(&grad);
    let (mut table, mut squares) = (Owned::of(table), Owned::of(squares));
    sharnn_kernels::adagrad_rows(table.values(), squares.values(), &rows, &grad, lr as f32, eps as f32);
    (table.tensor(), squares.tensor())
}
