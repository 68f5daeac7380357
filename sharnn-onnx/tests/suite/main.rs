//! Files are read by tract, a runtime for ONNX that is not ours.

mod parity;
mod refused;
mod structure;
mod support;
