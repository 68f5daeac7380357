//! The persistent LSTM of CUDA against the generic body. It is chosen once a process, so these run in processes of their own.

use sharnn_core::ops::{CUDA_LSTM_VARIABLE, CudaLstm, LstmSaved, LstmWanted};

use super::*;

/// Segments, lanes, inputs and units: one lane and many, widths that no tile divides, and the paper's.
const SIZES: [[usize; 4]; 9] = [
    [2, 1, 1, 1],
    [2, 1, 4, 7],
    [7, 3, 16, 17],
    [13, 2, 8, 32],
    [6, 17, 48, 64],
    [5, 33, 20, 130],
    [4, 64, 16, 256],
    [9, 16, 100, 1000],
    [33, 16, 64, 1024],
];

/// What the operation gives and keeps, and all its gradients.
fn all<B: Backend>(
    dims @ [t, b, d_in, d]: [usize; 4],
    forward: fn(LstmInputs<B>, Precision) -> (Tensor<B, 3>, LstmSaved<B>),
    backward: fn(LstmSaved<B>, Tensor<B, 3>, LstmWanted) -> sharnn_core::ops::LstmGrads<B>,
    recompute: bool,
    precision: Precision,
) -> Vec<(&'static str, Vec<f64>)> {
    // Weights of the size that they have in a model, so that gates are not all open or shut.
    let scale = 1.0 / (d.max(d_in) as f64).sqrt();
    let drawn = inputs(&lstm_sizes(t, b, d_in, d));
    let x: Vec<Flat<B>> =
        (0..).zip(&drawn).map(|(i, x)| upload(x) * if (1..5).contains(&i) { scale } else { 1.0 }).collect();
    let inputs = LstmInputs {
        x: x[0].clone().reshape([t, b, d_in]),
        weight_ih: x[1].clone().reshape([4 * d, d_in]),
        weight_hh: x[2].clone().reshape([4 * d, d]),
        bias_ih: x[3].clone(),
        bias_hh: x[4].clone(),
        h0: x[5].clone().reshape([b, d]),
        c0: x[6].clone().reshape([b, d]),
        recompute,
    };
    let (output, saved) = forward(inputs, precision);
    let grad = upload::<B>(&random(output.dims().iter().product(), &mut ChaCha8Rng::seed_from_u64(99)));
    let mut all =
        vec![("output", values(output.clone().flatten(0, 2))), ("cells", values(saved.cells.clone().flatten(0, 2)))];
    if let Some(gates) = saved.gates.clone() {
        all.push(("gates", values(gates.flatten(0, 2))));
    }
    let wanted = LstmWanted { x: true, weight_ih: true, weight_hh: true, bias: true };
    let grads = backward(saved, grad.reshape(output.dims()), wanted);
    all.push(("gradient of x", values(grads.x.unwrap().flatten(0, 2))));
    for (name, grad) in [("weight_ih", grads.weight_ih.unwrap()), ("weight_hh", grads.weight_hh.unwrap())] {
        all.push((name, values(grad.flatten(0, 1))));
    }
    all.push(("bias", values(grads.bias.unwrap())));
    all.extend([("h0", values(grads.h0.flatten(0, 1))), ("c0", values(grads.c0.flatten(0, 1)))]);
    assert_eq!(dims[0] + 1, output.dims()[0]);
    all
}

fn agrees<B: Backend>() {
    assert_eq!(CudaLstm::current(), Ok(CudaLstm::Persistent));
    let device = B::Device::default();
    // Sums of up to 1,024 terms in another order, over all steps; in bf16 a state that lies between two of its values may
    // be rounded to the other one, by 2⁻⁸ of itself.
    for (precision, tolerance) in [(Precision::F32, 5e-5), (Precision::Bf16, 1e-2)] {
        if !precision.is_supported::<B>(&device) {
            eprintln!("{} has no bf16 on this device", B::name(&device));
            continue;
        }
        for dims @ [t, b, d_in, d] in SIZES {
            for recompute in [false, true] {
                let what = format!("persistent lstm T {t} B {b} in {d_in} d {d}, {precision:?}, recompute {recompute}");
                let launches = CudaLstm::persistent_launches();
                let got = all(dims, B::lstm_forward, B::lstm_backward, recompute, precision);
                let notices = B::notices(&device);
                assert!(notices.is_empty(), "{what}: {notices:?}");
                assert_eq!(CudaLstm::persistent_launches(), launches + 2, "{what}: stepwise");
                let want = all::<B>(dims, generic::lstm_forward, generic::lstm_backward, recompute, precision);
                assert_eq!(got.len(), want.len());
                for ((name, got), (_, want)) in got.iter().zip(&want) {
                    assert_near(&format!("{what}: {name}"), got, want, tolerance);
                }
            }
        }
    }
}

/// What keeps nothing gives the same output, and a segment cut in two the same as the whole one.
fn without_gradients<B: Backend>() {
    let (t, b, d) = (12, 5, 72);
    let x: Vec<Flat<B>> = inputs(&lstm_sizes(t, b, d, d)).iter().map(|x| upload(x) * 0.2).collect();
    let run = |from: usize, len: usize, h0: Flat<B>, c0: Flat<B>| {
        let inputs = LstmInputs {
            x: x[0].clone().reshape([t, b, d]).narrow(0, from, len),
            weight_ih: x[1].clone().reshape([4 * d, d]),
            weight_hh: x[2].clone().reshape([4 * d, d]),
            bias_ih: x[3].clone(),
            bias_hh: x[4].clone(),
            h0: h0.reshape([b, d]),
            c0: c0.reshape([b, d]),
            recompute: false,
        };
        let kept = values(B::lstm_forward(inputs.clone(), Precision::F32).0.flatten(0, 2));
        let output = values(B::lstm(inputs, Precision::F32).flatten(0, 2));
        assert_near("what is kept changes nothing", &output, &kept, 1e-5);
        output
    };
    let whole = run(0, t, x[5].clone(), x[6].clone());
    let first = run(0, 5, x[5].clone(), x[6].clone());
    let state = |row: usize| upload::<B>(&first[row * b * d..(row + 1) * b * d]);
    let second = run(5, t - 5, state(4), state(5));
    assert_near("first part", &first[..5 * b * d], &whole[..5 * b * d], 1e-5);
    assert_near("second part", &second, &whole[5 * b * d..], 1e-5);
}

/// Runs a test of this name in a process that has chosen the persistent kernels.
fn in_a_process_of_its_own(test: &str, body: fn()) {
    if std::env::var_os(CUDA_LSTM_VARIABLE).is_some_and(|value| value == "persistent") {
        return body();
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([&format!("ops::cuda_persistent::{test}"), "--exact"]).env(CUDA_LSTM_VARIABLE, "persistent");
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn agrees_with_the_generic_body() {
    in_a_process_of_its_own("agrees_with_the_generic_body", agrees::<sharnn_core::UnfusedCuda>);
}

#[test]
fn agrees_with_the_generic_body_under_fusion() {
    in_a_process_of_its_own(
        "agrees_with_the_generic_body_under_fusion",
        agrees::<burn_fusion::Fusion<sharnn_core::UnfusedCuda>>,
    );
}

#[test]
fn keeps_nothing_where_nothing_is_wanted() {
    in_a_process_of_its_own("keeps_nothing_where_nothing_is_wanted", without_gradients::<sharnn_core::UnfusedCuda>);
}
