"""Small files are read together: what comes of it is what each of them gives alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.engine.config import Config
from tasks.engine.dataset import Batch, Dataset
from tasks.engine.errors import UserError
from tasks.engine.fold import batches
from tasks.engine.frames import read_arrow
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.parts import read_slices
from tasks.engine.planning import plan_of
from tasks.engine.rows import Plan, load, scoring
from tasks.engine.scoring import Column, Encoder
from tasks.engine.summarise import Pass, PassSummary
from tests.engine.tables import write
from tests.engine.test_profile import table

NAMES = [f"{letter}.parquet" for letter in "abcdef"]


def frames() -> dict[str, pd.DataFrame]:
    """Files of several sizes with weights, missing values and rows to set aside; `d` has none of
    the latter two, `e` no row that trains.
    """
    found = {name: table(40 + 25 * place, place) for place, name in enumerate(NAMES)}
    for place, frame in enumerate(found.values()):
        frame["weight"] = np.random.default_rng(place).random(len(frame))
        frame["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(len(frame)), "D")
        if place != 3:
            frame.loc[[3, 7], "y"] = np.nan
    found["d.parquet"] = found["d.parquet"].assign(holes=1.0, empty=2.0)
    found["e.parquet"]["day"] += pd.Timedelta(days=10_000)
    return found


def prepared(tmp_path: Path, files: dict[str, pd.DataFrame]) -> tuple[Dataset, Plan]:
    data = {"source": str(write(tmp_path / "data", files)), "target": "y", "weight": "weight"}
    split = {"kind": "time", "column": "day", "valid": 0.0, "test_from": "2027-01-01"}
    config = Config.model_validate({"data": data, "split": split})
    dataset = ingest(config.data, Home(str(tmp_path / "home")))
    return dataset, plan_of(config, dataset)


def together(dataset: Dataset) -> Batch:
    (batch,) = batches(dataset.row_groups())
    assert len({group.path for group in batch}) == len(NAMES)
    return batch


def test_the_rows_are_those_of_each_file(tmp_path: Path) -> None:
    dataset, plan = prepared(tmp_path, frames())
    rows = load(together(dataset), plan)
    alone = [load(file.groups(), plan) for file in dataset.files]
    for name in ("target", "weight", "position", "side"):
        assert np.array_equal(
            getattr(rows, name), np.concatenate([getattr(each, name) for each in alone])
        )
    assert set(rows.side.tolist()) == {0, 2}
    pd.testing.assert_frame_equal(
        rows.frame.reset_index(drop=True).astype({"colour": object}),
        pd.concat([each.frame for each in alone], ignore_index=True).astype({"colour": object}),
        check_dtype=False,
    )


def found_by(this_pass: Pass, batch: Batch) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """All but where samples and rejected rows are, and these."""
    summaries = this_pass(batch, frozenset(group.uri for group in batch))
    moved = {"sample": (), "aside": ()}
    facts = [{**vars(summary), **moved} for summary in summaries]
    return facts, [rows for summary in summaries for rows in _parts(summary)]


def _parts(summary: PassSummary) -> list[pd.DataFrame]:
    parts = [pd.read_parquet(uri) for uri in summary.aside]
    parts += read_slices(summary.sample, 1.0)
    return [part.astype({"colour": object}).reset_index(drop=True) for part in parts]


def test_the_summaries_are_those_of_each_file(tmp_path: Path) -> None:
    dataset, plan = prepared(tmp_path, frames())
    this_pass = Pass(plan, 100, 0.5, str(tmp_path / "sample"), str(tmp_path / "rejected"))
    found, parts = found_by(this_pass, together(dataset))
    alone = [found_by(this_pass, tuple(file.groups())) for file in dataset.files]
    assert [repr(each) for each in found] == [repr(facts) for (facts,), _ in alone]
    expected = [part for _, some in alone for part in some]
    assert len(parts) == len(expected) == 5 + 5  # of `d` none are set aside, `e` trains nothing
    for part, other in zip(parts, expected, strict=True):
        pd.testing.assert_frame_equal(part, other, check_dtype=False)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        pytest.param("weight", -1.0, "holds -1.0 in row 12 of c.parquet", id="weight"),
        pytest.param("plain", 1e39, "holds 1e+39 in row 12 of c.parquet", id="beyond 32 bits"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_row(
    tmp_path: Path, column: str, value: float, message: str
) -> None:
    files = frames()
    files["c.parquet"].loc[11, column] = value
    dataset, plan = prepared(tmp_path, files)
    this_pass = Pass(plan, 100, 0.5, str(tmp_path / "sample"), str(tmp_path / "rejected"))
    with pytest.raises(UserError) as refused:
        this_pass(together(dataset), frozenset())
    assert message in str(refused.value)


def test_a_value_that_is_infinite_once_it_is_scaled_is_told_by_file_and_row(tmp_path: Path) -> None:
    files = frames()
    files["c.parquet"].loc[11, "plain"] = 1e30
    dataset, plan = prepared(tmp_path, files)
    rows = load(together(dataset), plan)
    tiny = Encoder((Column("plain", "number", scale=1e-20),))
    with (
        pytest.raises(UserError, match=r"1e\+30 in row 12 of c\.parquet"),
        scoring(rows.batch, rows.places),
    ):
        tiny.encode(rows.frame)


def test_values_of_another_kind_are_told_by_the_files_that_were_read(tmp_path: Path) -> None:
    dataset, plan = prepared(tmp_path, frames())
    rows = load(together(dataset), plan)
    times = Encoder((Column("colour", "time"),))
    with (
        pytest.raises(UserError, match=r"One of a\.parquet to f\.parquet does not fit the model"),
        scoring(rows.batch, rows.places),
    ):
        times.encode(rows.frame)


def test_the_damaged_one_is_named(tmp_path: Path) -> None:
    dataset, plan = prepared(tmp_path, frames())
    damaged = tmp_path / "data" / "c.parquet"
    content = bytearray(damaged.read_bytes())
    content[4:2_000] = bytes(1_996)
    damaged.write_bytes(content)
    batch = tuple(group.model_copy(update={"stamp": ""}) for group in together(dataset))
    with pytest.raises(UserError, match=r"The file .*c\.parquet is damaged"):
        read_arrow(batch, plan.columns)


def test_files_of_another_layout_are_not_read_with_them(tmp_path: Path) -> None:
    files = frames()
    files["d.parquet"] = files["d.parquet"].assign(plain=1)
    dataset, plan = prepared(tmp_path, files)
    cut = batches(dataset.row_groups())
    assert [len({group.path for group in batch}) for batch in cut] == [3, 1, 2]
    kinds = [load(batch, plan).frame["plain"].dtype.kind for batch in cut]
    assert kinds == ["f", "i", "f"]
