"""Faults on purpose: the real flow as processes of its own, hit at a moment seen from outside.

A moment is something that appears under BOOSTLINE_HOME: a converted file, a part of the sample, a
checkpoint, a part of the predictions. Nothing in the product knows that it is watched.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tasks.engine.summary import Summary
from tests.conftest import Boostline
from tests.worker_processes import worker_processes

# more than 10 MB, below which the command itself reads the table before anything starts
FILES, ROWS = 24, 7_000
EVERY, ROUNDS = 10, 61  # the last round follows a checkpoint
# A host that is busy with other work needs more time.
RUN_LIMIT_S = float(os.environ.get("BOOSTLINE_TEST_LIMIT", "500"))


@dataclass(frozen=True)
class Moment:
    """`pattern` under the home has `count` files, and then `wait_s` more have passed."""

    name: str
    pattern: str
    count: int = 1
    wait_s: float = 0.0

    def reached(self, home: Path) -> bool:
        return len(list(home.glob(self.pattern))) >= self.count


INGEST = Moment("ingest", "converted/*/record.json", 3)
PROFILE = Moment("profile", "profiles/files-*/*.parquet", 3)
FORMING = Moment("train, group forming", "profiles/*/profile.json", wait_s=0.2)
FIRST = Moment("train, before a checkpoint", "profiles/*/profile.json", wait_s=0.8)
BETWEEN = Moment("train, between checkpoints", f"checkpoints/*/round-{3 * EVERY:06d}.json")
LAST = Moment("train, last round", f"checkpoints/*/round-{ROUNDS - 1:06d}.json")
SCORING = Moment("evaluate, scoring", "predictions/*/*.parquet", 3)
SUMMING = Moment("evaluate, summing", "predictions/*/parts.json")
RECORDING = Moment("record", "runs/*/findings.json")
MOMENTS = (INGEST, PROFILE, FORMING, FIRST, BETWEEN, LAST, SCORING, SUMMING)


def write_table(folder: Path, files: int = FILES, rows: int = ROWS, seed: int = 0) -> Path:
    """CSV files of ten columns: nine features, one of them a category, and the target `y`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for number in range(files):
        with (folder / f"part-{number:02d}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(f"x{i}" for i in range(8)), "kind", "y"])
            for _ in range(rows):
                x = [round(draw.gauss(0, 1), 4) for _ in range(8)]
                kind = draw.choice("abcd")
                y = x[0] + x[1] * x[2] + abs(x[3]) + ord(kind) % 3 + draw.gauss(0, 0.3)
                writer.writerow([*x, kind, round(y, 4)])
    return folder


def arguments(table: Path, **settings: object) -> list[str]:
    """Of `boostline train` on such a table, with row and column sampling."""
    chosen = {
        "boost.n_estimators": ROUNDS,
        "boost.max_depth": 6,
        "boost.checkpoint_every": EVERY,
        "boost.subsample": 0.8,
        "boost.colsample_bytree": 0.8,
        "evaluate.bootstrap": 100,
        "cluster.threads": 1,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    sets = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    return ["--data", f"{table}/*.csv", "--target", "y", *sets]


@dataclass
class Run:
    """A training as a process, and what was done to it."""

    process: "subprocess.Popen[str]"
    home: Path
    summary_file: Path
    output: str = ""
    error: str = ""
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)

    def wait_for(self, moment: Moment, limit_s: float = RUN_LIMIT_S) -> bool:
        """False where the run has ended before the moment came."""
        until = time.monotonic() + limit_s
        while not moment.reached(self.home):
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, f"no {moment.name} within {limit_s} s"
            time.sleep(0.005)
        time.sleep(moment.wait_s)
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The worker processes of a local cluster."""
        return worker_processes(self.process.pid)

    def remember(self) -> None:
        """What is done now must not be done again: see `check_not_done_again`."""
        self.kept = finished(self.home)

    def end(self, limit_s: float = RUN_LIMIT_S) -> int:
        try:
            self.output, self.error = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def kill(self) -> None:
        """The whole of its processes end: what the run started must not outlive it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for child in children:
            thaw(child)  # a stopped process can't notice that its parent is gone
        self.process.communicate()
        _, alive = psutil.wait_procs(children, timeout=80)
        assert not alive, alive

    def summary(self, limit_s: float = RUN_LIMIT_S) -> Summary:
        assert self.end(limit_s) == 0, self.error
        return Summary.model_validate_json(self.summary_file.read_bytes())

    def check_not_done_again(self) -> None:
        """What was done when `remember` was called is there as it was, or was tidied away."""
        now = finished(self.home)
        again = [name for name, file in self.kept.items() if name in now and now[name] != file]
        assert again == [], f"done again: {again}"
        gone = [name for name in self.kept if name not in now and "checkpoints" not in name]
        assert gone == [], f"gone: {gone}"


@contextmanager
def running(boostline: Boostline, *words: str, **environment: str) -> Iterator[Run]:
    """`boostline train` with these words; killed at the end if it still runs."""
    summary = boostline.folder / "summary.json"
    summary.unlink(missing_ok=True)
    home = Path(environment.get("BOOSTLINE_HOME", boostline.home))
    with boostline.start("train", "--summary", str(summary), *words, **environment) as process:
        run = Run(process, home, summary)
        try:
            yield run
        finally:
            if process.poll() is None:
                run.kill()


def finished(home: Path) -> dict[str, tuple[int, int]]:
    """Every piece of work that is done, with the inode and time of its file."""
    patterns = (
        "converted/*/record.json",
        "profiles/*/profile.json",
        "checkpoints/*/round-*.json",
        "predictions/*/parts.json",
    )
    found = {}
    for pattern in patterns:
        for file in home.glob(pattern):
            try:
                status = file.stat()
            except FileNotFoundError:
                continue  # a checkpoint that was just tidied away
            found[str(file.relative_to(home))] = (status.st_ino, status.st_mtime_ns)
    return found


def pieces(home: Path) -> set[str]:
    """Names of what is done, the parts of a pass included."""
    parts = [*home.glob("profiles/files-*/*.parquet"), *home.glob("predictions/*/*.parquet")]
    return {*finished(home), *(str(part.relative_to(home)) for part in parts)}


class Address:
    """A Dask scheduler and workers as a user starts them, each a process of its own."""

    def __init__(
        self, folder: Path, environment: dict[str, str], workers: int, nanny: bool
    ) -> None:
        self._folder, self._environment, self._nanny = folder, environment, nanny
        self._count = workers
        self._file = folder / "scheduler.json"
        self.scheduler: subprocess.Popen[bytes]
        self.hosts: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start(self) -> "Address":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        where += ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(self._file)]
        self.scheduler = self._process("scheduler", *where)
        until = time.monotonic() + 240
        while not self.address:
            assert time.monotonic() < until and self.scheduler.poll() is None
            if self._file.exists():
                self.address = str(json.loads(self._file.read_text() or "{}").get("address", ""))
            time.sleep(0.05)
        for _ in range(self._count):
            self.add_worker()
        return self

    def add_worker(self, *more: str) -> None:
        nanny = "--nanny" if self._nanny else "--no-nanny"
        words = [self.address, nanny, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        words += ["--dashboard-address", "127.0.0.1:0", "--local-directory", str(self._folder)]
        self.hosts.append(self._process("worker", *words, *more))

    def _process(self, kind: str, *words: str) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", kind, *words],
                env={**self._environment, "OMP_WAIT_POLICY": "PASSIVE"},
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )

    def workers(self) -> list[psutil.Process]:
        """Worker processes, those that nannies started included."""
        alive = [psutil.Process(host.pid) for host in self.hosts if host.poll() is None]
        if not self._nanny:
            return alive
        return [worker for host in alive for worker in worker_processes(host.pid)]

    def settings(self) -> list[str]:
        return ["--set", "cluster.kind=address", "--set", f"cluster.address={self.address}"]

    def stop(self) -> None:
        for process in [*self.hosts, self.scheduler]:
            children = []
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for child in children:
                kill(child)
        psutil.wait_procs(children)


