//! The persistent LSTM's device code, compiled as C++ for the CPU (`tests/emulated/`), against the generic body.
//!
//! It needs a C++ compiler, as `c++`, with its sanitizers. Where one is missing these tests say so and pass, unless
//! `SHARNN_EMULATE=1` is set.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharnn_core::Precision;
use sharnn_core::ops::{LstmInputs, LstmWanted, generic};

/// Width of the inputs: it has no part in the recurrence.
const D_IN: usize = 3;

/// A shape, and how it is divided: all that is known when the device code is compiled.
#[derive(Clone, Copy, Debug)]
struct Case {
    d: usize,
    lanes: usize,
    blocks: usize,
    /// Of a block: fewer than on a device where there are many blocks, because each costs time here.
    threads: usize,
    precision: Precision,
    /// Whether the forward pass keeps gates and cells.
    keeps: bool,
    /// Loads after which a wait is given up.
    spins: u32,
    /// What of the device code is replaced, and by what.
    mistake: &'static [(&'static str, &'static str)],
}

/// Many more than any wait takes.
const PATIENT: u32 = 1 << 24;

/// Both precisions of `(d, lanes, blocks, threads)`.
fn cases(shapes: &[(usize, usize, usize, usize)]) -> Vec<Case> {
    let both = [Precision::F32, Precision::Bf16];
    let case = |&(d, lanes, blocks, threads)| {
        both.map(|precision| Case { d, lanes, blocks, threads, precision, keeps: true, spins: PATIENT, mistake: &[] })
    };
    shapes.iter().flat_map(case).collect()
}

/// The program's source: the device code once for each case. Device code with a mistake is written into `directory`.
fn source(cases: &[Case], directory: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (emulated, kernels) = (root.join("tests/emulated"), root.join("src/ops/cube/persistent"));
    let device = kernels.join("lstm.cu");
    let include = |path: &Path| format!("#include \"{}\"\n", path.display());
    let mut source = include(&emulated.join("cuda.h"));
    for (i, case) in cases.iter().enumerate() {
        let Case { d, lanes, blocks, threads, precision, keeps, spins, mistake } = *case;
        source += &format!("namespace case_{i} {{\n");
        for (name, value) in [
            ("D", d),
            ("LANES", lanes),
            ("BLOCKS", blocks),
            ("THREADS", threads),
            ("BF16", usize::from(precision == Precision::Bf16)),
            ("KEEPS_GATES", usize::from(keeps)),
            ("KEEPS_CELLS", usize::from(keeps)),
            ("SPINS", spins as usize),
        ] {
            source += &format!("#define SHARNN_{name} {value}\n");
        }
        source += &include(&if mistake.is_empty() {
            device.clone()
        } else {
            let right = fs::read_to_string(&device).unwrap();
            let wrong = mistake.iter().fold(right, |text, (from, to)| {
                assert!(text.contains(from), "{from}");
                text.replace(from, to)
            });
            let at = directory.join(format!("mistake-{i}.cu"));
            fs::write(&at, wrong).unwrap();
            at
        });
        source += &include(&kernels.join("poison.cu"));
        source += &include(&emulated.join("case.h"));
        source += "}\n";
    }
    let all: Vec<_> = (0..cases.len()).map(|i| format!("&case_{i}::CASE")).collect();
    source += &format!("const emulated::Case* const CASES[] = {{{}}};\n", all.join(", "));
    source + &include(&emulated.join("main.h"))
}

/// Runs the compiler on a source; its options come last.
fn compiler(source: &Path, program: &Path, options: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-O1", "-pthread", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]);
    command.args(options).arg(source).arg("-o").arg(program).output()
}

/// A compiled program, and where its files are.
struct Program {
    cases: Vec<Case>,
    at: PathBuf,
}

