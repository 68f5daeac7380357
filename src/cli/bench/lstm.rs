//! `bench --mode lstm`: microseconds that the LSTM takes a step, over widths and numbers of lanes, on any backend.
//!
//! The operation is timed whole: the product that projects the segment, the recurrence, and backward the products for the
//! gradients of the weights. On a GPU the launches of a segment are enqueued one after another, so a time is the larger of the
//! host's and the device's.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Distribution, Tensor};
use serde::Serialize;

use super::{median, round};
use crate::core::ops::{LstmInputs, LstmWanted};
use crate::{AutodiffBackend, Backend, BackendJob, Precision};

/// The paper's size first: where the time is short, it is known.
const WIDTHS: [usize; 4] = [1024, 768, 512, 256];
const LANES: [usize; 4] = [16, 1, 4, 64];

/// Both passes over the whole grid, each segment `warmup + runs` times.
#[derive(Clone)]
pub struct Job {
    pub precision: Precision,
    /// One number of lanes in place of the grid's.
    pub lanes: Option<usize>,
    pub seq_len: usize,
    pub warmup: usize,
    pub runs: usize,
    /// Lines of JSON in place of a table.
    pub json: bool,
    /// The backend's name.
    pub device: &'static str,
}

/// One size, in the order in which it is printed.
#[derive(Serialize)]
struct Line {
    mode: &'static str,
    device: &'static str,
    dtype: Precision,
    pass: &'static str,
    d: usize,
    lanes: usize,
    seq_len: usize,
    /// Microseconds a step: the median and the least of the runs.
    median_us: f64,
    min_us: f64,
    /// Launches of CUDA's persistent kernels in all runs: 0 where the LSTM was computed step by step.
    persistent_launches: u64,
    /// What the backend has to say of this size, such as that another kernel had to be used.
    notices: Vec<String>,
}

impl BackendJob for Job {
    type Output = Result<()>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<()> {
        ensure!(
            self.precision.is_supported::<B::InnerBackend>(&device),
            "--dtype bf16 cannot be used: backend {} does not compute in it here; use --dtype f32",
            self.device
        );
        if !self.json {
            say!("microseconds a step, segments of {} bytes; {}", self.seq_len, self.device);
            say!("");
            say!("{:>6}{:>8}{:>18}{:>12}{:>12}", "d", "lanes", "", "median", "least");
        }
        for d in WIDTHS {
            for lanes in self.lanes.map_or(LANES.to_vec(), |lanes| vec![lanes]) {
                for backward in [false, true] {
                    self.print(&self.measure::<B::InnerBackend>(lanes, d, backward, &device)?)?;
                }
            }
        }
        Ok(())
    }
}

impl Job {
    fn measure<B: Backend>(&self, lanes: usize, d: usize, backward: bool, device: &B::Device) -> Result<Line> {
        let Self { precision, seq_len, .. } = *self;
        // As weights are drawn for an LSTM of this width.
        let bound = 1.0 / (d as f64).sqrt();
        let inputs = LstmInputs {
            x: floats::<B, 3>([seq_len, lanes, d], 1.0, device),
            weight_ih: floats([4 * d, d], bound, device),
            weight_hh: floats([4 * d, d], bound, device),
            bias_ih: floats([4 * d], bound, device),
            bias_hh: floats([4 * d], bound, device),
            h0: floats([lanes, d], 1.0, device),
            c0: floats([lanes, d], 1.0, device),
            recompute: false,
        };
        let grad = floats([seq_len + 1, lanes, d], 1.0, device);
        let wanted = LstmWanted { x: true, weight_ih: true, weight_hh: true, bias: true };
        let before = persistent_launches();
        let mut results = None;
        let mut micros = Vec::with_capacity(self.runs);
        for run in 0..self.warmup.saturating_add(self.runs) {
            B::sync(device).context("the device failed")?;
            let start = Instant::now();
            results = Some(match backward {
                false => B::lstm(inputs.clone(), precision).reshape([-1]),
                true => {
                    let (_, saved) = B::lstm_forward(inputs.clone(), precision);
                    let grads = B::lstm_backward(saved, grad.clone(), wanted);
                    black_box((grads.weight_ih, grads.weight_hh, grads.bias, grads.x));
                    Tensor::cat(vec![grads.h0, grads.c0], 0).reshape([-1])
                }
            });
            B::sync(device).context("the device failed")?;
            if run >= self.warmup {
                micros.push(1e6 * start.elapsed().as_secs_f64() / seq_len as f64);
            }
        }
        let results: Tensor<B, 1> = results.context("nothing was computed")?;
        let finite = results.into_data().convert::<f32>().iter::<f32>().all(f32::is_finite);
        let notices = B::notices(device);
        ensure!(finite, "d {d}, {lanes} lanes: not all values are finite, the times mean nothing {notices:?}");
        micros.sort_by(f64::total_cmp);
        Ok(Line {
            mode: "lstm",
            device: self.device,
            dtype: precision,
            pass: if backward { "forward+backward" } else { "forward" },
            d,
            lanes,
            seq_len,
            median_us: round(median(&micros), 3),
            min_us: round(micros[0], 3),
            persistent_launches: persistent_launches() - before,
            notices,
        })
    }

    fn print(&self, line: &Line) -> Result<()> {
        if self.json {
            return super::print(line);
        }
        let Line { d, lanes, pass, median_us, min_us, notices, .. } = line;
        say!("{d:>6}{lanes:>8}{pass:>18}{median_us:>12.3}{min_us:>12.3}");
        for notice in notices {
            say!("        {notice}");
        }
        Ok(())
    }
}

fn persistent_launches() -> u64 {
    #[cfg(feature = "cuda")]
    return crate::core::ops::CudaLstm::persistent_launches();
    #[cfg(not(feature = "cuda"))]
    0
}

fn floats<B: Backend, const D: usize>(dims: [usize; D], bound: f64, device: &B::Device) -> Tensor<B, D> {
    Tensor::random(dims, Distribution::Uniform(-bound, bound), device)
}
