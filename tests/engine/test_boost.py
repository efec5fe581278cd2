"""The same bytes whatever the cluster, and whatever befalls it."""

import math
import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xgboost as xgb
from distributed import Client, LocalCluster

from tasks.engine.boost import boost_segment
from tasks.engine.booster import finish
from tasks.engine.checkpoints import Checkpoint, CheckpointStore
from tasks.engine.dataset import RowGroup
from tasks.engine.dealing import deal
from tasks.engine.errors import RunError, UserError
from tasks.engine.frames import Device
from tasks.engine.group import TrainResult, train
from tasks.engine.members import Event, GroupOptions
from tasks.engine.memory import MatrixOptions, Room, Share
from tasks.engine.objective import LabelScale, on_grid
from tasks.engine.spec import BoostSpec
from tests.engine import rows_for_boosting as made

COLUMNS = {"colsample_bytree": 0.7, "colsample_bynode": 0.8}
TREES = {"max_depth": 4, "learning_rate": 0.2, "max_bin": 64}
CASES = [
    pytest.param({}, False, id="plain"),
    pytest.param({"train_variance": 1.0}, False, id="long tail"),
    pytest.param({"subsample": 0.6}, False, id="rows sampled"),
    pytest.param({"params": {**TREES, **COLUMNS}, "column_chunk": 5}, False, id="columns sampled"),
    pytest.param(
        {"params": {**TREES, **COLUMNS}, "column_chunk": 5, "subsample": 0.6, "max_weight": 4.0},
        True,
        id="rows and columns sampled, weights",
    ),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def alone(
    spec: BoostSpec,
    weighted: bool,
    store: CheckpointStore,
    groups: Sequence[RowGroup] = made.ROW_GROUPS,
    threads: int = 1,
    share: Share | None = None,
    rows_on: Device | None = None,
) -> tuple[str, list[int]]:
    """Digest of the model trained in this process, and the rounds that were done."""
    done: list[int] = []
    segment = boost_segment(
        spec,
        made.make_batches(groups, weighted, device=rows_on or spec.device),
        made.sample(),
        store.latest(spec.n_estimators, spec.column_chunk),
        group=None,
        save=store.save,
        on_round=lambda round_, metrics: done.append(round_),
        threads=threads,
        share=share,
    )
    assert segment.external == (share is not None)
    assert segment.checkpoint is not None
    raw = finish(segment.checkpoint.raw, segment.checkpoint.rounds)
    return sha256(raw).hexdigest(), done


class Only:
    """A client that shows the first `count` workers, so that groups of any size can be tried."""

    def __init__(self, client: Any, count: int) -> None:
        self._client = client
        self._count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sync(self, ask: Any, *words: Any, **more: Any) -> Any:
        answer = self._client.sync(ask, *words, **more)
        if not isinstance(answer, dict) or "workers" not in answer:
            return answer
        workers = answer["workers"]
        return {"workers": {key: workers[key] for key in sorted(workers)[: self._count]}}


@pytest.mark.parametrize(("changes", "weighted"), CASES)
def test_same_bytes(
    dask_client: Any, tmp_path: Path, changes: dict[str, Any], weighted: bool
) -> None:
    spec = made.spec(**changes)
    first, _ = alone(spec, weighted, made.store(tmp_path / "1"))
    threads, _ = alone(spec, weighted, made.store(tmp_path / "t"), threads=2)
    mixed, _ = alone(spec, weighted, made.store(tmp_path / "p"), made.ROW_GROUPS[::-1])
    assert threads == first and mixed == first
    told = made.store(tmp_path / "1").latest(spec.n_estimators, spec.column_chunk)
    assert told is not None
    for workers in (2, 4):
        result = train(
            Only(dask_client, workers),
            spec,
            made.ROW_GROUPS,
            partial(made.make_batches, weighted=weighted),
            made.sample,
            made.store(tmp_path / f"w{workers}"),
        )
        assert result.model_sha256 == first
        assert result.history == told.history
        assert result.workers == workers and result.recoveries == 0


@pytest.mark.parametrize(("changes", "weighted"), CASES)
def test_goes_on_where_it_stopped(
    tmp_path: Path, changes: dict[str, Any], weighted: bool, device: str
) -> None:
    """13 rounds, then 20: with columns sampled, and on a GPU, from the last full chunk."""
    spec = made.spec(**changes, device=device)
    whole, _ = alone(spec, weighted, made.store(tmp_path / "whole"))
    mixed, _ = alone(spec, weighted, made.store(tmp_path / "mixed"), made.ROW_GROUPS[::-1])
    assert mixed == whole
    parts = made.store(tmp_path / "parts")
    alone(spec.model_copy(update={"n_estimators": 13}), weighted, parts)
    again, done = alone(spec, weighted, parts)
    assert again == whole
    assert done[0] == (14 if spec.column_chunk is None else 11)
    assert alone(spec, weighted, parts) == (whole, [])


ON_DISK = MatrixOptions(external="always")


@pytest.mark.parametrize(("changes", "weighted"), CASES)
def test_same_bytes_on_disk(
    dask_client: Any, tmp_path: Path, changes: dict[str, Any], weighted: bool
) -> None:
    """Groups of 1, 2 and 4 with their bins on disk; pages of part of a batch and of several, from
    a checkpoint on, too.
    """
    wait_for_workers(dask_client)
    spec = made.spec(**changes)
    first, _ = alone(spec, weighted, made.store(tmp_path / "memory"))
    for workers in (1, 2, 4):
        events: list[Event] = []
        result = train(
            Only(dask_client, workers),
            spec,
            made.ROW_GROUPS,
            partial(made.make_batches, weighted=weighted),
            made.sample,
            made.store(tmp_path / f"w{workers}"),
            events.append,
            GroupOptions(matrix=ON_DISK),
        )
        assert result.model_sha256 == first and result.external
        assert result.workers == workers and result.recoveries == 0
        [note] = [event.note for event in events if event.kind == "external"]
        assert note.endswith("as cluster.external_memory is 'always'.")
    (tmp_path / "pages").mkdir()
    # a limit of which pages are a small share
    room = Room(limit=10**12, scratch=str(tmp_path / "pages"))
    share = Share(sum(group.rows for group in made.ROW_GROUPS), made.ROWS, ON_DISK, room)
    for rows in (170, 1_500):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tasks.engine.memory.PAGE_ROWS", rows)
            patch.setattr("tasks.engine.memory.LEAST_PAGE_ROWS", rows)
            parts = made.store(tmp_path / f"parts-{rows}")
            alone(spec.model_copy(update={"n_estimators": 13}), weighted, parts, share=share)
            assert alone(spec, weighted, parts, threads=2, share=share)[0] == first
        assert alone(spec, weighted, parts, share=share) == (first, [])
    assert not list((tmp_path / "pages").iterdir())


def test_a_model_predicts_the_deviation_from_the_mean(tmp_path: Path, device: str) -> None:
    spec = made.spec(n_estimators=60, device=device)
    store = made.store(tmp_path)
    alone(spec, False, store)
    checkpoint = store.latest(60)
    assert checkpoint is not None
    booster = xgb.Booster()
    booster.load_model(bytearray(finish(checkpoint.raw, 60)))
    assert booster.feature_names == list(made.NAMES) and booster.attributes() == {}
    error, squares, count = 0.0, 0.0, 0
    for group in made.ROW_GROUPS:
        valid = made.read(group, False, None, False).valid
        matrix = xgb.DMatrix(
            valid.features,
            feature_names=list(made.NAMES),
            feature_types=list(made.TYPES),
            enable_categorical=True,
        )
        predicted = booster.predict(matrix).astype(np.float64) + spec.mean
        error += float(np.square(valid.label - predicted).sum())
        squares += float(np.square(valid.label - valid.label.mean()).sum())
        count += len(predicted)
    assert (error / count) ** 0.5 == pytest.approx(checkpoint.history.valid_rmse[-1], rel=1e-4)
    assert 1 - error / squares > 0.8


@pytest.mark.parametrize("on_disk", [False, True])
def test_stops_early_at_the_same_round_when_resumed(
    tmp_path: Path, on_disk: bool, device: str
) -> None:
    share = Share(options=ON_DISK, room=Room(scratch=str(tmp_path))) if on_disk else None
    overfits = {**TREES, "max_depth": 8, "learning_rate": 0.6}
    spec = made.spec(params=overfits, n_estimators=60, early_stopping_rounds=4, device=device)
    store = made.store(tmp_path / "whole")
    alone(spec, False, store)
    whole = store.latest(60)
    assert whole is not None and whole.stopped and whole.rounds < 40
    best = whole.history.best_rounds()
    assert best == whole.rounds - 4
    parts = made.store(tmp_path / "parts")
    alone(spec.model_copy(update={"n_estimators": best + 1}), False, parts, share=share)
    alone(spec, False, parts, share=share)
    again = parts.latest(60)
    assert again == whole
    assert alone(spec, False, parts, share=share)[1] == []


def run(
    client: Any, folder: Path, events: list[Event], trouble: made.Trouble | None = None, **more: Any
) -> TrainResult:
    return train(
        client,
        more.pop("spec", None) or made.spec(n_estimators=more.pop("n_estimators", 20)),
        made.ROW_GROUPS,
        partial(made.make_batches, trouble=trouble),
        made.sample,
        made.store(folder),
        more.pop("on_event", events.append),
        GroupOptions(**{"replace_timeout": 20, "end_timeout": 3, **more}),
    )


def wait_for_workers(client: Any) -> None:
    """All four, with XGBoost loaded: loading it keeps a worker silent for seconds."""
    client.wait_for_workers(4, timeout=120)
    client.run(load)


def load() -> None:
    import tasks.engine.segment  # noqa: F401


def test_a_killed_worker(dask_client: Any, tmp_path: Path) -> None:
    wait_for_workers(dask_client)
    pids = dask_client.run(os.getpid)
    reference, _ = alone(made.spec(n_estimators=60), False, made.store(tmp_path / "alone"))
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if event.kind == "round" and event.round == 12:
            victims = [pids[address] for address in sorted(pids)]
            os.kill(victims[2], signal.SIGKILL)

    result = run(dask_client, tmp_path / "killed", events, n_estimators=60, on_event=on_event)
    assert result.model_sha256 == reference
    assert result.recoveries == 1
    formed = [event.round for event in events if event.kind == "formed"]
    assert formed[0] == 0 and len(formed) == 2 and formed[1] >= 10, events
    assert [event.round for event in events if event.kind == "round"] == list(range(1, 61))
    lost = next(event for event in events if event.kind == "lost")
    assert "left the cluster" in lost.note and len(lost.workers) == 1


def test_the_tracker_is_killed(dask_client: Any, tmp_path: Path) -> None:
    """As XGBoost itself does, when a worker is lost while the two talk: the driver goes on."""
    wait_for_workers(dask_client)
    reference, _ = alone(made.spec(), False, made.store(tmp_path / "alone"))
    events: list[Event] = []
    killed: list[int] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if event.kind == "round" and event.round == 7:
            for child in psutil.Process().children():
                if any(word.endswith("/tracker.py") for word in child.cmdline()):
                    killed.append(child.pid)
                    child.kill()

    result = run(dask_client, tmp_path / "killed", events, on_event=on_event)
    assert len(killed) == 1
    assert (result.model_sha256, result.recoveries) == (reference, 0), events


@pytest.mark.slow
@pytest.mark.parametrize("patience", [(12, 4), (4, 12)])
def test_another_patience_gives_the_model_of_a_fresh_home(
    patience: tuple[int, int], dask_client: Any, tmp_path: Path
) -> None:
    overfits = {**TREES, "max_depth": 8, "learning_rate": 0.6}

    def of(patience: int, folder: str) -> TrainResult:
        spec = made.spec(params=overfits, n_estimators=60, early_stopping_rounds=patience)
        return run(dask_client, tmp_path / folder, [], spec=spec)

    before, after = of(patience[0], "used"), of(patience[1], "used")
    fresh = of(patience[1], "fresh")
    assert (after.model_sha256, after.history) == (fresh.model_sha256, fresh.history)
    assert (after.rounds, after.best_rounds) == (fresh.rounds, fresh.best_rounds)
    assert before.rounds != after.rounds == after.best_rounds + patience[1]
    assert after.resumed_from_round == min(before.rounds, after.rounds)


@pytest.mark.slow
def test_a_frozen_worker(dask_client: Any, tmp_path: Path) -> None:
    wait_for_workers(dask_client)
    events: list[Event] = []
    trouble = made.Trouble("freeze", 5, str(tmp_path / "flag"))
    result = run(dask_client, tmp_path / "frozen", events, trouble, worker_ttl=10)
    assert result.recoveries == 1
    assert "fell silent" in next(event.note for event in events if event.kind == "lost")


@pytest.mark.slow
def test_with_nobody_left_a_worker_may_take_as_long_as_a_start(tmp_path: Path) -> None:
    with (
        LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            local_directory=str(tmp_path / "dask"),
        ) as cluster,
        Client(cluster) as client,
    ):
        message = (
            "The cluster has no workers left to train on, and none came within 0.5 s "
            "(cluster.start_timeout)."
        )
        with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
            run(client, tmp_path / "none", [], replace_timeout=5, start_timeout=0.5)
        coming = threading.Timer(1.0, cluster.scale, [1])
        coming.start()
        result = run(client, tmp_path / "late", [], replace_timeout=0.1, start_timeout=60)
        coming.join()
    assert (result.workers, result.recoveries) == (1, 0)


