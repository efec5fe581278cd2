"""What was measured as a table: medians over the rounds, and how Boostline compares."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, median_low

import psutil

from tests.benchmarks.contest import SIDES, Measured

PACKAGES = (
    "boostline",
    "xgboost",
    "xgboost-cu13",
    "dask",
    "prefect",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "lightgbm",
    "catboost",
)

Rows = Sequence[Sequence[str]]


def machine() -> dict[str, str]:
    """Where and when: the header of every result."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{os.cpu_count()} cores of {model[0] if model else platform.machine()}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} "
        f"{platform.release()}, load {os.getloadavg()[0]:.1f} at the start",
        "environment": f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}",
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
    }


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def by_side(runs: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The runs of every side that ended well, in the order of the first ones."""
    sides: dict[str, list[Measured]] = {run.side: [] for run in runs}
    for run in runs:
        if not run.error:
            sides[run.side].append(run)
    return sides


def comparison(runs: Sequence[Measured], to: str = "G") -> Rows:
    """A row a side: medians of wall time and peak memory, `to` divided by them, test R²."""
    sides = by_side(runs)
    ours = sides.get(to, [])
    rows = [("side", "wall", f"{to} / it", "peak", f"{to} / it", "its servers", "test R²")]
    for name, measured in sides.items():
        label = f"{name}: {SIDES[name].name}" if name in SIDES else name
        if not measured:
            rows.append((label, "failed", "", "", "", "", ""))
            continue
        wall, peak = (_medians(measured, key) for key in ("wall_s", "peak_mb"))
        rows.append(
            (
                label,
                f"{wall:,.1f} s",
                f"{_medians(ours, 'wall_s') / wall:.2f}" if ours else "",
                f"{peak:,.0f} MB",
                f"{_medians(ours, 'peak_mb') / peak:.2f}" if ours else "",
                f"{_medians(measured, 'servers_mb'):,.0f} MB",
                "" if measured[0].r2 is None else f"{_medians(measured, 'r2'):.4f}",
            )
        )
    return rows


def steps(runs: Sequence[Measured]) -> Rows:
    """A row for every side that told its steps: those of the run with the median wall time."""
    rows: list[tuple[str, ...]] = []
    for side, measured in by_side(runs).items():
        if not measured or not measured[0].steps_s:
            continue
        middle = median_low(run.wall_s for run in measured)
        run = next(run for run in measured if run.wall_s == middle)
        if not rows:
            rows.append(("steps", *run.steps_s))
        rows.append((side, *(f"{seconds:.1f} s" for seconds in run.steps_s.values())))
    return rows


def _medians(runs: Sequence[Measured], key: str) -> float:
    return median(getattr(run, key) for run in runs)


def text(rows: Rows, markdown: bool) -> str:
    """A table for the terminal, or for RESULTS.md."""
    if not rows:
        return ""
    if markdown:
        lines = [f"| {' | '.join(cells)} |" for cells in rows]
        lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
        return "\n".join(lines)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if j == 0 else f"{cell:>{width}}"
            for j, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    )
