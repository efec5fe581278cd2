"""The embedded Prefect server, with a real flow in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.prefect_server import EmbeddedPrefect, PrefectServerError, start_embedded_prefect

pytestmark = pytest.mark.slow

FLOW = """
import sys
assert "prefect" not in sys.modules
from prefect import flow, task, get_run_logger
from prefect.cache_policies import INPUTS

@task(persist_result=True, cache_policy=INPUTS)
def double(x: int) -> int:
    get_run_logger().info("the task says hello")
    return 2 * x

@flow
def example(x: int) -> int:
    get_run_logger().warning("the flow says hello")
    return double(x)

sys.exit(0 if example(21) == 42 else 3)
"""

PARENT = """
import os, sys, time
from pathlib import Path
from infra.prefect_server import start_embedded_prefect
server = start_embedded_prefect(Path(sys.argv[1]))
print(server.pid, flush=True)
server.wait()
os.environ |= server.environment()
assert "prefect" not in sys.modules
with server.flow_settings():
    from prefect import flow
    from prefect.settings import get_current_settings
    assert get_current_settings().flows.heartbeat_frequency is None
    assert flow(lambda: 1, name="in one process")() == 1
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def no_configured_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home $HOME")


@pytest.fixture(scope="module")
def servers(home: Path) -> Iterator[list[EmbeddedPrefect]]:
    """Four servers that started at once on the same empty home."""
    before = os.environ.pop("PREFECT_API_URL", None)
    with ExitStack() as stack:
        servers = [stack.enter_context(start_embedded_prefect(home)) for _ in range(4)]
        if before is not None:
            os.environ["PREFECT_API_URL"] = before
        yield servers


@pytest.fixture(scope="module")
def server(servers: list[EmbeddedPrefect]) -> EmbeddedPrefect:
    servers[0].wait()
    return servers[0]


def ask(server: EmbeddedPrefect, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{server.api_url}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=40) as answer:
        return json.load(answer)


def ended(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_all_that_start_at_once_come_up_and_stopping_leaves_no_process(
    servers: list[EmbeddedPrefect], home: Path
) -> None:
    for server in servers:
        assert server.wait() == server.api_url
        assert ask(server, "flow_runs/filter", {}) == []
    assert len({server.api_url for server in servers}) == 4
    assert (home / "prefect" / "server.log").read_text() == ""
    pids = [server.pid for server in servers[1:]]
    started = time.monotonic()
    for server in servers[1:]:
        server.stop()
        server.stop()
    assert time.monotonic() - started < 20
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)
    assert servers[0].wait() == servers[0].api_url


def test_a_flow_runs_quietly_and_its_logs_reach_the_api(
    server: EmbeddedPrefect, home: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLOW],
        env=os.environ | server.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    logs = {log["message"] for log in ask(server, "logs/filter", {})}
    assert {"the task says hello", "the flow says hello"} <= logs
    assert [run["state_type"] for run in ask(server, "flow_runs/filter", {})] == ["COMPLETED"]
    # Task runs are recorded from events, a moment later.
    deadline = time.monotonic() + 40
    while [run["state_type"] for run in ask(server, "task_runs/filter", {})] != ["COMPLETED"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    records = [json.loads(file.read_text()) for file in (home / "results").iterdir()]
    assert [record["metadata"]["serializer"]["type"] for record in records] == ["json"]
    assert not (home / "prefect" / "client.log").exists()


def test_verbose_keeps_prefect_s_own_logging(server: EmbeddedPrefect) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLOW],
        env=os.environ | server.environment(verbose=True),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0
    assert "the flow says hello" in done.stderr


def test_it_listens_on_loopback_only_and_serves_its_pages(server: EmbeddedPrefect) -> None:
    assert server.pid is not None
    listening = [
        c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"
    ]
    assert listening == ["127.0.0.1"]
    root = server.api_url.removesuffix("/api")
    with urllib.request.urlopen(f"{root}/ui-settings", timeout=40) as answer:
        assert json.load(answer)["api_url"] == server.api_url


def test_a_parent_killed_takes_the_server_along(server: EmbeddedPrefect, home: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(home)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert ended(pid, within_s=40)


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_bytes(b"this is no database" * 100)
    with (
        start_embedded_prefect(tmp_path) as server,
        pytest.raises(PrefectServerError, match=r"ended with code 3 .*server\.log:[\s\S]*database"),
    ):
        server.wait()


def test_a_configured_server_is_used_and_nothing_is_started(
    server: EmbeddedPrefect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.api_url)
    with start_embedded_prefect(tmp_path) as configured:
        assert configured.pid is None and not configured.embedded
        assert configured.wait() == server.api_url
        environment = configured.environment()
    assert environment["PREFECT_API_URL"] == server.api_url
    assert "PREFECT_HOME" not in environment  # the user's profile may hold the credentials
    assert server.wait() == server.api_url


def test_a_configured_server_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOSTLINE_START_TIMEOUT", "0.2")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(PrefectServerError) as error:
        start_embedded_prefect(tmp_path).wait()
    assert str(error.value) == (
        "No Prefect server answers at http://127.0.0.1:9/api (PREFECT_API_URL) after 0.2 s "
        "(BOOSTLINE_START_TIMEOUT): [Errno 111] Connection refused. Start it, correct "
        "PREFECT_API_URL, or unset it to use the embedded server."
    )


def test_a_server_of_ours_that_is_not_ready_in_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOSTLINE_START_TIMEOUT", "0.1")
    with start_embedded_prefect(tmp_path) as server, pytest.raises(PrefectServerError) as error:
        server.wait()
    assert str(error.value).startswith(
        "The embedded Prefect server was not ready after 0.1 s (BOOSTLINE_START_TIMEOUT). Start "
        "one with `prefect server start` and name it in PREFECT_API_URL, or try again. The last "
        f"lines of {tmp_path}/prefect/server.log:\n"
    )
    assert server.pid is not None and not psutil.pid_exists(server.pid)
