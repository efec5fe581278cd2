"""A made table that workers make themselves, row group by row group: no files, nothing to send."""

import importlib
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks.engine.batches import Batch, BatchSource, Counts, Float32, Sides
from tasks.engine.checkpoints import CheckpointStore
from tasks.engine.dataset import RowGroup
from tasks.engine.errors import UserError
from tasks.engine.frames import Device
from tasks.engine.hashing import positions, stream, uniform
from tasks.engine.spec import BoostSpec

GROUPS, ROWS, WIDTH = 8, 600, 6
ROW_GROUPS = tuple(
    RowGroup(uri="made", path="made", index=i, rows=ROWS, start=i * ROWS) for i in range(GROUPS)
)
NAMES = tuple(f"f{i}" for i in range(WIDTH))
TYPES = ("q", "q", "q", "q", "c", "c")


@dataclass(frozen=True)
class Trouble:
    """What goes wrong while a row group is read: once, as the file `flag` remembers."""

    kind: str
    group: int
    flag: str = ""


def table(group: RowGroup) -> tuple[Float32, Any, Any, Any]:
    """Features float32 (rows, 6), target and weight float64 (rows,), position uint64 (rows,)."""
    random = np.random.default_rng(group.index)
    features = random.normal(size=(group.rows, WIDTH)).astype(np.float32)
    features[:, 4] = random.integers(0, 12, group.rows)
    features[:, 5] = random.integers(0, 3, group.rows)
    target = 3 * np.sin(features[:, 0]) + features[:, 1] * features[:, 2]
    target = target + np.where(features[:, 4] % 3 == 0, 2.0, -1.0) + features[:, 5]
    target = 1e6 + 1000 * (target + random.normal(size=group.rows) / 2)
    features[random.random((group.rows, WIDTH)) < 0.05] = np.nan
    weight = np.round(random.random(group.rows) * 4, 1)
    return features, target, weight, positions(group.path, group.start, group.rows)


def is_valid(position: Any) -> Any:
    return uniform(position, stream("split", 0)) < 0.25


def read(
    group: RowGroup,
    weighted: bool,
    trouble: Trouble | None,
    only_first: bool,
    device: Device = "cpu",
) -> Sides:
    if trouble is not None and trouble.group == group.index:
        cause(trouble)
    features, target, weight, position = table(group)
    valid = is_valid(position)
    if only_first and group.index > 3:
        valid[:] = True
    place: Any = importlib.import_module("cupy" if device == "cuda" else "numpy")
    sides = [
        Batch(
            place.asarray(np.ascontiguousarray(features[mask])),
            place.asarray(target[mask]),
            place.asarray(position[mask]),
            place.asarray(weight[mask]) if weighted else None,
        )
        for mask in (~valid, valid)
    ]
    return Sides(*sides)


def no_rows() -> Batch:
    return Batch(np.empty((0, WIDTH), np.float32), np.empty(0), np.empty(0, np.uint64), np.empty(0))


def cause(trouble: Trouble) -> None:
    if trouble.kind == "user":
        raise UserError("row 7 holds a weight of -1")
    if trouble.flag and not Path(trouble.flag).exists():
        Path(trouble.flag).touch()
        if trouble.kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)


def make_batches(
    groups: Sequence[RowGroup],
    weighted: bool = False,
    trouble: Trouble | None = None,
    only_first: bool = False,
    device: Device = "cpu",
) -> list[BatchSource]:
    return [source(partial(read, group, weighted, trouble, only_first, device)) for group in groups]


def source(read: Callable[[], Sides]) -> BatchSource:
    def count() -> Counts:
        sides = read()
        return {"train": len(sides.train.label), "valid": len(sides.valid.label)}

    return BatchSource(read, count)


def sample() -> Float32:
    return np.concatenate([table(group)[0][::4] for group in ROW_GROUPS])


def spec(**changes: Any) -> BoostSpec:
    target = np.concatenate([table(group)[1] for group in ROW_GROUPS])
    position = np.concatenate([table(group)[3] for group in ROW_GROUPS])
    valid = is_valid(position)
    mean = math.fsum(target[~valid]) / int((~valid).sum())
    values: dict[str, Any] = {
        "n_estimators": 20,
        "params": {"max_depth": 4, "learning_rate": 0.2, "max_bin": 64},
        "feature_names": NAMES,
        "feature_types": TYPES,
        "mean": mean,
        "max_deviation": float(np.abs(target - mean).max()),
        "train_variance": float(target[~valid].var()),
        "valid_variance": float(target[valid].var()),
        "checkpoint_every": 5,
        **changes,
    }
    if values.get("device") == "cuda":  # as `spec_of` has it, so that a resume has the same margins
        values.setdefault("column_chunk", values["checkpoint_every"])
    return BoostSpec(**values)


Make = Callable[[Sequence[RowGroup]], Sequence[BatchSource]]


def store(folder: Path) -> CheckpointStore:
    return CheckpointStore(str(folder))
