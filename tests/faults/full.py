"""Faults at points drawn from a seed, each against a whole run: a table of what became of them.

python -m tests.faults.full --seed 0 --points 20
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random

from infra.prefect_server import start_embedded_prefect
from tasks.engine.summary import Summary
from tests.conftest import Boostline, clean_environment
from tests.faults.harness import (
    EVERY,
    MOMENTS,
    RUN_LIMIT_S,
    Address,
    Moment,
    Run,
    address_cluster,
    arguments,
    freeze,
    kill,
    pieces,
    running,
    same,
    write_table,
)

VICTIMS = (
    "worker with nanny",
    "worker without",
    "local worker",
    "frozen local worker",
    "frozen worker",
    "scheduler",
    "flow",
    "flow, by Ctrl-C",
)
# What ends the flow's own process, and the code that it ends with.
SIGNALS = {"flow": (signal.SIGKILL, -signal.SIGKILL), "flow, by Ctrl-C": (signal.SIGINT, 130)}
# A busy host keeps healthy workers silent for longer, too.
TTL_S = 4 * RUN_LIMIT_S / 500
HEADER = ("", "moment", "victim", "bins", "recovered in", "rounds redone", "same bytes", "note")


@dataclass(frozen=True)
class Point:
    """Where a fault strikes: `victim` at `moment`, and `delay_s` later than it.

    Where `on_disk`, the bins are read from the workers' scratch folders in every round.
    """

    moment: Moment
    victim: str
    delay_s: float
    on_disk: bool

    @property
    def has_cluster(self) -> bool:
        return self.victim in (
            "worker with nanny",
            "worker without",
            "frozen worker",
            "scheduler",
        )


@dataclass
class Outcome:
    recovered_s: float | None = None
    redone: str = "0"
    same: bool = False
    note: str = ""


def draw(seed: int, count: int) -> list[Point]:
    """Every moment and every victim comes up before one comes up again."""
    random = Random(seed)
    moments: list[Moment] = []
    victims: list[str] = []
    points = []
    for _ in range(count):
        moments = moments or random.sample(MOMENTS, len(MOMENTS))
        victims = victims or random.sample(VICTIMS, len(VICTIMS))
        delay_s, on_disk = random.random() * 0.5, random.random() < 0.5
        points.append(Point(moments.pop(), victims.pop(), delay_s, on_disk))
    return points


def strike(point: Point, boostline: Boostline, table: Path, undisturbed: Summary) -> Outcome:
    """One run with one fault, started again where the fault ends it."""
    words = arguments(
        table,
        cluster__worker_ttl=TTL_S,
        cluster__replace_timeout=6,
        cluster__start_timeout=RUN_LIMIT_S,
        cluster__external_memory="always" if point.on_disk else "auto",
    )
    outcome = Outcome()
    with _cluster(boostline, point, "dask") as cluster:
        with running(boostline, *words, *(cluster.settings() if cluster else [])) as run:
            if not run.wait_for(point.moment):
                outcome.note = "over before"
            time.sleep(point.delay_s)
            before, began = pieces(run.home), time.monotonic()
            run.remember()
            _hit(point, run, cluster)
            if point.victim != "scheduler" and point.victim not in SIGNALS:
                outcome.recovered_s = _next_piece(run, before, began)
            code = run.end()
        if code == 0:
            found = run.summary()
            outcome.redone = _redone(run.output)
        else:
            _check_told(point, run)
            found = _again(point, boostline, words, run, before, began, outcome)
    try:
        run.check_not_done_again()
        same(found, undisturbed)
        outcome.same = True
    except AssertionError as error:
        outcome.note = str(error).splitlines()[0]
    return outcome


def _again(
    point: Point,
    boostline: Boostline,
    words: list[str],
    first: Run,
    before: set[str],
    began: float,
    outcome: Outcome,
) -> Summary:
    with (
        _cluster(boostline, point, "another") as cluster,
        running(boostline, *words, *(cluster.settings() if cluster else [])) as run,
    ):
        outcome.recovered_s = _next_piece(run, before, began)
        found = run.summary()
    done = [int(n) for name in first.kept for n in re.findall(r"round-0*(\d+)\.json", name)]
    outcome.redone = f"< {EVERY}" if found.resumed_from_round >= max(done, default=0) else "more"
    outcome.note += f"again, from round {found.resumed_from_round}"
    return found


@contextmanager
def _cluster(boostline: Boostline, point: Point, name: str) -> Iterator[Address | None]:
    nanny = point.victim != "worker without"
    opened = address_cluster(boostline, nanny=nanny, name=name)
    with opened if point.has_cluster else nullcontext() as cluster:
        yield cluster


def _hit(point: Point, run: Run, cluster: Address | None) -> None:
    if run.process.poll() is not None:
        return
    if point.victim in SIGNALS:
        run.process.send_signal(SIGNALS[point.victim][0])
    elif point.victim == "scheduler":
        assert cluster is not None
        cluster.scheduler.kill()
    else:
        find = cluster.workers if cluster else run.workers
        while not (workers := find()):
            time.sleep(0.02)  # a nanny is just starting one
        (freeze if point.victim.startswith("frozen") else kill)(workers[0])


def _next_piece(run: Run, before: set[str], began: float) -> float | None:
    """Seconds until something more is done than was, None where nothing was left to do."""
    while run.process.poll() is None:
        if pieces(run.home) - before:
            return time.monotonic() - began
        time.sleep(0.01)
    return None


def _redone(output: str) -> str:
    lost = [int(word.replace(",", "")) for word in re.findall(r"lost at round ([\d,]+)", output)]
    return str(sum(round_ % EVERY for round_ in lost))


def _check_told(point: Point, run: Run) -> None:
    """Only a run whose scheduler or own process was hit may end before its end."""
    if point.victim in SIGNALS:
        assert run.process.returncode == SIGNALS[point.victim][1], run.error
        return
    assert point.victim == "scheduler" and run.process.returncode == 1, run.error
    assert "The connection to the Dask scheduler" in run.error.splitlines()[-1], run.error


def print_row(*cells: object) -> None:
    widths = (3, 28, 20, 6, 12, 13, 10, 1)
    print(
        "  ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)),
        flush=True,
    )


@contextmanager
def prepared() -> Iterator[tuple[Callable[[str], Boostline], Path, Summary]]:
    """A Prefect server, folders to run in, the table, and the summary of the undisturbed run."""
    with (
        tempfile.TemporaryDirectory(prefix="boostline-faults-") as name,
        start_embedded_prefect(Path(name, "prefect"), ui=False) as server,
    ):
        server.wait()
        environment = {**clean_environment(), "PREFECT_API_URL": server.api_url}

        def place(folder: str) -> Boostline:
            Path(name, folder).mkdir()
            return Boostline(Path(name, folder), environment)

        table = write_table(Path(name, "table"))
        with running(place("undisturbed"), *arguments(table)) as run:
            yield place, table, run.summary()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--points", type=int, default=20)
    chosen = options.parse_args()
    failed = 0
    with prepared() as (place, table, undisturbed):
        print_row(*HEADER)
        for number, point in enumerate(draw(chosen.seed, chosen.points), 1):
            try:
                found = strike(point, place(f"point-{number}"), table, undisturbed)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                found = Outcome(note=" ".join(str(error).split())[-300:])
            failed += not found.same
            took = "nothing left" if found.recovered_s is None else f"{found.recovered_s:.1f} s"
            answer = "yes" if found.same else "NO"
            where = f"{point.moment.name} + {point.delay_s:.2f} s"
            bins = "disk" if point.on_disk else "memory"
            print_row(number, where, point.victim, bins, took, found.redone, answer, found.note)
    print(f"{chosen.points - failed} of {chosen.points} ended with the undisturbed bytes")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
