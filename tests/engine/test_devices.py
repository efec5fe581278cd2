"""The engine on a GPU's rows: what the CPU finds, it finds, from the same code.

Where there is no GPU a stand-in for its arrays and frames shows that the code keeps to them.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.engine import frames
from tasks.engine.batches import Batch, Sides, open_cache
from tasks.engine.boosting import _Batches, spec_of
from tasks.engine.config import Config
from tasks.engine.fold import batches
from tasks.engine.frames import on_host, read_frame
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.matrix import BatchIterator, Schema
from tasks.engine.objective import LabelScale, SquaredError
from tasks.engine.planning import plan_of
from tasks.engine.profile import encoder_from, take_profile
from tasks.engine.rows import load
from tests.engine import rows_for_boosting as made
from tests.engine import stand_in
from tests.engine.tables import write
from tests.engine.test_profile import table

TOLERANCE = 1e-12

SPLITS = [
    pytest.param({}, id="by position"),
    pytest.param({"kind": "group", "column": "shop"}, id="by group"),
    pytest.param({"kind": "time", "column": "when"}, id="by time"),
    pytest.param({"kind": "column", "column": "part"}, id="by label"),
]


@pytest.fixture(
    params=[
        pytest.param("stand-in", id="stand-in"),
        pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
    ]
)
def _gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows on a GPU, or on what stands in for one."""
    if request.param == "stand-in":
        monkeypatch.setattr(frames, "_read_cudf", stand_in.read)


pytestmark = pytest.mark.usefixtures("_gpu")


def rows_with_everything(rows: int = 3_000) -> pd.DataFrame:
    frame = table(rows)
    rng = np.random.default_rng(1)
    frame["shop"] = rng.choice([f"shop {i}" for i in range(60)], rows)
    frame["part"] = rng.choice(["Train", "valid", "TEST"], rows)
    frame["weight"] = np.round(rng.random(rows) * 4, 1)
    frame["single"] = rng.normal(size=rows).astype(np.float32)
    frame["days"] = pd.Timestamp("2020-02-29") + pd.to_timedelta(rng.integers(0, 999, rows), "D")
    frame.loc[5, "y"] = np.nan
    frame.loc[[7, 99], "when"] = pd.NaT
    return frame


def configured(folder: Path, split: dict[str, Any], **boost: Any) -> Config:
    write(folder, {"a.parquet": rows_with_everything()}, row_group_rows=500)
    return Config.model_validate(
        {
            "data": {
                "source": str(folder),
                "target": "y",
                "weight": "weight",
                "exclude": ["shop", "part"],
                "categories": ["count"],
                "rules": ["plain > -2", "colour in ['red', 'green', 'blue']"],
                "max_rejected": 0.2,
            },
            "split": split,
            "evaluate": {"by": ["colour"]},
            "boost": {"subsample": 0.5, **boost},
        }
    )


