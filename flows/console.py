"""What a person sees while a command runs: a bar per long step, and nothing of other libraries."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from tasks.engine.errors import UserError
from tasks.engine.progress import Progress, listening
from tasks.figures import amount, compact, duration

SILENCED = {
    "PYTHONWARNINGS": "ignore",
    "DASK_LOGGING__DISTRIBUTED": "critical",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_ENV_CREATION": "true",
}
FOREIGN_LOGGERS = ("distributed", "dask", "prefect", "mlflow", "alembic", "xgboost", "httpx")


def quiet(verbose: bool = False) -> None:
    """Keeps other libraries' warnings and log lines off the screen, here and in child processes.

    To be called before they are imported. With `verbose` they show, from level INFO on.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        return
    warnings.filterwarnings("ignore")
    for name, value in SILENCED.items():
        os.environ.setdefault(name, value)
    # A handler at the root keeps Dask from adding its own, and Python from its last resort.
    logging.getLogger().addHandler(logging.NullHandler())
    logging.raiseExceptions = False
    for name in FOREIGN_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def screen(stderr: bool = False) -> Console:
    """The console of results (stdout) or of progress (stderr); no line is cut or coloured in."""
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False)


@dataclass
class _Step:
    """The step under way: when and where it began, and what was last heard of it."""

    began: float
    first: int
    last: Progress

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def over(self) -> bool:
        return 0 < self.last.total <= self.last.done

    def line(self, mark: str) -> str:
        last = self.last
        count = amount(last.done, last.unit)
        if mark == "✗" and count:
            count = f"{last.done:,} of {amount(last.total, last.unit)}"
        parts = f"{mark} {last.step:<11} {count:<20} {duration(self.seconds):>11}"
        return f"{parts}   {last.note}".rstrip()

    def fields(self) -> dict[str, Any]:
        """The texts beside the moving bar, short enough for 80 columns."""
        last = self.last
        rate = (last.done - self.first) / max(self.seconds, 1e-3)
        minutes, seconds = divmod(int(self.seconds), 60)
        counted = bool(last.unit and last.total > 0)
        return {
            "count": f"{compact(last.done)}/{compact(last.total)} {last.unit}" if counted else "",
            "rate": f"{compact(rate)}/s" if counted and rate > 0 else "",
            "elapsed": f"{minutes}:{seconds:02}",
            "note": last.note,
        }


class Steps:
    """Shows the steps it hears of: a bar at a terminal while one lasts, a line when it is over.

    A step is over when all of it is done, or when another one begins. May hear from any thread.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._current: _Step | None = None
        self._bars: Bars | None = None
        self._bar: TaskID | None = None

    def hear(self, progress: Progress) -> None:
        with self._lock:
            current = self._current
            if current is None or current.last.step != progress.step:
                self._finish("✓")
                self._current = current = _Step(time.monotonic(), progress.done, progress)
            elif current.over and progress.done >= progress.total:
                return
            elif current.over:
                self._current = current = _Step(time.monotonic(), progress.done, progress)
            current.last = progress
            if current.over:
                self._drop_bar()
                self._print(current.line("✓"))
            else:
                self._draw(current)

    def end(self, mark: str | None = "✓") -> None:
        """Writes the line of a step still under way, with `✗` if it failed; nothing for None."""
        with self._lock:
            self._finish(mark)
            self._current = None

    def _finish(self, mark: str | None) -> None:
        if self._current and not self._current.over:
            self._drop_bar()
            if mark:
                self._print(self._current.line(mark))

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def _draw(self, step: _Step) -> None:
        if not self._console.is_terminal:
            return
        if self._bars is None:
            self._bars = Bars(
                TextColumn("  {task.description:<11}", markup=False),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[count]}", markup=False),
                TextColumn("{task.fields[rate]}", style="dim", markup=False),
                TextColumn("{task.fields[elapsed]}", markup=False),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bars.start()
            self._bar = None
        total = step.last.total if step.last.total > 0 and step.last.unit else None
        if self._bar is None:
            self._bar = self._bars.add_task(step.last.step, total=total, **step.fields())
        self._bars.update(self._bar, total=total, completed=step.last.done, **step.fields())

    def _drop_bar(self) -> None:
        if self._bars:
            self._bars.stop()
        self._bars = self._bar = None


@contextmanager
def showing_steps(console: Console) -> Iterator[Steps]:
    """Within the block every step that is told of shows on `console`.

    A step that a mistake of the user's ended leaves no line: the message says it all.
    """
    steps = Steps(console)
    try:
        with listening(steps.hear):
            yield steps
    except UserError:
        steps.end(None)
        raise
    except BaseException:
        steps.end("✗")
        raise
    steps.end()
