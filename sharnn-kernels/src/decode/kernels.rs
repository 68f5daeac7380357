//! What a step does beside products with matrices, each as fast as the CPU's instructions allow and in [`Exact`](crate::simd::Exact)
//! vectors.

use super::WeightFormat;
use super::packed::GROUP;
use crate::blocks::sum_of;
use crate::layer_norm;
use crate::math::{GELU_SLOPE, exp, sigmoid, tanh};
use crate::simd::{Vector, exact_kernel, kernel};

/// A kernel that takes the format first: exact where that is.
macro_rules! kernels {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel takes what it takes")]
        $vis unsafe fn $name(format: WeightFormat, $($arg: $ty),*) $(-> $ret)? {
            kernel!(unsafe fn fast($($arg: $ty),*) $(-> $ret)? => $body);
            exact_kernel!(unsafe fn exact($($arg: $ty),*) $(-> $ret)? => $body);
            // SAFETY: the caller's.
            unsafe {
                match format {
                    WeightFormat::Exact => exact($($arg),*),
                    _ => fast($($arg),*),
                }
            }
        }
    };
}

/// Of the layer norms.
pub(super) const EPS: f32 = 1e-12;

/// Rows of a memory that are attended to together, whoever does it: the order of no sum depends on the number of threads.
pub(super) const MEMORY_BLOCK: usize = 32;

/// Of one row; see [`layer_norm`].
pub(super) type Statistics = (f32, f32);

#[inline(always)]
unsafe fn sigmoids_body<V: Vector>(x: &[f32], tanhs: bool, y: &mut [f32]) {
    for i in (0..x.len()).step_by(V::LANES) {
        // SAFETY: `left` values are left at `i`; the instructions are the caller's.
        unsafe {
            let left = x.len() - i;
            let x = V::load_up_to(x.as_ptr().add(i), left);
            let y_i = if tanhs { tanh(x) } else { sigmoid(x) };
            y_i.store_up_to(y.as_mut_ptr().add(i), left);
        }
    }
}
exact_kernel!(
    /// # Safety
    /// `y` is as long as `x`.
    unsafe fn activations(x: &[f32], tanhs: bool, y: &mut [f32]) => sigmoids_body
);

/// The sigmoids of some values, the same on every CPU.
pub(super) fn sigmoids(x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    // SAFETY: the lengths agree.
    unsafe { activations(x, false, &mut y) };
    y
}

/// The vector that a value gate is, the same on every CPU: `σ(f) ⊙ tanh(c)` with `[c, f] = W σ(gate) + b`. Sums are of doubles, in the order
/// of the columns.
///
/// # Shapes
/// - `gate` and result: `[d]`; `weight`: `[2 d, d]`; `bias`: `[2 d]`
///
/// # Panics
/// If the shapes do not agree.
pub fn value_gate(gate: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let d = gate.len();
    super::check("the value gate's weight", weight.len(), 2 * d * d);
    super::check("the value gate's bias", bias.len(), 2 * d);
    let input = sigmoids(gate);
    let row = |row: usize| {
        let terms = weight[row * d..][..d].iter().zip(&input).map(|(&w, &x)| f64::from(w) * f64::from(x));
        terms.fold(f64::from(bias[row]), |sum, term| sum + term) as f32
    };
    let (c, f): (Vec<_>, Vec<_>) = (0..d).map(|i| (row(i), row(d + i))).unzip();
    let mut tanhs = vec![0.0; d];
    // SAFETY: the lengths agree.
    unsafe { activations(&c, true, &mut tanhs) };
    sigmoids(&f).into_iter().zip(tanhs).map(|(f, c)| f * c).collect()
}

#[inline(always)]
unsafe fn statistics_body<V: Vector>(x: &[f32]) -> Statistics {
    // SAFETY: the instructions are the caller's.
    unsafe { layer_norm::statistics::<V>(x, EPS) }
}
kernels!(
    /// # Safety
    /// None beyond the instructions.
    pub(super) unsafe fn statistics(x: &[f32]) -> Statistics => statistics_body
);

