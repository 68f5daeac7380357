#!/usr/bin/env python3
"""Files of all kinds, compressed on one kind of CPU and restored on another: the same bytes come back.

    scripts/codec/roundtrip.py target/release/sharnn [--files 200] [--model MODEL] [--seed 1]

Each file is compressed with one set of instructions and number of threads and restored with another, and the two compressed files of
both have to be equal. Prints a line for each kind. Needs Python alone.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile

SIDES = [{"SHARNN_ISA": "avx2", "threads": "2"}, {"SHARNN_ISA": "portable", "threads": "1"}]
SCRIPTS = {
    "latin": "The quick brown fox jumps over the lazy dog, twice a day. ",
    "greek": "Η ταχεία καφέ αλεπού πηδά πάνω από το τεμπέλικο σκυλί. ",
    "cyrillic": "Быстрая рыжая лиса прыгает через ленивую собаку. ",
    "arabic": "الثعلب البني السريع يقفز فوق الكلب الكسول. ",
    "devanagari": "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है। ",
    "han": "敏捷的棕色狐狸跳过了懒狗。",
}


def kinds(rng, program):
    """Name and bytes of one file of each kind."""
    size = rng.randrange(1, 4000)
    yield "empty", b""
    yield "one byte", bytes([rng.randrange(256)])
    yield "random", rng.randbytes(size)
    yield "one value", bytes([rng.randrange(256)]) * size
    for name, text in SCRIPTS.items():
        words = text.split(" ")
        yield name, " ".join(rng.choice(words) for _ in range(1 + size // 8)).encode()[:size]
    start = rng.randrange(max(1, program.stat().st_size - size))
    with program.open("rb") as binary:
        binary.seek(start)
        yield "program", binary.read(size)
    lines = "".join(f"2031-05-{rng.randrange(1, 29):02} node{rng.randrange(9)} job {i} took {rng.randrange(999)} ms\n" for i in range(99))
    yield "log", lines.encode()[:size]
    yield "zeros and text", b"\0" * rng.randrange(1500) + lines.encode()[: rng.randrange(1, 1500)]


def run(program, side, args, **more):
    env = {**os.environ, "SHARNN_ISA": side["SHARNN_ISA"]}
    return subprocess.run([program, *args, "--threads", side["threads"]], env=env, check=True, capture_output=True, **more)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    program, rng = args.program.resolve(), random.Random(args.seed)
    sums, done = {}, 0
    with tempfile.TemporaryDirectory() as scratch:
        here = pathlib.Path(scratch)
        while done < args.files:
            for kind, data in kinds(rng, program):
                if done == args.files:
                    break
                (here / "file").write_bytes(data)
                options = ["--model", args.model, "--force"]
                lanes = str(rng.choice([1, 2, 16, 64]))
                made = []
                for i, side in enumerate(SIDES):
                    run(program, side, ["compress", "file", "--to", f"{i}.sharn", "--lanes", lanes, *options], cwd=here)
                    made.append((here / f"{i}.sharn").read_bytes())
                if made[0] != made[1]:
                    sys.exit(f"{kind}, {len(data)} bytes, {lanes} lanes: {SIDES[0]} and {SIDES[1]} made other files")
                for i, side in enumerate(SIDES):
                    run(program, side, ["decompress", f"{1 - i}.sharn", "--to", "back", *options], cwd=here)
                    if (here / "back").read_bytes() != data:
                        sys.exit(f"{kind}, {len(data)} bytes, {lanes} lanes: {side} read something else")
                n, text, code = sums.get(kind, (0, 0, 0))
                sums[kind] = (n + 1, text + len(data), code + len(made[0]))
                done += 1
    for kind, (n, text, code) in sums.items():
        print(f"{kind:16}{n:4} files {text:8} bytes {code:8} compressed")
    print(f"{done} files came back, each from both sides")


if __name__ == "__main__":
    main()
