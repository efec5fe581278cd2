"""The report on parts of real predictions is scikit-learn's, and the same for any order of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from tasks.engine import evaluate as evaluation
from tasks.engine import fold as folding
from tasks.engine.dataset import RowGroup
from tasks.engine.errors import RunError
from tasks.engine.evaluate import evaluate
from tasks.engine.hashing import positions
from tasks.engine.report import SIDES, Report

ROWS = 30_000
CITIES = ["Oslo", "São Paulo", "$x$", None]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """A capped target, as house values are, with errors that grow with it."""
    random = np.random.default_rng(0)
    actual = np.minimum(np.round(random.lognormal(12, 0.6, ROWS), -2), 500_000.0)
    return pd.DataFrame(
        {
            "actual": actual,
            "predicted": actual * (1 + 0.2 * random.normal(size=ROWS)) + 900,
            "side": random.choice(3, ROWS, p=[0.6, 0.1, 0.3]).astype(np.int8),
            "position": positions("houses.parquet", 0, ROWS),
            "by:city": random.choice(np.array(CITIES, dtype=object), ROWS, p=[0.5, 0.3, 0.1, 0.1]),
            "by:street": [f"street {int(n)}" for n in random.geometric(0.02, ROWS)],
        }
    )


def write_parts(folder: Path, rows: pd.DataFrame, cuts: Sequence[int]) -> list[RowGroup]:
    """A file per cut, each of several row groups."""
    folder.mkdir()
    groups = []
    for number, part in enumerate(np.split(np.arange(len(rows)), cuts)):
        uri = str(folder / f"{number}.parquet")
        table = pa.Table.from_pandas(rows.iloc[part], preserve_index=False)
        for name in ("by:city", "by:street"):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, name, table[name].dictionary_encode())
        pq.write_table(table, uri, row_group_size=4_000)
        start = 0
        for index in range(pq.read_metadata(uri).num_row_groups):
            size = pq.read_metadata(uri).row_group(index).num_rows
            groups.append(RowGroup(uri=uri, path=f"{number}", index=index, rows=size, start=start))
            start += size
    return groups


def report_of(rows: pd.DataFrame, groups: list[RowGroup], client: Any = None) -> Report:
    return evaluate(
        client,
        groups,
        by=["city", "street"],
        train_mean=float(rows.actual[rows.side == 0].mean()),
        features=8,
        bootstrap=200,
        confidence=0.95,
        seed=0,
    )


@pytest.fixture(scope="module")
def groups(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> list[RowGroup]:
    return write_parts(tmp_path_factory.mktemp("evaluate") / "parts", rows, [9_000, 9_001, 21_000])


@pytest.fixture(scope="module")
def report(rows: pd.DataFrame, groups: list[RowGroup]) -> Report:
    return report_of(rows, groups)


def test_metrics_are_scikit_learns(rows: pd.DataFrame, report: Report) -> None:
    train_mean = rows.actual[rows.side == 0].mean()
    for code, side in enumerate(SIDES):
        part = rows[rows.side == code]
        constant = np.full(len(part), train_mean)
        for found, predicted in (
            (report.metrics[side], part.predicted),
            (report.baseline[side], constant),
        ):
            assert found.rows == len(part)
            expected = {
                "r2": sk.r2_score(part.actual, predicted),
                "rmse": sk.root_mean_squared_error(part.actual, predicted),
                "mae": sk.mean_absolute_error(part.actual, predicted),
                "median_absolute_error": sk.median_absolute_error(part.actual, predicted),
                "mape": sk.mean_absolute_percentage_error(part.actual, predicted),
                "explained_variance": sk.explained_variance_score(part.actual, predicted),
            }
            for name, score in expected.items():
                assert getattr(found, name) == pytest.approx(score, rel=1e-12, abs=1e-14), name


def test_deciles_are_of_the_test_target(rows: pd.DataFrame, report: Report) -> None:
    test = rows[rows.side == 2]
    edges = np.quantile(test.actual, np.arange(1, 10) / 10)
    decile = np.searchsorted(edges, test.actual)
    assert sum(part.rows for part in report.deciles) == len(test)
    for place, found in enumerate(report.deciles):
        part = test[decile == place]
        assert found.rows == len(part) and found.value.startswith(f"{place + 1}: ")
        assert found.r2 == pytest.approx(sk.r2_score(part.actual, part.predicted), rel=1e-12)
        assert found.bias == pytest.approx((part.predicted - part.actual).mean(), rel=1e-12)
    assert report.deciles[0].value.endswith(f" to {edges[0]:,.0f}")


def test_categories_are_the_most_frequent_first(rows: pd.DataFrame, report: Report) -> None:
    test = rows[rows.side == 2]
    cities = [part for part in report.categories if part.column == "city"]
    assert [part.value for part in cities[:2]] == ["Oslo", "São Paulo"]
    assert {part.value for part in cities[2:]} == {"$x$", "(missing)"}
    oslo = test[test["by:city"] == "Oslo"]
    assert cities[0].rows == len(oslo)
    assert cities[0].r2 == pytest.approx(sk.r2_score(oslo.actual, oslo.predicted), rel=1e-12)


def test_rare_categories_are_put_together(rows: pd.DataFrame, report: Report) -> None:
    test = rows[rows.side == 2]
    streets = [part for part in report.categories if part.column == "street"]
    counts = test["by:street"].value_counts()
    assert len(streets) == evaluation.SHOWN_CATEGORIES + 1
    assert [part.rows for part in streets[:-1]] == counts.to_list()[:50]
    assert streets[-1].value == f"({len(counts) - 50:,} others)"
    assert sum(part.rows for part in streets) == len(test)


@pytest.mark.parametrize("few", [pytest.param(True, id="batch"), pytest.param(False, id="all")])
def test_too_many_categories_are_one(
    rows: pd.DataFrame, groups: list[RowGroup], monkeypatch: pytest.MonkeyPatch, few: bool
) -> None:
    test = rows[rows.side == 2]
    limit = 20 if few else test["by:street"].nunique() - 1
    monkeypatch.setattr(evaluation, "MAX_CATEGORIES", limit)
    (part,) = [p for p in report_of(rows, groups).categories if p.column == "street"]
    assert part.value == f"(more than {limit} values)" and part.rows == len(test)


def test_histograms_count_every_test_row(rows: pd.DataFrame, report: Report) -> None:
    test = rows[rows.side == 2]
    for histogram in (report.predicted_actual, report.residuals):
        assert np.sum(histogram.counts) == len(test)
        assert len(histogram.x_edges) == len(histogram.y_edges) == len(histogram.counts) + 1
    found = report.residuals
    inner = np.histogram(test.actual - test.predicted, found.y_edges)[0][1:-1]
    assert np.abs(np.sum(found.counts, axis=0)[1:-1] - inner).sum() <= 2


def test_interval_holds_the_r2(report: Report) -> None:
    assert report.interval is not None and report.interval.replicates == 200
    assert report.interval.low < report.metrics["test"].r2 < report.interval.high


def test_order_and_batches_do_not_matter(
    rows: pd.DataFrame,
    groups: list[RowGroup],
    report: Report,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = report.model_dump_json()
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = write_parts(tmp_path / "shuffled", rows.iloc[order], [500, 20_000])
    assert report_of(rows, shuffled[::-1]).model_dump_json() == expected
    monkeypatch.setattr(folding, "batches", lambda groups, rows: [(group,) for group in groups])
    assert report_of(rows, groups).model_dump_json() == expected


def test_workers_make_the_same_report(
    rows: pd.DataFrame, groups: list[RowGroup], report: Report, dask_client: Any
) -> None:
    assert report_of(rows, groups, dask_client).model_dump_json() == report.model_dump_json()
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_empty_sides_are_nan(rows: pd.DataFrame, tmp_path: Path) -> None:
    only_train = rows[rows.side == 0].head(500)
    report = report_of(only_train, write_parts(tmp_path / "parts", only_train, [100]))
    assert report.metrics["test"].rows == 0 and np.isnan(
        report.metrics["test"].median_absolute_error
    )
    assert not report.deciles and not report.categories and report.interval is None
    assert np.sum(report.residuals.counts) == 0


def test_a_constant_target_is_reported(rows: pd.DataFrame, tmp_path: Path) -> None:
    constant = rows.head(900).assign(actual=0.1)
    report = report_of(constant, write_parts(tmp_path / "parts", constant, [100]))
    assert np.isnan(report.metrics["test"].r2) and report.interval is None
    assert len(report.deciles) == 1 and np.isnan(report.deciles[0].r2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_missing_predictions_are_a_bug(rows: pd.DataFrame, tmp_path: Path, wrong: float) -> None:
    damaged = rows.head(100).copy()
    damaged.loc[73, "predicted"] = wrong
    with pytest.raises(RunError, match=r"1 predicted .* in row 24 of 1\."):
        report_of(damaged, write_parts(tmp_path / "parts", damaged, [50]))


def test_progress_ends_at_its_total(rows: pd.DataFrame, groups: list[RowGroup]) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        None,
        groups,
        by=[],
        train_mean=0.0,
        features=1,
        bootstrap=0,
        confidence=0.9,
        seed=0,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen) and seen[-1] == (ROWS, ROWS)
