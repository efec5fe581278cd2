"""Which services are up: the file, the lock that proves it, ports, and the end of a command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.postgres import PostgresError, open_database
from infra.service_process import ServiceError, ServiceProcess, watched
from infra.services import ServicesUpError, claimed, running
from infra.up import Ports, PortsTakenError

ORPHAN = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
    " start_new_session=True)\n"
    "print('ready', flush=True)\n"
)
PARENT = (
    "import subprocess, sys, time\n"
    "from infra.service_process import watched\n"
    f"command = [sys.executable, '-c', {ORPHAN + 'time.sleep(600)'!r}]\n"
    "subprocess.Popen(watched(command, 1.0), start_new_session=True)\n"
    "time.sleep(600)\n"
)


def test_what_is_told_counts_as_long_as_the_claim_is_held(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    with claimed(tmp_path, "2026-01-01T00:00:00+00:00") as claim:
        found = running(tmp_path)
        assert found and not found.ready and found.pid == os.getpid()
        claim.tell(ready=True, mlflow="http://127.0.0.1:5000")
        found = running(tmp_path)
        assert found and found.ready and found.mlflow == "http://127.0.0.1:5000"
        with pytest.raises(ServicesUpError) as refused, claimed(tmp_path, ""):
            pass
        assert refused.value.services == found
        kept = (tmp_path / "services.json").read_text()
    (tmp_path / "services.json").write_text(kept)  # as a process that was killed leaves it
    assert running(tmp_path) is None


def test_services_on_another_host_are_none_of_ours(tmp_path: Path) -> None:
    with claimed(tmp_path, "") as claim:
        claim.tell(ready=True, host="elsewhere")
        assert running(tmp_path) is None


def test_a_port_is_given_to_one_service_alone() -> None:
    free = Ports(0, 0, 0).free(dask=True)
    assert len({free.prefect, free.mlflow, free.dashboard}) == 3 and free.prefect > 0
    with pytest.raises(PortsTakenError) as refused:
        Ports(free.prefect, free.prefect, free.prefect).free(dask=False)
    assert str(refused.value) == (
        f"Port {free.prefect} (--mlflow-port) is taken: another of these services has it.\n"
        f"Stop what listens there, or choose another: --mlflow-port {free.prefect + 1}, "
        "or 0 for a free one."
    )


def service(folder: Path, code: str, ready: Path, limit: float) -> ServiceProcess:
    return ServiceProcess(
        "The example", [sys.executable, "-c", code], environment=dict(os.environ), folder=folder,
        log_file=folder / "example.log", is_ready=ready.exists, startup_timeout_s=limit,
        way_out="(--timeout).",
    )  # fmt: skip


def test_a_service_that_ends_or_is_too_slow_is_told_with_its_last_lines(tmp_path: Path) -> None:
    log = f"The last lines of {tmp_path / 'example.log'}:\n"
    ended = service(tmp_path, "print('no disk'); raise SystemExit(4)", tmp_path / "never", 30)
    with pytest.raises(ServiceError) as told:
        ended.wait()
    assert str(told.value) == f"The example ended with code 4 before it was ready. {log}no disk"
    slow = service(tmp_path, "import time; time.sleep(60)", tmp_path / "never", 0.2)
    with pytest.raises(ServiceError) as told:
        slow.wait()
    assert str(told.value) == f"The example was not ready after 0.2 s (--timeout). {log}(empty)"
    assert not psutil.pid_exists(slow.pid)


@pytest.mark.parametrize("parent_dies", [False, True], ids=["stopped", "its parent is killed"])
def test_what_a_watched_command_leaves_behind_ends_with_it(parent_dies: bool) -> None:
    """Though it has a session of its own and its parent is gone, as Prefect's flow runs do."""
    if parent_dies:
        command = [sys.executable, "-c", PARENT]
    else:
        command = watched([sys.executable, "-c", ORPHAN + "time.sleep(600)"], 1.0)
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    ) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        ours = psutil.Process(process.pid).children(recursive=True)
        assert len(ours) == 2 + parent_dies
        process.send_signal(signal.SIGKILL if parent_dies else signal.SIGTERM)
        process.stdout.close()
    deadline = time.monotonic() + 80
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in ours):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_that_ends_takes_what_it_left_along() -> None:
    before = set(psutil.Process().children(recursive=True))
    done = subprocess.run(watched([sys.executable, "-c", f"{ORPHAN}sys.exit(5)"], 1.0), check=False)
    assert done.returncode == 5
    after = set(psutil.Process().children(recursive=True))
    assert not [each for each in after - before if each.is_running()]


@pytest.mark.parametrize(
    "url", ["mysql://db/x", "postgresql://me@db", "not a url", "postgresql://me:p@ss:w0rd@db/b"]
)
def test_only_a_postgresql_database_is_taken(url: str) -> None:
    with pytest.raises(PostgresError) as refused:
        open_database(url)
    assert str(refused.value) == (
        "it is not the URL of a PostgreSQL database. It should read "
        "postgresql://USER:${PASSWORD_VARIABLE}@HOST:5432/DATABASE, with @, : and / of a "
        "password as %40, %3A and %2F"
    )
