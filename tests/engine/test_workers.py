"""Calls over the workers of a cluster: one that loses its worker is made again, up to a limit."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.engine.errors import RunError
from tasks.engine.workers import ANSWER_S, alive_workers, each, end_processes


def square(number: int, flag: str) -> int:
    """Takes its worker along the first time that it is called with 3."""
    if number == 3 and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        raise ValueError("five")
    return number * number


def deadly() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lost_call_is_made_again(dask_client: Any, tmp_path: Path) -> None:
    arguments = ((number, str(tmp_path / "flag")) for number in range(8))
    outcomes = list(each(dask_client, square, arguments, str, at_once=3))
    assert (tmp_path / "flag").exists()
    assert sorted(outcome.number for outcome in outcomes) == list(range(8))
    for outcome in outcomes:
        if outcome.number == 5:
            assert repr(outcome.error) == "ValueError('five')"
        else:
            assert (outcome.value, outcome.error) == (outcome.number**2, None)


def test_a_call_that_loses_every_worker(dask_client: Any) -> None:
    with pytest.raises(RunError) as caught:
        list(each(dask_client, deadly, [()], lambda number: "the piece"))
    assert str(caught.value) == (
        "6 workers died while reading the piece. Give them more memory (cluster.memory_limit) or "
        "write smaller row groups."
    )


def test_a_worker_that_hangs_in_its_task_is_ended_at_once(dask_client: Any) -> None:
    """By its own hand: its nanny would take 4 s longer, and there may be none."""
    dask_client.wait_for_workers(4, timeout=120)
    address = min(dask_client.run(os.getpid))
    hung = dask_client.submit(time.sleep, 600, workers=[address], pure=False)
    while not dask_client.processing()[address]:
        time.sleep(0.05)
    began = time.monotonic()
    end_processes(dask_client, [address])
    assert address not in dask_client.scheduler_info(n_workers=-1)["workers"]
    assert time.monotonic() - began < ANSWER_S
    hung.cancel()


def test_who_is_there_whatever_the_client_asks_beside(dask_client: Any) -> None:
    """Dask's client asks the scheduler for itself now and then, and for no workers."""
    dask_client.wait_for_workers(4, timeout=120)
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            dask_client.sync(dask_client._update_scheduler_info)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert [len(alive_workers(dask_client)) for _ in range(300)] == [4] * 300
    finally:
        ended.set()
        asking.join()