impl Program {
    /// Compiles the cases. None, and a line that says so, where the compiler or what its options need is missing.
    fn new(name: &str, cases: Vec<Case>, options: &[&str]) -> Option<Self> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-{name}"));
        fs::create_dir_all(&directory).unwrap();
        let (written, at) = (directory.join("cases.cpp"), directory.join("cases"));
        fs::write(&written, "int main() {}\n").unwrap();
        let missing = match compiler(&written, &at, options) {
            Ok(made) if made.status.success() => None,
            Ok(made) => Some(String::from_utf8_lossy(&made.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(missing) = missing {
            let asked = std::env::var("SHARNN_EMULATE").is_ok_and(|value| value == "1");
            assert!(!asked, "SHARNN_EMULATE=1 needs g++ with its sanitizers as `c++`: {missing}");
            eprintln!("{name}: not run, as there is no C++ compiler that takes {options:?}: {missing}");
            return None;
        }
        fs::write(&written, source(&cases, &directory)).unwrap();
        let made = compiler(&written, &at, options).unwrap();
        assert!(made.status.success(), "{name}: {}", String::from_utf8_lossy(&made.stderr));
        Some(Self { cases, at })
    }

    /// Runs the program. What it had to say, and the words that it has written.
    fn run(&self, input: &[u32]) -> (Output, Words) {
        let [read, written] = ["input", "output"].map(|name| self.at.with_file_name(name));
        fs::write(&read, input.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
        // ThreadSanitizer wants memory where it expects it, which kernels that scatter it widely do not grant.
        let fixed = Command::new("setarch").args(["-R", "true"]).output().is_ok_and(|tried| tried.status.success());
        let mut command = if fixed { Command::new("setarch") } else { Command::new(&self.at) };
        if fixed {
            command.arg("-R").arg(&self.at);
        }
        let output = command.arg(read).arg(&written).output().unwrap();
        let words = fs::read(written).unwrap();
        let words = words.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        (output, Words { words, at: 0 })
    }
}

/// What a program has written, word by word.
struct Words {
    words: Vec<u32>,
    at: usize,
}

impl Words {
    fn word(&mut self) -> u32 {
        self.at += 1;
        self.words[self.at - 1]
    }

    fn values<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<Flex, D> {
        let len = shape.iter().product();
        let values: Vec<f32> = (0..len).map(|_| f32::from_bits(self.word())).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }
}

/// What one pass forward and backward starts from.
struct Start {
    inputs: LstmInputs<Flex>,
    grad: Tensor<Flex, 3>,
}

/// Multiples of 2^-16. Flex goes to bfloat16 through f64, of which `half` drops the last bits before it rounds: an f32 that is just
/// above the middle of two bfloat16 may become the lower one there. These have no such bits.
fn random<const D: usize>(shape: [usize; D], scale: f32, rng: &mut ChaCha8Rng) -> Tensor<Flex, D> {
    let unit = 65536.0 * scale;
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| rng.random_range(-unit..unit).round() / 65536.0).collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn start(case: &Case, seq_len: usize) -> Start {
    let Case { d, lanes, .. } = *case;
    let mut rng = ChaCha8Rng::seed_from_u64((d * 1000 + lanes) as u64);
    let rng = &mut rng;
    Start {
        inputs: LstmInputs {
            x: random([seq_len, lanes, D_IN], 1.0, rng),
            weight_ih: random([4 * d, D_IN], 1.0, rng),
            weight_hh: random([4 * d, d], 1.5 / (d as f32).sqrt(), rng),
            bias_ih: random([4 * d], 0.5, rng),
            bias_hh: random([4 * d], 0.5, rng),
            h0: random([lanes, d], 1.0, rng),
            c0: random([lanes, d], 1.0, rng),
            recompute: false,
        },
        grad: random([seq_len + 1, lanes, d], 1.0, rng),
    }
}

fn bits<const D: usize>(x: &Tensor<Flex, D>) -> Vec<u32> {
    x.to_data().to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// What hinders a run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hindrance {
    Nothing,
    /// This block does not come in time.
    Stalled(u32),
    /// A launch before has given up.
    Raised,
}

/// What a program reads of a run of `case`, the `index`-th.
fn input(index: usize, case: &Case, seq_len: usize, hindrance: Hindrance) -> Vec<u32> {
    let Start { inputs, grad } = start(case, seq_len);
    let x = inputs.x.reshape([seq_len * case.lanes, D_IN]);
    let no_bias = Tensor::zeros([4 * case.d], &Default::default());
    let stalled = if let Hindrance::Stalled(block) = hindrance { block } else { u32::MAX };
    let projected = generic::affine(x, inputs.weight_ih, no_bias, case.precision);
    [
        vec![index as u32, seq_len as u32, stalled, u32::from(hindrance == Hindrance::Raised)],
        bits(&projected),
        bits(&inputs.weight_hh),
        bits(&inputs.bias_ih),
        bits(&inputs.bias_hh),
        bits(&inputs.h0),
        bits(&inputs.c0),
        bits(&grad),
    ]
    .concat()
}

fn assert_near<const D: usize>(what: &str, got: Tensor<Flex, D>, want: Tensor<Flex, D>, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let [got, want] = [got, want].map(|x| x.into_data().to_vec::<f32>().unwrap());
    let largest = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance * largest, "{what}[{i}]: got {g}, want {w}, largest {largest}");
    }
}

/// Compares what a program has written of a run with the generic body: what the forward pass leaves, and all gradients.
fn check(case: &Case, seq_len: usize, words: &mut Words) {
    let Case { d, lanes, precision, .. } = *case;
    let what = |name: &str| format!("{case:?} T {seq_len}: {name}");
    let Start { inputs, grad } = start(case, seq_len);
    let wanted = LstmWanted { x: true, weight_ih: true, weight_hh: true, bias: true };
    let (output, saved) = generic::lstm_forward(inputs.clone(), precision);
    let (gates, cells) = (saved.gates.clone().unwrap(), saved.cells.clone());
    let want = generic::lstm_backward(saved, grad, wanted);

    // Sums of up to some hundred f32 terms in another order. In bf16 a state that differs in its last bit may be rounded to the
    // next bfloat16, 2^-8 of it away: one step has no such state, later ones do.
    let tolerance = if precision == Precision::Bf16 && seq_len > 1 { 2f32.powi(-10) } else { 1e-5 };
    assert_eq!([words.word(), words.word()], [0, 0], "{}", what("raised and the flag, forward"));
    let got_output = words.values(output.dims());
    let got_gates = words.values(gates.dims());
    let got_cells = words.values(cells.dims());
    assert_eq!([words.word(), words.word()], [0, 0], "{}", what("raised and the flag, backward"));
    let dgates = words.values([seq_len * lanes, 4 * d]);
    let dcells = words.values([lanes, d]);
    assert_near(&what("output"), got_output.clone(), output, tolerance);
    if !case.keeps {
        // Then there is nothing that a backward pass could start from.
        let kept = [bits(&got_gates), bits(&got_cells)].concat();
        assert!(kept.iter().all(|&x| f32::from_bits(x).is_nan()), "{}", what("what is not kept"));
        return;
    }
    assert_near(&what("gates"), got_gates, gates, tolerance);
    assert_near(&what("cells"), got_cells, cells, tolerance);

    // The rest of the backward pass, as the kernels' Rust side has it.
    let product = |a: Tensor<Flex, 2>, b: Tensor<Flex, 2>| precision.round(a).matmul(precision.round(b));
    let hidden = got_output.narrow(0, 0, seq_len).reshape([seq_len * lanes, d]);
    let before = Tensor::cat(vec![inputs.h0, hidden], 0).narrow(0, 0, seq_len * lanes);
    let x = inputs.x.reshape([seq_len * lanes, D_IN]);
    let of_input = generic::affine_backward(x, inputs.weight_ih, dgates.clone(), [true; 3], precision);
    let first = dgates.clone().narrow(0, 0, lanes);
    // These products round again: a step apart in one of their terms.
    let tolerance = if precision == Precision::Bf16 { 2f32.powi(-9) } else { tolerance };
    let of_x = want.x.unwrap().reshape([seq_len * lanes, D_IN]);
    assert_near(&what("gradient of x"), of_input.x.unwrap(), of_x, tolerance);
    assert_near(&what("gradient of W_ih"), of_input.weight.unwrap(), want.weight_ih.unwrap(), tolerance);
    assert_near(&what("gradient of the biases"), of_input.bias.unwrap(), want.bias.unwrap(), tolerance);
    assert_near(&what("gradient of W_hh"), product(dgates.transpose(), before), want.weight_hh.unwrap(), tolerance);
    assert_near(&what("gradient of h0"), product(first, inputs.weight_hh), want.h0, tolerance);
    assert_near(&what("gradient of c0"), dcells, want.c0, tolerance);
}

/// Runs all cases over segments of such lengths and checks each.
fn check_all(program: &Program, lengths: &[usize]) -> Words {
    let runs = || program.cases.iter().enumerate().flat_map(|(i, case)| lengths.iter().map(move |&t| (i, case, t)));
    let input: Vec<u32> = runs().flat_map(|(i, case, t)| input(i, case, t, Hindrance::Nothing)).collect();
    let (output, mut words) = program.run(&input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (_, case, t) in runs() {
        check(case, t, &mut words);
    }
    assert_eq!(words.at, words.words.len());
    words
}

#[test]
fn agrees_with_the_generic_body() {
    let mut cases = cases(&[
        (1, 1, 1, 64),
        (5, 3, 1, 64),
        (8, 1, 2, 64),
        (72, 2, 9, 256),
        (16, 16, 4, 256),
        (130, 16, 16, 256),
        (33, 17, 7, 64),
        (96, 33, 64, 64),
        (31, 48, 15, 96),
        (50, 64, 5, 64),
        (40, 5, 132, 64),
        (264, 4, 132, 64),
    ]);
    cases.extend(cases[8..10].iter().map(|case| Case { keeps: false, ..*case }).collect::<Vec<_>>());
    if let Some(program) = Program::new("plain", cases, &[]) {
        check_all(&program, &[1, 4]);
    }
}

#[test]
fn stays_within_its_memory() {
    let cases = cases(&[(33, 17, 7, 64), (130, 16, 16, 256)]);
    let options = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];
    if let Some(program) = Program::new("address", cases, &options) {
        check_all(&program, &[1, 3]);
    }
}

/// ThreadSanitizer. It must not follow calls: it does not know that a block's threads have stacks of their own.
const THREAD: [&str; 3] = ["-g1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"];

#[test]
fn what_passes_between_blocks_is_ordered() {
    let cases = cases(&[(33, 17, 7, 64), (40, 5, 132, 64)]);
    if let Some(program) = Program::new("thread", cases, &THREAD) {
        let first = check_all(&program, &[1, 4]);
        // In whatever order blocks come, the results are the same bits.
        assert_eq!(first.words, check_all(&program, &[1, 4]).words);
    }
}

#[test]
fn a_release_that_is_left_out_is_reported() {
    for precision in [Precision::F32, Precision::Bf16] {
        let case =
            Case { d: 33, lanes: 2, blocks: 7, threads: 64, precision, keeps: true, spins: PATIENT, mistake: &[] };
        let options = [&THREAD[..], &["-DLEAVE_OUT_RELEASE"]].concat();
        let name = format!("no-release-{}", precision.name());
        if let Some(program) = Program::new(&name, vec![case], &options) {
            let (output, _) = program.run(&input(0, &case, 4, Hindrance::Nothing));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains("ThreadSanitizer: data race"), "{said}");
        }
    }
}

