"""Pictures say what they show, and draw any name without a warning."""

import io
import math
import time
import warnings
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure
from matplotlib.text import Text

from tasks import plots
from tasks.engine.report import SIDES, Histogram, Interval, Metrics, Report

TIMES = 6  # as long as a plot of one point takes; the longest takes three times as long
ODD_NAMES = [
    "price",
    "$price$_{x}",
    "a\nb\t c",
    "価格 🚀",
    "x^2 \\frac",
    "long " * 30,
    "",
    "%s {0}",
]


def report_of(r2: float = 0.8421, interval: bool = True, rows: int = 1_234) -> Report:
    metrics = Metrics(
        rows=rows,
        r2=r2,
        adjusted_r2=r2,
        rmse=49_660.6,
        mae=33_186.9,
        median_absolute_error=21_693.7,
        mape=0.2,
        explained_variance=r2,
    )
    counts = np.zeros((60, 60), dtype=int)
    if rows:
        at = np.random.default_rng(0).integers(0, 60, (2, rows))
        np.add.at(counts, tuple(at), 1)
    edges = tuple(np.linspace(15_000, 500_000, 61))
    around_zero = tuple(np.linspace(-2e5, 2e5, 61))
    cells = tuple(tuple(row) for row in counts.tolist())
    return Report(
        metrics=dict.fromkeys(SIDES, metrics),
        baseline=dict.fromkeys(SIDES, metrics),
        deciles=(),
        categories=(),
        interval=Interval(low=0.8312, high=0.8533, confidence=0.95, replicates=400)
        if interval
        else None,
        predicted_actual=Histogram(x_edges=edges, y_edges=edges, counts=cells),
        residuals=Histogram(x_edges=edges, y_edges=around_zero, counts=cells),
    )


def texts(figure: Figure) -> list[str]:
    """All texts of a drawn figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def drawn(figure: Figure) -> list[str]:
    """Texts of a figure that has been drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = image.imread(io.BytesIO(plots.png(figure)))
    assert pixels.ndim == 3 and pixels[..., :3].std() > 0.01
    return texts(figure)


def test_learning_curve_states_the_best_round() -> None:
    rise = [1 - 0.9**n for n in range(1, 101)]
    found = drawn(plots.learning_curve({"train": rise, "valid": [r * 0.9 for r in rise]}, 61))
    assert "Valid R² 0.899 after 61 rounds" in found
    assert any("dot: best round, 39 more did not help" in text for text in found)
    assert {"train 1.000", "valid 0.900", "round", "R²"} <= set(found)


@pytest.mark.parametrize(
    ("history", "title"),
    [
        pytest.param({"train": [0.3]}, "Train R² 0.300 after 1 round", id="one round"),
        pytest.param({"train": [0.5] * 9}, "Train R² 0.500 after 9 rounds", id="flat"),
        pytest.param({"train": [-1.0, -3.0]}, "Train R² −3.000 after 2 rounds", id="negative"),
        pytest.param(
            {"train": [0.1, 0.2], "valid": []}, "Train R² 0.200 after 2 rounds", id="no valid rows"
        ),
        pytest.param(
            {"train": [math.nan] * 3}, "Train R² undefined after 3 rounds", id="constant target"
        ),
        pytest.param({}, "No rounds were trained", id="nothing"),
    ],
)
def test_short_histories_have_a_curve(history: dict[str, list[float]], title: str) -> None:
    assert title in drawn(plots.learning_curve(history))


def test_predicted_actual_states_the_interval() -> None:
    found = drawn(plots.predicted_actual(report_of(), "price"))
    assert "Test R² 0.842 (95%: 0.831 to 0.853)" in found
    assert {"actual price", "predicted price", "test rows", "400,000"} <= set(found)
    assert any(text.startswith("1,234 test rows") for text in found)


def test_residuals_state_the_median_error() -> None:
    found = drawn(plots.residuals(report_of(), "price"))
    assert "Half of all predictions are off by 21,694 or less" in found
    assert "price: RMSE 49,661, MAE 33,187; outliers counted at the edges" in found
    assert {"predicted price", "residual: actual − predicted", "−100,000"} <= set(found)


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(report_of(r2=math.nan, interval=False), id="constant target"),
        pytest.param(report_of(r2=math.nan, interval=False, rows=0), id="no test rows"),
    ],
)
def test_undefined_scores_are_drawn(report: Report) -> None:
    assert "Test R² undefined" in drawn(plots.predicted_actual(report, "price"))
    drawn(plots.residuals(report, "price"))


def test_importance_shows_the_largest_shares() -> None:
    gains = {f"feature {n:02}": 2.0**-n for n in range(30)}
    found = drawn(plots.importance(gains, top=5))
    assert "feature 00 brings 50% of the gain" in found
    assert {"feature 04", "25 others", "3.1%"} <= set(found) and "feature 05" not in found
    assert found.index("feature 00") < found.index("feature 01") < found.index("25 others")


@pytest.mark.parametrize("gains", [{}, {"a": 0.0}])
def test_trees_without_splits_have_no_importance(gains: dict[str, float]) -> None:
    assert "No feature was used" in drawn(plots.importance(gains))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_drawn_as_they_are(name: str) -> None:
    found = drawn(plots.predicted_actual(report_of(), name))
    found += drawn(plots.importance({name: 3.0, f"{name} and": 1.0}))
    drawn(plots.residuals(report_of(), name))
    if "$" in name:
        assert f"actual {name}" in found and f"{name} brings 75% of the gain" in found
    assert all("\n" not in text and len(text) < 100 for text in found)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda: plots.learning_curve({"train": [0.5] * 5_000}), id="curve"),
        pytest.param(lambda: plots.predicted_actual(report_of(), "y"), id="predicted"),
        pytest.param(lambda: plots.residuals(report_of(), "y"), id="residuals"),
        pytest.param(lambda: plots.importance({f"{n}": 1.0 for n in range(500)}), id="importance"),
    ],
)
def test_drawing_is_quick_and_leaves_no_trace(draw: Callable[[], Figure]) -> None:
    plots.png(draw())
    before = dict(mpl.rcParams)
    # machines differ by more than the plots do
    assert seconds_of(draw) < TIMES * seconds_of(lambda: plots.learning_curve({"train": [0.5]}))
    assert dict(mpl.rcParams) == before


def seconds_of(draw: Callable[[], Figure]) -> float:
    """The best of three, of this thread alone: a garbage collection takes longer than a plot."""
    taken = []
    for _ in range(3):
        started = time.thread_time()
        plots.png(draw())
        taken.append(time.thread_time() - started)
    return min(taken)


def test_the_users_style_does_not_show() -> None:
    plain = plots.png(plots.residuals(report_of(), "price"))
    with mpl.rc_context({"axes.facecolor": "black", "axes.spines.right": True, "font.size": 30}):
        assert plots.png(plots.residuals(report_of(), "price")) == plain
