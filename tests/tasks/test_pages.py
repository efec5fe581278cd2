"""Artifacts that move, on a real Prefect server that is also away for a while."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tasks.artifacts import TrainingProgress
from tasks.engine.progress import Progress
from tasks.pages import Page, Pages

pytestmark = pytest.mark.slow


@pytest.fixture
def flow_run(prefect_server: Any) -> Iterator[str]:
    """The id of a flow run that the server knows, with Prefect's client turned to that server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with httpx.Client(base_url=prefect_server.api_url) as api:
        flow = api.post("/flows/", json={"name": f"of-{uuid4()}"}).json()["id"]
        made = api.post("/flow_runs/", json={"flow_id": flow}).json()["id"]
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        yield str(made)


def artifacts(server: Any, flow_run: str) -> dict[str, dict[str, Any]]:
    query = {"artifacts": {"flow_run_id": {"any_": [flow_run]}}}
    found = httpx.post(f"{server.api_url}/artifacts/filter", json=query).json()
    assert len({each["key"] for each in found}) == len(found)
    return {each["key"]: each for each in found}


def test_progress_moves_and_ends(prefect_server: Any, flow_run: str) -> None:
    pages = Pages(flow_run)
    progress = TrainingProgress(pages, "houses", "http://127.0.0.1:8787/status")
    progress.hear(Progress("ingest", 5, 5))
    progress.hear(Progress("train", 0, 400, "rounds"))
    deadline = time.monotonic() + 80
    while not (found := artifacts(prefect_server, flow_run)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (found["houses-progress"]["type"], found["houses-progress"]["data"]) == ("progress", 0)
    time.sleep(1)  # the next content is not shown before
    progress.hear(Progress("train", 100, 400, "rounds", "valid R² 0.8112"))
    while (found := artifacts(prefect_server, flow_run))["houses-progress"]["data"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (moved,) = found.values()
    assert moved["data"] == 25
    assert moved["description"].startswith("Round 100 of 400 · valid R² 0.8112 · ")
    assert moved["description"].endswith(
        " s left at most · [Dask dashboard](http://127.0.0.1:8787/status)"
    )
    progress.hear(Progress("evaluate", 0, 10))
    assert pages.close(20) == []
    (ended,) = artifacts(prefect_server, flow_run).values()
    assert (ended["data"], ended["description"]) == (100, "100 rounds trained · valid R² 0.8112")


def test_a_server_that_is_away_holds_nobody_up(prefect_server: Any, flow_run: str) -> None:
    pages = Pages(flow_run)
    os.kill(prefect_server.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        for share in range(1000):
            pages.put(Page("houses-progress", "progress", share / 10, "under way"))
        pages.put(Page("houses-metrics", "table", [{"metric": "R²"}], "two pages"))
        assert time.monotonic() - began < 5
        time.sleep(1)
    finally:
        os.kill(prefect_server.pid, signal.SIGCONT)
    assert pages.close(40) == []
    found = artifacts(prefect_server, flow_run)
    assert found["houses-progress"]["data"] == 99.9
    assert found["houses-metrics"]["data"] == '[{"metric": "R\\u00b2"}]'


def test_what_was_not_taken_is_named(flow_run: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        pages = Pages(flow_run)
    pages.put(Page("houses-report", "markdown", "**R²**", "nobody takes it"))
    began = time.monotonic()
    assert pages.close(1) == ["houses-report"]
    assert time.monotonic() - began < 10
