//! The library embedded: bytes stream through a model with carried state, which predicts each before it reads it.
//!
//! ```text
//! cargo run --release --example stream < text.txt                  a fresh model: about 8 bits per byte
//! cargo run --release --example stream -- runs/001 < text.txt      the best weights of a training run
//! ```

use std::io::{Read, Write, stdin, stdout};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::backend::Flex;
use burn::tensor::{Int, Tensor, TensorData};
use sharnn::train::load_best;
use sharnn::{Pass, ShaRnnConfig};

/// Bytes of a segment, `[1, len]`.
fn tokens(bytes: impl Iterator<Item = u8>) -> Tensor<Flex, 2, Int> {
    let tokens: Vec<i32> = bytes.map(i32::from).collect();
    let dims = [1, tokens.len()];
    Tensor::from_data(TensorData::new(tokens, dims), &Default::default())
}

fn stream() -> Result<()> {
    let device = Default::default();
    let model = match std::env::args_os().nth(1) {
        Some(run) => load_best::<Flex>(Path::new(&run), &device)?.0,
        None => ShaRnnConfig::xs().init_seeded(1, &device),
    };
    ensure!(model.vocab_size() == 256, "the model has {} tokens: it does not read bytes", model.vocab_size());
    let longest = if model.mem_len == 0 { 256 } else { model.mem_len.min(256) };

    let mut buffer = vec![0; longest];
    let (mut state, mut last) = (model.empty_state(), b'\n');
    let (mut nats, mut read) = (0.0, 0);
    loop {
        let n = stdin().read(&mut buffer).context("cannot read standard input")?;
        let [.., new_last] = buffer[..n] else { break };
        let inputs = tokens(std::iter::once(last).chain(buffer[..n - 1].iter().copied()));
        let targets = tokens(buffer[..n].iter().copied());
        // One segment: the mean loss in nats a byte, and the state that the next one starts from.
        let (loss, next_state) = model.loss(inputs, targets, state, &Pass::default());
        (state, last) = (next_state, new_last);

        nats += f64::from(loss.into_scalar()) * n as f64;
        read += n;
        let bits = nats / read as f64 / std::f64::consts::LN_2;
        writeln!(stdout(), "{read:>10} bytes  {bits:.4} bits per byte")?;
    }
    Ok(())
}

fn main() {
    if let Err(error) = stream() {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
