//! Forward and backward against plain loops in double precision.

use super::backward::Gradients;
use super::*;
use crate::round_bf16;
use crate::rows::RowsMut;
use crate::team::{self, Team};
use crate::testing::{assert_near, random};

#[derive(Clone, Copy, Debug)]
struct Case {
    lanes: usize,
    seq_len: usize,
    mem_len: usize,
    d: usize,
    heads: usize,
    value_dropout: bool,
    weight_dropout: bool,
    memory_wanted: bool,
    operands: Operands,
    time_major: bool,
}

/// `[lanes, rows, d]` in the two layouts; the first leaves gaps between rows, which nothing may write to.
fn strides(time_major: bool, [lanes, rows, d]: [usize; 3]) -> [usize; 2] {
    if time_major { [d + 3, lanes * (d + 3)] } else { [rows * d, d] }
}

fn len(time_major: bool, [lanes, rows, d]: [usize; 3]) -> usize {
    lanes * rows * if time_major { d + 3 } else { d }
}

/// The rows alone, in order. What lies between them must be NaN still.
fn gather(data: &[f32], time_major: bool, shape: [usize; 3]) -> Vec<f32> {
    let [lane_stride, row_stride] = strides(time_major, shape);
    let rows = |row: usize| (row / shape[1]) * lane_stride + (row % shape[1]) * row_stride;
    let kept: Vec<f32> = (0..shape[0] * shape[1]).flat_map(|row| &data[rows(row)..][..shape[2]]).copied().collect();
    assert_eq!(data.iter().filter(|x| x.is_nan()).count(), data.len() - kept.len(), "what was written");
    kept
}

#[derive(Debug)]
struct Results {
    out: Vec<f32>,
    log_sum_exp: Vec<f32>,
    d_query: Vec<f32>,
    d_current: Vec<f32>,
    d_memory: Vec<f32>,
}

struct Data {
    query: Vec<f32>,
    memory: Vec<f32>,
    current: Vec<f32>,
    grad: Vec<f32>,
}

fn mask(key: u32) -> Mask {
    Mask { key: [key, 5], step: 3, first_lane: 2, threshold: 20_000 }
}

impl Case {
    fn shape(&self) -> [usize; 3] {
        [self.lanes, self.seq_len, self.d]
    }

    fn data(&self) -> Data {
        let n = len(self.time_major, self.shape());
        let memory = random(self.lanes * self.mem_len * self.d, 2);
        Data { query: random(n, 1), memory, current: random(n, 3), grad: random(n, 4) }
    }

    fn run(&self, data: &Data, run: Run) -> Results {
        let (shape, memory_shape) = (self.shape(), [self.lanes, self.mem_len, self.d]);
        let strides = strides(self.time_major, shape);
        let rows = |x| Rows::new(x, shape, strides);
        let memory_strides = [self.mem_len * self.d, self.d];
        let attention = Attention {
            query: rows(&data.query),
            memory: (self.mem_len > 0).then(|| Rows::new(&data.memory, memory_shape, memory_strides)),
            current: rows(&data.current),
            heads: self.heads,
            value_dropout: self.value_dropout.then(|| mask(1)),
            weight_dropout: self.weight_dropout.then(|| mask(2)),
            operands: self.operands,
        };
        let fresh = || vec![f32::NAN; len(self.time_major, shape)];
        let (mut out, mut d_query, mut d_current) = (fresh(), fresh(), fresh());
        let mut d_memory = vec![f32::NAN; self.lanes * self.mem_len * self.d];
        let mut log_sum_exp = vec![f32::NAN; self.lanes * self.heads * self.seq_len];
        attention.forward_on(run, RowsMut::new(&mut out, shape, strides), Some(&mut log_sum_exp));
        let gradients = Gradients {
            query: RowsMut::new(&mut d_query, shape, strides),
            current: RowsMut::new(&mut d_current, shape, strides),
            memory: self.memory_wanted.then(|| RowsMut::new(&mut d_memory, memory_shape, memory_strides)),
        };
        attention.backward_on(run, &log_sum_exp, rows(&data.grad), gradients);
        if !self.memory_wanted {
            d_memory.clear();
        }
        let gather = |x: &[f32]| gather(x, self.time_major, shape);
        Results { out: gather(&out), log_sum_exp, d_query: gather(&d_query), d_current: gather(&d_current), d_memory }
    }