def test_a_users_error_is_named_not_its_echo(dask_client: Any, tmp_path: Path) -> None:
    wait_for_workers(dask_client)
    with pytest.raises(UserError, match="row 7 holds a weight of -1"):
        run(dask_client, tmp_path, [], made.Trouble("user", 5))
    assert run(dask_client, tmp_path, []).recoveries == 0  # the workers are free again


def test_every_chunk_draws_other_columns(tmp_path: Path) -> None:
    one_of_six = {"max_depth": 1, "colsample_bytree": 0.2, "max_bin": 64}
    store = made.store(tmp_path)
    alone(made.spec(params=one_of_six, column_chunk=5), False, store)
    checkpoint = store.latest(20)
    assert checkpoint is not None
    booster = xgb.Booster()
    booster.load_model(bytearray(checkpoint.raw))
    used = [tree.split("[")[1].split("<")[0].split(":")[0] for tree in booster.get_dump()]
    assert len({tuple(used[begin : begin + 5]) for begin in range(0, 20, 5)}) > 1


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_gradients_do_not_depend_on_their_order(weighted: bool) -> None:
    random = np.random.default_rng(1)
    target = 1e6 + random.standard_cauchy(20_000)
    weight = random.random(20_000) * 3
    deviation = float(np.abs(target - 1e6).max())
    spec = made.spec(
        mean=1e6,
        max_deviation=deviation,
        train_variance=(deviation / 100) ** 2,
        max_weight=3.0 if weighted else None,
    )
    scale = LabelScale.of(spec)
    label = scale.to_label(target)
    margin = (scale.offset + random.normal(size=20_000)).astype(np.float32)
    gradient = (margin - label).astype(np.float64)
    if weighted:
        gradient = on_grid(gradient * weight, scale.binade * 4)
    ordered = np.cumsum(np.sort(gradient))[-1]
    assert ordered == np.cumsum(gradient)[-1] == math.fsum(gradient)
    if not weighted:
        assert (label >= scale.binade).all() and (label < 2 * scale.binade).all()


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    if xgb.build_info()["USE_CUDA"] and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="asked to train on cuda but XGBoost trained on cpu"):
        alone(made.spec(device="cuda"), False, made.store(tmp_path), rows_on="cpu")


