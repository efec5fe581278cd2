"""The pinned packages together: Prefect's own server plans the runs of a schedule."""

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

from tests.conftest import clean_environment

pytestmark = pytest.mark.slow

START_S, PLAN_S = 360, 120


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The API of `prefect server start` with all of its services, which Boostline's own lacks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={
                **clean_environment(),
                "PREFECT_HOME": str(tmp_path / "prefect"),
                "PREFECT_API_URL": url,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START_S
        while not _answers(url):
            assert time.monotonic() < until, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


@pytest.mark.long
def test_a_schedule_brings_runs(server: str) -> None:
    flow = httpx.post(f"{server}/flows/", json={"name": "boostline-train"}).json()
    nightly = {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}
    asked = {
        "name": "nightly",
        "flow_id": flow["id"],
        "entrypoint": "flows.pipeline.train_flow",
        "schedules": [{"schedule": nightly, "active": True}],
    }
    made = httpx.post(f"{server}/deployments/", json=asked).raise_for_status().json()
    wanted = {"deployments": {"id": {"any_": [made["id"]]}}}
    until = time.monotonic() + PLAN_S
    while not httpx.post(f"{server}/flow_runs/count", json=wanted).json():
        assert time.monotonic() < until, "no run is planned: see server.log"
        time.sleep(0.5)