#[inline(always)]
unsafe fn norm_body<V: Vector>(x: &[f32], of: Statistics, weight: &[f32], bias: &[f32], y: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { layer_norm::normalise::<V>(x, of, weight, bias, y) }
}
kernels!(
    /// # Safety
    /// `weight`, `bias` and `y` are as long as `x`.
    pub(super) unsafe fn norm(x: &[f32], of: Statistics, weight: &[f32], bias: &[f32], y: &mut [f32]) => norm_body
);

#[inline(always)]
unsafe fn lstm_units_body<V: Vector>(gates: [&[f32]; 4], c: &mut [f32], h: &mut [f32]) {
    let [i, f, g, o] = gates;
    for unit in (0..c.len()).step_by(V::LANES) {
        // SAFETY: `left` of each are left at `unit`; the instructions are the caller's.
        unsafe {
            let left = c.len() - unit;
            let (c, h) = (c.as_mut_ptr().add(unit), h.as_mut_ptr().add(unit));
            let kept = sigmoid(V::load_up_to(f.as_ptr().add(unit), left)).mul(V::load_up_to(c, left));
            let new = tanh(V::load_up_to(g.as_ptr().add(unit), left));
            let cell = sigmoid(V::load_up_to(i.as_ptr().add(unit), left)).mul_add(new, kept);
            cell.store_up_to(c, left);
            sigmoid(V::load_up_to(o.as_ptr().add(unit), left)).mul(tanh(cell)).store_up_to(h, left);
        }
    }
}
kernels!(
    /// New cell and hidden values of some units, from their gates i, f, g and o before the nonlinearities.
    ///
    /// # Safety
    /// All are equally long.
    pub(super) unsafe fn lstm_units(gates: [&[f32]; 4], c: &mut [f32], h: &mut [f32]) => lstm_units_body
);

#[inline(always)]
unsafe fn add_gelu_body<V: Vector>(z: &[f32; GROUP], sums: &mut [f32]) {
    for i in (0..GROUP).step_by(V::LANES) {
        // SAFETY: a group is whole vectors; the instructions are the caller's.
        unsafe {
            let (z, sums) = (V::load(z.as_ptr().add(i)), sums.as_mut_ptr().add(i));
            z.mul_add(sigmoid(z.mul(V::splat(GELU_SLOPE))), V::load(sums)).store(sums);
        }
    }
}
kernels!(
    /// `sums += GELU(z)`.
    ///
    /// # Safety
    /// `sums` is [`GROUP`] long.
    pub(super) unsafe fn add_gelu(z: &[f32; GROUP], sums: &mut [f32]) => add_gelu_body
);

/// Attention's result over one block of memory rows: for each head the largest score and the sum of the weights relative to
/// it, and after those the weighted sum of the rows.
#[derive(Clone, Copy)]
pub(super) struct Partial {
    pub(super) d: usize,
    pub(super) n_heads: usize,
}

impl Partial {
    /// Where the weighted sum starts.
    pub(super) fn header(self) -> usize {
        (2 * self.n_heads).next_multiple_of(16)
    }

    /// Number of values; whole cache lines, since neighbours are other members'.
    pub(super) fn len(self) -> usize {
        self.header() + self.d.next_multiple_of(16)
    }
}

