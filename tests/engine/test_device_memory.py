"""Where binned features go on a GPU: by numbers, and a refusal that names them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tasks.engine import device_memory
from tasks.engine.device_memory import DeviceNeed, DeviceRoom
from tasks.engine.errors import RunError
from tasks.engine.matrix import Schema, reference_matrix
from tasks.engine.memory import MatrixOptions, Place, Room, Share, place_of
from tests.engine import rows_for_boosting as made

GB, MB = 10**9, 10**6
# 2.8 GB of bins of 8 bits, 6.4 GB of labels, margins and gradients, 1.2 GB of a batch
NEED = DeviceNeed(100_000_000, 1_000_000, 28, 256, False, False, 28 * 256, 63, 192)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's numbers of a GPU of 12 GB that holds 500 MB."""
    monkeypatch.setattr(device_memory, "device_memory", lambda: (11_500 * MB, 12 * GB))


@pytest.mark.parametrize(
    ("changes", "matrix"),
    [
        pytest.param({}, 2_800_000_000, id="256 bins"),
        pytest.param({"bins": 257}, 3_150_000_000, id="257 bins"),
        pytest.param({"missing": True}, 4_550_000_000, id="missing values"),
        pytest.param({"rows": 8}, 224, id="few rows"),
    ],
)
def test_packed_bins(changes: dict[str, Any], matrix: int) -> None:
    assert replace(NEED, **changes).matrix == matrix


def decided(rows: int, limit: int | None, **options: Any) -> tuple[Place, list[str]]:
    """What a worker with a gigabyte of host memory beside its GPU decides for `rows` rows."""
    room = DeviceRoom.of(Room(None, worker="tcp://10.0.0.1:4000"), limit)
    share = Share(rows, 1_000_000, MatrixOptions(missing=False, **options), room)
    names = tuple(f"f{i}" for i in range(28))
    spec = made.spec(feature_names=names, feature_types=("q",) * 28, params={"max_bin": 256})
    sample = np.linspace(0, 1, 256 * 28, dtype=np.float32).reshape(256, 28)
    schema = Schema(spec.feature_names, spec.feature_types)
    need = share.need(spec, sample, reference_matrix(sample, schema, 256, 1))
    notes: list[str] = []
    with place_of(share, need, notes.append) as place:
        return place, notes


@pytest.mark.usefixtures("_gpu")
def test_in_the_gpu_s_memory() -> None:
    place, notes = decided(100_000_000, None)
    assert place.pages is None
    assert place.cache > 0
    assert not notes


@pytest.mark.usefixtures("_gpu")
def test_in_the_host_s_memory() -> None:
    place, notes = decided(20_000_000, 2_500 * MB)
    assert place.pages is not None
    assert place.pages.bytes == 2_500 * MB // 32  # what the estimate counts four of
    assert notes == [
        "A worker's share of 20,000,000 rows × 28 features takes about 1,862 MB in memory, beside "
        "500 MB that the worker holds already. Its memory limit is 2,500 MB "
        "(cluster.gpu_memory_limit), so the bins of the features are read from the host's "
        "memory in every round (external memory)."
    ]


@pytest.mark.usefixtures("_gpu")
def test_refused_with_both_numbers() -> None:
    with pytest.raises(RunError) as caught:
        decided(100_000_000, 6 * GB)
    assert str(caught.value) == (
        "A share of 100,000,000 rows takes about 7,172 MB of the GPU of the worker "
        "tcp://10.0.0.1:4000 for batches, gradients, histograms and four pages, even with its bins "
        "in the host's memory. 500 MB of the GPU are taken already, and a training may fill "
        "6,000 MB (cluster.gpu_memory_limit, or all of it). Spread the rows over more GPUs, or use "
        "smaller row groups (data.row_group_rows)."
    )


def test_several_pages_whatever_the_limit() -> None:
    """A single one XGBoost would keep on the GPU."""
    assert DeviceRoom(100 * GB).page_bytes(NEED) == NEED.matrix // 4
    assert DeviceRoom(3_200 * MB).page_bytes(NEED) == 100 * MB


def test_half_of_what_is_free_keeps_batches() -> None:
    room = DeviceRoom(100 * GB)
    assert room.cache(10 * GB) == 40 * GB
    assert room.cache(95 * GB) == 0


def test_a_host_that_is_full() -> None:
    room = DeviceRoom(6 * GB, worker="tcp://10.0.0.1:4000")
    room.check_disk(NEED, 3_500 * MB)
    with pytest.raises(RunError) as caught:
        room.check_disk(NEED, 3 * GB)
    assert str(caught.value) == (
        "The binned features don't fit the GPU of the worker tcp://10.0.0.1:4000 (or "
        "cluster.external_memory is 'always'), and not the host's memory either: they take about "
        "3,500 MB, and 3,000 MB are free. Give workers more memory (cluster.memory_limit), or "
        "spread the rows over more GPUs."
    )
