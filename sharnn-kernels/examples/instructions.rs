//! Calls whose instructions an emulator counts: each once to get ready, then once between two marks, on one thread.
//!
//! The marks are system calls that do nothing, which `scripts/platforms/instructions.c` knows. That says how it is built and run; without it
//! the calls are made and nothing is counted.

use sharnn_kernels::{
    AttentionWeights, BlockWeights, DecodeModel, Isa, Lstm, LstmTrace, Mat, NGramWeights, NormWeights, Operands,
    Packed, PackedRows, Streams, WeightFormat, gemm, team,
};

/// The width of everything.
const D: usize = 256;

#[cfg(target_os = "linux")]
fn mark(what: u32) {
    // SAFETY: it asks for the priority of a process that is not there.
    unsafe { libc::getpriority(0, what) };
}

#[cfg(not(target_os = "linux"))]
fn mark(_what: u32) {}

fn counted(name: &str, mut call: impl FnMut()) {
    call();
    eprintln!("{name}");
    mark(7001);
    call();
    mark(7002);
}

/// Numbers between -1 and 1 that are the same everywhere.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

/// Of the shape of the bundled model, but for the tables' rows, of which a step reads one a table.
fn model() -> DecodeModel {
    let mut seed = 0;
    let mut values = |n: usize, scale: f32| -> Vec<f32> {
        seed += 1;
        random(n, seed).iter().map(|x| x * scale).collect()
    };
    let (boom_width, scale) = (2 * D, 1.0 / 16.0);
    let (embedding, decoder_bias) = (values(256 * D, 1.0), values(256, 0.1));
    let mut model = DecodeModel::new(D, 128, embedding, None, &decoder_bias, WeightFormat::Exact);
    for block in 0..3 {
        // Pairs of a bias around 0 and a weight around 1.
        let vectors: [Vec<f32>; 16] =
            std::array::from_fn(|i| values(D, 0.5).iter().map(|x| x + (i % 2) as f32).collect());
        let norm = |i: usize| NormWeights { weight: &vectors[2 * i + 1], bias: &vectors[2 * i] };
        let [weight_ih, weight_hh] = [(); 2].map(|()| values(4 * D * D, scale));
        let [bias_ih, bias_hh] = [(); 2].map(|()| values(4 * D, scale));
        let (query, boom, boom_bias) = (values(D * D, scale), values(boom_width * D, scale), values(boom_width, scale));
        let attention = AttentionWeights {
            norm_mid: norm(0),
            norm_mem: norm(1),
            query: &query,
            query_bias: &vectors[12],
            query_norm: norm(2),
            q_gate: &vectors[13],
            k_gate: &vectors[14],
            value_gate: &vectors[15],
            n_heads: 1,
        };
        model.push(BlockWeights {
            norm_start: norm(3),
            weight_ih: &weight_ih,
            weight_hh: &weight_hh,
            bias_ih: &bias_ih,
            bias_hh: &bias_hh,
            attention: (block == 1).then_some(attention),
            norm_ff: norm(4),
            norm_xff: norm(5),
            boom: &boom,
            boom_bias: &boom_bias,
        });
    }
    let (rows, width) = (1024, 8);
    let (table, map) = (values(4 * rows * width, 1.0), values(D * 4 * width, 0.2));
    let (multiplier, modulus) = (4093, 524_287);
    model.with_ngrams(NGramWeights {
        orders: &[3, 4, 5, 6],
        rows,
        table: &table,
        input: Some(&map),
        output: Some(&map),
        multiplier,
        modulus,
    })
}

fn main() {
    team::set_threads(1).expect("nothing has begun");
    eprintln!("{}:", Isa::current().name());
    let model = model();
    for n in [1, 2, 8] {
        let mut streams = Streams::new(&model, n);
        let tokens = |step: usize| -> Vec<_> { (0..n).map(|stream| Some((step * 37 + stream * 11) % 256)).collect() };
        let mut step = |step| _ = model.step(&mut streams, &tokens(step));
        (0..128).for_each(&mut step);
        let name = format!("exact: a step of {n} streams, 3 blocks, {D} wide, memory full");
        counted(&name, || step(128));
    }
    {
        let matrix = PackedRows::new(&random(1024 * 512, 1), None, [1024, 512], WeightFormat::Exact);
        let (x, mut y) = (random(512, 2), vec![0.0; 1024]);
        counted("exact: a matrix of 1024 x 512 times a vector", || matrix.multiply(&x, &mut y));
    }
    let precisions = [(Operands::F32, "f32"), (Operands::Bf16, "bf16")];
    for (operands, name) in precisions {
        let (a, b, mut c) = (random(D * D, 1), random(D * D, 2), vec![0.0; D * D]);
        let b = Packed::new(Mat::row_major(&b, D, D), operands);
        counted(&format!("{name}: a product of {D} x {D} x {D}"), || gemm(Mat::row_major(&a, D, D), &b, &mut c, false));
    }
    for (operands, name) in precisions {
        let (seq_len, lanes) = (8, 32);
        let (x, weight_ih, weight_hh) = (random(seq_len * lanes * D, 1), random(4 * D * D, 2), random(4 * D * D, 3));
        let (bias, zeros) = (random(4 * D, 4), vec![0.0; lanes * D]);
        let lstm = Lstm {
            seq_len,
            lanes,
            d_in: D,
            d: D,
            x: &x,
            weight_ih: &weight_ih,
            weight_hh: &weight_hh,
            bias_ih: &bias,
            bias_hh: &bias,
            h0: &zeros,
            c0: &zeros,
            operands,
        };
        let (mut h, mut cells) = (vec![0.0; (seq_len + 1) * lanes * D], vec![0.0; seq_len * lanes * D]);
        counted(&format!("{name}: {seq_len} steps of an LSTM, {lanes} lanes, {D} wide"), || {
            lstm.forward(&mut h, Some(LstmTrace { gates: None, cells: &mut cells }));
        });
    }
}
