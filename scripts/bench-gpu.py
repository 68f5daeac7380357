#!/usr/bin/env python3
"""Tests and measures sharnn on this machine's GPU, beside PyTorch, and writes one table.

    scripts/bench-gpu.py --data enwik8

The peer is `scripts/sharnn_torch.py`, or with `--peer` another PyTorch statement of the model whose `bench` and `train` take the options of `sharnn bench --json` and print the same
keys, and is run by this interpreter; with `--peer ""` sharnn is measured alone. Backend tch is measured where the interpreter has the
PyTorch that it is built against (2.9). In this order:

1. the tests of every kernel on the device;
2. a training step of L (16 x 1024 bytes, memory to 5000, one attending block), forward passes and decoding: sharnn on CUDA and on
   libtorch in f32 and bf16, the peer in f32, bf16 and fp16, each with and without its fused attention;
3. with `--data`, ten minutes of training on both sides (bf16), whose curves go to the output directory.

Everything that ran is kept in the output directory. A line that failed says so in the table, and the exit code is then 1. `--device cpu` goes
through the same steps on the CPU, with small sizes: to try the script where there is no GPU.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Runner:
    """Runs commands, keeps what they print, and knows what failed."""

    def __init__(self, out):
        self.out = out
        self.failed = []
        self.codes = {}

    def run(self, name, command, env=None, seconds=None):
        """Standard output, or None where the command failed; both streams go to files."""
        print(f"{name}: {' '.join(map(str, command))}", file=sys.stderr)
        started = time.monotonic()
        try:
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds)
            code, stdout, stderr = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired as expired:
            code, stdout, stderr = "timeout", *((text or b"").decode() for text in (expired.stdout, expired.stderr))
        except OSError as error:
            code, stdout, stderr = "missing", "", str(error)
        self.codes[name] = code
        (self.out / f"{name}.out").write_text(stdout)
        (self.out / f"{name}.err").write_text(f"{stderr}\nexit {code} after {time.monotonic() - started:.0f} s\n")
        if code != 0:
            last = (stderr.strip().splitlines() or ["nothing was said"])[-1]
            print(f"{name} failed ({code}): {last}", file=sys.stderr)
            self.failed.append(name)
            return None
        return stdout


class PeakMemory:
    """The largest amount of device memory in use while it is entered, from nvidia-smi, in MB, less what was in use before."""

    def used(self):
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        try:
            return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
        except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
            return None

    def __enter__(self):
        self.before = self.peak = self.used()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        if self.before is not None:
            self.thread.start()
        return self

    def watch(self):
        while not self.stop.wait(0.1):
            self.peak = max(self.peak, self.used() or 0)

    def __exit__(self, *_):
        self.stop.set()
        if self.before is not None:
            self.thread.join()

    def mb(self):
        return None if self.before is None else self.peak - self.before


def libtorch_env():
    """The environment in which backend tch is built and run against this interpreter's PyTorch; None where it can't be."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.__version__.startswith("2.9"):
        return None
    libraries = pathlib.Path(torch.__file__).parent / "lib"
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    known = os.environ.get("LD_LIBRARY_PATH")
    return dict(
        os.environ, LIBTORCH_USE_PYTORCH="1", PATH=path, LD_LIBRARY_PATH=f"{libraries}:{known}" if known else str(libraries)
    )


def build(runner, backend, env):
    """The program with one backend, copied aside: the next build takes its place."""
    features = f"{backend},cli" + (",autotune,fusion" if backend == "cuda" else "")
    command = ["cargo", "build", "--release", "--locked", "--no-default-features", "--features", features, "--bin", "sharnn"]
    if runner.run(f"build-{backend}", command, env) is None:
        return None
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    program = runner.out / f"sharnn-{backend}"
    shutil.copy(target / "release/sharnn", program)
    return program


def contestants(runner, args):
    """Name, command and environment of each that is measured."""
    env = libtorch_env()
    found = []
    backends = [("cuda" if args.device == "cuda" else "flex", None)] + ([("tch", env)] if env else [])
    for backend, env in backends:
        program = build(runner, backend, env)
        if program is None:
            continue
        for dtype in ["f32", "bf16"]:
            command = [program, "bench", "--json", "--backend", backend, "--dtype", dtype]
            found.append((f"sharnn {backend} {dtype}", command, env))
    if args.peer:
        for dtype in ["f32", "bf16", "fp16"]:
            for attention in [[], ["--sdpa"]]:
                command = [sys.executable, args.peer, "bench", "--device", args.device, "--dtype", dtype, *attention]
                found.append((f"PyTorch {dtype}{' fused attention' if attention else ''}", command, None))
    return found


def modes(args):
    """What is measured: its name and the options."""
    if args.device == "cpu":
        small = ["--size", "XS", "--runs", "2", "--warmup", "1"]
        lanes = ["--batch", "4", "--seq-len", "32", "--memory", "64"]
        return [("train", [*small, *lanes]), ("forward", [*small, *lanes]), ("decode", [*small, "--memory", "64"])]
    lanes = ["--size", "L", "--batch", "16", "--seq-len", "1024", "--memory", "5000", "--mem-len", "5000"]
    decode = ["--size", "L", "--memory", "1024", "--mem-len", "5000"]
    return [("train", [*lanes, "--warmup", "5", "--runs", "20"]), ("forward", [*lanes, "--warmup", "5", "--runs", "20"]), ("decode", decode)]


