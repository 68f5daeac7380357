#!/usr/bin/env python3
"""Runs a WebAssembly program with WASI: wasi.py PROGRAM ARGUMENT...

As cargo's runner for the target wasm32-wasip1, of which it passes on the arguments, the environment's RUST_BACKTRACE, the output and the exit code.
It needs wasmtime of PyPI.
"""

import os
import sys

import wasmtime


def main():
    program, *args = sys.argv[1:]
    engine = wasmtime.Engine()
    linker, store, system = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    linker.define_wasi()
    system.argv = [program, *args]
    system.env = [(name, value) for name, value in os.environ.items() if name == "RUST_BACKTRACE"]
    system.inherit_stdout()
    system.inherit_stderr()
    store.set_wasi(system)
    try:
        linker.instantiate(store, wasmtime.Module.from_file(engine, program)).exports(store)["_start"](store)
    except wasmtime.ExitTrap as end:
        sys.exit(end.code)


if __name__ == "__main__":
    main()
