//! Both passes against the equations in double precision.

use super::*;
use crate::round_bf16;
use crate::testing::{assert_near, random};

struct Case {
    sizes: [usize; 4],
    inputs: [Vec<f32>; 7],
    grad: Vec<f32>,
    operands: Operands,
}

impl Case {
    fn new(sizes: [usize; 4], operands: Operands) -> Self {
        let [t, b, d_in, d] = sizes;
        let lens = [t * b * d_in, 4 * d * d_in, 4 * d * d, 4 * d, 4 * d, b * d, b * d];
        let inputs = std::array::from_fn(|i| random(lens[i], i as u64));
        Self { sizes, inputs, grad: random((t + 1) * b * d, 9), operands }
    }

    fn lstm(&self) -> Lstm<'_> {
        let [seq_len, lanes, d_in, d] = self.sizes;
        let [x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0] = &self.inputs;
        let operands = self.operands;
        Lstm { seq_len, lanes, d_in, d, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, operands }
    }

    /// The equations in double precision: output, then the gradients of all inputs (one for both biases).
    fn reference(&self) -> [Vec<f64>; 7] {
        let [t_len, b, d_in, d] = self.sizes;
        let round = |x: f64| match self.operands {
            Operands::F32 => x,
            Operands::Bf16 => f64::from(round_bf16(x as f32)),
        };
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let [x, w_ih, w_hh, b_ih, b_hh, h0, c0] = self.inputs.each_ref().map(|x| wide(x));
        let grad = wide(&self.grad);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let (mut h, mut c) = (vec![h0], vec![c0]);
        let mut gates = vec![];
        for t in 0..t_len {
            let (mut h_t, mut c_t, mut gates_t) = (vec![0.0; b * d], vec![0.0; b * d], vec![0.0; b * 4 * d]);
            for lane in 0..b {
                for u in 0..d {
                    let gate = |k: usize| {
                        let row = k * d + u;
                        let from_x = (0..d_in)
                            .map(|e| round(x[(t * b + lane) * d_in + e]) * round(w_ih[row * d_in + e]))
                            .sum::<f64>();
                        let from_h = (0..d).map(|e| round(h[t][lane * d + e]) * round(w_hh[row * d + e])).sum::<f64>();
                        let z = from_x + from_h + b_ih[row] + b_hh[row];
                        if k == 2 { z.tanh() } else { sigmoid(z) }
                    };
                    let [i, f, g, o] = std::array::from_fn(gate);
                    let at = lane * d + u;
                    c_t[at] = f * c[t][at] + i * g;
                    h_t[at] = o * c_t[at].tanh();
                    for (k, gate) in [i, f, g, o].into_iter().enumerate() {
                        gates_t[lane * 4 * d + k * d + u] = gate;
                    }
                }
            }
            h.push(h_t);
            c.push(c_t);
            gates.push(gates_t);
        }
        let output = [h[1..].concat(), c[t_len].clone()].concat();

        let (mut dh, mut dc) = (vec![0.0; b * d], grad[t_len * b * d..].to_vec());
        let [mut dx, mut dw_ih, mut dw_hh, mut db] =
            [vec![0.0; x.len()], vec![0.0; w_ih.len()], vec![0.0; w_hh.len()], vec![0.0; 4 * d]];
        for t in (0..t_len).rev() {
            let mut dz = vec![0.0; b * 4 * d];
            for at in 0..b * d {
                let (lane, u) = (at / d, at % d);
                let [i, f, g, o] = std::array::from_fn(|k| gates[t][lane * 4 * d + k * d + u]);
                let tanh_c = c[t + 1][at].tanh();
                let dh = dh[at] + grad[t * b * d + at];
                dc[at] += dh * o * (1.0 - tanh_c * tanh_c);
                let parts = [
                    dc[at] * g * i * (1.0 - i),
                    dc[at] * c[t][at] * f * (1.0 - f),
                    dc[at] * i * (1.0 - g * g),
                    dh * tanh_c * o * (1.0 - o),
                ];
                for (k, part) in parts.into_iter().enumerate() {
                    dz[lane * 4 * d + k * d + u] = part;
                }
                dc[at] *= f;
            }
            for lane in 0..b {
                for row in 0..4 * d {
                    let z = round(dz[lane * 4 * d + row]);
                    db[row] += dz[lane * 4 * d + row];
                    for e in 0..d_in {
                        dx[(t * b + lane) * d_in + e] += z * round(w_ih[row * d_in + e]);
                        dw_ih[row * d_in + e] += z * round(x[(t * b + lane) * d_in + e]);
                    }
                    for e in 0..d {
                        dw_hh[row * d + e] += z * round(h[t][lane * d + e]);
                    }
                }
            }
            dh = (0..b * d)
                .map(|at| (0..4 * d).map(|row| round(dz[at / d * 4 * d + row]) * round(w_hh[row * d + at % d])).sum())
                .collect();
        }
        [output, dx, dw_ih, dw_hh, db, dh, dc]
    }

    fn run(&self) -> [Vec<f32>; 7] {
        let [t, b, _, d] = self.sizes;
        let lstm = self.lstm();
        let nan = |len: usize| vec![f32::NAN; len];
        let (mut output, mut gates, mut cells) = (nan((t + 1) * b * d), nan(t * b * 4 * d), nan(t * b * d));
        lstm.forward(&mut output, Some(LstmTrace { gates: Some(&mut gates), cells: &mut cells }));
        let (mut inferred, mut same_cells) = (nan(output.len()), nan(cells.len()));
        lstm.forward(&mut inferred, None);
        assert_eq!(inferred, output, "without a trace");
        inferred.fill(f32::NAN);
        lstm.forward(&mut inferred, Some(LstmTrace { gates: None, cells: &mut same_cells }));
        assert_eq!((inferred, same_cells), (output.clone(), cells.clone()), "without gates");
        let kept = self.gradients(&output, Some(&gates), &cells);
        assert_eq!(kept, self.gradients(&output, None, &cells), "gates computed again");
        let [x, weight_ih, weight_hh, bias, h0, c0] = kept;
        [output, x, weight_ih, weight_hh, bias, h0, c0]
    }

    fn gradients(&self, output: &[f32], gates: Option<&[f32]>, cells: &[f32]) -> [Vec<f32>; 6] {
        let [t, b, d_in, d] = self.sizes;
        let nan = |len: usize| vec![f32::NAN; len];
        let lens = [t * b * d_in, 4 * d * d_in, 4 * d * d, 4 * d, b * d, b * d];
        let [mut x, mut weight_ih, mut weight_hh, mut bias, mut h0, mut c0] = lens.map(nan);
        let grads = LstmGrads {
            x: Some(&mut x),
            weight_ih: Some(&mut weight_ih),
            weight_hh: Some(&mut weight_hh),
            bias: Some(&mut bias),
            h0: &mut h0,
            c0: &mut c0,
        };
        self.lstm().backward(output, gates, cells, &self.grad, grads);
        [x, weight_ih, weight_hh, bias, h0, c0]
    }
}

