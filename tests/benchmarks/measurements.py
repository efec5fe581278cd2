"""What is measured beside the contest of the sides: each a function of what was chosen."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.engine.config import BoostConfig
from tests.benchmarks.contest import (
    LIMIT_S,
    Measured,
    boostline,
    command,
    contest,
    failed,
    home_environment,
    installed,
    measured,
    python,
    scratch,
    warm,
)
from tests.benchmarks.processes import run
from tests.benchmarks.tables import EXTERNAL_FEATURES, KINDS, table

# Of a value in XGBoost's file of pages, seen with 1,000 features: by row and by column, and more.
BIN_BYTES = 2.29


@dataclass(frozen=True)
class Chosen:
    """The options of the command. `rows` is None for the size that a kind of table usually has."""

    data: Path
    kind: str = "numeric"
    rows: int | None = None
    sides: str = "ABFG"
    repeat: int = 1
    seed: int = 0

    def folder(self, kind: str | None = None) -> Path:
        kind = kind or self.kind
        return table(self.data, kind, self.rows or KINDS[kind].rows, self.seed)


def sides(chosen: Chosen) -> Iterator[Measured]:
    """The sides beside each other."""
    letters = "".join(letter for letter in chosen.sides if installed(letter))
    yield from contest(letters, chosen.folder(), chosen.seed, chosen.repeat)


def startup(chosen: Chosen) -> Iterator[Measured]:
    """A user's first `boostline train` with its defaults; the least that its two services cost."""
    for _ in range(chosen.repeat):
        with scratch(chosen.data) as folder:
            yield boostline("boostline train", folder, None, chosen.seed)
        with scratch(chosen.data) as folder:
            yield python("empty flow, one logged model", "bare_services.py", folder)


def again(chosen: Chosen) -> Iterator[Measured]:
    """A second training on the same data: another learning rate, so that it has to boost."""
    source = chosen.folder()
    for _ in range(chosen.repeat):
        warm(source)
        with scratch(chosen.data) as folder:
            yield boostline("first", folder, source, chosen.seed)
            yield boostline("again", folder, source, chosen.seed, boost__learning_rate=0.11)


def nightly(chosen: Chosen) -> Iterator[Measured]:
    """A table of 100 files, and the same when one more has come."""
    files = sorted(chosen.folder("nightly").iterdir())
    for _ in range(chosen.repeat):
        with scratch(chosen.data) as folder:
            source = folder / "source"
            source.mkdir()
            for file in files[:-1]:
                os.link(file, source / file.name)
            warm(source)
            yield boostline(f"{len(files) - 1} files", folder, source, chosen.seed)
            os.link(files[-1], source / files[-1].name)
            yield boostline("one more", folder, source, chosen.seed)


def workers(chosen: Chosen) -> Iterator[Measured]:
    """Two workers of one thread, and one of two."""
    source = chosen.folder()
    for _ in range(chosen.repeat):
        for count, threads in ((2, 1), (1, 2)):
            warm(source)
            places = {"cluster__workers": count, "cluster__threads": threads}
            with scratch(chosen.data) as folder:
                yield boostline(f"{count} × {threads}", folder, source, chosen.seed, **places)


def scoring(chosen: Chosen) -> Iterator[Measured]:
    """`boostline predict` of a whole table, and XGBoost's prediction of rows in memory."""
    source = chosen.folder()
    with scratch(chosen.data) as folder:
        model = boostline("train", folder, source, chosen.seed)
        if model.error:
            yield model
            return
        for _ in range(chosen.repeat):
            yield predict(folder, model.model_uri, source)
            yield python("inplace_predict", "inplace.py", folder, str(source))


def predict(folder: Path, model_uri: str, source: Path) -> Measured:
    side = "boostline predict"
    words = [*command(), "predict", model_uri, f"{source}/*.parquet", str(folder / "out.parquet")]
    ended = run(words, folder, home_environment(folder), LIMIT_S)
    if ended.code:
        return failed(side, ended)
    # 100,000 predictions in out.parquet, 1.5 s; from 100 s on in minutes, 2 min 05 s
    told = re.search(r", (?:(\d+) min )?([\d.]+) s$", ended.out.strip())
    seconds = 60 * float(told[1] or 0) + float(told[2]) if told else ended.wall_s
    return measured(side, ended, None, steps_s={"predict": seconds})


def files(chosen: Chosen) -> Iterator[Measured]:
    """A table of many small files: what counts is the step ingest."""
    source = chosen.folder("files")
    for _ in range(chosen.repeat):
        warm(source)
        with scratch(chosen.data) as folder:
            yield boostline(f"{len(list(source.iterdir())):,} files", folder, source, chosen.seed)


def external(chosen: Chosen) -> Iterator[Measured]:
    """One worker with a quarter of the memory that the bins take, and one with enough for them.

    Ten rounds: those on disk take the longer, and each as long as the other.
    """
    source = chosen.folder("external")
    train_rows = int(0.8 * (chosen.rows or KINDS["external"].rows))
    bins = int(BIN_BYTES * train_rows * EXTERNAL_FEATURES)
    for _ in range(chosen.repeat):
        for side, limit in (("a quarter", bins // 4), ("in memory", 4 * bins)):
            place = {"cluster__workers": 1, "cluster__memory_limit": f"{limit // 10**6} MB"}
            with scratch(chosen.data) as folder:
                yield boostline(
                    f"{side}: {limit // 10**6:,} MB",
                    folder,
                    source,
                    chosen.seed,
                    boost__n_estimators=10,
                    **place,
                )


def checkpoints(chosen: Chosen) -> Iterator[Measured]:
    """Trainings with checkpoints as by default, and with the last one alone: see the step train."""
    source, default = chosen.folder(), BoostConfig()
    model: dict[str, object] = {
        "boost__n_estimators": default.n_estimators,
        "boost__max_depth": default.max_depth,
    }
    with scratch(chosen.data) as folder:
        boostline("before", folder, source, chosen.seed, **model)  # reads and profiles the table
        for number in range(1, chosen.repeat + 1):
            # no model twice, which would be there already, though as good as the same
            for change, every in ((1e-9, default.checkpoint_every), (-1e-9, default.n_estimators)):
                model["boost__learning_rate"] = default.learning_rate * (1 + number * change)
                model["boost__checkpoint_every"] = every
                yield boostline(f"every {every}", folder, source, chosen.seed, **model)


MEASUREMENTS: dict[str, Callable[[Chosen], Iterator[Measured]]] = {
    "sides": sides,
    "startup": startup,
    "again": again,
    "nightly": nightly,
    "workers": workers,
    "scoring": scoring,
    "files": files,
    "external": external,
    "checkpoints": checkpoints,
}