def measure(runner, args):
    """One row a contestant and mode."""
    rows = []
    all_contestants = contestants(runner, args)
    for mode, options in modes(args):
        # In turn, so that a card that grows warm or slow does so for all.
        for name, command, env in all_contestants:
            dropout = [] if mode == "train" or name.startswith("PyTorch") else ["--dropout", "0"]
            with PeakMemory() as memory:
                stdout = runner.run(f"{mode}-{name.replace(' ', '-')}", [*command, "--mode", mode, *options, *dropout], env)
            line = json.loads(stdout.strip().splitlines()[-1]) if stdout else None
            if line and name.startswith("sharnn tch") and args.device == "cuda" and not memory.mb():
                print(f"{name} took no memory of the GPU: this PyTorch computes on the CPU", file=sys.stderr)
                runner.failed.append(name)
                line = None
            rows.append((mode, name, line, memory.mb()))
    return rows


def table(rows):
    """Markdown; ratios are to the best of the peer in the same mode."""
    lines = ["| mode | | bytes/s | over PyTorch's best | median s | device MB |", "|---|---|---|---|---|---|"]
    for mode in dict.fromkeys(row[0] for row in rows):
        of_mode = [row for row in rows if row[0] == mode]
        peers = [line["tokens_per_s"] for _, name, line, _ in of_mode if line and name.startswith("PyTorch")]
        for _, name, line, memory in of_mode:
            if line is None:
                lines.append(f"| {mode} | {name} | failed | | | |")
                continue
            ratio = f"{line['tokens_per_s'] / max(peers):.2f}" if peers else ""
            lines.append(
                f"| {mode} | {name} | {line['tokens_per_s']:,.0f} | {ratio} | {line['median_s']:.5f} | {'' if memory is None else memory} |"
            )
    return "\n".join(lines)


def train(runner, args, program):
    """Minutes of training on both sides."""
    backend = "cuda" if args.device == "cuda" else "flex"
    bf16 = ["--precision", "bf16"] if args.device == "cuda" else []
    preset = ["--preset", "paper"] if args.device == "cuda" else ["--preset", "xs", "--recipe", "paper"]
    shutil.rmtree(runner.out / "run", ignore_errors=True)
    sharnn = [program, "train", "--backend", backend, *preset, *bf16, "--data", args.data, "--minutes", str(args.minutes), "--out", runner.out / "run"]
    runner.run("train-sharnn", sharnn)
    if args.peer:
        size = ["--size", "L", "--seq-len", "1024", "--mem-len", "5000", "--dtype", "bf16"] if args.device == "cuda" else ["--size", "XS"]
        peer = [sys.executable, args.peer, "train", "--device", args.device, *size, "--data", args.data, "--steps", "1000000", "--log-every", "10"]
        # It has no limit of time: it is stopped, and what it printed until then is its curve.
        runner.run("train-peer", peer, seconds=60 * args.minutes)
        if runner.codes["train-peer"] == "timeout":
            runner.failed.remove("train-peer")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=ROOT / "scripts" / "sharnn_torch.py", help="PyTorch statement of the model; an empty name for none")
    parser.add_argument("--data", help="enwik8, for the ten minutes of training")
    parser.add_argument("--minutes", type=float, default=10, help="minutes of training on each side")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench-gpu"), help="directory for everything that is written")
    args = parser.parse_args()
    for option in ["peer", "data"]:
        path = getattr(args, option)
        if path and not pathlib.Path(path).is_file():
            sys.exit(f"--{option} {path} is not a file")
        setattr(args, option, path and str(pathlib.Path(path).resolve()))
    if args.device == "cuda" and not shutil.which("nvidia-smi"):
        sys.exit("nvidia-smi is missing: this machine has no NVIDIA GPU that it knows of; --device cpu tries the script")
    args.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(args.out.resolve())

    backend = "cuda" if args.device == "cuda" else "flex"
    tests = ["cargo", "test", "--release", "--locked", "-p", "sharnn-core", "--no-default-features", "--features", backend]
    # On CUDA with and without fusion: cuda:: and cuda_fusion::.
    tested = runner.run("tests", [*tests, "--test", "suite", "cuda" if backend == "cuda" else "flex::"])
    rows = measure(runner, args)
    card = runner.run("card", ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]) if backend == "cuda" else "CPU"
    verdict = "passed" if tested else "FAILED"
    result = f"{(card or 'unknown card').strip()}; kernel tests {verdict}\n\n{table(rows)}\n"
    (runner.out / "table.md").write_text(result)
    print(result, flush=True)
    if args.data and (runner.out / f"sharnn-{backend}").exists():
        train(runner, args, runner.out / f"sharnn-{backend}")
    if runner.failed:
        sys.exit(f"failed: {', '.join(runner.failed)}; see the .err files in {runner.out}")


if __name__ == "__main__":
    main()