#[test]
fn a_mistake_between_blocks_is_reported() {
    // One buffer where two are used in turn, and waits for one arrival too few.
    let mistakes: [&[_]; 6] = [
        &[("states + step % 2 * L::STATES_WORDS", "states"), ("states + (step + 1) % 2 * L::STATES_WORDS", "states")],
        &[("grads + done % 2 * L::GRADS_WORDS", "grads")],
        &[("parts + done % 2 * L::PARTS_WORDS", "parts"), ("parts + (done + 1) % 2 * L::PARTS_WORDS", "parts")],
        &[("L::USED_BLOCKS * (step + 1)", "L::USED_BLOCKS * (step + 1) - 1")],
        &[("L::COLUMN_GROUPS * (done + 1)", "L::COLUMN_GROUPS * (done + 1) - 1")],
        &[("L::TERM_GROUPS * done", "L::TERM_GROUPS * done - 1")],
    ];
    let right = cases(&[(40, 5, 20, 64)])[0];
    let wrong = mistakes.map(|mistake| Case { mistake, ..right });
    let Some(program) = Program::new("mistakes", wrong.to_vec(), &THREAD) else { return };
    for (i, case) in program.cases.iter().enumerate() {
        let (output, _) = program.run(&input(i, case, 8, Hindrance::Nothing));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("ThreadSanitizer: data race"), "{:?}: {said}", case.mistake);
    }
}

