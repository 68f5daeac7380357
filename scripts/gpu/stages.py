"""The questions that a GPU is asked, in the order of their worth. Each is a function of the runner that returns what was found."""

import ctypes
import json
import os
import pathlib
import platform
import re
import shutil
import sys
from dataclasses import dataclass, field

import weights
from runner import OutOfTime, PeakMemory, Stage

HERE = pathlib.Path(__file__).resolve().parent

# What training keeps of the budget: the limits of the stages before it add up to less than the rest.
LEAST_TRAINING = 45
# Files of weights that come back have at most so many bytes each.
PART = 15 * 2**20


@dataclass
class Bundle:
    """What there is to run, and where."""

    # Directory of the programs: `sharnn` (autotune and fusion), `sharnn-plain` (fusion), `core-suite`, `train-suite`.
    programs: pathlib.Path
    fixtures: pathlib.Path
    statement: pathlib.Path
    # enwik8, whose training split is whole up to here.
    data: object = None
    train_bytes: object = None
    device: str = "cuda"
    # Python with PyTorch.
    python: str = sys.executable
    # Where kernels, once compiled and chosen, are kept for the next process.
    cache: object = None

    @property
    def cuda(self):
        return self.device == "cuda"

    @property
    def backend(self):
        return "cuda" if self.cuda else "flex"

    def program(self, name):
        return self.programs / name

    def env(self, **more):
        return {"SHARNN_FIXTURES": str(self.fixtures), "RUST_BACKTRACE": "0", **self.threads(), **more}

    def threads(self):
        """A rehearsal takes one: it may be on a machine that is busy, and its figures mean nothing."""
        return {} if self.cuda else {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def stages(bundle):
    """All of them, with their limits in seconds."""
    questions = [
        ("machine", 20, 60, machine),
        ("smoke", 70, 30, smoke),
        ("suite", 85, 60, suite),
        ("step", 90, 60, step),
        ("peer", 60, 150, peer),
        ("lstm", 60, 30, lstm),
        ("sanitizer", 30, 10, sanitizer),
        ("training", 10_000, 120, training),
    ]
    least = {"training": LEAST_TRAINING if bundle.cuda else 10}
    return [
        Stage(name, on_cuda if bundle.cuda else on_cpu, lambda runner, question=question: question(runner, bundle), least.get(name, 3))
        for name, on_cuda, on_cpu, question in questions
    ]


# --- 1. what is there ------------------------------------------------------------------------------------------------------------


def machine(runner, bundle):
    found = {
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }
    runner.found("machine", **found)
    if bundle.cuda:
        fields = "name,driver_version,compute_cap,memory.total,memory.used,memory.free,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"
        done = runner.command("nvidia-smi", ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"], 10)
        values = dict(zip(fields.split(","), done.output.strip().split(", "))) if done.ok else {"error": done.last_line()}
        runner.found("machine", card=values)
        runner.found("machine", toolkit=toolkit())
    tools = {name: shutil.which(name) for name in ["ncu", "nsys", "compute-sanitizer", "nvcc"]}
    runner.found("machine", tools=tools)
    # The smallest of passes: which libraries it opens, and what it says if it can't.
    argv = [bundle.program("sharnn-plain" if bundle.cuda else "sharnn"), *small_bench(bundle), "--mode", "forward", "--runs", "1", "--warmup", "0"]
    done = runner.command("libraries", argv, 20, bundle.env(LD_DEBUG="files"))
    opened = sorted(set(re.findall(r"calling init: (\S+)", done.errors)))
    runner.found("machine", libraries=opened, starts=done.ok, says=without_linker(done.errors))
    starts = done.ok
    done = runner.command("torch", [bundle.python, "-c", "import torch; print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version())"], 30)
    runner.found("machine", torch=done.output.strip() if done.ok else done.last_line())
    return {"failed": not starts}


def toolkit_home():
    """The CUDA toolkit, where CubeCL looks for it."""
    return pathlib.Path(os.environ.get("CUDA_PATH", "/usr/local/cuda"))


def nvrtc_files():
    """What the toolkit has of NVRTC."""
    directories = [toolkit_home() / name for name in ["lib64", "lib"]]
    return [file for directory in directories for file in sorted(directory.glob("libnvrtc.so*"))]


def libraries(runner):
    """The program looks for NVRTC in the toolkit's directory itself; the tests leave that to the linker, by the name without a version."""
    links, paths = runner.work / "libraries", []
    if files := nvrtc_files():
        links.mkdir(exist_ok=True)
        link = links / "libnvrtc.so"
        link.unlink(missing_ok=True)
        link.symlink_to(files[0])
        # Beside it is what it opens by name.
        paths = [str(links), str(files[0].parent)]
    return {"LD_LIBRARY_PATH": ":".join(filter(None, [*paths, os.environ.get("LD_LIBRARY_PATH")]))}


def toolkit():
    """Whether NVRTC and its headers are there."""
    home = toolkit_home()
    headers = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "mma.h", "cooperative_groups.h", "cccl"]
    found = {"home": str(home), "headers": {name: (home / "include" / name).exists() for name in headers}}
    for file in [*map(str, nvrtc_files()), "libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            library = ctypes.CDLL(file)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        found["nvrtc"] = f"{file}: {major.value}.{minor.value}"
        return found
    found["nvrtc"] = "not found"
    return found


def without_linker(errors):
    return "\n".join(line for line in errors.splitlines() if not re.match(r"\s*\d+:\s", line)).strip()


def small_bench(bundle):
    size = ["--size", "XS", "--batch", "4", "--seq-len", "32", "--memory", "64"]
    return ["bench", "--json", "--backend", bundle.backend, *size]


# --- 2 and 3. tests --------------------------------------------------------------------------------------------------------------


@dataclass
class Tests:
    """What a test program printed, test by test: `ok`, `FAILED`, `ignored` or, where it ended before, `unfinished`."""

    results: dict = field(default_factory=dict)
    messages: dict = field(default_factory=dict)

    @classmethod
    def parse(cls, output):
        tests = cls()
        pieces = re.split(r"^test (\S+) \.\.\. ?", output, flags=re.M)
        for name, text in zip(pieces[1::2], pieces[2::2]):
            text = re.split(r"^(?:failures|test result):", text, flags=re.M)[0]
            verdicts = re.findall(r"^(ok|FAILED|ignored)\s*$", text, flags=re.M)
            tests.results[name] = verdicts[-1] if verdicts else "unfinished"
            if tests.results[name] in ("FAILED", "unfinished"):
                tests.messages[name] = re.sub(r"^(ok|FAILED)\s*$", "", text, flags=re.M).strip()
        return tests

    def update(self, other):
        self.results.update(other.results)
        self.messages.update(other.messages)

    def summary(self):
        failed = [name for name, result in self.results.items() if result not in ("ok", "ignored")]
        return {
            "passed": sum(result == "ok" for result in self.results.values()),
            "failed": len(failed),
            "first_failure": {"test": failed[0], "message": self.messages.get(failed[0], "")} if failed else None,
            "failures": {name: self.messages.get(name, "") for name in failed},
            "tests": self.results,
        }


def run_tests(runner, bundle, name, program, filters, env=None, limit=None, prefix=()):
    """One thread: a line for each test in its order, and one kernel at a time. The messages of all threads stand where they were said."""
    argv = [*prefix, bundle.program(program), *filters, "--test-threads=1", "--nocapture"]
    env = {**(env or {}), **(libraries(runner) if bundle.cuda else {})}
    done = runner.command(name, argv, limit, bundle.env(**env), merge=True)
    return done, Tests.parse(done.output)


def names_of(runner, bundle, program, filters):
    """The tests that a program would run."""
    done = runner.command(f"list-{program}", [bundle.program(program), *filters, "--list", "--format=terse"], 20, bundle.env())
    if not done.ok:
        raise RuntimeError(f"{program} cannot list its tests ({done.code}): {done.last_line()}")
    return [line.rsplit(": ", 1)[0] for line in done.output.splitlines() if line.endswith(": test")]


def smoke(runner, bundle):
    """Every operation in one process; then what it did not come to, or what failed, each in a process of its own: a device that
    has failed once may refuse all that follows."""
    modules = ["cuda", "cuda_fusion"] if bundle.cuda else ["ndarray"]
    filters = [f"ops::smoke::{module}::" for module in modules]
    wanted = names_of(runner, bundle, "core-suite", filters)
    if not wanted:
        return {"failed": True, "why": f"no tests of {' or '.join(filters)} in the program: it was built without that backend or without flex"}
    stepwise = {"SHARNN_CUDA_LSTM": "stepwise"} if bundle.cuda else {}
    done, tests = run_tests(runner, bundle, "smoke", "core-suite", filters, stepwise, runner.left() * 0.6)
    runner.found("smoke", **tests.summary(), exit=done.code)
    alone = {}
    missing = [name for name in wanted if tests.results.get(name) != "ok"]
    for name in missing:
        try:
            done, test = run_tests(runner, bundle, f"smoke-{name.replace('::', '-')}", "core-suite", [name, "--exact"], stepwise, 20)
        except OutOfTime:
            break
        alone[name] = test.results.get(name, f"exit {done.code}")
        if name not in tests.results or tests.results[name] == "unfinished":
            tests.results[name] = alone[name]
            tests.messages[name] = test.messages.get(name, done.output.strip())
        runner.found("smoke", **tests.summary(), alone=alone)
    for name in wanted:
        tests.results.setdefault(name, "not run")
    found = tests.summary()
    if bundle.cuda:
        # The kernel that stays on the chip, whatever is chosen without being asked.
        filters = [f"ops::smoke::{module}::lstm" for module in modules]
        done, persistent = run_tests(runner, bundle, "smoke-persistent", "core-suite", filters, {"SHARNN_CUDA_LSTM": "persistent"}, 25)
        found["persistent"] = {"exit": done.code, **persistent.summary()}
    found["failed_tests"] = found["failed"]
    persistent_failed = bundle.cuda and (found["persistent"]["failed"] or not found["persistent"]["passed"])
    return {**found, "failed": bool(found["failed"] or persistent_failed)}


def suite(runner, bundle):
    """Fixtures first, then the operations over all sizes; f32 and bf16 are tests side by side."""
    if bundle.cuda:
        parts = [
            ("fixtures", "core-suite", ["golden::cuda::", "golden::cuda_fusion::"]),
            ("optimizer", "train-suite", ["golden::cuda"]),
            # Asserts that the persistent kernels were launched, and that none gave up.
            ("persistent", "core-suite", ["ops::cuda_persistent::"]),
            ("operations", "core-suite", ["ops::cuda::"]),
            ("operations-fusion", "core-suite", ["ops::cuda_fusion::"]),
            ("n-grams", "core-suite", ["ngrams::cuda::", "ngrams::cuda_fusion::"]),
        ]
    else:
        parts = [
            ("fixtures", "core-suite", ["golden::flex::"]),
            ("optimizer", "train-suite", ["golden::flex"]),
            ("operations", "core-suite", ["ops::flex::"]),
            ("n-grams", "core-suite", ["ngrams::flex::"]),
        ]
    failed, found = False, {}
    for number, (name, program, filters) in enumerate(parts):
        if not bundle.program(program).exists():
            found[name] = {"exit": "missing"}
            failed = True
            continue
        # The first ones compile most of the kernels: each may take what the others leave of twice its share.
        share = min(runner.left() - 2 * (len(parts) - number - 1), 2 * runner.left() / (len(parts) - number))
        try:
            done, tests = run_tests(runner, bundle, f"suite-{name}", program, filters, limit=share)
        except OutOfTime as error:
            found[name] = {"exit": str(error)}
            failed = True
            continue
        found[name] = {"exit": done.code, "seconds": round(done.seconds, 1), **tests.summary()}
        failed = failed or not done.ok or not tests.results
        runner.found("suite", parts=found)
    return {"parts": found, "failed": failed}


# --- 4 and 5. training step, forward pass, decoding ------------------------------------------------------------------------------


def sizes(bundle, mode):
    """The paper's model and lengths; on the CPU the smallest."""
    if not bundle.cuda:
        lanes = [] if mode == "decode" else ["--batch", "4", "--seq-len", "32"]
        return ["--size", "XS", "--memory", "64", "--runs", "2", "--warmup", "1", *lanes]
    if mode == "decode":
        return ["--size", "L", "--memory", "1024", "--mem-len", "5000", "--warmup", "2", "--runs", "5"]
    return ["--size", "L", "--batch", "16", "--seq-len", "1024", "--memory", "5000", "--mem-len", "5000", "--warmup", "3", "--runs", "8"]


@dataclass
class Way:
    """One way to run sharnn."""

    name: str
    program: str
    # bf16, f32, or tf32, which is f32 whose products may be made by tensor cores.
    precision: str
    env: dict

    @property
    def dtype(self):
        return "f32" if self.precision == "tf32" else self.precision

    def label(self):
        return f"sharnn {self.name} {self.precision}"


def ways(bundle):
    """In bf16 first, and what needs nothing tuned before what does."""
    if not bundle.cuda:
        return [Way("flex", "sharnn", precision, {}) for precision in ["f32", "bf16"]]
    kinds = [
        ("plain", "sharnn-plain", {"SHARNN_FUSION": "off"}),
        ("autotune+fusion", "sharnn", {}),
        ("fusion", "sharnn-plain", {}),
        ("autotune", "sharnn", {"SHARNN_FUSION": "off"}),
    ]
    tf32 = {"SHARNN_CUDA_TF32": "1"}
    bf16 = [Way(name, program, "bf16", env) for name, program, env in kinds]
    return [*bf16[:2], *(Way(name, program, "tf32", {**env, **tf32}) for name, program, env in kinds[:2]), *bf16[2:], Way(*kinds[0][:2], "f32", kinds[0][2])]


def measure(runner, bundle, way, mode, limit):
    """What the program printed, with the memory that the device needed; or why there is nothing."""
    dropout = [] if mode == "train" else ["--dropout", "0"]
    argv = [bundle.program(way.program), "bench", "--json", "--backend", bundle.backend, "--dtype", way.dtype, "--mode", mode]
    with PeakMemory() as memory:
        name = f"{mode}-{way.name}-{way.precision}".replace("+", "-")
        done = runner.command(name, [*argv, *sizes(bundle, mode), *dropout], limit, bundle.env(**way.env))
    if not done.ok:
        return {"error": f"exit {done.code}: {done.last_line()}", "exit": done.code, "seconds": round(done.seconds, 1)}
    line = json.loads(done.output.strip().splitlines()[-1])
    return {**line, "device_mb": memory.mb(), "seconds": round(done.seconds, 1)}


def step(runner, bundle):
    rows = {}
    # Kernels that were compiled and chosen stay: what ran out of time in that is tried once more.
    for attempt in ["first", "again"]:
        for way in ways(bundle):
            # Enough is left for where the time goes.
            if runner.left() < 25 and rows:
                break
            if attempt == "first" or rows.get(way.label(), {}).get("exit") == "timeout":
                rows[way.label()] = measure(runner, bundle, way, "train", min(50, runner.left() - 20) if bundle.cuda else None)
                runner.found("step", rows=rows)
    found = {"rows": rows, "failed": all("error" in row for row in rows.values())}
    if bundle.cuda:
        runner.found("step", kernels=by_kernel(runner, bundle))
        runner.found("step", counters=counters(runner, bundle))
    return found


def by_kernel(runner, bundle):
    """Milliseconds by kernel of one step, from CubeCL's own profile: a kernel is launched, waited for and timed on the host, so each
    has some microseconds more than the device needs, and nothing overlaps."""
    directory = runner.work / "profile"
    directory.mkdir(exist_ok=True)
    log = directory / "profile.log"
    log.unlink(missing_ok=True)
    config = (bundle.cache or runner.work) / "cubecl.toml"
    known = config.read_text() if config.exists() else ""
    (directory / "cubecl.toml").write_text(known + f'\n[profiling.logger]\nlevel = "basic"\nfile = "{log}"\n')
    # Its kernels are compiled by now, and nothing is tuned in it.
    argv = [bundle.program("sharnn-plain"), "bench", "--json", "--backend", bundle.backend, "--dtype", "bf16", "--mode", "train"]
    options = sizes(bundle, "train")
    options[options.index("--runs") + 1], options[options.index("--warmup") + 1] = "2", "1"
    done = runner.command("profile", [*argv, *options], 30, bundle.env(SHARNN_FUSION="off"), cwd=directory)
    if not log.exists():
        return {"error": f"exit {done.code}: {done.last_line()}"}
    shutil.copy(log, runner.logs / "profile.log")
    return profile_table(log.read_text(errors="replace"))


def profile_table(text):
    """The last table but one that CubeCL printed whole: that of the last step, since the one after it is of what follows."""
    tables = []
    for block in re.split(r"^\|\u23ba+\|\s*$", text, flags=re.M)[1:]:
        rows = re.findall(r"^\| (.+?) +\| ([\d.]+)(ns|µs|ms|s) +\| (\d+) +\|", block, flags=re.M)
        if rows and rows[-1][0].strip() == "Total":
            unit = {"ns": 1e-6, "µs": 1e-3, "ms": 1.0, "s": 1e3}
            tables.append([(name.strip(), float(value) * unit[kind], int(count)) for name, value, kind, count in rows])
    if not tables:
        return {"error": "CubeCL printed no table"}
    largest = max(tables[-3:], key=lambda rows: rows[-1][2])
    return {"rows": [{"kernel": name, "ms": round(ms, 3), "launches": count} for name, ms, count in largest]}


def counters(runner, bundle):
    """Three kernels under ncu, where it is and answers: time, throughput, occupancy."""
    if not shutil.which("ncu"):
        return {"error": "ncu is not on the PATH"}
    metrics = [
        "gpu__time_duration.sum",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
        "dram__bytes.sum",
        "sm__warps_active.avg.pct_of_peak_sustained_active",
        "launch__registers_per_thread",
    ]
    found = {}
    argv = [bundle.program("sharnn-plain"), "bench", "--json", "--backend", "cuda", "--dtype", "bf16", "--mode", "train", "--size", "L"]
    options = ["--batch", "16", "--seq-len", "64", "--memory", "0", "--mem-len", "5000", "--warmup", "0", "--runs", "1"]
    # A kernel's name has its types: the LSTM's and the attention's are of operands. Of 64 launches in a row are only those of the LSTM's
    # steps: after 20 of the name it is one of them.
    for kernel, skip in [("forward_kernel_e_", 20), ("backward_kernel_e_", 20), ("softmax_kernel", 0)]:
        if runner.left() < 5:
            break
        ncu = ["ncu", "--csv", "--metrics", ",".join(metrics), "--kernel-name", f"regex:{kernel}", "--launch-skip", skip, "--launch-count", 3, "--kill", "yes"]
        done = runner.command(f"ncu-{kernel}", [*ncu, *argv, *options], 25, bundle.env(SHARNN_FUSION="off", SHARNN_CUDA_LSTM="stepwise"))
        rows = re.findall(r'^"\d+".*?"([\w.]+)","([^"]*)","([^"]*)"\s*$', done.output, flags=re.M)
        found[kernel] = {name: f"{value} {unit}".strip() for name, unit, value in rows} or {"error": f"exit {done.code}: {done.last_line()}"}
        runner.found("step", counters=found)
    if shutil.which("nsys") and runner.left() > 15:
        report = runner.work / "nsys"
        done = runner.command("nsys", ["nsys", "profile", "-o", report, "--force-overwrite=true", "--stats=true", *argv, *options], 30, bundle.env())
        found["nsys"] = "in logs/nsys.out" if done.ok else f"exit {done.code}: {done.last_line()}"
    return found


def peer(runner, bundle):
    """PyTorch's statement of the model and sharnn, in the same minute: training, forward, decoding."""
    rows = {}

    def take(mode, label, row):
        rows.setdefault(mode, {})[label] = row
        runner.found("peer", rows=rows)

    kinds = [(dtype, attention) for dtype in ["bf16", "f32", "fp16"] for attention in [[], ["--sdpa"]]]
    configurations, labels = [], []
    for mode in ["train", "forward", "decode"]:
        for dtype, attention in kinds:
            if not bundle.cuda and dtype == "fp16":
                continue
            configurations.append([*sizes(bundle, mode), "--mode", mode, "--dtype", dtype, "--device", bundle.device, *attention])
            precision = "tf32" if bundle.cuda and dtype == "f32" else dtype
            labels.append((mode, f"PyTorch {precision}{' fused attention' if attention else ''}"))
    argv = [bundle.python, HERE / "peer.py", bundle.statement, json.dumps(configurations)]
    # cuBLAS may use TF32, as sharnn does where it is asked to; cuDNN may anyway.
    done = runner.command("peer", argv, runner.left() * 0.6, {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", **bundle.threads()})
    lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    for (mode, label), line in zip(labels, lines):
        take(mode, label, {"error": line["error"].strip().splitlines()[-1]} if "error" in line else line)
    # A run that had no time for all of them has a reason to say so.
    answered = len(lines)
    failed = answered == 0
    if answered < len(labels):
        runner.found("peer", unanswered=[" ".join(label) for label in labels[answered:]], why_unanswered=f"exit {done.code}: {done.last_line()}")
    for way in [way for way in ways(bundle) if way.name in ("plain", "autotune+fusion", "flex") and (not bundle.cuda or way.precision != "f32")]:
        for mode in ["forward", "decode"]:
            take(mode, way.label(), measure(runner, bundle, way, mode, 30))
    # Training was measured in the stage before.
    for label, row in runner.results["stages"].get("step", {}).get("rows", {}).items():
        take("train", label, row)
    return {"rows": rows, "failed": failed}


# --- 6. the LSTM -----------------------------------------------------------------------------------------------------------------


def lstm(runner, bundle):
    found, failed = {}, False
    asked = [(dtype, kernel) for dtype in ["bf16", "f32"] for kernel in (["persistent", "stepwise"] if bundle.cuda else ["generic"])]
    for number, (dtype, kernel) in enumerate(asked):
        argv = [bundle.program("sharnn-plain" if bundle.cuda else "sharnn"), "bench", "--mode", "lstm", "--json", "--backend", bundle.backend]
        small = [] if bundle.cuda else ["--seq-len", "8", "--warmup", "1", "--runs", "1", "--batch", "1"]
        env = {"SHARNN_CUDA_LSTM": kernel} if bundle.cuda else {}
        # Sizes are printed in the order of their worth: what a command had no time for is worth least.
        share = runner.left() / (len(asked) - number)
        done = runner.command(f"lstm-{kernel}-{dtype}", [*argv, "--dtype", dtype, *small], share, bundle.env(**env))
        lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
        found[f"{kernel} {dtype}"] = {"rows": lines} if done.ok else {"rows": lines, "error": f"exit {done.code}: {done.last_line()}"}
        # Cut off it has what it had.
        failed = failed or not lines or done.code not in (0, "timeout")
        failed = failed or kernel == "persistent" and not any(line.get("persistent_launches") for line in lines)
        runner.found("lstm", kernels=found)
    return {"kernels": found, "failed": failed}


# --- 7. compute-sanitizer --------------------------------------------------------------------------------------------------------


def sanitizer(runner, bundle):
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not bundle.cuda or not os.path.exists(tool):
        return {"skipped": "there is no compute-sanitizer here" if bundle.cuda else "it is for CUDA"}
    found = {}
    runs = [
        ("racecheck", ["ops::smoke::cuda::lstm"], {"SHARNN_CUDA_LSTM": "persistent"}),
        ("memcheck", ["ops::smoke::cuda::lstm"], {"SHARNN_CUDA_LSTM": "persistent"}),
        ("memcheck", ["ops::smoke::cuda::"], {}),
        ("racecheck", ["ops::smoke::cuda::"], {}),
    ]
    for check, filters, env in runs:
        name = f"{check}{'-persistent' if env else ''}"
        prefix = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
        share = runner.left() / (len(runs) - len(found))
        done, tests = run_tests(runner, bundle, name, "core-suite", filters, env, share, prefix)
        said = re.findall(r"^=+ (ERROR SUMMARY:.*|RACECHECK SUMMARY:.*)$", done.output, flags=re.M)
        summary = tests.summary()
        found[name] = {"exit": done.code, "says": said[-1] if said else done.last_line(), "passed": summary["passed"], "failed": summary["failed"]}
        runner.found("sanitizer", checks=found)
    return {"checks": found, "failed": any(check["exit"] != 0 for check in found.values())}


# --- 8. training -----------------------------------------------------------------------------------------------------------------


def training(runner, bundle):
    """Recipe `budget` for what is left, a share for each size and side; curves by seconds; then the weights."""
    if bundle.data is None:
        return {"failed": True, "why": "no data was given"}
    sizes_of = ["m", "l"] if bundle.cuda else ["xs"]
    found = {}
    runs = [(size, side) for size in sizes_of for side in ["sharnn", "peer"]]
    # Evaluation, export and the end of each come on top.
    spare = 8.0 if bundle.cuda else 15.0
    # Fewer runs where there is no time for all of them: the last ones are worth least.
    while len(runs) > 1 and (runner.left() - spare) / len(runs) - spare < 5:
        runs.pop()
    for number, (size, side) in enumerate(runs):
        share = (runner.left() - spare) / (len(runs) - number) - spare
        if not bundle.cuda:
            share = min(share, 8.0)
        if share < 3:
            raise OutOfTime(f"{max(share, 0):.0f} s would be left for {size} on each side")
        name = f"{size} {side}"
        begin = train_sharnn if side == "sharnn" else train_peer
        found[name] = begin(runner, bundle, size, share, spare)
        runner.found("training", curves=found)
        if side == "sharnn" and "error" not in found[name]:
            runner.found("training", **{f"weights_{size}": keep_weights(runner, bundle, size)})
    return {"curves": found, "failed": any("error" in curve for curve in found.values())}


def train_sharnn(runner, bundle, size, seconds, spare):
    run = runner.work / f"run-{size}"
    shutil.rmtree(run, ignore_errors=True)
    options = ["--preset", size, "--recipe", "budget", "--minutes", f"{seconds / 60:.4f}", "--log-every", "10" if bundle.cuda else "1", "--out", run]
    precision = ["--precision", "bf16"] if bundle.cuda else []
    scored = ["--valid-bytes", "200000" if bundle.cuda else "4000"]
    argv = [bundle.program("sharnn"), "train", "--json", "--backend", bundle.backend, *options, *precision, *scored]
    done = runner.command(f"train-{size}", [*argv, "--data", bundle.data, "--train-bytes", bundle.train_bytes], seconds + spare, bundle.env())
    metrics = run / "metrics.jsonl"
    curve = []
    if metrics.exists():
        shutil.copy(metrics, runner.logs / f"train-{size}.metrics.jsonl")
        for line in metrics.read_text().splitlines():
            record = json.loads(line)
            if "loss" in record or "train_bpc" in record or "bpc" in record:
                curve.append(record)
    found = {"curve": thinned(curve), "seconds": round(done.seconds, 1)}
    if done.ok:
        found["reached"] = json.loads(done.output.strip().splitlines()[-1])
    else:
        found["error"] = f"exit {done.code}: {done.last_line()}"
    return found


def train_peer(runner, bundle, size, seconds, spare):
    """The same lanes, segments and memory, with the paper's optimizer, which is what the statement has."""
    options = ["--size", size.upper(), "--batch", "64", "--seq-len", "64", "--mem-len", "128", "--dropout", "0", "--warmup-steps", "50", "--log-every", "10" if bundle.cuda else "1"]
    dtype = ["--dtype", "bf16", "--sdpa"] if bundle.cuda else []
    data = ["--data", bundle.data, "--train-bytes", bundle.train_bytes, "--valid-bytes", "200000" if bundle.cuda else "4000"]
    argv = [bundle.python, bundle.statement, "train", "--device", bundle.device, *options, *dtype, *data, "--steps", "1000000"]
    done = runner.command(f"train-{size}-peer", [*argv, "--minutes", f"{seconds / 60:.4f}"], seconds + 2 * spare, bundle.threads())
    lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    found = {"curve": thinned([line for line in lines if "train_bpc" in line]), "seconds": round(done.seconds, 1)}
    if done.ok and lines:
        found["reached"] = lines[-1]
    else:
        found["error"] = f"exit {done.code}: {done.last_line()}"
    return found


def thinned(curve, most=60):
    """So many records at most, evenly taken, the last among them."""
    if len(curve) <= most:
        return curve
    return [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]


def keep_weights(runner, bundle, size):
    """The trained weights in the output directory, in parts: in bf16, and L, whose file would have over 100 MB, in 8 bits where numpy is there."""
    wide = size == "l"
    file = runner.work / f"{size}.bf16.safetensors"
    argv = [bundle.program("sharnn"), "export", "--backend", "flex", "--model", runner.work / f"run-{size}", "--dtype", "bf16", "--to", file]
    done = runner.command(f"export-{size}", argv, 15, bundle.env())
    if not done.ok:
        return {"error": f"exit {done.code}: {done.last_line()}"}
    if wide:
        packed = runner.work / f"{size}.int8.safetensors"
        done = runner.command(f"pack-{size}", [bundle.python, HERE / "weights.py", "int8", file, packed], 20)
        if not done.ok:
            return {"error": f"in 8 bits they were not written: {done.last_line()}"}
        file = packed
    size = file.stat().st_size
    parts = [part.name for part in weights.split(file, PART, runner.out)]
    file.unlink()
    return {"parts": parts, "bytes": size}
