"""How good the model is: the values that evaluation hands to the record and to the screen."""

from typing import Literal

from tasks.engine.dataset import Frozen

Side = Literal["train", "valid", "test"]
SIDES: tuple[Side, ...] = ("train", "valid", "test")


class Metrics(Frozen):
    """Errors in units of the target (mape: a share) over `rows` rows, each counted once.

    Undefined values (R² of a constant target, say) are NaN.
    """

    rows: int
    r2: float
    adjusted_r2: float
    rmse: float
    mae: float
    median_absolute_error: float
    mape: float
    explained_variance: float


class Slice(Frozen):
    """Metrics of a part of the test rows: a decile of the target, or a category of a column.

    R² is against the part's own mean; bias is the mean of predicted - actual.
    """

    column: str
    value: str
    rows: int
    r2: float
    rmse: float
    mae: float
    bias: float


class Interval(Frozen):
    """Percentile interval of the test R² over seeded Poisson bootstrap replicates."""

    low: float
    high: float
    confidence: float
    replicates: int


class Histogram(Frozen):
    """Counts of test rows: `counts[i][j]` lies in x bin i and y bin j, edges one longer.

    The outermost bins also count what lies beyond them.
    """

    x_edges: tuple[float, ...]
    y_edges: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]


class Report(Frozen):
    """Everything evaluation found; `baseline` is the same for predicting the training mean.

    A side without rows has `rows=0` and NaN. `predicted_actual` has actual on x and predicted on
    y, `residuals` predicted on x and actual - predicted on y.
    """

    metrics: dict[Side, Metrics]
    baseline: dict[Side, Metrics]
    deciles: tuple[Slice, ...]
    categories: tuple[Slice, ...]
    interval: Interval | None
    predicted_actual: Histogram
    residuals: Histogram
