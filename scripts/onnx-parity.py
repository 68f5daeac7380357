#!/usr/bin/env python3
"""Holds other runtimes to the model: logits and states of exported files, over segments that carry their state.

    python3 -m venv onnxrt
    onnxrt/bin/pip install onnxruntime openvino onnx safetensors
    onnxrt/bin/python scripts/onnx-parity.py [FILES]

FILES is a directory that the project's tests wrote already (its variable is SHARNN_ONNX_FILES); else they are run. With
SHARNN_ONNX_RUN and SHARNN_ENWIK8 they also write the best weights of a run and what these make of real text. `openvino` and `onnx` may
be missing: then that runtime, or onnx's checker and onnxruntime's dynamic quantisation, are not run. The exit code is 1 if any value
differs by more than 2e-6 of the largest of its tensor (or of 50, where all are smaller), if quantised weights cost more than 0.02 bits
per byte, or if a file is not as ONNX wants it.
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of the largest value of a tensor, or of 50: 1e-4 but for memories, which hold larger ones.
TOLERANCE = 2e-6
# Of an f32 graph with its matrices in 8 bits, in bits per byte.
QUANTISED_TOLERANCE = 0.02
# The bundled model, and one whose table of n-grams is quantised too.
QUANTISED = ["bundled", "ngrams_bytes"]

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
try:
    import openvino
except ImportError:
    openvino = None


def write_files(directory):
    """Has the project's own tests write the files."""
    command = "cargo test --quiet -p sharnn-onnx --test suite parity::".split()
    subprocess.run(command, cwd=ROOT, env=dict(os.environ, SHARNN_ONNX_FILES=str(directory)), stdout=sys.stderr, check=True)


class OnnxRuntime:
    """A graph in onnxruntime. Its inputs: of each the name and the sizes, of which those that are free are no number."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [(of.name, of.shape) for of in self.session.get_inputs()]
        self.outputs = [of.name for of in self.session.get_outputs()]

    def run(self, values):
        return dict(zip(self.outputs, self.session.run(self.outputs, values)))


class OpenVino:
    """The same in OpenVINO, in f32."""

    def __init__(self, path):
        model = openvino.Core().read_model(path)
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self.compiled = openvino.Core().compile_model(model, "CPU", options)
        sizes = lambda port: [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
        self.inputs = [(port.get_any_name(), sizes(port)) for port in self.compiled.inputs]

    def run(self, values):
        results = self.compiled(values)
        # A node that does nothing is left out, and its name is then one of several.
        name = lambda port: next(name for name in port.get_names() if name == "logits" or name.startswith("next."))
        return {name(port): np.array(results[port]) for port in self.compiled.outputs}


def read(path):
    """The name of the graph's file, and each segment's tensors: tokens, logits, and the state after it."""
    with safe_open(path, "numpy") as file:
        segments = collections.defaultdict(dict)
        for key in file.keys():
            segment, name = key.split("/")
            segments[int(segment)][name] = file.get_tensor(key)
        return file.metadata()["model"], [segments[i] for i in range(len(segments))]


def outputs(graph, segments):
    """What a graph gives for each segment, from the state that it gave itself before."""
    batch = len(segments[0]["tokens"])
    state = {}
    for name, sizes in graph.inputs:
        # A size that is free is the batch or, second, the rows of a memory: none at the start.
        shape = [size if isinstance(size, int) else (batch, 0)[i] for i, size in enumerate(sizes)]
        if name == "recent":
            state[name] = np.full(shape, -1, np.int64)
        elif name != "tokens":
            state[name] = np.zeros(shape, np.float32)
    for segment in segments:
        tokens = segment["tokens"].astype(np.int64)
        got = {name.removeprefix("next."): value for name, value in graph.run({"tokens": tokens, **state}).items()}
        yield got
        state = {name: got[name] for name in state}


def largest_difference(graph, segments):
    """Of any value of any segment, and the largest as a part of the largest value of its tensor, or of 50."""
    largest = part = 0.0
    for segment, got in zip(segments, outputs(graph, segments)):
        expected = segment.keys() - {"tokens"}
        assert got.keys() == expected, f"{sorted(got)} are there, {sorted(expected)} are expected"
        for name in expected:
            want = segment[name]
            assert got[name].shape == want.shape, f"{name} has shape {got[name].shape}, {want.shape} is expected"
            if want.size:
                difference = float(np.abs(got[name] - want).max())
                largest, part = max(largest, difference), max(part, difference / max(50.0, float(np.abs(want).max())))
                assert np.isfinite(got[name]).all(), f"{name} is not finite"
    return largest, part


def bits_per_byte(segments, logits):
    """Of every token after the first, from the logits of each segment."""
    tokens = np.concatenate([segment["tokens"] for segment in segments], 1).astype(np.int64)
    logits = np.concatenate(list(logits), 1).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    costs = -np.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], -1)
    return float(costs.mean() / np.log(2))


def quantised_is_close(directory, model):
    """Quantises a model's f32 graph as onnxruntime does by itself, and compares what it scores."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph, small = directory / f"{model}.onnx", directory / f"{model}.int8"
    _, segments = read(next(directory.glob(f"{model}.*.safetensors")))
    quantize_dynamic(graph, small, weight_type=QuantType.QInt8)
    exact = bits_per_byte(segments, (segment["logits"] for segment in segments))
    rounded = bits_per_byte(segments, (got["logits"] for got in outputs(OnnxRuntime(small), segments)))
    print(f"{model} quantised by onnxruntime: {graph.stat().st_size} to {small.stat().st_size} bytes, {exact:.4f} to {rounded:.4f} bits per byte")
    return abs(rounded - exact) <= QUANTISED_TOLERANCE


def main(directory):
    files = sorted(directory.glob("*.onnx"))
    for path in files if onnx else []:
        onnx.checker.check_model(str(path), full_check=True)
    print(f"{len(files)} files checked by onnx {onnx.__version__}" if onnx else "onnx is missing: no file is checked")

    runtimes = {f"onnxruntime {onnxruntime.__version__}": OnnxRuntime}
    if openvino:
        runtimes[f"openvino {openvino.__version__.split('-')[0]}"] = OpenVino
    else:
        print("openvino is missing: it runs no graph")
    cases = [read(path) for path in sorted(directory.glob("*.safetensors"))]
    failed = False
    for runtime, graph_of in runtimes.items():
        worst = collections.defaultdict(lambda: (0.0, 0.0))
        graphs = {path.name: graph_of(path) for path in files}
        for model, segments in cases:
            worst[model] = tuple(map(max, worst[model], largest_difference(graphs[model], segments)))
        for model, (difference, part) in worst.items():
            print(f"{runtime:24} {model:40} {difference:.1e}" + ("" if part <= TOLERANCE else "  too much"))
        if not files or worst.keys() != graphs.keys():
            sys.exit(f"{directory} holds {len(files)} graphs, and values for {len(worst)} of them: the tests write both")
        failed |= any(not part <= TOLERANCE for _, part in worst.values())
        print(f"{runtime}: {len(cases)} streams through {len(files)} graphs, largest difference {max(worst.values())[0]:.1e}")
    for model in QUANTISED if onnx else []:
        failed |= not quantised_is_close(directory, model)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(pathlib.Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as directory:
        write_files(directory)
        sys.exit(main(pathlib.Path(directory)))