#[inline(always)]
unsafe fn attend_body<V: Vector>(rows: &[f32], query: &[f32], of: Partial, partial: &mut [f32]) {
    let Partial { d, n_heads } = of;
    let (n, d_head) = (rows.len() / d, d / n_heads);
    let (header, mix) = partial.split_at_mut(of.header());
    for head in 0..n_heads {
        let start = head * d_head;
        let mut weights = [f32::NEG_INFINITY; MEMORY_BLOCK];
        // SAFETY: all places are inside of the rows, `left` of a head's values are left at `i`, and the block is whole
        // vectors; the instructions are the caller's.
        unsafe {
            let query = query.as_ptr().add(start);
            for (row, weight) in weights.iter_mut().enumerate().take(n) {
                let key = rows.as_ptr().add(row * d + start);
                *weight = sum_of!(V, d_head, |i, left| {
                    // Zeros after the query's end: what the row goes on with does not count.
                    V::load_up_to(query.add(i), left).mul(V::load_up_to(key.add(i), left))
                });
            }
            let mut largest = V::splat(f32::NEG_INFINITY);
            for i in (0..MEMORY_BLOCK).step_by(V::LANES) {
                largest = largest.max(V::load(weights.as_ptr().add(i)));
            }
            let largest = largest.largest();
            let mut sum = V::splat(0.0);
            for i in (0..n).step_by(V::LANES) {
                let at = weights.as_mut_ptr().add(i);
                let weight = exp(V::load(at).sub(V::splat(largest))).keep_up_to(n - i);
                sum = sum.add(weight);
                weight.store(at);
            }
            (header[head], header[n_heads + head]) = (largest, sum.sum());

            let mix = mix.as_mut_ptr().add(start);
            for first in (0..n).step_by(4) {
                // Past the last row comes the last one again, with weight 0.
                let mut values = [rows.as_ptr(); 4];
                let mut scales = [V::splat(0.0); 4];
                for k in 0..4 {
                    values[k] = rows.as_ptr().add((first + k).min(n - 1) * d + start);
                    scales[k] = V::splat(if first + k < n { weights[first + k] } else { 0.0 });
                }
                for i in (0..d_head).step_by(V::LANES) {
                    let left = d_head - i;
                    let mut sum = if first == 0 { V::splat(0.0) } else { V::load_up_to(mix.add(i), left) };
                    for (value, scale) in values.into_iter().zip(scales) {
                        sum = V::load_up_to(value.add(i), left).mul_add(scale, sum);
                    }
                    sum.store_up_to(mix.add(i), left);
                }
            }
        }
    }
}
kernels!(
    /// Attention from one query, already scaled, to a block of memory rows.
    ///
    /// # Safety
    /// `rows` are 1 to [`MEMORY_BLOCK`] rows of `d`, `query` is one, `partial` is [`Partial::len`] long.
    pub(super) unsafe fn attend(rows: &[f32], query: &[f32], of: Partial, partial: &mut [f32]) => attend_body
);

#[inline(always)]
unsafe fn merge_body<V: Vector>(
    partials: &[f32],
    of: Partial,
    start: usize,
    residual: &[f32],
    gate: &[f32],
    y: &mut [f32],
) {
    let (d_head, header, end) = (of.d / of.n_heads, of.header(), start + y.len());
    for head in start / d_head..end.div_ceil(d_head) {
        let from = start.max(head * d_head);
        let (at, n) = (from - start, end.min((head + 1) * d_head) - from);
        let blocks = || partials.chunks_exact(of.len());
        let largest = blocks().fold(f32::NEG_INFINITY, |largest, block| largest.max(block[head]));
        // SAFETY: `n` columns from `from` on are this head's and the result's; the instructions are the caller's.
        unsafe {
            let (out, mut total) = (y.as_mut_ptr().add(at), V::splat(0.0));
            for (index, block) in blocks().enumerate() {
                let weight = exp(V::splat(block[head] - largest));
                total = weight.mul_add(V::splat(block[of.n_heads + head]), total);
                let mix = block.as_ptr().add(header + from);
                for i in (0..n).step_by(V::LANES) {
                    let left = n - i;
                    let sum = if index == 0 { V::splat(0.0) } else { V::load_up_to(out.add(i), left) };
                    V::load_up_to(mix.add(i), left).mul_add(weight, sum).store_up_to(out.add(i), left);
                }
            }
            let (residual, gate) = (residual.as_ptr().add(from), gate.as_ptr().add(from));
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let attended = V::load_up_to(out.add(i), left).div(total);
                let y = attended.mul_add(V::load_up_to(gate.add(i), left), V::load_up_to(residual.add(i), left));
                y.store_up_to(out.add(i), left);
            }
        }
    }
}
kernels!(
    /// Columns `start ..` of `residual + gate ⊙ attention`, attention from its parts over the blocks.
    ///
    /// # Safety
    /// `partials` are some [`Partial`]s, `residual` and `gate` `d` long, and `y` columns of them.
    pub(super) unsafe fn merge(
        partials: &[f32],
        of: Partial,
        start: usize,
        residual: &[f32],
        gate: &[f32],
        y: &mut [f32],
    ) => merge_body
);
