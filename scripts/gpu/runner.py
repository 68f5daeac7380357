"""Runs stages within a budget of seconds, and keeps what they found the moment it is found.

Everything that is kept is in `results.json`, which is replaced whole, and in `results.tar.gz`, which has what the commands
printed as well: a run that is killed at any moment leaves both as they were after the last stage or measurement.
"""

import json
import os
import pathlib
import signal
import subprocess
import tarfile
import threading
import time
import traceback
from dataclasses import dataclass

# Seconds between asking a command to end and ending it.
GRACE = 3.0
# Bytes of a command's output that travel: its beginning and its end.
LOG_BYTES = 500_000


class OutOfTime(Exception):
    """The stage or the whole run has no seconds left."""


@dataclass
class Stage:
    """One question. `run(runner)` returns what was found, as JSON has it."""

    name: str
    limit: float
    run: object
    # It is not begun with fewer seconds than this.
    least: float = 1.0


@dataclass
class Done:
    """A command that has ended: its exit code, `timeout` or `missing`, and all that it printed."""

    code: object
    output: str
    errors: str
    seconds: float

    @property
    def ok(self):
        return self.code == 0

    def last_line(self):
        """What an error says, or what was said last, for a table."""
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        named = [line for line in lines if line.lower().startswith("error")]
        return (named or lines or ["nothing was said"])[-1]