#[test]
fn a_launch_that_is_given_up_ends_and_leaves_no_value() {
    // A wait is given up early: each load is followed by a turn for the other blocks.
    let cases: Vec<_> =
        cases(&[(33, 3, 7, 64), (40, 2, 132, 64)]).into_iter().map(|c| Case { spins: 200, ..c }).collect();
    let Some(program) = Program::new("stalled", cases, &[]) else { return };
    let hindrances = [Hindrance::Stalled(0), Hindrance::Stalled(3), Hindrance::Raised];
    let runs =
        || program.cases.iter().enumerate().flat_map(|(i, case)| hindrances.map(|hindrance| (i, case, hindrance)));
    let input: Vec<u32> = runs().flat_map(|(i, case, hindrance)| input(i, case, 3, hindrance)).collect();
    let (output, mut words) = program.run(&input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (_, case, hindrance) in runs() {
        let all = 3 * case.lanes * case.d;
        let state = case.lanes * case.d;
        // What was raised before is not waited for at all.
        let gave_up = u32::from(hindrance != Hindrance::Raised);
        let mut check = |values: usize, others: usize| {
            assert_eq!([words.word(), words.word()], [1, gave_up], "{case:?}, {hindrance:?}");
            assert!((0..values).all(|_| f32::from_bits(words.word()).is_nan()), "{case:?}, {hindrance:?}");
            words.at += others;
        };
        check(all + state, 4 * all + all);
        check(4 * all + state, 0);
    }
    assert_eq!(words.at, words.words.len());
}
