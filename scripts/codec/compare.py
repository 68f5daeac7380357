#!/usr/bin/env python3
"""sharnn's codec beside other compressors, on one file, and on records of it.

    scripts/codec/compare.py PROGRAM file [--before FILE] [--model MODEL] [--repeat N] FILE [OPTIONS of compress ...]
    scripts/codec/compare.py PROGRAM records WEEK BEFORE --messages target/release/examples/messages --model WEIGHTS [--lines 1000]

`file` compresses FILE with the options that follow, each set of them in quotes (as "--best" "--fast"), restores it, and prints sizes and
bytes a second each way; beside it xz -9e, zstd -19, bzip2 -9 and PPMd (7z), where they are installed. With --before they get that file too:
zstd as what it patches, the others by the size of both files together less that of the first.

`records` has the lines of WEEK compressed one by one by the example `messages`, after those of BEFORE, and by zstd -19 with a dictionary of
110 kB that it trains on the same lines (needs: pip install zstandard). Sizes do not hold the model.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

PPMD = ["a", "-bd", "-m0=PPMd:mem=256m:o=16", "-mx=9"]


def timed(command, **more):
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    return time.monotonic() - start


def row(name, size, of, there=None, back=None):
    speeds = "".join(f"{of / seconds / 1000:12.1f}" for seconds in (there, back) if seconds)
    print(f"{name:28}{size:10}{8 * size / of:8.4f}{speeds}", flush=True)


def size_with(tool, path, scratch):
    """Bytes that a compressor makes of a file."""
    if tool == "7z":
        made = scratch / "made.7z"
        made.unlink(missing_ok=True)
        timed(["7z", *PPMD, made, path])
        return made.stat().st_size
    command = {"xz": ["xz", "-9e"], "zstd": ["zstd", "-19", "--long=27", "--no-check"], "bzip2": ["bzip2", "-9"]}[tool]
    return len(subprocess.run([*command, "-q", "-c", path], check=True, capture_output=True).stdout)


def others(path, before, scratch):
    of = path.stat().st_size
    for tool in ["xz", "zstd", "bzip2", "7z"]:
        if not shutil.which(tool):
            print(f"{tool}: not installed")
            continue
        row(tool, size_with(tool, path, scratch), of)
        if not before:
            continue
        if tool == "zstd":
            patch = scratch / "patch"
            timed(["zstd", "-q", "-f", "-19", "--ultra", "--long=27", "--no-check", f"--patch-from={before}", path, "-o", patch])
            row("zstd --patch-from", patch.stat().st_size, of)
        else:
            both = scratch / "both"
            both.write_bytes(before.read_bytes() + path.read_bytes())
            row(f"{tool}, both less the first", size_with(tool, both, scratch) - size_with(tool, before, scratch), of)


def file(args):
    of, small = args.file.stat().st_size, args.scratch / "small"
    print(f"{'':28}{'bytes':>10}{'bits':>8}{'kB/s in':>12}{'and out':>12}")
    for options in args.options or [""]:
        model = ["--model", args.model] if args.model else []
        there, back = [], []
        for _ in range(args.repeat):
            there.append(timed([args.program, "compress", args.file, "--to", small, "--force", *model, *options.split()]))
            back.append(timed([args.program, "decompress", small, "--to", args.scratch / "back", "--force", *model]))
        if (args.scratch / "back").read_bytes() != args.file.read_bytes():
            sys.exit(f"{options}: something else came back")
        middle = args.repeat // 2
        row(f"sharnn {options}", small.stat().st_size, of, sorted(there)[middle], sorted(back)[middle])
    others(args.file, args.before, args.scratch)


def records(args):
    import zstandard

    week, before = ([line for line in path.read_bytes().splitlines()] for path in (args.file, args.past))
    week = week[: args.lines]
    of = sum(map(len, week))
    dictionary = zstandard.train_dictionary(110 << 10, before, level=19)
    press = zstandard.ZstdCompressor(level=19, dict_data=dictionary, write_checksum=False, write_dict_id=False, write_content_size=False)
    by_zstd = sum(len(press.compress(line)) for line in week)
    print(f"{len(week)} lines, {of} bytes; {len(before)} lines before")
    row("zstd -19, dictionary", by_zstd, of)
    done = subprocess.run([args.messages, str(len(before)), args.model], input=b"\n".join(before + week) + b"\n", check=True, stdout=subprocess.PIPE)
    made = int(done.stdout.split()[-1])
    row("sharnn", made, of)
    print(f"{made / by_zstd:.3f} of zstd's")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    jobs = parser.add_subparsers(required=True)
    job = jobs.add_parser("file")
    job.add_argument("file", type=pathlib.Path)
    job.add_argument("options", nargs=argparse.REMAINDER)
    job.add_argument("--before", type=pathlib.Path)
    job.add_argument("--model")
    job.add_argument("--repeat", type=int, default=1)
    job.set_defaults(run=file)
    job = jobs.add_parser("records")
    job.add_argument("file", type=pathlib.Path)
    job.add_argument("past", type=pathlib.Path)
    job.add_argument("--messages", type=pathlib.Path, required=True)
    job.add_argument("--model", required=True)
    job.add_argument("--lines", type=int, default=1000)
    job.set_defaults(run=records)
    args = parser.parse_args()
    args.program = args.program.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        args.scratch = pathlib.Path(scratch)
        args.run(args)


if __name__ == "__main__":
    main()
