//! What the machine can do at most: the figures beside which those of a model are to be read.

use std::hint::black_box;
use std::time::Instant;

use crate::core::kernels::{Isa, Mat, Operands, Packed, gemm, team::threads};
use serde::Serialize;

/// The result, in the order in which it is printed. Each figure is the best of about half a second, on all threads.
#[derive(Serialize)]
pub struct Ceilings {
    mode: &'static str,
    isa: &'static str,
    threads: usize,
    /// Products whose operands stay in the first caches: what the multipliers give.
    gemm_in_cache_gflops: f64,
    /// 1024 x 1024 x 1024, its right operand packed anew each time.
    gemm_1024_gflops: f64,
    /// The recurrent product of size L with packed weights: 16 rows, [1024, 4096].
    recurrent_l_gflops: f64,
    /// Reads of 256 KiB a thread, of 4 MiB a thread, and of 512 MiB in all.
    read_l2_gb_s: f64,
    read_l3_gb_s: f64,
    read_dram_gb_s: f64,
}

impl Ceilings {
    /// Measures them all.
    pub fn measure() -> Self {
        let threads = threads();
        let read = |words: usize| {
            // Each thread has its own part, and reads it often enough to be timed.
            let rounds = (1 << 23) / words + 1;
            let parts: Vec<Vec<u64>> = (0..threads).map(|_| vec![1; words]).collect();
            let bytes = (threads * words * 8 * rounds) as f64;
            bytes / best(|| read_all(&parts, rounds)) / 1e9
        };
        let round = |x: f64| (x * 10.0).round() / 10.0;
        Self {
            mode: "ceilings",
            isa: Isa::current().name(),
            threads,
            gemm_in_cache_gflops: round(product([192 * threads, 256, 64], false)),
            gemm_1024_gflops: round(product([1024, 1024, 1024], true)),
            recurrent_l_gflops: round(product([16, 1024, 4096], false)),
            read_l2_gb_s: round(read(1 << 15)),
            read_l3_gb_s: round(read(1 << 19)),
            read_dram_gb_s: round(read((1 << 26) / threads)),
        }
    }
}

/// GFLOP/s of `[m, k]` times `[k, n]`.
fn product([m, k, n]: [usize; 3], pack: bool) -> f64 {
    let (a, b, mut c) = (vec![0.5; m * k], vec![0.25; k * n], vec![0.0; m * n]);
    let packed = || Packed::new(Mat::row_major(&b, k, n), Operands::F32);
    let kept = packed();
    let seconds = best(|| match pack {
        true => gemm(Mat::row_major(&a, m, k), &packed(), &mut c, false),
        false => gemm(Mat::row_major(&a, m, k), &kept, &mut c, false),
    });
    2.0 * (m * k * n) as f64 / seconds / 1e9
}

fn read_all(parts: &[Vec<u64>], rounds: usize) {
    std::thread::scope(|scope| {
        for part in parts {
            let read = move || {
                for _ in 0..rounds {
                    black_box(black_box(part).iter().fold(0u64, |sum, &x| sum.wrapping_add(x)));
                }
            };
            // Where the system refuses a thread, this one does its work.
            if std::thread::Builder::new().spawn_scoped(scope, read).is_err() {
                read();
            }
        }
    });
}

/// The shortest of many runs, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut best = f64::INFINITY;
    while started.elapsed().as_secs_f64() < 0.5 {
        let run_started = Instant::now();
        run();
        best = best.min(run_started.elapsed().as_secs_f64());
    }
    best
}
