// Holds the module, and does one thing at a time so that the page is never held up. Messages: { id, op, ... } in, { id, ... } out.
"use strict";

/** Bytes that are read between two looks at whether something newer was asked for. */
const STRETCH = 256;

let wasm;
/** What was read: the bytes, what each cost, and with what. */
let text = { bytes: new Uint8Array(0), bits: new Float32Array(0), adapt: null };
/** Number of the newest request that replaces those before it. */
let newest = 0;
/** The request that is being worked on, for progress. */
let current = 0;

const decoder = new TextDecoder();
const pause = () => new Promise((done) => setTimeout(done));

/** Calls the module with some input; its output as bytes, or an error in a sentence. */
function call(name, input = new Uint8Array(0), ...args) {
  const at = wasm.input(input.length);
  new Uint8Array(wasm.memory.buffer, at, input.length).set(input);
  const done = wasm[name](...args);
  const output = new Uint8Array(wasm.memory.buffer, wasm.output(), wasm.output_len()).slice();
  if (!done) throw new Error(decoder.decode(output));
  return output;
}

const floats = (bytes) => new Float32Array(bytes.buffer, 0, bytes.length / 4);

function begin(adapt) {
  call("begin", undefined, adapt ? 1 : 0);
  text = { bytes: new Uint8Array(0), bits: new Float32Array(0), adapt };
}

function append(bytes) {
  const bits = floats(call("read", bytes));
  const join = (Kind, a, b) => { const all = new Kind(a.length + b.length); all.set(a); all.set(b, a.length); return all; };
  text.bytes = join(Uint8Array, text.bytes, bytes);
  text.bits = join(Float32Array, text.bits, bits);
}

/** Whether what was read is the beginning of some bytes. */
const isBeginningOf = (bytes) => text.bytes.length <= bytes.length && text.bytes.every((byte, i) => byte === bytes[i]);

/** Reads a text, as much of it anew as has changed; false where something newer was asked for meanwhile. */
async function read(bytes, adapt, id, told) {
  if (text.adapt !== adapt || !isBeginningOf(bytes)) begin(adapt);
  while (text.bytes.length < bytes.length) {
    append(bytes.subarray(text.bytes.length, text.bytes.length + STRETCH));
    told?.(text.bytes.length);
    await pause();
    if (newest !== id) return false;
  }
  return true;
}

const ops = {
  async start({ module }) {
    const env = { progress: (done) => postMessage({ id: current, progress: done }) };
    wasm = (await WebAssembly.instantiate(module, { env })).instance.exports;
    return {};
  },

  async load({ weights, format }) {
    const model = decoder.decode(call("load", new Uint8Array(weights), format));
    begin(false);
    return { model };
  },

  /** What each byte of a text costs. */
  async read({ id, bytes, adapt }) {
    const told = (done) => postMessage({ id, progress: done });
    return (await read(bytes, adapt, id, told)) ? { bits: text.bits.slice() } : { stale: true };
  },

  /** What was expected at a place, and where the newest byte before it looked. */
  async at({ id, bytes, adapt }) {
    if (!(await read(bytes, adapt, id))) return { stale: true };
    return { next: floats(call("next")), look: floats(call("look")) };
  },

  /** Text after a text, some bytes at a time. */
  async write({ id, bytes, adapt, temperature, seed, n }) {
    if (!(await read(bytes, adapt, id))) return { stale: true };
    call("begin_to_write", undefined, temperature, seed);
    for (let left = n; left > 0; left -= 16) {
      postMessage({ id, written: call("write", undefined, Math.min(16, left)) });
      await pause();
      if (newest !== id) return { stale: true };
    }
    return {};
  },

  async compress({ bytes, lanes }) {
    return { bytes: call("compress", bytes, lanes) };
  },

  async decompress({ bytes }) {
    return { bytes: call("decompress", bytes) };
  },

  /** Bytes a second, reading: the median of passes over some bytes, once the module is compiled as well as it will be. */
  async bench({ bytes, passes }) {
    begin(false);
    const pass = () => {
      const start = performance.now();
      call("read", bytes);
      return (bytes.length * 1000) / (performance.now() - start);
    };
    for (let i = 0; i < passes; i++) { pass(); await pause(); }
    const rates = Array.from({ length: passes }, pass).sort((a, b) => a - b);
    begin(false);
    return { rate: rates[passes >> 1] };
  },
};

let queue = Promise.resolve();

onmessage = ({ data }) => {
  const { id, op } = data;
  newest = id;
  queue = queue.then(async () => {
    // Of what is asked for again and again the newest is enough.
    if (newest !== id && (op === "read" || op === "at")) return postMessage({ id, stale: true });
    current = id;
    try {
      postMessage({ id, ...(await ops[op](data)), done: true });
    } catch (error) {
      // What was left half done is begun anew.
      text.adapt = null;
      postMessage({ id, error: error instanceof WebAssembly.RuntimeError ? `the module failed (${error.message}): load the page again` : error.message });
    }
  });
};
