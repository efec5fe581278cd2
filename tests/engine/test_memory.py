"""Where binned features go: by numbers, with a message where they go nowhere."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from tasks.engine.batches import BatchSource
from tasks.engine.boost import Segment, boost_segment
from tasks.engine.errors import RunError
from tasks.engine.matrix import Schema, reference_matrix
from tasks.engine.memory import MatrixOptions, Room, Share, place_of
from tasks.engine.need import ExternalMemory, Need, tree_nodes
from tasks.engine.spec import BoostSpec
from tests.engine import rows_for_boosting as made

GB, MB = 10**9, 10**6
# 4 GB of bins, 1.28 GB of gradients and the like, 26 MB of histograms, 88 MB of a batch
NEED = Need(20_000_000, 131_072, 100, 256, False, False, 25_600, 63, 63)
HELD = 400 * MB


@pytest.mark.parametrize(
    ("mode", "limit", "changes", "disk"),
    [
        pytest.param("auto", 6.4 * GB, {}, False, id="fits"),
        pytest.param("auto", 6.2 * GB, {}, True, id="does not"),
        pytest.param("auto", None, {}, False, id="no limit"),
        pytest.param("always", 64 * GB, {}, True, id="always"),
        pytest.param("always", None, {}, True, id="always, no limit"),
        pytest.param("never", 1 * GB, {}, False, id="never"),
        pytest.param("auto", 6.4 * GB, {"missing": True}, True, id="missing values"),
        pytest.param("auto", 13.3 * GB, {"missing": True}, False, id="missing values, fits"),
        pytest.param("auto", 6.4 * GB, {"bins": 257}, True, id="wide bins"),
        pytest.param("auto", 10.8 * GB, {"bins": 257}, False, id="wide bins, fits"),
        pytest.param("auto", 6.4 * GB, {"own_objective": True}, True, id="own objective"),
        pytest.param("auto", 6.4 * GB, {"largest": 5_000_000}, True, id="huge batches"),
    ],
)
def test_decision(
    mode: ExternalMemory, limit: float | None, changes: dict[str, Any], disk: bool
) -> None:
    room = Room(None if limit is None else int(limit))
    assert room.prefers_disk(mode, replace(NEED, **changes), HELD) is disk


def test_rows_that_no_disk_helps() -> None:
    room = Room(1_700 * MB, worker="tcp://10.0.0.1:4000")
    room.check_memory(replace(NEED, rows=14_000_000), 390 * MB)
    with pytest.raises(RunError) as caught:
        room.check_memory(NEED, HELD)
    assert str(caught.value) == (
        "A share of 20,000,000 rows × 100 features takes about 1,603 MB for labels, margins, "
        "gradients and histograms, even with its bins on disk, and the worker tcp://10.0.0.1:4000 "
        "holds 400 MB already: its memory limit is 1,700 MB (cluster.memory_limit). Give workers "
        "more memory (cluster.memory_limit), or spread the rows over more of them "
        "(cluster.workers)."
    )


def test_a_disk_that_is_too_small() -> None:
    room = Room(GB, "/scratch", sharing=2)
    room.check_disk(NEED, 10_100 * MB)
    with pytest.raises(RunError) as caught:
        room.check_disk(NEED, 9 * GB)
    assert str(caught.value) == (
        "The binned features of each of 2 workers go to disk, as they don't fit the workers' "
        "memory or cluster.external_memory is 'always'. They take about 10,000 MB, but /scratch "
        "has 9,000 MB free. Make room there, put BOOSTLINE_HOME on a larger disk (or the "
        "--local-directory of workers that were started elsewhere), or give workers more memory "
        "(cluster.memory_limit)."
    )


def test_a_disk_that_fills_up() -> None:
    room = Room(GB, "/scratch")
    room.check_page(NEED, 170 * MB)
    with pytest.raises(RunError) as caught:
        room.check_page(NEED, 160 * MB)
    assert str(caught.value) == (
        "The disk filled up while the binned features were written: /scratch has 160 MB free. "
        "Make room there, put BOOSTLINE_HOME on a larger disk (or the --local-directory of "
        "workers that were started elsewhere), or give workers more memory (cluster.memory_limit)."
    )


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        pytest.param(
            "never",
            "A share of 20,000,000 rows × 100 features takes about 5,306 MB as bins, "
            "gradients and histograms, beside some 400 MB for the libraries and batches of 131,072 "
            "rows as they are read. Give workers more memory (cluster.memory_limit), let bins go "
            "to disk (cluster.external_memory='auto'), spread the rows over more of them "
            "(cluster.workers), or use smaller row groups (data.row_group_rows).",
            id="in memory",
        ),
        pytest.param(
            "always",
            "A share of 20,000,000 rows × 100 features takes about 1,306 MB as labels, margins, "
            "gradients and histograms, with bins on disk, beside some 400 MB for the libraries and "
            "batches of 131,072 rows as they are read. Give workers more memory "
            "(cluster.memory_limit), spread the rows over more of them (cluster.workers), or "
            "use smaller row groups (data.row_group_rows).",
            id="on disk",
        ),
    ],
)
def test_what_workers_died_of(mode: ExternalMemory, message: str) -> None:
    assert NEED.too_large(mode) == message


@pytest.mark.parametrize(
    ("limit", "taken", "bytes_"),
    [
        pytest.param(None, 10 * GB, 256 << 20, id="no limit"),
        pytest.param(64 * MB, 10 * MB, MB, id="a share"),
        pytest.param(GB, 890 * MB, 10 * MB, id="what is left"),
        pytest.param(GB, 2 * GB, 0, id="nothing left"),
    ],
)
def test_cache(limit: int | None, taken: int, bytes_: int) -> None:
    assert Room(limit).cache(taken) == bytes_


@pytest.mark.parametrize(
    ("limit", "rows"),
    [
        pytest.param(None, 131_072, id="no limit"),
        pytest.param(64 * GB, 131_072, id="plenty"),
        pytest.param(100 * MB, 24_038, id="a share of the limit"),
        pytest.param(10 * MB, 4_096, id="hardly any"),
    ],
)
def test_pages_are_small_beside_the_limit(limit: int | None, rows: int) -> None:
    assert Room(limit).page_rows(NEED) == rows


def test_pages_of_a_wide_table() -> None:
    """Those that are held take as much as the blocks of all."""
    wide = replace(NEED, rows=2_000_000, features=1_000)
    rows = Room(4 * GB).page_rows(wide)
    blocks = wide.rows / rows * wide.page_blocks
    assert wide.page_blocks == 32 * 32_832
    assert blocks == pytest.approx(4 * rows * wide.page_row, rel=0.01)


def test_need_is_counted_from_what_is_there() -> None:
    sample = np.array([[0.5, 300.0], [1.5, 2.0]], np.float32)
    spec = made.spec(feature_names=("a", "b"), feature_types=("q", "c"))

    def need(share: Share, sample: Any = sample, spec: BoostSpec = spec) -> Need:
        schema = Schema(spec.feature_names, spec.feature_types)
        return share.need(spec, sample, reference_matrix(sample, schema, 64, 1))

    share = Share(1_000, 100, MatrixOptions(used=0.5))
    # 301 categories; two bins of numbers, whose least value counts as one more
    assert need(share) == Need(500, 100, 2, 301, False, False, 304, 15, 15)
    sample[0, 0] = np.nan
    weighted = spec.model_copy(update={"max_weight": 1.0})
    assert need(share, spec=weighted) == Need(500, 100, 2, 301, True, True, 303, 15, 15)
    known = replace(share, options=MatrixOptions(missing=False))
    assert not need(known).missing
    numeric = made.spec(feature_names=("a",), feature_types=("q",))
    assert need(share, sample[:, :1], numeric).bins == 64


@pytest.mark.parametrize(
    ("depth", "leaves", "rows", "nodes"),
    [
        pytest.param(6, 0, 10**6, 63, id="depth"),
        pytest.param(6, 10, 10**6, 19, id="leaves"),
        pytest.param(0, 10, 10**6, 19, id="leaves alone"),
        pytest.param(30, 0, 10**6, 250_000, id="rows"),
        pytest.param(6, 0, 2, 1, id="hardly any rows"),
    ],
)
def test_nodes_of_a_tree(depth: int, leaves: int, rows: int, nodes: int) -> None:
    assert tree_nodes(depth, leaves, rows) == nodes


@pytest.mark.parametrize(
    ("limit", "tree", "cached", "nodes"),
    [
        pytest.param(None, 63, 2_048, 63, id="no limit"),
        pytest.param(16 * GB, 63, 2_048, 63, id="plenty"),
        pytest.param(GB, 511, 306, 306, id="a share of the limit"),
        pytest.param(10 * MB, 255, 4, 128, id="a level of the tree"),
        pytest.param(GB, 2**20 - 1, 306, 512, id="as many as grow at once"),
        pytest.param(None, 2**20 - 1, 2_048, 2_048, id="deep"),
    ],
)
def test_histograms_that_are_kept(limit: int | None, tree: int, cached: int, nodes: int) -> None:
    room = Room(None if limit is None else int(limit))
    assert (room.cached_nodes(25_600), room.nodes(25_600, tree)) == (cached, nodes)


def test_histograms_that_do_not_fit() -> None:
    deep = replace(NEED, rows=1_000_000, all_bins=512_000, nodes=512)
    with pytest.raises(RunError) as caught:
        Room(4 * GB, worker="tcp://10.0.0.1:4000").check_memory(deep, HELD)
    assert str(caught.value) == (
        "A share of 1,000,000 rows × 100 features takes about 4,325 MB for labels, margins, "
        "gradients and histograms, even with its bins on disk, and the worker tcp://10.0.0.1:4000 "
        "holds 400 MB already: its memory limit is 4,000 MB (cluster.memory_limit). 4,194 MB are "
        "histograms of 512 nodes: choose fewer bins (boost.max_bin) or smaller trees "
        "(boost.max_depth), or give workers more memory (cluster.memory_limit)."
    )


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        pytest.param("depthwise", {}, id="depthwise"),
        pytest.param("lossguide", {}, id="lossguide"),
        pytest.param("depthwise", {"max_weight": 4.0, "subsample": 0.5}, id="own objective"),
    ],
)
def test_the_same_bytes_with_few_histograms(
    policy: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Siblings' sums are added up where they can't be subtracted."""
    options = MatrixOptions(external="never")
    kept: list[int] = []

    def watched(params: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        kept.append(params["max_cached_hist_node"])
        return train(params, *arguments, **options)

    train = xgboost.train
    monkeypatch.setattr("tasks.engine.boost.xgb.train", watched)
    params = {**made.spec().params, "max_depth": 8, "grow_policy": policy}
    sources = made.make_batches(made.ROW_GROUPS, weighted=bool(changes))
    few, many = (
        boosted(Share(options=options, room=Room(limit)), [], sources, params=params, **changes)
        for limit in (MB // 20, None)
    )
    assert kept == [2, 2_048]
    assert few.checkpoint and many.checkpoint and few.checkpoint.raw == many.checkpoint.raw


@pytest.mark.parametrize(
    ("missing", "changes", "complete"),
    [
        pytest.param(False, {"feature_types": ("q",) * made.WIDTH}, True, id="numbers"),
        pytest.param(True, {"feature_types": ("q",) * made.WIDTH}, False, id="some missing"),
        pytest.param(None, {"feature_types": ("q",) * made.WIDTH}, False, id="not known"),
        pytest.param(False, {}, False, id="categories"),
        pytest.param(
            False, {"feature_types": ("q",) * made.WIDTH, "device": "cuda"}, False, id="on a GPU"
        ),
    ],
)
def test_when_numbers_of_rows_are_enough(
    missing: bool | None, changes: dict[str, Any], complete: bool
) -> None:
    share = Share(options=MatrixOptions(missing=missing))
    assert share.complete(made.spec(**changes)) is complete


def boosted(
    share: Share, notes: list[str], sources: list[BatchSource] | None = None, **changes: Any
) -> Segment:
    return boost_segment(
        made.spec(**changes),
        sources or made.make_batches(made.ROW_GROUPS),
        made.sample(),
        None,
        group=None,
        save=lambda checkpoint: None,
        on_round=lambda round_, metrics: None,
        share=share,
        on_external=notes.append,
    )


def held_now() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def test_a_share_that_does_not_fit_goes_to_disk(tmp_path: Path) -> None:
    """20 million rows are claimed, so that there is something to decide; 4,800 are there."""
    options = MatrixOptions(missing=False)
    limit = held_now() + 1_600 * MB
    share = Share(20_000_000, 131_072, options, Room(limit, str(tmp_path)))
    notes: list[str] = []
    whole = boosted(Share(), notes)
    assert not whole.external and not notes
    assert not boosted(replace(share, rows=10_000_000), notes).external and not notes
    parts = boosted(share, notes)
    assert parts.external and not list(tmp_path.iterdir())
    assert whole.checkpoint and parts.checkpoint and whole.checkpoint.raw == parts.checkpoint.raw
    [note] = notes
    assert note.startswith(
        "A worker's share of 20,000,000 rows × 6 features takes about 1,520 MB in memory, beside "
    )
    assert note.endswith(
        f" MB that the worker holds already. Its memory limit is {limit / 1e6:,.0f} MB "
        "(cluster.memory_limit), so the bins of the features are read from disk in every round "
        "(external memory)."
    )


@pytest.mark.parametrize(
    ("options", "note"),
    [
        pytest.param(
            MatrixOptions(external="always"),
            "The bins of the features are read from disk in every round (external memory), as "
            "cluster.external_memory is 'always'.",
            id="asked for",
        ),
        pytest.param(
            MatrixOptions(external="always", after_loss=True),
            "A worker was ended at its memory limit (cluster.memory_limit): from then on the bins "
            "of the features are read from disk in every round (external memory).",
            id="after a loss",
        ),
    ],
)
def test_why_it_goes_to_disk(tmp_path: Path, options: MatrixOptions, note: str) -> None:
    notes: list[str] = []
    assert boosted(Share(options=options, room=Room(scratch=str(tmp_path))), notes).external
    assert notes == [note]


def broken_source() -> Any:
    raise FileNotFoundError("part-3.parquet is gone")


def broken_round(round_: int, metrics: dict[str, float]) -> None:
    raise InterruptedError("stopped in a round")


@pytest.mark.parametrize("moment", ["build", "round", "page"])
def test_the_pages_go_when_it_fails(
    tmp_path: Path, moment: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what it is, and without XGBoost's complaint about files that it misses."""
    sources = made.make_batches(made.ROW_GROUPS)
    on_round: Callable[[int, dict[str, float]], None] = lambda round_, metrics: None  # noqa: E731
    kind: type[Exception] = FileNotFoundError
    if moment == "build":
        sources[5] = made.source(broken_source)
    elif moment == "round":
        on_round, kind = broken_round, InterruptedError
    else:
        kind = RunError
        monkeypatch.setattr("tasks.engine.memory.SPARE_BYTES", 2**60)
        monkeypatch.setattr(Room, "check_disk", lambda *arguments: None)
    share = Share(options=MatrixOptions(external="always"), room=Room(scratch=str(tmp_path)))
    with pytest.raises(kind):
        boost_segment(
            made.spec(),
            sources,
            made.sample(),
            None,
            group=None,
            save=lambda checkpoint: None,
            on_round=on_round,
            share=share,
        )
    assert not list(tmp_path.iterdir())
    assert "cache file" not in capfd.readouterr().err


KEEPS = """
import numpy, psutil, pyarrow
from tasks.engine.memory import give_back
keep = {keep}
held = psutil.Process().memory_info().rss
give_back()
print(held - psutil.Process().memory_info().rss)
"""
# with one above, so that the heap can't simply end lower
BLOCKS = "[numpy.ones(1 << 16) for _ in range(400)][-1]"
COLUMNS = "[pyarrow.nulls(1 << 16, pyarrow.float64()) for _ in range(200)][-1]"


@pytest.mark.parametrize(
    ("keep", "least"),
    [pytest.param(BLOCKS, 150 * MB, id="NumPy's"), pytest.param(COLUMNS, 70 * MB, id="Arrow's")],
)
def test_freed_memory_is_given_back(keep: str, least: int) -> None:
    """200 MB and 100 MB, in a process that keeps what it freed, as workers do."""
    keeps = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
    ran = subprocess.run(
        [sys.executable, "-c", KEEPS.format(keep=keep)],
        env={**os.environ, **keeps},
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(ran.stdout) > least


APART = """
import ctypes
from tasks.engine.memory import _large_blocks_apart

malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

def is_apart():
    # the second bit of the size that glibc keeps before a block: mapped by itself
    return bool(ctypes.c_size_t.from_address(malloc(64 << 20) - 8).value & 2)

print(is_apart())
with _large_blocks_apart():
    print(is_apart())
print(is_apart())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_large_blocks_lie_apart_for_as_long_as_it_is_asked() -> None:
    """64 MB in a process that has them in its heap, as workers do."""
    ran = subprocess.run(
        [sys.executable, "-c", APART],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 20)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["False", "True", "False"]


def test_the_folder_is_there_as_long_as_it_is_used(tmp_path: Path) -> None:
    share = Share(options=MatrixOptions(external="always"), room=Room(scratch=str(tmp_path)))
    with place_of(share, NEED_LITTLE, lambda note: None) as place:
        assert place.pages is not None and place.pages.folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


NEED_LITTLE = Need(100, 100, 2, 256, False, False, 512, 63, 63)
