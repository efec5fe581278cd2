"""A model meets a table that is not like the one it learnt from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.engine.dataset import Dataset
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.predictions import Predictions, ScorerRef, predict_table, store_scorer
from tasks.engine.scoring import BOOSTER_FILE, Scorer
from tests.bad_inputs.early import (
    columns,
    configured,
    parquet,
    r2_of_all_rows,
    seen,
    trained,
)


@pytest.fixture
def stored(tmp_path: Path, home: Home) -> ScorerRef:
    """A model of a, c and y."""
    return store_scorer(trained(seen(parquet(tmp_path / "data", columns()), home)), home)


def table_of(folder: Path, home: Home, table: dict[str, Any]) -> Dataset:
    return ingest(configured(parquet(folder, table, "new.parquet")).data, home)


def scored(stored: ScorerRef, folder: Path, home: Home, table: dict[str, Any]) -> Predictions:
    dataset = table_of(folder, home, table)
    names = stored.load().encoder.names
    return predict_table(None, dataset.row_groups(), names, [], stored, str(folder / "out"))


def values(found: Predictions) -> list[float]:
    return [v for part in found.parts for v in pq.read_table(part.uri)["prediction"].to_pylist()]


def test_models_with_one_booster_have_folders_of_their_own(stored: ScorerRef, home: Home) -> None:
    scorer = stored.load()
    other = store_scorer(Scorer(scorer.encoder, scorer.booster, scorer.mean + 1), home)
    assert (Path(other.uri) / BOOSTER_FILE).read_bytes() == (
        Path(stored.uri) / BOOSTER_FILE
    ).read_bytes()
    assert other.uri != stored.uri
    assert (other.load().mean, stored.load().mean) == (scorer.mean + 1, scorer.mean)


def test_features_are_matched_by_name(stored: ScorerRef, tmp_path: Path, home: Home) -> None:
    table = columns()
    permuted = {name: table[name] for name in ("y", "c", "a")}
    there = values(scored(stored, tmp_path / "1", home, table))
    assert values(scored(stored, tmp_path / "2", home, permuted)) == there
    assert len(set(there)) > 10


def test_an_unseen_category_is_missing_and_counted(
    stored: ScorerRef, tmp_path: Path, home: Home
) -> None:
    table = columns(c=[None, "new", "new", *columns()["c"][3:]])
    found = scored(stored, tmp_path / "1", home, table)
    assert found.unseen == {"c": 2}
    without = columns(c=[None, None, None, *columns()["c"][3:]])
    assert values(found) == values(scored(stored, tmp_path / "2", home, without))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(
            columns(a=[0.5, np.inf, *columns()["a"][2:]]),
            "The column 'a' holds inf in row 2 of new.parquet, which is infinite in 32 bits once "
            "it is scaled as the training rows are. Make such values missing, or set "
            "normalize.kind=none.",
            id="infinite",
        ),
        pytest.param(
            columns(a=["x"] * 60),
            "new.parquet does not fit the model: column 'a' (type category) does not hold number "
            "values: found 'x'.",
            id="text for numbers",
        ),
    ],
)
def test_refused(
    table: dict[str, Any], message: str, stored: ScorerRef, tmp_path: Path, home: Home
) -> None:
    with pytest.raises(UserError) as refused:
        scored(stored, tmp_path / "1", home, table)
    assert str(refused.value) == message


def test_a_value_that_only_scaling_makes_infinite_is_told_when_training(
    tmp_path: Path, home: Home
) -> None:
    """Found in a test row: the training rows' deviation is what it is divided by."""
    table = columns(k=[value * 1e-30 for value in columns()["a"]])
    source = parquet(tmp_path / "data", table)
    side = {"split.kind": "column", "split.column": "s"}
    table["s"] = ["train"] * 40 + ["test"] * 20
    table["k"][50] = 1e30
    found = seen(parquet(tmp_path / "data", table), home, side)
    with pytest.raises(UserError) as refused:
        trained(found)
    assert str(refused.value) == (
        "The column 'k' holds 1e+30 in row 51 of t.parquet, which is infinite in 32 bits once it "
        "is scaled as the training rows are. Make such values missing, or set normalize.kind=none."
    )
    found = seen(source, home, {**side, "normalize.kind": "none"})
    assert r2_of_all_rows(found, trained(found)) > 0.9
