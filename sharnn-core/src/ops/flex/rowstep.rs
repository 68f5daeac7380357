//! PROTO
use super::memory::{Owned, Values, tensor};
use burn::tensor::{Int, Tensor};
use burn_flex::Flex;
use sharnn_kernels::Buffer;

fn env(name: &str, default: f64) -> f32 {
    std::env::var(name).ok().and_then(|x| x.parse().ok()).unwrap_or(default) as f32
}

pub(super) fn step(
    table: Tensor<Flex, 2>,
    moments: Option<[Tensor<Flex, 2>; 2]>,
    rows: Tensor<Flex, 1, Int>,
    grad: Tensor<Flex, 2>,
    lr: f64,
) -> (Tensor<Flex, 2>, [Tensor<Flex, 2>; 2]) {
    let [n_rows, width] = table.dims();
    let [m, v] = moments.unwrap_or_else(|| [(); 2].map(|()| tensor(Buffer::zeros(n_rows * width), [n_rows, width])));
    let how = std::env::var("NG_OPT").unwrap_or("adam".into());
    let lr = lr as f32 * env("NG_RATE", 10.0);
    let decay = env("NG_DECAY", 0.0);
    let (b1, b2, eps) = (env("NG_B1", 0.9), env("NG_B2", 0.99), env("NG_EPS", 1e-8));
    let rows: Vec<usize> = rows.into_data().iter::<i64>().map(|x| x as usize).collect();
    let [mut table, mut m, mut v] = [table, m, v].map(Owned::of);
    let grad = Values::of(&grad);
    if grad.iter().any(|x| !x.is_finite()) {
        return (table.tensor(), [m.tensor(), v.tensor()]);
    }
    let (t, mm, vv) = (table.values(), m.values(), v.values());
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_by_key(|&i| rows[i as usize]);
    let mut sum = vec![0f32; width];
    let mut i = 0;
    while i < order.len() {
        let row = rows[order[i] as usize];
        sum.fill(0.0);
        let mut squares = vec![0f32; width];
        while i < order.len() && rows[order[i] as usize] == row {
            let g = &grad[order[i] as usize * width..][..width];
            for ((s, q), g) in sum.iter_mut().zip(&mut squares).zip(g) {
                *s += g;
                *q += g * g;
            }
            i += 1;
        }
        let at = row * width;
        let (t, mm, vv) = (&mut t[at..at + width], &mut mm[at..at + width], &mut vv[at..at + width]);
        if decay > 0.0 {
            t.iter_mut().for_each(|t| *t *= 1.0 - lr * decay);
        }
        match how.as_str() {
            "adam" => {
                for k in 0..width {
                    mm[k] = b1 * mm[k] + (1.0 - b1) * sum[k];
                    vv[k] = b2 * vv[k] + (1.0 - b2) * sum[k] * sum[k];
                    t[k] -= lr * mm[k] / (vv[k].sqrt() + eps);
                }
            }
            // Adam with its corrections by the number of times a row was met, counted in mm[0] of nothing.
            "adagrad" => {
                for k in 0..width {
                    vv[k] += sum[k] * sum[k];
                    t[k] -= lr * sum[k] / (vv[k].sqrt() + eps);
                }
            }
            "adagrad-each" => {
                for k in 0..width {
                    vv[k] += squares[k];
                    t[k] -= lr * sum[k] / (vv[k].sqrt() + eps);
                }
            }
            "adagrad-row" => {
                vv[0] += squares.iter().sum::<f32>() / width as f32;
                let rate = lr / (vv[0].sqrt() + eps);
                for k in 0..width {
                    t[k] -= rate * sum[k];
                }
            }
            "sign" => {
                for k in 0..width {
                    t[k] -= lr * sum[k].signum();
                }
            }
            other => panic!("{other}"),
        }
    }
    (table.tensor(), [m.tensor(), v.tensor()])
}