@pytest.mark.parametrize("split", SPLITS)
def test_profile_scaler_and_split_are_the_cpus(tmp_path: Path, split: dict[str, Any]) -> None:
    config = configured(tmp_path / "data", split)
    homes = {device: Home(str(tmp_path / device)) for device in ("cpu", "cuda")}
    dataset = ingest(config.data, homes["cpu"])
    plan = plan_of(config, dataset)
    found = {
        device: take_profile(None, dataset, plan, config, home, device=device)[1]  # type: ignore[arg-type]
        for device, home in homes.items()
    }
    on_cpu, on_gpu = found["cpu"], found["cuda"]
    assert on_gpu.rows == on_cpu.rows
    assert on_cpu.rejected > 0 and on_gpu.reasons == on_cpu.reasons
    assert on_gpu.dataset_digest == on_cpu.dataset_digest
    for one, other in zip(on_gpu.columns, on_cpu.columns, strict=True):
        assert_close(one.model_dump(), other.model_dump())
    for side in on_cpu.target:
        assert_close(on_gpu.target[side].model_dump(), on_cpu.target[side].model_dump())
    for mine, its in zip(encoder_from(on_gpu).columns, encoder_from(on_cpu).columns, strict=True):
        assert_close(vars(mine), vars(its))


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-15), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_the_cpus_to_the_last_bit(tmp_path: Path, split: dict[str, Any]) -> None:
    config = configured(tmp_path / "data", split)
    home = Home(str(tmp_path / "home"))
    dataset = ingest(config.data, home)
    plan = plan_of(config, dataset)
    dataset, profile = take_profile(None, dataset, plan, config, home)
    on_cpu = _Batches(plan, profile.encoder)(dataset.row_groups())
    on_gpu = _Batches(plan, profile.encoder, "cuda")(dataset.row_groups())
    spec = spec_of(config, plan, profile)
    # a GPU's margins are predicted anew at every checkpoint, so that a resume has the same
    assert spec_of(config, plan, profile, "cuda").column_chunk == spec.checkpoint_every
    assert spec.column_chunk is None
    compared: Counter[Any] = Counter()
    for mine, its in zip(on_gpu, on_cpu, strict=True):
        sides = its.read()
        assert its.count() == {"train": len(sides.train.label), "valid": len(sides.valid.label)}
        for side in ("train", "valid"):
            batch: Batch = getattr(mine.read(), side)
            expected: Batch = getattr(its.read(), side)
            assert batch.bytes == expected.bytes
            for name in ("features", "label", "position", "weight"):
                array = getattr(batch, name)
                assert not isinstance(array, np.ndarray), name
                np.testing.assert_array_equal(on_host(array), getattr(expected, name))
            compared[side] += len(batch.label)
            for one, other in zip(gradients(spec, batch), gradients(spec, expected), strict=True):
                np.testing.assert_array_equal(on_host(one), other)
    assert compared == {side: profile.rows[side] for side in compared}
    rows = load(batches(dataset.row_groups())[0], plan, "cuda")
    assert rows.rejected is not None and isinstance(rows.rejected.frame, pd.DataFrame)


def test_a_share_without_train_rows_is_there_too(tmp_path: Path) -> None:
    """XGBoost builds where the first batch lies, and all members of a group build alike."""
    config = configured(tmp_path / "data", {})
    home = Home(str(tmp_path / "home"))
    dataset = ingest(config.data, home)
    plan = plan_of(config, dataset)
    dataset, profile = take_profile(None, dataset, plan, config, home)
    rows = _Batches(plan, profile.encoder, "cuda")(dataset.row_groups())[0].read().train
    none = Batch(rows.features[:0], rows.label[:0], rows.position[:0], rows.label[:0])
    scale = LabelScale.of(spec_of(config, plan, profile))
    schema = Schema(tuple(plan.names), ("q",) * plan.width)
    given: list[dict[str, Any]] = []
    with open_cache([made.source(lambda: Sides(none, none))] * 2, 0) as cache:
        iterator = BatchIterator(cache, "train", schema, scale.to_label)
        assert iterator.next(lambda **data: given.append(data))
        assert not iterator.next(lambda **data: given.append(data))
    (only,) = given
    assert only["data"].shape == (0, plan.width) and only["label"].shape == (0,)
    assert iterator.weight is not None  # as an objective of our own asks for both
    for found in (only["data"], only["label"], iterator.position, iterator.weight):
        assert len(found) == 0 and not isinstance(found, np.ndarray)


def gradients(spec: Any, batch: Batch) -> tuple[Any, Any]:
    """Of a first round, from margins and labels on the host, as XGBoost gives them."""
    scale = LabelScale.of(spec)

    class Rows:
        position, weight = batch.position, batch.weight

    class Matrix:
        def get_label(self) -> Any:
            return on_host(scale.to_label(batch.label))

    margin = np.linspace(-1, 1, len(batch.label), dtype=np.float32)
    return SquaredError(spec, scale, Rows())(margin, Matrix())  # type: ignore[arg-type]


def test_unseen_categories_are_counted_there(tmp_path: Path) -> None:
    config = configured(tmp_path / "data", {})
    home = Home(str(tmp_path / "home"))
    dataset = ingest(config.data, home)
    plan = plan_of(config, dataset)
    dataset, profile = take_profile(None, dataset, plan, config, home)
    encoder = encoder_from(profile)
    groups = tuple(dataset.row_groups())
    known = next(column for column in encoder.columns if column.name == "colour")
    fewer = type(known)(known.name, known.kind, categories=("blue", "green"))
    less = type(encoder)(tuple(fewer if c.name == "colour" else c for c in encoder.columns))
    on_gpu, on_cpu = (
        less.unseen_counts(read_frame(groups, plan.columns, device)) for device in ("cuda", "cpu")
    )
    assert on_gpu == on_cpu
    assert on_cpu["colour"] > 1_000
