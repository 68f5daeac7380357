#!/usr/bin/env python3
"""Weights in fewer bytes, and in files of bounded size.

    weights.py int8 FROM TO         each matrix row by row as 8-bit integers with a scale in f32; the rest stays as it is. Needs numpy
    weights.py unpack FROM TO       back to f32, a file that `sharnn` reads. Needs numpy
    weights.py split FILE BYTES     FILE.0, FILE.1, ... of at most so many bytes; joined by `cat`

Files are safetensors. A row's scale is its largest magnitude over 127, so that a weight moves by at most half of that: good to look at a
trained model and to go on from, not to compare the last digits of its score.
"""

import json
import pathlib
import struct
import sys


def read(path):
    """Name, type, shape and bytes of each tensor, and the metadata."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    begin = 8 + length
    tensors = [
        (name, tensor["dtype"], tensor["shape"], data[begin + tensor["data_offsets"][0] : begin + tensor["data_offsets"][1]])
        for name, tensor in header.items()
    ]
    return tensors, metadata


def write(path, tensors, metadata):
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for *_, data in tensors:
            file.write(data)


def floats(numpy, dtype, shape, data):
    if dtype == "BF16":
        return (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return numpy.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype("<f4").reshape(shape)


def int8(source, target):
    import numpy

    tensors, metadata = read(source)
    packed = []
    for name, dtype, shape, data in tensors:
        if len(shape) != 2:
            packed.append((name, dtype, shape, data))
            continue
        values = floats(numpy, dtype, shape, data)
        scale = numpy.maximum(abs(values).max(axis=1), 1e-30) / 127
        packed.append((name, "I8", shape, numpy.rint(values / scale[:, None]).astype("i1").tobytes()))
        packed.append((f"{name}.scale", "F32", [shape[0]], scale.astype("<f4").tobytes()))
    write(target, packed, metadata)


def unpack(source, target):
    import numpy

    tensors, metadata = read(source)
    scales = {name: numpy.frombuffer(data, "<f4") for name, _, _, data in tensors if name.endswith(".scale")}
    whole = []
    for name, dtype, shape, data in tensors:
        if name in scales:
            continue
        if dtype == "I8":
            values = numpy.frombuffer(data, "i1").reshape(shape) * scales[f"{name}.scale"][:, None]
        else:
            values = floats(numpy, dtype, shape, data)
        whole.append((name, "F32", shape, values.astype("<f4").tobytes()))
    write(target, whole, metadata)


def split(path, size, directory):
    """The file's parts of at most so many bytes, in a directory; the file stays."""
    data = path.read_bytes()
    parts = []
    for number, begin in enumerate(range(0, len(data), size)):
        part = directory / f"{path.name}.{number}"
        part.write_bytes(data[begin : begin + size])
        parts.append(part)
    return parts


if __name__ == "__main__":
    commands = {"int8": int8, "unpack": unpack}
    if len(sys.argv) != 4 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
