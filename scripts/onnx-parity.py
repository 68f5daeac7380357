#!/usr/bin/env python3
"""Holds onnxruntime to the model: logits and states of exported files, over segments that carry their state.

    python3 -m venv onnxrt
    onnxrt/bin/pip install onnxruntime onnx safetensors
    onnxrt/bin/python scripts/onnx-parity.py [FILES]

FILES is a directory that the project's tests wrote already (its variable is SHARNN_ONNX_FILES); else they are run. With
SHARNN_ONNX_RUN and SHARNN_ENWIK8 they also write the best weights of a run and what these make of real text. `onnx` may be
missing: then its checker is not run. The exit code is 1 if any value differs by more than 1e-4, or a file is not as ONNX
wants it.
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4

try:
    import numpy as np
    import onnxruntime
    from safetensors import safe_open
except ImportError as missing:
    sys.exit(f"{missing}: see the top of this script for how to install what it needs")
try:
    import onnx
except ImportError:
    onnx = None


def write_files(directory):
    """Has the project's own tests write the files."""
    command = "cargo test --quiet -p sharnn-onnx --test suite parity::".split()
    subprocess.run(command, cwd=ROOT, env=dict(os.environ, SHARNN_ONNX_FILES=str(directory)), stdout=sys.stderr, check=True)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def read(path):
    """The name of the graph's file, and each segment's tensors: tokens, logits, and the state after it."""
    with safe_open(path, "numpy") as file:
        segments = collections.defaultdict(dict)
        for key in file.keys():
            segment, name = key.split("/")
            segments[int(segment)][name] = file.get_tensor(key)
        return file.metadata()["model"], [segments[i] for i in range(len(segments))]


def largest_difference(graph, segments):
    """Of any value of any segment, each run from the state that the graph itself gave before."""
    names = [output.name for output in graph.get_outputs()]
    batch = len(segments[0]["tokens"])
    # A size that has a name is the batch or, second, the rows of a memory: none at the start.
    sizes = [[size if isinstance(size, int) else (batch, 0)[i] for i, size in enumerate(of.shape)] for of in graph.get_inputs()]
    state = {of.name: np.zeros(size, np.float32) for of, size in zip(graph.get_inputs(), sizes) if of.name != "tokens"}
    largest = 0.0
    for segment in segments:
        tokens = segment.pop("tokens").astype(np.int64)
        outputs = dict(zip(names, graph.run(names, {"tokens": tokens, **state})))
        got = {name.removeprefix("next."): value for name, value in outputs.items()}
        assert got.keys() == segment.keys(), f"{sorted(got)} are there, {sorted(segment)} are expected"
        for name, want in segment.items():
            assert got[name].shape == want.shape, f"{name} has shape {got[name].shape}, {want.shape} is expected"
            if want.size:
                largest = max(largest, float(np.abs(got[name] - want).max()))
                assert np.isfinite(got[name]).all(), f"{name} is not finite"
        state = {name: got[name] for name in state}
    return largest


def main(directory):
    files = sorted(directory.glob("*.onnx"))
    for path in files if onnx else []:
        onnx.checker.check_model(str(path), full_check=True)
    print(f"onnxruntime {onnxruntime.__version__}; " + (f"{len(files)} files checked by onnx {onnx.__version__}" if onnx else "onnx is missing: no file is checked"))

    cases = sorted(directory.glob("*.safetensors"))
    worst = collections.defaultdict(float)
    sessions = {path.name: session(path) for path in files}
    for path in cases:
        model, segments = read(path)
        worst[model] = max(worst[model], largest_difference(sessions[model], segments))
    for model, difference in worst.items():
        print(f"{model:40} {difference:.1e}" + ("" if difference <= TOLERANCE else "  too much"))
    if not files or worst.keys() != sessions.keys():
        sys.exit(f"{directory} holds {len(files)} graphs, and values for {len(worst)} of them: the tests write both")
    failed = [model for model, difference in worst.items() if not difference <= TOLERANCE]
    print(f"{len(cases)} streams through {len(files)} graphs, largest difference {max(worst.values()):.1e}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(pathlib.Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as directory:
        write_files(directory)
        sys.exit(main(pathlib.Path(directory)))
