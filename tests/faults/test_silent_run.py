"""A standing Prefect server calls a run crashed whose process is gone, and none that lives."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.automations import SILENCE_SECONDS
from tasks.engine.home import Home
from tasks.ledger import entries
from tests.conftest import Boostline, clean_environment
from tests.flows.test_train import wait_for_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(500)]

TOLD_WITHIN_SECONDS = 150


@pytest.fixture
def standing_server(tmp_path: Path) -> Iterator[str]:
    """A Prefect server with all its services, as `prefect server start` starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            env={**clean_environment(), **home},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)


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