const NAMES: [&str; 7] = ["output", "x", "weight_ih", "weight_hh", "bias", "h0", "c0"];

fn cases() -> &'static [[usize; 4]] {
    match cfg!(miri) {
        true => &[[1, 1, 1, 1], [2, 3, 5, 17], [3, 3, 5, 17]],
        false => &[
            [1, 1, 1, 1],
            [1, 3, 5, 4],
            [2, 1, 4, 7],
            [7, 3, 16, 17],
            [13, 16, 8, 40],
            [5, 17, 33, 128],
            [3, 2, 20, 300],
            [5, 2, 20, 100],
            [9, 1, 4, 7],
            // More steps than a chunk has.
            [37, 17, 9, 24],
        ],
    }
}

#[test]
fn agrees_with_the_equations_in_double_precision() {
    for &sizes in cases() {
        let case = Case::new(sizes, Operands::F32);
        for ((name, got), want) in NAMES.iter().zip(case.run()).zip(case.reference()) {
            assert_near(&format!("{name} of {sizes:?}"), &got, &want, 1e-5);
        }
    }
}

/// A value that lies on the other side of a rounding boundary moves by 2⁻⁸ of itself; few do, and only those below 1
/// enter sums of a few hundred terms: 1e-2 of the largest value is far above that, and far below an operand left out.
#[test]
fn rounds_the_operands_of_products_and_nothing_else() {
    for &sizes in cases() {
        let case = Case::new(sizes, Operands::Bf16);
        for ((name, got), want) in NAMES.iter().zip(case.run()).zip(case.reference()) {
            assert_near(&format!("{name} of {sizes:?}"), &got, &want, 1e-2);
        }
    }
}
