"""Nights on a standing Prefect server with a worker: runs that are late, fail or crash are told to
people, and of the runs that could not start the last one is done, for the day it was meant for."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient

from flows.deploy import deploy, watch
from tasks.engine.config import Config
from tasks.engine.home import Home
from tests.conftest import Boostline, clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WAIT_SECONDS = 360
DAYS = [datetime.now(UTC).date() - timedelta(days=back) for back in (3, 2, 1)]


@contextmanager
def receiver(told: list[dict[str, str]]) -> Iterator[str]:
    """An HTTP server that keeps what is posted to it in `told`."""

    class Keeps(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Keeps) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@contextmanager
def worker(pool: str, boostline: Boostline) -> Iterator[None]:
    with (boostline.folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
            env={**boostline.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"},
            cwd=boostline.folder,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(240)


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


@pytest.fixture
def night(
    standing_server: str, mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Boostline]:
    """The command beside the standing server, which this process asks, too."""
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

    environment = {**clean_environment(), "PREFECT_API_URL": standing_server}
    monkeypatch.setenv("PREFECT_API_URL", standing_server)
    monkeypatch.chdir(tmp_path)
    pages = standing_server.removesuffix("/api")
    with temporary_settings({PREFECT_API_URL: standing_server, PREFECT_UI_URL: pages}):
        yield Boostline(tmp_path, environment, mlflow_store)


def small(source: str) -> Config:
    return Config.model_validate(
        {
            "data": {"source": source, "target": "y"},
            "boost": {"n_estimators": 3},
            "evaluate": {"bootstrap": 0},
            "cluster": {"workers": 1},
            "track": {"model": "night"},
        }
    )


@pytest.mark.long
def test_nights(standing_server: str, night: Boostline) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    def post(path: str, **body: Any) -> Any:
        # SQLite's word for two writers at once, upon which Prefect's own clients try again
        answer = until(
            lambda: (
                (
                    found := httpx.post(f"{standing_server}/{path}", json=body, timeout=60)
                ).status_code
                != 503
                and found
            )
        ).raise_for_status()
        return answer.json() if answer.content else None

    def runs() -> dict[str, Any]:
        found = post("flow_runs/filter", deployments={"id": {"any_": [deployment]}})
        past = [run for run in found if run["expected_start_time"] < f"{datetime.now(UTC):%F}"]
        return {run["expected_start_time"][:10]: run for run in past}

    def start(date: str, since: datetime) -> str:
        made = post(
            f"deployments/{deployment}/create_flow_run",
            parameters={**deployed["parameters"], "date": date},
            state={"type": "SCHEDULED", "state_details": {"scheduled_time": f"{since:%FT%TZ}"}},
        )
        return str(made["id"])

    def run_of(run: str) -> Any:
        return httpx.get(f"{standing_server}/flow_runs/{run}", timeout=60).json()

    def told_of(state: str) -> Any:
        # what is told is told once at least: Prefect does an action again that it could not note
        messages = {(message["subject"], message["body"]): message for message in told}.values()
        return [message for message in messages if message["subject"].startswith(f"{state}: ")]

    told: list[dict[str, str]] = []
    night("--version")  # makes the home and its store
    Path(f"{DAYS[-1]}.csv").write_text("x,y\n" + "".join(f"{i},{i * 2.5}\n" for i in range(200)))
    with receiver(told) as url:
        CustomWebhookNotificationBlock(
            name="ops", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        ).save("ops")
        home = Home(str(night.home))
        for _ in range(2):  # deployed again it is the same
            deploy(
                small("{date}.csv"), "n", "nights", "0 0 * * *", "UTC", home, ["custom-webhook/ops"]
            )
        # and somebody else hears of every training, with other words
        CustomWebhookNotificationBlock(
            name="all", url=url, json_data={"subject": "any {{subject}}", "body": "{{body}}"}
        ).save("all")
        assert watch(["custom-webhook/all"], None, home)[1] == (
            "A training that failed, crashed or is late is told to custom-webhook/all."
        )
        names = [automation["name"] for automation in post("automations/filter")]
        assert sorted(names) == [
            "boostline: a silent training has crashed",
            "boostline: any training went wrong",
            "boostline: n went wrong",
        ]
        deployed = httpx.get(f"{standing_server}/deployments/name/boostline-train/n").json()
        deployment = deployed["id"]
        # what a server that was away for days finds in its database
        since, to = f"{DAYS[0]}T00:00:00Z", f"{DAYS[-1]}T12:00:00Z"
        post(f"deployments/{deployment}/schedule", start_time=since, end_time=to)
        failed = start("2001-02-03", since=datetime.now(UTC) - timedelta(minutes=1))
        # a run of the schedule is told, too, but where it was planned less than five minutes ago
        (message,) = until(lambda: told_of("Late"))
        assert message["subject"] == "Late: boostline-train/n"
        assert message["body"].endswith(
            f"UTC, is Late. It has not begun: see whether a worker of its work pool runs.\n"
            f"{standing_server.removesuffix('/api')}/runs/flow-run/{failed}"
        )

        with worker("nights", night):
            until(
                lambda: all(
                    run["state_type"] not in ("SCHEDULED", "PENDING", "RUNNING")
                    for run in runs().values()
                )
            )
            states = {day: run["state"]["type"] for day, run in runs().items()}
            assert states == {
                str(DAYS[0]): "CANCELLED",
                str(DAYS[1]): "CANCELLED",
                str(DAYS[2]): "COMPLETED",
            }
            assert runs()[str(DAYS[1])]["state"]["message"] == (
                f"Left out: the run that the same schedule planned for {DAYS[2]} 00:00:00 UTC is "
                "due as well."
            )
            assert runs()[str(DAYS[2])]["name"] == f"night · {night.folder.name} · {DAYS[2]}"

            # an older one that comes late takes nobody's place
            before = DAYS[0] - timedelta(days=1)
            since, to = f"{before}T00:00:00Z", f"{before}T12:00:00Z"
            post(f"deployments/{deployment}/schedule", start_time=since, end_time=to)
            until(lambda: runs().get(str(before), {}).get("state_type") == "CANCELLED")
            assert runs()[str(before)]["state"]["message"] == (
                f"Left out: the run that the same schedule planned for {DAYS[2]} 00:00:00 UTC has "
                "completed."
            )

            (message,) = until(lambda: told_of("Failed"))
            assert message["subject"] == "Failed: boostline-train/n"
            (same,) = until(lambda: told_of("any Failed"))
            assert same["body"] == message["body"]
            first, link = message["body"].splitlines()
            assert first.endswith(
                "UTC, is Failed. Flow run encountered an exception: UserError: data.source="
                f"'{night.folder}/2001-02-03.csv': there is no '2001-02-03.csv'. Did you mean "
                f"'{DAYS[-1]}.csv'? The folder '{night.folder}' holds: {DAYS[-1]}.csv, bin, "
                "worker.log."
            )
            assert first.startswith(f"The run night · {night.folder.name} · 2001-02-03, due at 20")
            assert link == f"{standing_server.removesuffix('/api')}/runs/flow-run/{failed}"

            crashed = start("2001-02-04", since=datetime.now(UTC))
            until(
                lambda: (
                    run_of(crashed)["state_type"] == "PENDING"
                    and run_of(crashed)["infrastructure_pid"]
                )
            )
            os.kill(int(run_of(crashed)["infrastructure_pid"].rpartition(":")[2]), signal.SIGKILL)
            (message,) = until(lambda: told_of("Crashed"))
            assert message["subject"] == "Crashed: boostline-train/n"
            assert message["body"].endswith(f"/runs/flow-run/{crashed}")
        recorded = MlflowClient(f"sqlite:///{night.home}/mlflow.db")
        (version,) = recorded.search_model_versions("name='night'")
        ran = recorded.get_run(str(version.run_id))
        assert ran.data.params["data.source"] == f"{night.folder}/{DAYS[-1]}.csv"
