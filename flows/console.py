"""What a person sees: a bar per long step, the table of results, and nothing of other libraries."""

import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from tasks.engine.errors import UserError
from tasks.engine.progress import Progress, listening
from tasks.engine.report import SIDES, Metrics, Report, Slice
from tasks.engine.summary import Summary

SILENCED = {
    "PYTHONWARNINGS": "ignore",
    "DASK_LOGGING__DISTRIBUTED": "critical",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_ENV_CREATION": "true",
}
FOREIGN_LOGGERS = ("distributed", "dask", "prefect", "mlflow", "alembic", "xgboost", "httpx")
CATEGORIES_SHOWN = 12


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


# --- figures -------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Four significant digits, thousands separated: `0.9661`, `12.35`, `51,234`, `1.235e+12`."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    size = abs(value)
    if size and not 1e-4 <= size < 1e9:
        return f"{value:.3e}"
    before = len(str(int(size))) if size >= 1 else 0
    after_zeros = -math.floor(math.log10(size)) - 1 if 0 < size < 1 else 0
    return f"{value:,.{max(0, 4 - before + after_zeros)}f}"


def score(r2: float) -> str:
    """R² with four decimals, and as many as it takes where four would read 1.0000."""
    if not math.isfinite(r2):
        return figure(r2)
    decimals = 4
    while r2 < 1 and decimals < 12 and f"{r2:.{decimals}f}".startswith("1."):
        decimals += 1
    return f"{r2:,.{decimals}f}" if abs(r2) < 1e6 else figure(r2)


def percent(share: float) -> str:
    return f"{figure(100 * share)} %" if math.isfinite(share) else figure(share)


def amount(count: int, unit: str) -> str:
    """`1 row`, `16,512 rows`; empty without a unit."""
    if not unit:
        return ""
    return f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count:,} bytes" if units[0] == "bytes" else f"{value:.3g} {units[0]}"


def _compact(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


# --- progress ------------------------------------------------------------------------------------


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

    def fields(self) -> dict[str, str]:
        """The texts beside the moving bar, short enough for 80 columns."""
        last = self.last
        rate = (last.done - self.first) / max(self.seconds, 1e-3)
        minutes, seconds = divmod(int(self.seconds), 60)
        counted = bool(last.unit and last.total > 0)
        return {
            "count": f"{_compact(last.done)}/{_compact(last.total)} {last.unit}" if counted else "",
            "rate": f"{_compact(rate)}/s" if counted and rate > 0 else "",
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
        total = step.last.total if step.last.total > 0 else None
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


# --- results -------------------------------------------------------------------------------------


def show_training(
    console: Console,
    summary: Summary,
    report: Report,
    notes: Iterable[str] = (),
    links: Mapping[str, str] | None = None,
    best_round: int | None = None,
) -> None:
    """The table of metrics, the notes, and where the model and its run are."""
    console.print()
    console.print(_metrics_table(report))
    console.print(Text("  baseline: the mean of the training target for every test row"))
    if report.interval:
        interval = report.interval
        console.print(
            Text(
                f"  test R² {score(report.metrics['test'].r2)}, "
                f"{100 * interval.confidence:g} % interval "
                f"{score(interval.low)} to {score(interval.high)} "
                f"({interval.replicates:,} bootstrap replicates)"
            )
        )
    for column in dict.fromkeys(part.column for part in report.categories):
        parts = [part for part in report.categories if part.column == column]
        console.print(_slices_table(column, parts))
    show_notes(console, notes)
    console.print()
    _labelled(console, {"Model": summary.model_uri, "": _model_line(summary, best_round)})
    _labelled(console, links or {})


def show_notes(console: Console, notes: Iterable[str]) -> None:
    """Warnings, a line each; at a terminal wrapped under themselves."""
    shown = [" ".join(note.split()) for note in notes]
    if not shown:
        return
    console.print()
    for note in shown:
        if not console.is_terminal:
            console.print(Text(f"! {note}"), soft_wrap=True)
            continue
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text("!", style="yellow"), Text(note))
        console.print(grid)


def show_prediction(
    console: Console, rows: int, out: str, unseen: Mapping[str, int], seconds: float
) -> None:
    """What was written, and which categories the model did not know."""
    show_notes(
        console,
        [
            f"{column}: {amount(count, 'values')} unknown to the model, taken as missing."
            for column, count in unseen.items()
            if count
        ],
    )
    console.print(
        Text(f"{amount(rows, 'predictions')} in {out}, {duration(seconds)}"), soft_wrap=True
    )


def _labelled(console: Console, lines: Mapping[str, str]) -> None:
    """`Label    text`, never broken: an address stays in one piece for copying."""
    for label, text in lines.items():
        if text:
            console.print(Text.assemble((f"{label:<9}", "bold"), text), soft_wrap=True)


def _metrics_table(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, padding=(0, 1))
    table.add_column("")
    for heading in ("rows", "R²", "RMSE", "MAE", "median error", "MAPE"):
        table.add_column(heading, justify="right")
    for side in SIDES:
        metrics = report.metrics.get(side)
        if metrics and metrics.rows:
            style = "bold" if side == "test" else None
            table.add_row(side, *_figures(metrics), style=style)
    if baseline := report.baseline.get("test"):
        table.add_row("baseline", *_figures(baseline), style="dim")
    return table


def _figures(metrics: Metrics) -> list[str]:
    return [
        f"{metrics.rows:,}",
        score(metrics.r2),
        figure(metrics.rmse),
        figure(metrics.mae),
        figure(metrics.median_absolute_error),
        percent(metrics.mape),
    ]


def _slices_table(column: str, parts: list[Slice]) -> Table:
    """Metrics by the categories of a column, the ones with the most test rows first."""
    largest = sorted(parts, key=lambda part: -part.rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=True, padding=(0, 1))
    table.add_column(Text(f"test rows by {column}"), overflow="ellipsis", max_width=30)
    for heading in ("rows", "R²", "RMSE", "MAE", "bias"):
        table.add_column(heading, justify="right")
    for part in largest[:CATEGORIES_SHOWN]:
        errors = (figure(value) for value in (part.rmse, part.mae, part.bias))
        table.add_row(Text(part.value), f"{part.rows:,}", score(part.r2), *errors)
    if rest := len(parts) - CATEGORIES_SHOWN:
        if rest > 0:
            table.add_row(f"and {rest} more")
    return table


def _model_line(summary: Summary, best_round: int | None) -> str:
    parts = [amount(summary.rounds, "rounds")]
    if best_round is not None:
        parts[0] += f", the best on valid rows is {best_round}"
    if summary.resumed_from_round:
        parts.append(f"resumed from round {summary.resumed_from_round:,}")
    if summary.recoveries:
        parts.append(f"{amount(summary.recoveries, 'lost workers')} replaced")
    parts.append(f"{summary.device}, {amount(summary.workers, 'workers')}")
    parts.append(f"sha256 {summary.model_sha256[:12]}")
    parts.append(duration(summary.seconds.total))
    return " · ".join(parts)