    /// What [`mask`] multiplies `[rows, cols]` of a lane by.
    fn multipliers(&self, key: u32, lane: usize, wanted: bool, [rows, cols]: [usize; 2]) -> Vec<f32> {
        let mut ones = vec![1.0; rows * cols];
        for (row, x) in ones.chunks_mut(cols).enumerate().filter(|_| wanted) {
            // SAFETY: one row.
            unsafe { multiply(RowMask { mask: mask(key), lane, row }, 0, x.as_mut_ptr(), cols) };
        }
        ones
    }

    /// The formulas, with operands rounded where the kernel rounds them.
    fn reference(&self, data: &Data) -> [Vec<f64>; 5] {
        let &Case { lanes, seq_len, mem_len, d, heads, .. } = self;
        let (keys, d_head) = (mem_len + seq_len, d / heads);
        let round = |x: f64| match self.operands {
            Operands::F32 => x,
            Operands::Bf16 => f64::from(round_bf16(x as f32)),
        };
        let (shape, strides) = (self.shape(), strides(self.time_major, self.shape()));
        let rows = |x| Rows::new(x, shape, strides);
        let (query, current, grad) = (rows(&data.query), rows(&data.current), rows(&data.grad));
        let n = lanes * seq_len * d;
        let (mut out, mut d_query, mut d_current) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        let mut d_memory = vec![0.0; if self.memory_wanted { lanes * mem_len * d } else { 0 }];
        let mut sums = vec![];
        for lane in 0..lanes {
            let key = |j: usize, c: usize| match j < mem_len {
                true => data.memory[(lane * mem_len + j) * d + c],
                false => current.row(lane, j - mem_len)[c],
            };
            let value_mask = self.multipliers(1, lane, self.value_dropout, [keys, d]);
            let weight_mask = self.multipliers(2, lane, self.weight_dropout, [heads * seq_len, keys]);
            for head in 0..heads {
                let cols = head * d_head..(head + 1) * d_head;
                // Operands as the products see them.
                let of_keys: Vec<f64> =
                    (0..keys).flat_map(|j| cols.clone().map(move |c| round(key(j, c).into()))).collect();
                let values: Vec<f64> = (0..keys)
                    .flat_map(|j| cols.clone().map(move |c| (j, c)))
                    .map(|(j, c)| round((key(j, c) * value_mask[j * d + c]).into()))
                    .collect();
                let of = |x: Rows, i: usize| -> Vec<f64> {
                    x.row(lane, i)[cols.clone()].iter().map(|&x| round(x.into())).collect()
                };
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let at = |x: &[f64], j: usize| x[j * d_head..][..d_head].to_vec();
                let mut from_keys = vec![0.0; keys * d_head];
                let mut from_values = vec![0.0; keys * d_head];
                for i in 0..seq_len {
                    let (q, g) = (of(query, i), of(grad, i));
                    let seen = mem_len + i + 1;
                    let scores: Vec<f64> = (0..seen).map(|j| dot(&q, &at(&of_keys, j))).collect();
                    let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                    let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    sums.push(largest + sum.ln());
                    let m = |j: usize| f64::from(weight_mask[(head * seq_len + i) * keys + j]);
                    let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp() / sum).collect();
                    let d_p: Vec<f64> = (0..seen).map(|j| m(j) * dot(&g, &at(&values, j))).collect();
                    let common = dot(&p, &d_p);
                    let start = (lane * seq_len + i) * d + cols.start;
                    for j in 0..seen {
                        let (d_s, dropped) = (round(p[j] * (d_p[j] - common)), round(p[j] * m(j)));
                        for c in 0..d_head {
                            out[start + c] += dropped * values[j * d_head + c];
                            d_query[start + c] += d_s * of_keys[j * d_head + c];
                            from_keys[j * d_head + c] += d_s * q[c];
                            from_values[j * d_head + c] += dropped * g[c];
                        }
                    }
                }
                for j in 0..keys {
                    let start = match j < mem_len {
                        true if !self.memory_wanted => continue,
                        true => &mut d_memory[(lane * mem_len + j) * d + cols.start..],
                        false => &mut d_current[(lane * seq_len + j - mem_len) * d + cols.start..],
                    };
                    for c in 0..d_head {
                        let mask = f64::from(value_mask[j * d + cols.start + c]);
                        start[c] = from_keys[j * d_head + c] + mask * from_values[j * d_head + c];
                    }
                }
            }
        }
        [out, sums, d_query, d_current, d_memory]
    }

    fn check(&self) {
        let data = self.data();
        let got = self.run(&data, &|wanted, work| team::run(wanted, work));
        let want = self.reference(&data);
        let Results { out, log_sum_exp, d_query, d_current, d_memory } = &got;
        let names = ["out", "log_sum_exp", "d_query", "d_current", "d_memory"];
        for ((what, got), want) in names.into_iter().zip([out, log_sum_exp, d_query, d_current, d_memory]).zip(&want) {
            let what = format!("{what} of {self:?}");
            match self.operands {
                Operands::F32 => assert_near(&what, got, want, 1e-5),
                Operands::Bf16 => {
                    // A weight that lies near the middle of two bfloat16 may be rounded to the other one than in double
                    // precision: that shifts a result by 2⁻⁸ of a term at most. It is rare: without the same rounding all
                    // results would be off by about 2⁻⁹ of their terms.
                    assert_near(&what, got, want, 1.0 / 256.0);
                    let squares: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
                    let off = (squares / got.len().max(1) as f64).sqrt();
                    assert!(off < 2e-4, "{what}: off by {off} in the root mean square");
                }
            }
        }
    }
}

