#!/usr/bin/env python3
"""Writes text from an exported model, with onnxruntime and numpy alone.

    pip install onnxruntime
    python3 examples/onnx/generate.py model.onnx "The history of "

The file may be of either kind: a single-step graph reads the prompt byte by byte, the other in segments.
"""

import argparse
import os
import sys
import time

import numpy as np
import onnxruntime


class Stream:
    """A stream of bytes through a model: its state goes out of one run and into the next."""

    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        if metadata.get("sharnn.format") != "1" or metadata["sharnn.vocabulary"] != "bytes":
            sys.exit(f"{path} is not a SHA-RNN of bytes in format 1: export one with sharnn")
        largest = metadata["sharnn.largest_segment"]
        self.segment = 1024 if largest == "unlimited" else min(int(largest), 1024)
        self.outputs = [output.name for output in self.session.get_outputs()]
        # One lane of zeros; memories start without rows, and there are no tokens before the first.
        shapes = {of.name: of.shape for of in self.session.get_inputs() if of.name != "tokens"}
        self.state = {
            name: np.zeros((1, shape[-1]) if len(shape) == 2 else (1, 0, shape[-1]), np.float32)
            for name, shape in shapes.items()
        }
        if "recent" in shapes:
            self.state["recent"] = np.full((1, shapes["recent"][-1]), -1, np.int64)

    def read(self, text):
        """Reads bytes and returns the logits of the next one."""
        for start in range(0, len(text), self.segment):
            tokens = np.frombuffer(text[start : start + self.segment], np.uint8).astype(np.int64)[None]
            values = dict(zip(self.outputs, self.session.run(self.outputs, {"tokens": tokens, **self.state})))
            self.state = {name: values["next." + name] for name in self.state}
        return values["logits"][0, -1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompt", nargs="?", default="\n")
    parser.add_argument("--bytes", type=int, default=500)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 always takes the likeliest byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    stream, random = Stream(args.model, args.threads), np.random.default_rng(args.seed)
    logits = stream.read(os.fsencode(args.prompt) or b"\n")
    start = time.monotonic()
    for _ in range(args.bytes):
        if args.temperature > 0:
            # The largest of logits with Gumbel noise is a draw from their softmax.
            logits = logits / args.temperature + random.gumbel(size=len(logits))
        byte = bytes([int(logits.argmax())])
        sys.stdout.buffer.write(byte)
        sys.stdout.buffer.flush()
        logits = stream.read(byte)
    rate = args.bytes / (time.monotonic() - start)
    print(f"\n{rate:.0f} bytes/s", file=sys.stderr)


if __name__ == "__main__":
    main()