class PeakMemory:
    """The most memory of the first GPU in use while it is entered, less what was in use before, in MB; from nvidia-smi, ten times a second."""

    QUERY = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0", "--loop-ms=100"]

    def __enter__(self):
        self.before = self.peak = None
        self.process = self.thread = None
        first = threading.Event()
        try:
            self.process = subprocess.Popen(self.QUERY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return self
        self.thread = threading.Thread(target=self.watch, args=[first], daemon=True)
        self.thread.start()
        first.wait(5)
        return self

    def watch(self, first):
        for line in self.process.stdout:
            if not line.strip().isdigit():
                break
            used = int(line)
            self.before = used if self.before is None else self.before
            self.peak = max(self.peak or 0, used)
            first.set()
        first.set()

    def __exit__(self, *_):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.thread.join(5)
            self.process.stdout.close()

    def mb(self):
        return None if self.before is None else self.peak - self.before


class Runner:
    """Commands with limits, stages in order, results that are kept."""

    def __init__(self, out, work, budget, reserve=10.0, say=print, table=None):
        self.out, self.work = pathlib.Path(out), pathlib.Path(work)
        self.logs = self.work / "logs"
        for directory in [self.out, self.work, self.logs]:
            directory.mkdir(parents=True, exist_ok=True)
        self.begun = time.monotonic()
        # What the end needs: the last archive.
        self.end = self.begun + budget - min(reserve, budget / 5)
        self.stage_end = self.end
        self.say, self.table = say, table
        self.child = None
        self.results = {"budget": budget, "stages": {}}

    def seconds(self):
        return time.monotonic() - self.begun

    def left(self):
        """Seconds of this stage, which ends with the run at the latest."""
        return min(self.stage_end, self.end) - time.monotonic()

    def command(self, name, argv, limit=None, env=None, cwd=None, merge=False):
        """Runs a command for `limit` seconds at most, and for no more than the stage has left. With `merge` its errors are in its output."""
        left = self.left()
        if left < 1:
            raise OutOfTime(f"no time was left for {name}")
        limit = left if limit is None else min(limit, left)
        begun = time.monotonic()
        paths = [self.logs / f"{name}.out", self.logs / f"{name}.err"]
        with open(paths[0], "wb") as output, open(paths[1], "wb") as errors:
            try:
                self.child = subprocess.Popen(
                    [str(word) for word in argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if merge else errors,
                    env=dict(os.environ, **(env or {})),
                    cwd=cwd or self.work,
                    # Whatever it starts ends with it.
                    start_new_session=True,
                )
            except OSError as error:
                code = "missing"
                errors.write(str(error).encode())
            else:
                code = self.wait(limit)
                self.child = None
        seconds = time.monotonic() - begun
        texts = [path.read_bytes().decode(errors="replace") for path in paths]
        with open(paths[1], "a") as errors:
            settings = " ".join(f"{key}={value}" for key, value in (env or {}).items())
            errors.write(f"\n{settings} {' '.join(map(str, argv))}\nexit {code} after {seconds:.1f} s\n")
        return Done(code, *texts, seconds)

    def wait(self, limit):
        try:
            return self.child.wait(limit)
        except subprocess.TimeoutExpired:
            self.end_child()
            return "timeout"

    def end_child(self):
        """Ends the command that runs and all that it started."""
        child = self.child
        if child is None:
            return
        for sign, patience in [(signal.SIGTERM, GRACE), (signal.SIGKILL, None)]:
            try:
                os.killpg(child.pid, sign)
                child.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                child.wait()
            break
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def found(self, stage, **values):
        """Keeps a part of what a stage finds, at once."""
        self.results["stages"].setdefault(stage, {}).update(values)
        self.write()

    def write(self):
        self.results["seconds"] = round(self.seconds(), 1)
        whole(self.out / "results.json", json.dumps(self.results, indent=1).encode())

    def run(self, stages):
        """All stages in their order. One that fails or runs out of time says so, and the next one begins."""
        for stage in stages:
            begun = time.monotonic()
            entry = self.results["stages"].setdefault(stage.name, {})
            if self.end - begun < stage.least:
                entry["state"] = "skipped"
                entry["why"] = f"{max(0, self.end - begun):.0f} s were left, it needs {stage.least:.0f}"
            else:
                self.stage_end = begun + stage.limit
                entry["state"] = "began"
                self.write()
                self.say(f"[{self.seconds():6.1f} s] {stage.name} ({min(stage.limit, self.end - begun):.0f} s at most)")
                try:
                    entry.update(stage.run(self) or {})
                    entry["state"] = "failed" if entry.get("failed") else "done"
                except OutOfTime as error:
                    entry.update(state="out of time", why=str(error))
                except KeyboardInterrupt:
                    entry["state"] = "interrupted"
                    entry["seconds"] = round(time.monotonic() - begun, 1)
                    self.finish()
                    raise
                except Exception:
                    entry.update(state="failed", why=traceback.format_exc())
            entry["seconds"] = round(time.monotonic() - begun, 1)
            self.say(f"[{self.seconds():6.1f} s] {stage.name}: {entry['state']}" + (f", {last(entry['why'])}" if "why" in entry else ""))
            self.finish()
        self.stage_end = self.end

    def finish(self):
        """The results and all that was printed until now, as one file each."""
        self.write()
        if self.table is not None:
            whole(self.work / "table.md", self.table(self.results).encode())
        path = self.work / "results.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=6) as archive:
            for name in ["table.md"]:
                if (self.work / name).exists():
                    archive.add(self.work / name, name)
            archive.add(self.out / "results.json", "results.json")
            for log in sorted(self.logs.iterdir()):
                shorten(log)
                archive.add(log, f"logs/{log.name}")
        os.replace(path, self.out / "results.tar.gz") if same_disk(path, self.out) else whole(self.out / "results.tar.gz", path.read_bytes())


def last(text):
    return text.strip().splitlines()[-1]


def same_disk(path, directory):
    return path.stat().st_dev == directory.stat().st_dev


def shorten(log):
    """A long log loses its middle."""
    size = log.stat().st_size
    if size > LOG_BYTES + 1000:
        data = log.read_bytes()
        half = LOG_BYTES // 2
        log.write_bytes(data[:half] + f"\n... {size - 2 * half} bytes ...\n".encode() + data[-half:])


def whole(path, data):
    """Writes a file that is never half there."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(data)
    os.replace(aside, path)