@pytest.mark.slow
def test_too_many_losses(dask_client: Any, tmp_path: Path) -> None:
    wait_for_workers(dask_client)
    victims = list(dask_client.run(os.getpid).values())[:1]

    def on_event(event: Event) -> None:
        if event.kind == "round" and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    with pytest.raises(RunError, match=r"1 groups of workers were lost.*recoveries allows 0"):
        run(dask_client, tmp_path, [], on_event=on_event, recoveries=0, n_estimators=500)


@pytest.mark.slow
def test_two_trainings_take_turns(dask_client: Any, tmp_path: Path) -> None:
    wait_for_workers(dask_client)
    results: dict[int, TrainResult] = {}

    def go(number: int) -> None:
        results[number] = run(dask_client, tmp_path / str(number), [])

    threads = [threading.Thread(target=go, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0].model_sha256 == results[1].model_sha256


def test_who_waited_for_its_turn_goes_on_from_what_the_other_did(
    dask_client: Any, tmp_path: Path
) -> None:
    wait_for_workers(dask_client)
    begun = threading.Event()
    events: list[list[Event]] = [[], []]
    results: list[TrainResult] = []

    def first(event: Event) -> None:
        events[0].append(event)
        begun.set()

    def go() -> None:
        results.append(run(dask_client, tmp_path, [], n_estimators=40, on_event=first))

    thread = threading.Thread(target=go)
    thread.start()
    assert begun.wait(120)
    second = run(dask_client, tmp_path, events[1], n_estimators=40)
    thread.join(120)
    assert second.model_sha256 == results[0].model_sha256
    assert (results[0].resumed_from_round, second.resumed_from_round) == (0, 40)
    told = [[event.round for event in each if event.kind == "round"] for each in events]
    assert told[0] == list(range(1, 41))
    # it told those that its own store did not have when it came
    assert told[1] == list(range(41 - len(told[1]), 41))


def test_workers_without_train_rows_change_nothing(dask_client: Any, tmp_path: Path) -> None:
    """As a split by time has it; the first worker may be the one without."""
    wait_for_workers(dask_client)
    spec = made.spec()
    digests = set()
    for number, groups in enumerate((made.ROW_GROUPS, made.ROW_GROUPS[4:] + made.ROW_GROUPS[:4])):
        result = train(
            dask_client,
            spec,
            groups,
            partial(made.make_batches, only_first=True),
            made.sample,
            made.store(tmp_path / str(number)),
        )
        digests.add(result.model_sha256)
    one = train(
        Only(dask_client, 1),
        spec,
        made.ROW_GROUPS,
        partial(made.make_batches, only_first=True),
        made.sample,
        made.store(tmp_path / "one"),
    )
    assert digests == {one.model_sha256}


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole, _ = alone(made.spec(), False, made.store(tmp_path))
    newest = tmp_path / "round-000020.ubj"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again, done = alone(made.spec(), False, made.store(tmp_path))
    assert again == whole and done == [16, 17, 18, 19, 20]


def test_cancelling_frees_the_workers(dask_client: Any, tmp_path: Path) -> None:
    wait_for_workers(dask_client)

    def on_event(event: Event) -> None:
        if event.kind == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dask_client, tmp_path, [], on_event=on_event, n_estimators=5000)
    began = time.monotonic()
    assert dask_client.submit(sum, [1, 2], pure=False).result(timeout=80) == 3
    assert time.monotonic() - began < 40


@pytest.mark.parametrize(
    ("rows", "workers", "blocks"),
    [
        pytest.param([10] * 8, 3, [3, 2, 3], id="even"),
        pytest.param([100, 1, 1, 1], 2, [1, 3], id="one large"),
        pytest.param([1, 1, 1, 100], 4, [1, 1, 1, 1], id="one each"),
        pytest.param([5, 0, 5], 4, [1, 1], id="empty ones are left out"),
    ],
)
def test_deal(rows: list[int], workers: int, blocks: list[int]) -> None:
    groups = [
        RowGroup(uri="a", path="a", index=i, rows=count, start=0) for i, count in enumerate(rows)
    ]
    dealt = deal(groups, workers)
    assert [len(block) for block in dealt] == blocks
    assert [group for block in dealt for group in block] == [g for g in groups if g.rows]


def test_a_checkpoint_holds_its_history(tmp_path: Path) -> None:
    store = made.store(tmp_path)
    alone(made.spec(), False, store)
    checkpoint = store.latest(20)
    assert isinstance(checkpoint, Checkpoint) and checkpoint.history.rounds == 20
    assert checkpoint.history.train_rmse[-1] < checkpoint.history.train_rmse[0] / 2
