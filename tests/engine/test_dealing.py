"""Which workers make a group: all of them, or one of a host with the threads of all."""

import os
import signal
from dataclasses import replace
from typing import Any

import psutil
import pytest

from tasks.engine import dealing
from tasks.engine.dealing import Member, better_alone, deal, members
from tasks.engine.group import train
from tasks.engine.members import Event, GroupOptions
from tasks.engine.memory import AUTO
from tasks.engine.need import Need
from tests.engine import rows_for_boosting as made

GB = 10**9
# 80,000 rows × 2,000 features: 0.32 GB of bins, 0.5 GB of histograms, 0.4 GB of a batch
WIDE = Need(80_000, 8_192, 2_000, 256, False, False, 512_000, 63, 63)


@pytest.mark.parametrize(
    ("changes", "limit", "alone"),
    [
        pytest.param({}, None, True, id="wide"),
        pytest.param({}, 2 * GB, True, id="with room"),
        pytest.param({}, GB, False, id="without room for all rows"),
        pytest.param({"rows": 8_000_000}, None, False, id="many rows"),
        pytest.param({"features": 28, "all_bins": 7_168}, None, False, id="few features"),
        pytest.param({"tree": 3}, None, False, id="shallow trees"),
    ],
)
def test_when_one_is_quicker(changes: dict[str, Any], limit: int | None, alone: bool) -> None:
    assert better_alone(replace(WIDE, **changes), limit) is alone


WORKERS = {name: {"nthreads": 2, "memory_limit": 8 * GB} for name in ("tcp://a:1", "tcp://a:2")}


def test_members(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(one_host: bool, **changes: Any) -> list[Member]:
        return members(made.spec(**changes), made.ROW_GROUPS, WORKERS, AUTO, one_host=one_host)

    halves = [
        Member(*each) for each in zip(WORKERS, deal(made.ROW_GROUPS, len(WORKERS)), strict=True)
    ]
    assert chosen(True) == halves  # narrow
    monkeypatch.setattr(dealing, "SENT_BYTES", 0)
    assert chosen(True) == [Member("tcp://a:1", made.ROW_GROUPS, 4)]
    assert chosen(False) == halves  # several hosts


def test_one_of_a_host_gives_the_same_bytes(
    dask_client: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has their threads, whatever OMP_NUM_THREADS says; killed, it is followed by the next."""
    dask_client.wait_for_workers(4, timeout=120)
    assert set(dask_client.run(os.getenv, "OMP_NUM_THREADS").values()) == {"1"}
    pids = dask_client.run(os.getpid)
    threads: list[int] = []  # of the one that trains, before and in a round

    def trained(name: str, events: list[Event], kill_at: int, **options: Any) -> str:
        def on_event(event: Event) -> None:
            events.append(event)
            pid = pids[next(each for each in events if each.workers).workers[0]]
            if kill_at and event.round in (0, kill_at) and len(threads) < 2:
                threads.append(psutil.Process(pid).num_threads())
            if event.kind == "round" and event.round == kill_at:
                os.kill(pid, signal.SIGKILL)

        return train(
            dask_client,
            made.spec(n_estimators=200),
            made.ROW_GROUPS,
            made.make_batches,
            made.sample,
            made.store(tmp_path / name),
            on_event,
            GroupOptions(end_timeout=3, **options),
        ).model_sha256

    by_all: list[Event] = []
    by_one: list[Event] = []
    reference = trained("all", by_all, 0)
    monkeypatch.setattr(dealing, "SENT_BYTES", 0)
    assert trained("one", by_one, 6, one_host=True) == reference
    # XGBoost takes no more than there are cores; one thread reads ahead
    assert threads[1] - threads[0] >= min(4, os.cpu_count() or 1)
    assert [len(event.workers) for event in by_all if event.kind == "formed"] == [4]
    assert [len(event.workers) for event in by_one if event.kind == "formed"] == [1, 1]
