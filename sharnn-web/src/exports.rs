//! What JavaScript calls. Bytes go in through [`input`], and come out at [`output`]; a call that fails returns 0, and its output is a
//! sentence.

use std::cell::RefCell;

use sharnn_stream::WeightFormat;

use crate::Session;

#[derive(Default)]
struct State {
    session: Session,
    input: Vec<u8>,
    output: Vec<u8>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    /// Told of the bytes that are done.
    safe fn progress(done: f64);
}

fn told(done: u64) -> bool {
    progress(done as f64);
    true
}

fn floats(values: Vec<f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Does something with the session and the input, which is emptied.
fn with(work: impl FnOnce(&mut Session, &[u8]) -> Result<Vec<u8>, String>) -> u32 {
    STATE.with_borrow_mut(|State { session, input, output }| {
        let done = work(session, &std::mem::take(input));
        let is_done = done.is_ok();
        *output = done.unwrap_or_else(String::into_bytes);
        u32::from(is_done)
    })
}

/// Room for so many bytes of input.
#[unsafe(no_mangle)]
pub extern "C" fn input(len: usize) -> *mut u8 {
    STATE.with_borrow_mut(|state| {
        state.input = vec![0; len];
        state.input.as_mut_ptr()
    })
}

/// Where the output is.
#[unsafe(no_mangle)]
pub extern "C" fn output() -> *const u8 {
    STATE.with_borrow(|state| state.output.as_ptr())
}

/// How long the output is.
#[unsafe(no_mangle)]
pub extern "C" fn output_len() -> usize {
    STATE.with_borrow(|state| state.output.len())
}

/// Input: a weights file; formats: 0 f32, 1 bf16, 2 int8, 3 exact. Output: the model in a few words.
#[unsafe(no_mangle)]
pub extern "C" fn load(format: usize) -> u32 {
    with(|session, weights| {
        let Some((format, _)) = WeightFormat::ALL.get(format) else { return Err("there is no such format".into()) };
        session.load(weights, *format)?;
        session.describe().map(String::into_bytes)
    })
}

/// Begins a text.
#[unsafe(no_mangle)]
pub extern "C" fn begin(is_adaptive: u32) -> u32 {
    with(|session, _| session.begin(is_adaptive != 0).map(|()| Vec::new()))
}

/// Input: bytes that follow. Output: what each costs in bits, f32.
#[unsafe(no_mangle)]
pub extern "C" fn read() -> u32 {
    with(|session, text| session.read(text).map(floats))
}

/// Output: 256 probabilities, f32.
#[unsafe(no_mangle)]
pub extern "C" fn next() -> u32 {
    with(|session, _| session.expected().map(floats))
}

/// Output: the weights of the newest byte's attention, oldest byte first, f32.
#[unsafe(no_mangle)]
pub extern "C" fn look() -> u32 {
    with(|session, _| session.look().map(floats))
}

/// Begins to write after what was read.
#[unsafe(no_mangle)]
pub extern "C" fn begin_to_write(temperature: f64, seed: f64) -> u32 {
    with(|session, _| session.begin_to_write(temperature, seed as u64).map(|()| Vec::new()))
}

/// Output: so many more bytes.
#[unsafe(no_mangle)]
pub extern "C" fn write(n: usize) -> u32 {
    with(|session, _| session.write(n))
}

/// Input: a text. Output: a compressed file.
#[unsafe(no_mangle)]
pub extern "C" fn compress(lanes: usize) -> u32 {
    with(|session, text| session.compress(text, lanes, &mut told))
}

/// Input: a compressed file. Output: its text.
#[unsafe(no_mangle)]
pub extern "C" fn decompress() -> u32 {
    with(|session, file| session.decompress(file, &mut told))
}
