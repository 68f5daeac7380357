//! Adagrad on some rows of a table, with one sum of squares a row.
//!
//! A step touches a few thousand rows, each of a cache line or two: the memory's latency decides, and one thread is enough.

/// `S[r] += mean(g²)` for each use of a row, then `T[r] -= lr g / (√S[r] + eps)` for each use.
///
/// # Shapes
/// - `table`: `[rows of the table, width]`, `squares`: `[rows of the table]`
/// - `rows`: which rows were used; `grad`: `[rows, width]`
///
/// # Panics
/// If the shapes do not agree, or a row is not in the table.
pub fn adagrad_rows(table: &mut [f32], squares: &mut [f32], rows: &[usize], grad: &[f32], lr: f32, eps: f32) {
    if rows.is_empty() {
        return;
    }
    let width = grad.len() / rows.len();
    assert_eq!(grad.len(), rows.len() * width, "{} gradients of {} rows", grad.len(), rows.len());
    assert_eq!(table.len(), squares.len() * width, "{} values and {} squares", table.len(), squares.len());
    for (&row, grad) in rows.iter().zip(grad.chunks_exact(width)) {
        squares[row] += grad.iter().map(|g| g * g).sum::<f32>() / width as f32;
    }
    for (&row, grad) in rows.iter().zip(grad.chunks_exact(width)) {
        let rate = lr / (squares[row].sqrt() + eps);
        table[row * width..][..width].iter_mut().zip(grad).for_each(|(value, g)| *value -= rate * g);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_used_often_add_each_square_and_others_stay() {
        let mut table = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut squares = [0.0, 0.0, 11.0];
        adagrad_rows(&mut table, &mut squares, &[2, 0, 2], &[3.0, 1.0, 1.0, -1.0, 1.0, 3.0], 0.1, 1e-8);
        assert_eq!(squares, [1.0, 0.0, 21.0]);
        let root = 21f32.sqrt();
        let want = [0.9, 2.1, 3.0, 4.0, 5.0 - 0.1 * 4.0 / root, 6.0 - 0.1 * 4.0 / root];
        for (got, want) in table.into_iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got}, expected {want}");
        }
    }

    #[test]
    fn a_gradient_of_zeros_moves_nothing() {
        let (mut table, mut squares) = ([1.0, 2.0], [0.0]);
        adagrad_rows(&mut table, &mut squares, &[0], &[0.0, 0.0], 0.1, 1e-8);
        assert_eq!((table, squares), ([1.0, 2.0], [0.0]));
    }
}
