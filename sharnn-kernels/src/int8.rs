//! Matrices in whole numbers of 8 bits: what is done to weights before they are written to a file or packed. What was rounded once stays
//! as it is when it is rounded again.
//!
//! ```text
//! s = max |w| / 127, rounded up to 16 significant bits;   q = round(w / s), to nearest, ties to even
//! ```
//!
//! So q s is exact in f32, the largest q is 127, and the scale of the q s is s again. A row has a scale; rows shorter than 64 values
//! share one, two or four or more together.

/// Values that have one scale, at the least, where there are so many rows.
const SCALED_TOGETHER: usize = 64;

/// How many rows of a matrix have one scale.
pub fn rows_of_a_scale([rows, cols]: [usize; 2]) -> usize {
    let mut together = 1;
    while together * cols < SCALED_TOGETHER && rows > 0 && rows.is_multiple_of(2 * together) {
        together *= 2;
    }
    together
}

/// What one step of some values' whole numbers is worth; NaN if one of them is not finite, since whole numbers could not say which it was.
pub fn scale(values: &[f32]) -> f32 {
    let largest = values.iter().try_fold(0.0, |largest: f32, w| w.is_finite().then(|| largest.max(w.abs())));
    largest.map_or(f32::NAN, |largest| f32::from_bits(((largest / 127.0).to_bits() + 0xFF) & !0xFF))
}

/// The scale of each row of a matrix.
///
/// # Panics
/// If there are not as many values as it has.
pub fn scales(values: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    assert_eq!(values.len(), rows * cols, "{} values are not a matrix of {rows} x {cols}", values.len());
    let together = rows_of_a_scale([rows, cols]);
    let of_scale = |values: &[f32]| std::iter::repeat_n(scale(values), together);
    values.chunks((together * cols).max(1)).flat_map(of_scale).collect()
}

/// A value as a whole number of such steps.
pub fn whole(value: f32, scale: f32) -> i8 {
    // Zeros have scale 0, and 0 / 0 becomes 0. The smallest scales are rounded so much that 127 has to be held.
    (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

/// A matrix's values as they are read back.
///
/// # Panics
/// If there are not as many as it has.
pub fn rounded(values: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    assert_eq!(values.len(), rows * cols, "{} values are not a matrix of {rows} x {cols}", values.len());
    let together = (rows_of_a_scale([rows, cols]) * cols).max(1);
    let of_scale = |values: &[f32]| {
        let scale = scale(values);
        values.iter().map(|&value| f32::from(whole(value, scale)) * scale).collect::<Vec<_>>()
    };
    values.chunks(together).flat_map(of_scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn what_was_rounded_once_stays_as_it_is() {
        for dims in [[1, 1], [3, 70], [48, 8], [6, 20], [7, 5]] {
            let values: Vec<_> = random(dims[0] * dims[1], 1).iter().map(|x| x * x * x * 3.0).collect();
            let once = rounded(&values, dims);
            assert_eq!(rounded(&once, dims), once, "{dims:?}");
            let together = rows_of_a_scale(dims) * dims[1];
            for (values, once) in values.chunks(together).zip(once.chunks(together)) {
                let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                for (value, once) in values.iter().zip(once) {
                    assert!((value - once).abs() <= largest * 0.50002 / 127.0, "{once} for {value}");
                }
            }
        }
    }

    #[test]
    fn short_rows_share_a_scale() {
        assert_eq!([[48, 8], [6, 20], [7, 5], [9, 64], [65_536, 16], [0, 4]].map(rows_of_a_scale), [8, 2, 1, 1, 4, 1]);
    }
}
