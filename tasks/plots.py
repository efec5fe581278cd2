"""The pictures that go with a run: learning curve, predicted against actual, residuals, importance.

Each function returns a Matplotlib Figure of its own; no pyplot, no global state. A title states
what the picture shows. `png` draws a figure without a warning, whatever the names in it.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from tasks.engine.report import Histogram, Report

INK, QUIET, LINE = "#1f2933", "#66727f", "#d5dbe1"
BLUE, ORANGE, GREY = "#2f6ea8", "#d9782d", "#b4bec8"
SIDE_COLORS = {"train": GREY, "valid": ORANGE, "test": BLUE}
COUNTS = LinearSegmentedColormap.from_list("counts", ["#d6e6f2", "#7fb2d6", BLUE, "#12304d"])
# Beside Matplotlib's own DejaVu Sans, for names in other scripts: those that are installed.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
STEPS = [1, 2, 2.5, 5, 10]
NAME_LENGTH = 32
DPI = 144
COLORS = 64  # of a small picture

P = ParamSpec("P")


def _style() -> Any:
    return {
        "font.family": _families(),
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": LINE,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": QUIET,
        "ytick.labelcolor": QUIET,
    }


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in our style, whatever the user's matplotlibrc says."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_style())
            return draw(*args, **kwargs)

    return styled


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    with io.BytesIO() as file:
        FigureCanvasAgg(figure).print_png(file)
        return file.getvalue()


def small(picture: bytes) -> bytes:
    """A PNG of few colours, a fifth of the size: for where it lies within a text."""
    with Image.open(io.BytesIO(picture)) as image, io.BytesIO() as file:
        # what Pillow does by itself loses the ends of a colour bar, and takes longer
        few = image.convert("RGB").quantize(COLORS, method=Image.Quantize.MAXCOVERAGE)
        few.save(file, "PNG", optimize=True)
        return file.getvalue()


def pictures(
    report: Report,
    target: str,
    r2_by_round: Mapping[str, Sequence[float]],
    best_rounds: int,
    gains: Mapping[str, float],
) -> dict[str, Figure]:
    """All four, by the names of their files."""
    return {
        "learning_curve": learning_curve(r2_by_round, best_rounds),
        "predicted_actual": predicted_actual(report, target),
        "residuals": residuals(report, target),
        "importance": importance(gains),
    }


@_styled
def learning_curve(history: Mapping[str, Sequence[float]], best_round: int | None = None) -> Figure:
    """R² by round: `history` has a list for each side ("train", "valid"), round 1 first.

    `best_round` (from 1) is marked where it is given.
    """
    figure, axes = _figure(7.0, 4.4)
    curves = {side: r2 for side, r2 in history.items() if len(r2)}
    judge = "valid" if "valid" in curves else next(iter(curves), None)
    if judge is None:
        _title(figure, "No rounds were trained", "")
        return figure
    rounds = len(curves[judge])
    at = min(best_round or rounds, rounds)
    for side, r2 in curves.items():
        color = SIDE_COLORS.get(side, BLUE)
        axes.plot(np.arange(1, len(r2) + 1), r2, color=color, linewidth=1.8)
        axes.annotate(
            f"{side} {r2[-1]:.3f}",
            (len(r2), r2[-1]),
            xytext=(6, 7 if r2[-1] == max(curve[-1] for curve in curves.values()) else -7),
            textcoords="offset points",
            color=QUIET if color == GREY else color,
            va="center",
        )
    axes.plot(
        [at],
        [curves[judge][at - 1]],
        "o",
        color=SIDE_COLORS.get(judge, BLUE),
        markersize=5,
        clip_on=False,
    )
    axes.set_xlim(min(1, rounds - 1), rounds)
    is_cut = _cut_start(axes, [*curves.values()])
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=STEPS))
    _label(axes, "round", "R²")
    head = f"{judge.capitalize()} R² {_r2(curves[judge][at - 1])} after {_number(at)} "
    note = "last round" if at == rounds else f"best round, {_number(rounds - at)} more did not help"
    _title(
        figure,
        head + ("round" if at == 1 else "rounds"),
        f"R² by boosting round{', its steep start cut off' * is_cut}; dot: {note}",
    )
    return figure


@_styled
def predicted_actual(report: Report, target: str) -> Figure:
    """Counts of test rows by actual and predicted value, with the line where they are equal."""
    figure, axes = _figure(6.4, 5.8)
    found = report.predicted_actual
    mesh = _counts(axes, found)
    ends = [found.x_edges[0], found.x_edges[-1]]
    axes.plot(ends, ends, color=ORANGE, linewidth=1.2)
    axes.set_aspect("equal")
    name = _name(target)
    _label(axes, f"actual {name}", f"predicted {name}")
    _color_bar(figure, mesh, axes)
    test = report.metrics["test"]
    head = f"Test R² {_r2(test.r2)}"
    if report.interval is not None:
        low, high = _r2(report.interval.low), _r2(report.interval.high)
        head += f" ({100 * report.interval.confidence:.4g}%: {low} to {high})"
    note = "test rows; on the line predictions are right; outliers counted at the edges"
    _title(figure, head, f"{_number(test.rows)} {note}")
    return figure


@_styled
def residuals(report: Report, target: str) -> Figure:
    """Counts of test rows by predicted value and residual, and the residuals' own histogram."""
    figure = Figure(figsize=(7.4, 5.0), dpi=DPI, layout="constrained")
    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    found = report.residuals
    mesh = _counts(axes, found)
    axes.axhline(0, color=ORANGE, linewidth=1.2)
    name = _name(target)
    _label(axes, f"predicted {name}", "residual: actual − predicted")
    edges = np.array(found.y_edges)
    side.barh(edges[:-1], np.sum(found.counts, axis=0), np.diff(edges), align="edge", color=GREY)
    side.axhline(0, color=ORANGE, linewidth=1.2)
    side.grid(visible=False)
    side.spines["bottom"].set_visible(False)
    side.tick_params(left=False, bottom=False, labelbottom=False)
    side.set_xlabel("all test rows", color=QUIET)
    _color_bar(figure, mesh, side)
    test = report.metrics["test"]
    if test.rows:
        head = f"Half of all predictions are off by {_rounded(test.median_absolute_error)} or less"
        figures = f"RMSE {_rounded(test.rmse)}, MAE {_rounded(test.mae)}; "
    else:
        head, figures = "No test rows", ""
    _title(figure, head, f"{name}: {figures}outliers counted at the edges")
    return figure