@contextmanager
def address_cluster(
    boostline: Boostline, workers: int = 2, nanny: bool = True, name: str = "dask"
) -> Iterator[Address]:
    cluster = Address(boostline.folder / name, boostline.environment, workers, nanny)
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        yield cluster.start()


def kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def thaw(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        return


def freeze(process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)


def hit_all(
    run: Run,
    moments: Sequence[Moment],
    workers: Callable[[], list[psutil.Process]],
    hit: Callable[[psutil.Process], None] = kill,
    pick: Callable[[list[Any]], Any] = lambda found: found[0],
) -> list[tuple[Moment, float]]:
    """At each moment one worker is hit; with the moments, when (monotonic seconds)."""
    struck = []
    for moment in moments:
        assert run.wait_for(moment), f"ended before {moment.name}: {run.process.communicate()}"
        until = time.monotonic() + 120
        while not (found := workers()):
            assert time.monotonic() < until
            time.sleep(0.02)
        run.kept.update(finished(run.home))
        hit(pick(found))
        struck.append((moment, time.monotonic()))
    return struck


def same(found: Summary, undisturbed: Summary) -> None:
    """Everything but where and when is what it was in the undisturbed run."""
    assert found.model_sha256 == undisturbed.model_sha256
    assert found.dataset_digest == undisturbed.dataset_digest
    assert (found.r2, found.rmse, found.mae) == (undisturbed.r2, undisturbed.rmse, undisturbed.mae)
    assert found.rows == undisturbed.rows and found.rounds == undisturbed.rounds