const SMALL: Case = Case {
    lanes: 1,
    seq_len: 7,
    mem_len: 5,
    d: 12,
    heads: 3,
    value_dropout: true,
    weight_dropout: true,
    memory_wanted: true,
    operands: Operands::F32,
    time_major: false,
};

#[test]
fn results_and_gradients_agree_with_the_formulas_in_double_precision() {
    let lengths: &[[usize; 2]] = match cfg!(miri) {
        true => &[[3, 2], [9, 2]],
        false => {
            &[[1, 0], [1, 5], [1, 40], [7, 0], [7, 5], [7, 40], [13, 0], [13, 5], [13, 40], [50, 0], [50, 5], [50, 40]]
        }
    };
    for &[seq_len, mem_len] in lengths {
        for [d, heads] in [[1, 1], [8, 1], [12, 3], [17, 1], [32, 1], [32, 4], [48, 1], [48, 4]] {
            for (lanes, time_major) in [(1, false), (3, true)] {
                for [value_dropout, weight_dropout] in [[false, false], [false, true], [true, false], [true, true]] {
                    for (operands, memory_wanted) in
                        [(Operands::F32, false), (Operands::F32, true), (Operands::Bf16, lanes == 1)]
                    {
                        let flags =
                            Case { value_dropout, weight_dropout, memory_wanted, operands, time_major, ..SMALL };
                        Case { lanes, seq_len, mem_len, d, heads, ..flags }.check();
                    }
                }
            }
        }
    }
}

/// Several blocks of queries and of keys, more terms than a product sums at once, and a queue of tasks.
#[test]
#[cfg_attr(miri, ignore = "large")]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case { lanes: 2, seq_len: 301, mem_len: 290, d: 40, heads: 2, ..SMALL };
    for memory_wanted in [false, true] {
        let case = Case { memory_wanted, ..case };
        case.check();
        let data = case.data();
        let [first, others @ ..] = [1, 2, 3, 7].map(|threads| {
            let team = Team::new(threads);
            let Results { out, log_sum_exp, d_query, d_current, d_memory } =
                case.run(&data, &|_, work| team.run(threads, work));
            [out, log_sum_exp, d_query, d_current, d_memory]
                .map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        for other in others {
            assert!(other == first);
        }
    }
}

/// Scores far apart, whose exponentials are no normal numbers, and far from 0.
#[test]
fn large_scores_are_no_trouble() {
    let case = Case { seq_len: 9, mem_len: 20, ..SMALL };
    let mut data = case.data();
    data.query.iter_mut().for_each(|x| *x *= 200.0);
    let got = case.run(&data, &|wanted, work| team::run(wanted, work));
    let [out, _, d_query, d_current, d_memory] = case.reference(&data);
    // Scores near 400 are off by 10⁻⁵ or so, and weights by as large a part of themselves; keys' gradients are sums of
    // queries, which are up to 200.
    assert_near("out", &got.out, &out, 1e-4);
    assert_near("d_query", &got.d_query, &d_query, 1e-4);
    assert_near("d_current", &got.d_current, &d_current, 2e-3);
    assert_near("d_memory", &got.d_memory, &d_memory, 2e-3);
}

#[test]
fn nothing_to_do_is_done() {
    Case { lanes: 0, ..SMALL }.check();
    let case = Case { seq_len: 0, ..SMALL };
    let got = case.run(&case.data(), &|_, _| panic!("there is no work"));
    assert!(got.out.is_empty() && got.log_sum_exp.is_empty());
}

#[test]
#[should_panic(expected = "5 heads do not divide 12 columns")]
fn heads_must_divide_the_columns() {
    let case = Case { heads: 5, ..SMALL };
    case.run(&case.data(), &|wanted, work| team::run(wanted, work));
}
