"""What a command found, as text and tables that fit 80 columns."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.figures import amount, duration, figure, percent, score, size
from tasks.engine.report import SIDES, Metrics, Report, Slice
from tasks.engine.summary import Summary

if TYPE_CHECKING:
    from flows.check import CheckResult
    from tasks.engine.profile import ColumnProfile

CATEGORIES_SHOWN = 12
FEATURES_SHOWN = 40


def show_training(
    console: Console,
    summary: Summary,
    report: Report,
    notes: Iterable[str] = (),
    links: Mapping[str, Sequence[str]] | None = None,
    trained_rounds: int | None = None,
) -> None:
    """The table of metrics, the notes, and where the model and its run are."""
    show_report(console, report)
    show_notes(console, notes)
    console.print()
    labelled(console, {"Model": summary.model_uri})
    for line in model_lines(summary, trained_rounds):
        labelled(console, {"": line})
    for label, texts in (links or {}).items():
        for number, text in enumerate(texts):
            labelled(console, {label if number == 0 else "": text})


def show_report(console: Console, report: Report) -> None:
    """The tables of metrics: by side, with the interval, and by category."""
    console.print()
    console.print(_metrics_table(report))
    console.print()
    console.print(Text("baseline: the mean of the training target for every test row"))
    if report.interval:
        interval = report.interval
        console.print(
            Text(
                f"test R² {score(report.metrics['test'].r2)}, "
                f"{100 * interval.confidence:g} % interval "
                f"{score(interval.low)} to {score(interval.high)} "
                f"({interval.replicates:,} bootstrap replicates)"
            )
        )
    for column in dict.fromkeys(part.column for part in report.categories):
        parts = [part for part in report.categories if part.column == column]
        console.print()
        console.print(_slices_table(column, parts))


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


def show_check(console: Console, result: "CheckResult", target: str) -> None:
    """What a run would work on, feature by feature, and what would be left to do."""
    profile = result.profile
    console.print()
    console.print(_features_table(profile.columns))
    show_notes(console, result.notes)
    console.print()
    sides = ", ".join(f"{result.sides[side]:,} {side}" for side in SIDES if result.sides[side])
    lines = {"Rows": f"{result.rows:,}: {sides}"}
    if train := profile.target.get("train"):
        lines["Target"] = (
            f"{target}, {figure(train.low)} to {figure(train.high)}, mean {figure(train.mean)}, "
            f"deviation {figure(train.deviation)} (train)"
        )
    kinds = Counter(column.kind for column in profile.columns)
    lines["Features"] = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    done, left = result.resumes_from_round, result.rounds_left
    after = f", {left:,} of them left after a checkpoint's {done:,}" if done else ""
    if not left:
        after = f", none of them left: a checkpoint has all {done:,} that it takes"
    lines["Training"] = f"{amount(result.rounds, 'rounds')}{after}"
    lines["Memory"] = f"{size(result.binned_bytes)} of binned features over all workers"
    labelled(console, lines)


def _features_table(columns: Iterable["ColumnProfile"]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("feature", max_width=28)
    table.add_column("kind", no_wrap=True)
    for heading in ("missing", "low", "mean", "high"):
        table.add_column(heading, justify="right", no_wrap=True)
    listed = list(columns)
    for column in listed[:FEATURES_SHOWN]:
        numbers = (
            "–" if value is None else figure(value)
            for value in (column.low, column.mean, column.high)
        )
        missing = f"{100 * column.missing / column.rows:.1f} %" if column.missing else ""
        kind = column.kind if column.distinct is None else f"{column.kind} of {column.distinct:,}"
        table.add_row(one_line(column.name), kind, missing, *numbers)
    if len(listed) > FEATURES_SHOWN:
        table.add_row(f"and {len(listed) - FEATURES_SHOWN:,} more")
    return table


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


def labelled(console: Console, lines: Mapping[str, str]) -> None:
    """`Label    text`, never broken: an address stays in one piece for copying."""
    width = max(9, *(len(label) + 2 for label in lines)) if lines else 9
    for label, text in lines.items():
        if text:
            console.print(Text.assemble((f"{label:<{width}}", "bold"), text), soft_wrap=True)


def _metrics_table(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    for heading in ("rows", "R²", "RMSE", "MAE", "median error", "MAPE"):
        table.add_column(heading, justify="right", no_wrap=True)
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
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text(f"test rows by {column}"), max_width=30)
    for heading in ("rows", "R²", "RMSE", "MAE", "bias"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in largest[:CATEGORIES_SHOWN]:
        errors = (figure(value) for value in (part.rmse, part.mae, part.bias))
        table.add_row(one_line(part.value), f"{part.rows:,}", score(part.r2), *errors)
    if len(parts) > CATEGORIES_SHOWN:
        table.add_row(f"and {len(parts) - CATEGORIES_SHOWN} more")
    return table


def one_line(text: str) -> Text:
    """On one line, cut where there is no room: the numbers beside it are never cut."""
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")


def model_lines(summary: Summary, trained_rounds: int | None) -> list[str]:
    """How the model came about, and what it is."""
    made = amount(summary.rounds, "rounds")
    if trained_rounds is not None and trained_rounds > summary.rounds:
        made += f", the best of {trained_rounds:,} on the valid rows"
    if summary.resumed_from_round == (trained_rounds or summary.rounds):
        made += " · all of them from an earlier run's checkpoint"
    elif summary.resumed_from_round:
        made += f" · resumed from round {summary.resumed_from_round:,}"
    lines = [made]
    if summary.recoveries:
        times = "once" if summary.recoveries == 1 else f"{summary.recoveries:,} times"
        lines.append(f"workers lost and replaced {times}")
    place = f"{summary.device}, {amount(summary.workers, 'workers')}"
    seal = f"sha256 {summary.model_sha256[:12]}"
    return [*lines, f"{place} · {seal} · {duration(summary.seconds.total)}"]
