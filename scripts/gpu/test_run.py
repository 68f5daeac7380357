#!/usr/bin/env python3
"""The logic of `run` and of `bundle` without a GPU, a program or a build: python3 scripts/gpu/test_run.py"""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import unittest
import unittest.mock

# Nothing is left beside the scripts.
sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import weights
from report import report
from runner import OutOfTime, Runner, Stage, shorten
from stages import Bundle, Tests, profile_table, stages, thinned, without_linker

PRINTED = """\
running 4 tests
test ops::smoke::cuda::affine ... ok
test ops::smoke::cuda::lstm ... 
thread 'ops::smoke::cuda::lstm' panicked at x.rs:1:2:
[Compilation Error]: default_program(3): error: name followed by "::" must be a class
stack
FAILED
test ops::smoke::cuda::boom ... somebody said something
ok
test ops::smoke::cuda::lamb ... thread died
"""


class InDirectory(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.temporary.name)
        self.said = []

    def tearDown(self):
        self.temporary.cleanup()

    def runner(self, budget=20.0, **options):
        return Runner(self.path / "out", self.path / "work", budget, say=self.said.append, table=report, **options)

    def results(self):
        return json.loads((self.path / "out" / "results.json").read_text())


class Stages(InDirectory):
    def test_a_stage_that_fails_does_not_stop_the_next(self):
        def breaks(_):
            raise ValueError("no such kernel")

        runner = self.runner()
        runner.run([Stage("first", 5, breaks), Stage("second", 5, lambda _: {"failed": True}), Stage("third", 5, lambda _: {"x": 1})])
        stages = self.results()["stages"]
        self.assertEqual([stage["state"] for stage in stages.values()], ["failed", "failed", "done"])
        self.assertIn("no such kernel", stages["first"]["why"])
        self.assertEqual(stages["third"]["x"], 1)

    def test_a_command_that_overruns_is_ended_with_all_that_it_started(self):
        child = self.path / "child"
        script = f"(trap '' TERM; sleep 60) & echo $! > {child}; echo begun; sleep 60"
        found = {}

        def overruns(runner):
            found["done"] = runner.command("sleeper", ["sh", "-c", script])
            return {}

        runner = self.runner()
        begun = time.monotonic()
        runner.run([Stage("long", 1.5, overruns), Stage("next", 5, lambda runner: {"left": runner.left()})])
        self.assertLess(time.monotonic() - begun, 8)
        self.assertEqual(found["done"].code, "timeout")
        self.assertEqual(found["done"].output, "begun\n")
        self.assertEqual(self.results()["stages"]["next"]["state"], "done")
        self.assertFalse(alive(int(child.read_text())))

    def test_a_stage_has_what_is_left_of_its_limit_and_of_the_budget(self):
        lefts = []
        runner = self.runner(budget=10, reserve=2)
        runner.run([Stage("short", 3, lambda runner: lefts.append(runner.left())), Stage("open", 100, lambda runner: lefts.append(runner.left()))])
        self.assertAlmostEqual(lefts[0], 3, delta=0.5)
        self.assertAlmostEqual(lefts[1], 8, delta=0.5)

    def test_a_stage_for_which_too_little_is_left_is_skipped(self):
        runner = self.runner(budget=5)
        runner.run([Stage("training", 100, lambda _: {"ran": True}, least=60)])
        self.assertEqual(self.results()["stages"]["training"]["state"], "skipped")
        self.assertNotIn("ran", self.results()["stages"]["training"])

    def test_no_command_begins_when_the_time_is_over(self):
        runner = self.runner()
        runner.stage_end = time.monotonic() + 0.5
        with self.assertRaises(OutOfTime):
            runner.command("late", ["true"])

    def test_a_program_that_is_missing_is_a_result(self):
        done = self.runner().command("missing", [self.path / "nothing"])
        self.assertEqual(done.code, "missing")
        self.assertIn("No such file", done.errors)

    def test_the_archive_has_the_table_the_results_and_what_was_printed(self):
        runner = self.runner()
        runner.run([Stage("only", 5, lambda runner: {"said": runner.command("echo", ["echo", "hello"]).output})])
        with tarfile.open(self.path / "out" / "results.tar.gz") as archive:
            names = archive.getnames()
        self.assertEqual(sorted(names), ["logs/echo.err", "logs/echo.out", "results.json", "table.md"])
        self.assertEqual(sorted(os.listdir(self.path / "out")), ["results.json", "results.tar.gz"])

    def test_a_long_log_loses_its_middle(self):
        log = self.path / "log"
        log.write_bytes(b"a" * 400_000 + b"b" * 400_000)
        shorten(log)
        text = log.read_bytes()
        self.assertTrue(text.startswith(b"aaa") and text.endswith(b"bbb") and b"300000 bytes" in text)


