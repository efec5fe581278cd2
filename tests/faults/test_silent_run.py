"""A standing Prefect server calls a run crashed whose process is gone, and none that lives."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from flows.automations import SILENCE_SECONDS
from tasks.engine.home import Home
from tasks.ledger import entries
from tests.conftest import Boostline
from tests.flows.test_train import wait_for_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(500)]

TOLD_WITHIN_SECONDS = 150


def test_only_a_dead_run_is_called_crashed(
    standing_server: str, boostline_alone: Boostline, shared_data: Path
) -> None:
    def state() -> str:
        return str(httpx.get(f"{standing_server}/flow_runs/{run}").json()["state_type"])

    common = [
        "--data", str(shared_data / "diamonds.csv"), "--target", "price",
        "--set", "boost.n_estimators=50000", "--set", "boost.max_depth=8",
    ]  # fmt: skip
    with boostline_alone.start("train", *common, PREFECT_API_URL=standing_server) as process:
        wait_for_checkpoint(boostline_alone, process, 20)
        (entry,) = entries(Home(str(boostline_alone.home)))
        run = entry.flow_run_id
        alive_until = time.monotonic() + SILENCE_SECONDS + 30
        while time.monotonic() < alive_until:
            assert process.poll() is None
            assert state() == "RUNNING"
            time.sleep(2)
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        process.communicate()
    while state() == "RUNNING":
        assert time.monotonic() - killed < TOLD_WITHIN_SECONDS
        time.sleep(1)
    assert state() == "CRASHED"