@_styled
def importance(gains: Mapping[str, float], top: int = 20) -> Figure:
    """Each feature's share of the loss reduction (total gain), the `top` largest first."""
    ranked = sorted(gains.items(), key=lambda item: (-item[1], item[0]))
    total = sum(gains.values())
    shown = [(_name(name), gain) for name, gain in ranked[:top]]
    colors = [BLUE] * len(shown)
    if len(ranked) > top:
        shown.append((f"{_number(len(ranked) - top)} others", sum(g for _, g in ranked[top:])))
        colors.append(GREY)
    if total <= 0:
        figure, axes = _figure(7.0, 1.5)
        axes.set_axis_off()
        _title(figure, "No feature was used", "The trees have no splits")
        return figure
    figure, axes = _figure(7.0, 0.9 + 0.26 * len(shown))
    shares = [gain / total for _, gain in shown]
    places = np.arange(len(shown))
    axes.barh(places, shares, height=0.72, color=colors)
    for place, share in zip(places, shares, strict=True):
        axes.annotate(
            _percent(share),
            (share, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=QUIET,
        )
    axes.set_yticks(places, labels=[name for name, _ in shown], parse_math=False, color=INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, max(shares) * 1.12)
    axes.grid(visible=False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    used = sum(gain > 0 for gain in gains.values())
    _title(
        figure,
        f"{shown[0][0]} brings {_percent(shares[0])} of the gain",
        "Share of the reduction of squared error by the splits on a feature; "
        f"{_number(used)} {'features are' if used > 1 else 'feature is'} split on",
    )
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure in inches with one pair of axes."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _title(figure: Figure, finding: str, note: str) -> None:
    """The finding in bold above the note, both from the left edge, the axes below them."""
    width, height = figure.get_size_inches()
    left = 0.1 / width
    figure.text(
        left, 1 - 0.14 / height, finding, va="top", fontsize=12.5, weight="bold", parse_math=False
    )
    figure.text(left, 1 - 0.40 / height, note, va="top", fontsize=9, color=QUIET, parse_math=False)
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=(0, 0, 1, 1 - 0.62 / height))


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _cut_start(axes: Axes, curves: Sequence[Sequence[float]]) -> bool:
    """Leaves the steep first tenth out where it would flatten the rest, where curves differ."""
    late = [value for r2 in curves for value in r2[len(r2) // 10 :] if math.isfinite(value)]
    if not late:
        return False
    bottom, top = min(late), max(late)
    margin = 0.06 * (top - bottom) or 0.05
    axes.set_ylim(bottom - margin, top + margin)
    return min(map(min, curves)) < bottom - margin


def _counts(axes: Axes, histogram: Histogram) -> QuadMesh:
    """The 2-D histogram, empty cells left white, colours by the logarithm of the count."""
    counts = np.ma.masked_equal(np.array(histogram.counts).T, 0)
    largest = max(2, int(counts.max()) if counts.count() else 0)
    mesh = axes.pcolormesh(
        histogram.x_edges, histogram.y_edges, counts, cmap=COUNTS, norm=LogNorm(1, largest)
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=STEPS))
    return mesh


def _color_bar(figure: Figure, mesh: QuadMesh, axes: Axes) -> None:
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=28, pad=0.02)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("test rows", color=QUIET)


def _number(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _rounded(value: float) -> str:
    """Three digits or more, thousands apart."""
    if not math.isfinite(value) or value == 0:
        return _number(value)
    return _number(round(value, max(0, 2 - math.floor(math.log10(abs(value))))))


def _r2(value: float) -> str:
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "undefined"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.095 else f"{100 * share:.1f}%"


def _name(text: str) -> str:
    """A user's name on one line, cut in the middle, boxes for what no font can draw."""
    plain = " ".join(text.split())
    if len(plain) > NAME_LENGTH:
        half = (NAME_LENGTH - 1) // 2
        plain = f"{plain[: NAME_LENGTH - 1 - half]}…{plain[-half:]}"
    return "".join(letter if ord(letter) in _drawable() else "□" for letter in plain)


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FONTS if name in installed)


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Code points for which one of the fonts has a picture."""
    fonts: Iterable[Any] = (
        font_manager.get_font(font_manager.findfont(name)) for name in _families()
    )
    return frozenset(point for font in fonts for point in font.get_charmap())