class Killed(InDirectory):
    """A run in a process of its own, whose second stage waits."""

    SCRIPT = """
        import pathlib, signal, sys
        sys.path.insert(0, sys.argv[1])
        from runner import Runner, Stage
        def raises(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, raises)
        runner = Runner(sys.argv[2] + "/out", sys.argv[2] + "/work", 60)
        def waits(runner):
            runner.found("second", half=True)
            print("waiting", flush=True)
            runner.command("sleep", ["sleep", "60"])
        try:
            runner.run([Stage("first", 5, lambda _: {"whole": True}), Stage("second", 60, waits)])
        except KeyboardInterrupt:
            runner.end_child()
    """

    def kill(self, sign):
        here = str(pathlib.Path(__file__).resolve().parent)
        argv = [sys.executable, "-c", textwrap.dedent(self.SCRIPT), here, str(self.path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line == "waiting\n":
                    break
            time.sleep(0.2)
            process.send_signal(sign)
            process.communicate(timeout=10)

    def test_what_was_found_survives_a_kill(self):
        self.kill(signal.SIGKILL)
        stages = self.results()["stages"]
        self.assertEqual((stages["first"]["state"], stages["first"]["whole"]), ("done", True))
        self.assertTrue(stages["second"]["half"])
        self.assertTrue((self.path / "out" / "results.tar.gz").exists())

    def test_an_interrupted_run_says_so(self):
        self.kill(signal.SIGTERM)
        self.assertEqual(self.results()["stages"]["second"]["state"], "interrupted")


class OnACard(InDirectory):
    """All stages as on a card, where every program, tool and interpreter is a stand-in that prints what the real one would."""

    STAND_IN = r"""
        import json, os, pathlib, subprocess, sys, time
        name, args = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
        after = lambda option: args[args.index(option) + 1]
        line = lambda **more: print(json.dumps({"tokens_per_s": 1000.0, "median_s": 0.01, "min_s": 0.009, **more}), flush=True)
        if name == "nvidia-smi":
            if "--loop-ms=100" in args:
                for used in [100, *[900] * 10000]: print(used, flush=True); time.sleep(0.001)
            print("H100, 580, 9.0, 80 GiB, 0, 80 GiB, 1980, 2619, 700, Disabled")
        elif name == "ncu":
            print('"0","7","sharnn","host","lstm_forward","x","gpu__time_duration.sum","us","7.5"')
        elif name == "compute-sanitizer":
            print("========= ERROR SUMMARY: 0 errors", flush=True)
            sys.exit(subprocess.run(args[6:]).returncode if args[4] == "--print-limit" else 1)
        elif name.endswith("-suite") and os.environ.get("STAND_IN_HANGS") == "1" and "--list" not in args and "--exact" not in args:
            print("test ops::smoke::cuda::x ... ok", flush=True)
            time.sleep(60)
        elif name.endswith("-suite"):
            tests = [test if "--exact" in args else test + "x" for test in args if "::" in test]
            if "--list" in args:
                print("".join(f"{test}: test\n" for test in tests))
            for test in [] if "--list" in args else tests:
                # One fails in company and not alone, as after another's failure.
                fails = "cuda_fusion" in test and "smoke" in test and "--exact" not in args
                print(f"test {test} ... " + ("panicked\nNVRTC: no such header\nFAILED" if fails else "ok"))
        elif name == "python":
            if args[0] == "-c": print("2.11.0 13.0 91000")
            elif args[0].endswith("peer.py"):
                for _ in json.loads(args[2]): line(device_mb=5000)
            elif args[0].endswith("weights.py"): os.link(args[2], args[3])
            else: print(json.dumps({"train_bpc": 4.0, "seconds": 1.0, "tokens": 9})); print(json.dumps({"valid_bpc": 4.1}))
        elif args[0] == "bench":
            print("        12:\tcalling init: /lib/libcuda.so.1", file=sys.stderr)
            if after("--mode") == "lstm": print(json.dumps({"pass": "forward", "d": 256, "lanes": 1, "median_us": 3.5, "persistent_launches": 3 if os.environ["SHARNN_CUDA_LSTM"] == "persistent" else 0, "notices": ["a note"]}))
            elif pathlib.Path.cwd().name == "profile":
                row = "| {} | {} | {} | 9 % |\n".format
                pathlib.Path("profile.log").write_text("|\u23ba| \n" + row("Lstm", "9ms", 8192) + row("Total", "9ms", 8192))
                line()
            else: line(enqueue_s=0.004)
        elif args[0] == "train":
            run = pathlib.Path(after("--out")); run.mkdir()
            (run / "metrics.jsonl").write_text(json.dumps({"event": "train", "step": 10, "seconds": 1.0, "bytes": 5, "train_bpc": 3.0}))
            print(json.dumps({"valid_bpc": 3.1}))
        elif args[0] == "export":
            # Of M's and L's sizes, in which nothing is written.
            with open(after("--to"), "wb") as file: file.truncate(28 * 2**20 if "run-m" in after("--model") else 54 * 2**20)
    """

    def on_a_card(self, budget, chosen=None, **environment):
        """Runs the stages with the stand-ins; their results."""
        tools = self.path / "tools"
        tools.mkdir()
        for name in ["sharnn", "sharnn-plain", "core-suite", "train-suite", "python", "nvidia-smi", "ncu", "compute-sanitizer"]:
            (tools / name).write_text(f"#!{sys.executable}\n" + textwrap.dedent(self.STAND_IN))
            (tools / name).chmod(0o755)
        here = pathlib.Path(__file__).resolve().parent
        (self.path / "enwik8").write_bytes(b"")
        bundle = Bundle(tools, self.path, here.parent / "sharnn_torch.py", self.path / "enwik8", 1000, "cuda", str(tools / "python"))
        runner = self.runner(budget=budget)
        with unittest.mock.patch.dict(os.environ, PATH=f"{tools}:{os.environ['PATH']}", **environment), unittest.mock.patch("shutil.which", lambda name: str(tools / name) if (tools / name).exists() else None):
            runner.run([stage for stage in stages(bundle) if chosen is None or stage.name in chosen])
        return self.results()["stages"]

    def test_tests_that_did_not_come_to_run_have_failed(self):
        smoke = self.on_a_card(7, ["smoke"], STAND_IN_HANGS="1")["smoke"]
        # Alone, the second one is right.
        self.assertEqual(smoke["state"], "failed" if smoke["failed_tests"] else smoke["state"])
        self.assertEqual(smoke["passed"] + smoke["failed_tests"], 2)

    def test_the_stages_before_training_leave_it_some_time(self):
        with unittest.mock.patch("shutil.which", lambda name: None):
            limits = {stage.name: stage.limit for stage in stages(Bundle(self.path, self.path, self.path))}
        self.assertLessEqual(sum(limit for name, limit in limits.items() if name != "training"), 480 - 65)

    def test_every_stage_finds_what_it_asks_for(self):
        results = self.on_a_card(120)
        self.assertEqual({name: stage["state"] for name, stage in results.items() if stage["state"] != "done"}, {"smoke": "failed"})
        # What failed in company, and what it does alone.
        self.assertEqual(results["smoke"]["first_failure"]["test"], "ops::smoke::cuda_fusion::x")
        self.assertEqual(results["smoke"]["alone"], {"ops::smoke::cuda_fusion::x": "ok"})
        self.assertIn("/lib/libcuda.so.1", results["machine"]["libraries"])
        self.assertEqual(len(results["step"]["rows"]), 7)
        self.assertEqual(results["step"]["rows"]["sharnn plain bf16"]["device_mb"], 800)
        self.assertEqual(results["step"]["kernels"]["rows"][0], {"kernel": "Lstm", "ms": 9.0, "launches": 8192})
        self.assertEqual(results["step"]["counters"]["forward_kernel_e_"], {"gpu__time_duration.sum": "7.5 us"})
        self.assertEqual(len(results["peer"]["rows"]["decode"]), 6 + 4)
        self.assertEqual(set(results["sanitizer"]["checks"]), {"memcheck", "racecheck", "memcheck-persistent", "racecheck-persistent"})
        self.assertEqual(set(results["training"]["curves"]), {"m sharnn", "m peer", "l sharnn", "l peer"})
        files = {path.name: path.stat().st_size for path in (self.path / "out").iterdir()}
        self.assertEqual(len(files), 8, files)
        self.assertLessEqual(max(files.values()), 15 * 2**20)
        table = report(self.results())
        for row in ["NVRTC: no such header", "| train | sharnn plain tf32 | 1,000 | 1.00 | 10.00 | 4.00 | 800 |", "| stepwise bf16 | forward | 256 | 1 | 3.50 | 0 |", "| persistent bf16 | forward | 256 | 1 | 3.50 | 3 |", "| m sharnn | 5 | 1.0 | 3.000 | 3.100 |"]:
            self.assertIn(row, table)


class Reading(unittest.TestCase):
    def test_tests_are_told_apart_whatever_they_print(self):
        tests = Tests.parse(PRINTED)
        self.assertEqual(list(tests.results.values()), ["ok", "FAILED", "ok", "unfinished"])
        summary = tests.summary()
        self.assertEqual((summary["passed"], summary["failed"]), (2, 2))
        self.assertEqual(summary["first_failure"]["test"], "ops::smoke::cuda::lstm")
        self.assertIn('must be a class\nstack', summary["first_failure"]["message"])

    def test_the_profile_of_the_last_step_is_read(self):
        table = (
            "|\u23ba\u23ba| \n| Name | Duration | Num Computed | Ratio |\n|\u23bc\u23bc| \n"
            "| ForwardKernel | f32 | 12.5ms | 4096 | 80 % |\n| Matmul        | 250µs  | 47   | 20 % |\n|\u23bc\u23bc| \n"
            "| Total         | 12.75ms | 4143 | 100 % |\n|\u23af\u23af| \n"
        )
        rows = profile_table(table)["rows"]
        self.assertEqual(rows[0], {"kernel": "ForwardKernel | f32", "ms": 12.5, "launches": 4096})
        self.assertEqual(rows[1], {"kernel": "Matmul", "ms": 0.25, "launches": 47})
        self.assertEqual(rows[2]["launches"], 4143)
        self.assertIn("error", profile_table("nothing"))

    def test_curves_are_thinned_to_their_end(self):
        curve = thinned(list(range(1000)), 60)
        self.assertEqual((len(curve), curve[0], curve[-1]), (60, 0, 999))

    def test_the_linkers_lines_are_left_out(self):
        self.assertEqual(without_linker("     12:\tfile=libc.so.6\nerror: no driver\n"), "error: no driver")


class Weights(InDirectory):
    def test_files_are_split_and_joined(self):
        file = self.path / "weights"
        data = bytes(range(256)) * 10
        file.write_bytes(data)
        parts = weights.split(file, 1000, self.path)
        self.assertEqual([part.stat().st_size for part in parts], [1000, 1000, 560])
        self.assertEqual(b"".join(part.read_bytes() for part in parts), data)

    def test_a_row_moves_by_half_a_step_at_most(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("numpy is missing")
        rows = numpy.random.default_rng(1).normal(size=(3, 50)).astype("<f4")
        bias = numpy.ones(3, "<f4")
        tensors = [("w", "F32", [3, 50], rows.tobytes()), ("b", "F32", [3], bias.tobytes())]
        paths = [self.path / name for name in ["a", "b", "c"]]
        weights.write(paths[0], tensors, {"key": "value"})
        weights.int8(paths[0], paths[1])
        weights.unpack(paths[1], paths[2])
        found, metadata = weights.read(paths[2])
        self.assertEqual(metadata, {"key": "value"})
        values = {name: numpy.frombuffer(data, "<f4").reshape(shape) for name, _, shape, data in found}
        step = abs(rows).max(axis=1, keepdims=True) / 127
        self.assertTrue((abs(values["w"] - rows) <= 0.501 * step).all())
        self.assertTrue((values["b"] == bias).all())


class Bundling(InDirectory):
    @classmethod
    def setUpClass(cls):
        loader = importlib.machinery.SourceFileLoader("bundle", str(pathlib.Path(__file__).resolve().parent / "bundle"))
        cls.bundle = importlib.util.module_from_spec(importlib.util.spec_from_loader("bundle", loader))
        loader.exec_module(cls.bundle)

    def test_a_newer_glibc_is_refused(self):
        self.assertEqual(self.bundle.check_glibc("old", b"..GLIBC_2.9\0GLIBC_2.34\0"), "2.34")
        with self.assertRaisesRegex(SystemExit, "new asks for glibc 2.38"):
            self.bundle.check_glibc("new", b"GLIBC_2.2.5\0GLIBC_2.38\0")

    def test_the_dictionary_spans_the_programs(self):
        program = random.Random(1).randbytes(300_000)
        packed = self.bundle.archive({"programs/a": program, "programs/b": bytes(200_000) + program})
        self.assertEqual(packed, self.bundle.archive({"programs/a": program, "programs/b": bytes(200_000) + program}))
        path = self.path / "binaries.tar.xz"
        key = self.bundle.compress(path, packed, True, {})
        self.assertLess(path.stat().st_size, 1.1 * len(program))
        with tarfile.open(path) as unpacked:
            self.assertEqual(unpacked.extractfile("programs/a").read(), program)
        # The same bytes are not compressed again.
        known = {path.name: {"of": key, "sha256": self.bundle.sha256(path.read_bytes())}}
        before = path.stat().st_mtime_ns
        self.bundle.compress(path, packed, True, known)
        self.assertEqual(path.stat().st_mtime_ns, before)

    def test_a_bundle_above_the_limit_is_none(self):
        (self.path / "MANIFEST.json").write_text("{}")
        (self.path / "data").write_bytes(bytes(1000))
        with contextlib.redirect_stdout(io.StringIO()), self.assertRaisesRegex(SystemExit, "1,002 bytes are more than 1,000"):
            self.bundle.check_size(self.path, 1000)
        self.assertFalse((self.path / "MANIFEST.json").exists())


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
