"""`boostline up` with all its services, and the commands that look at them and at runs."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy

from infra.services import running
from infra.up import Ports
from tests.conftest import Boostline, clean_environment

pytestmark = pytest.mark.slow

PGWORD = "s3cret-of-the-database"
SMALL = ("--set", "evaluate.bootstrap=0")


class Up:
    """A started `boostline up`: what it has printed, and every process that came of it."""

    def __init__(self, boostline: Boostline, *arguments: str, **more: str) -> None:
        self.boostline = boostline
        free = ("--prefect-port", "0", "--mlflow-port", "0", "--dask-port", "0")
        self.process = boostline.start("up", *free, *arguments, **more)
        self.output = ""
        self._seen: dict[int, psutil.Process] = {}
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if line.startswith("Ctrl-C"):
                break
        else:
            assert self.process.stderr
            raise AssertionError(self.output + self.process.stderr.read())
        services = running(boostline.home)
        assert services and services.ready
        self.services = services

    def processes(self) -> list[psutil.Process]:
        """All that were seen so far, by what they are and when they began, gone or not."""
        if psutil.pid_exists(self.process.pid):
            own = psutil.Process(self.process.pid)
            for each in [own, *own.children(recursive=True)]:
                self._seen.setdefault(each.pid, each)
        return list(self._seen.values())

    def end(self, signum: int) -> int:
        self.processes()
        self.process.send_signal(signum)
        out, _ = self.process.communicate(timeout=240)
        self.output += out
        return self.process.returncode


def left(processes: list[psutil.Process], within_s: float) -> list[str]:
    """What is left of them after so long; a process that only waits to be reaped is gone."""
    deadline = time.monotonic() + within_s
    while living := [each for each in processes if _lives(each)]:
        if time.monotonic() > deadline:
            return [" ".join(each.cmdline()) for each in living]
        time.sleep(0.1)
    return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ask(url: str, body: Any = None, **headers: str) -> Any:
    """The answer as JSON where it is that; the status of one that is refused."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=40) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code
    return json.loads(text) if text.startswith(("{", "[")) else text


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Boostline:
    """The command in a folder of its own, with a loader of the user's that takes its time."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "mine.py").write_text("import time\n\ndef slow():\n    time.sleep(600)\n")
    return Boostline(folder, clean_environment(), mlflow_store)


@pytest.fixture(scope="module")
def up(alone: Boostline) -> Iterator[Up]:
    started = Up(alone)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def test_killed_while_it_starts_it_leaves_no_process(alone: Boostline, tmp_path: Path) -> None:
    free = ("--prefect-port", "0", "--mlflow-port", "0", "--dask-port", "0")
    with alone.start("up", *free, BOOSTLINE_HOME=str(tmp_path)) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("✓ Dask"):
            assert process.poll() is None
        ours = psutil.Process(process.pid).children(recursive=True)
        names = " ".join(" ".join(each.cmdline()) for each in ours)
        assert "prefect_child.py" in names and "multiprocessing" in names, names
        process.kill()
    assert left(ours, within_s=80) == []
    assert running(tmp_path) is None  # though its file is still there
    assert (tmp_path / "services.json").exists()


@pytest.mark.long
def test_killed_it_leaves_no_process(alone: Boostline) -> None:
    up = Up(alone)
    names = " ".join(" ".join(each.cmdline()) for each in up.processes())
    for part in ("prefect_child.py", "mlflow server", "uvicorn", "worker start", "multiprocessing"):
        assert part in names, names
    assert up.end(signal.SIGKILL) == -signal.SIGKILL
    assert left(up.processes(), within_s=80) == []
    assert running(alone.home) is None


def test_every_service_answers_under_its_own_name_alone(up: Up) -> None:
    services = up.services
    for name, address in (
        ("Prefect", services.pages),
        ("MLflow", services.mlflow),
        ("Dask", services.dashboard),
        ("Worker", "work pool 'boostline'"),
    ):
        assert re.search(rf"^✓ {name} +{re.escape(address)} +[\d.]+ s$", up.output, re.MULTILINE)
    exports = f"  export PREFECT_API_URL={services.prefect} MLFLOW_TRACKING_URI={services.mlflow}\n"
    assert exports in up.output
    runs = f"{services.prefect}/flow_runs/filter"
    experiments = f"{services.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    assert "<html" in ask(services.pages) and "<html" in ask(services.mlflow)
    assert "<html" in ask(services.dashboard)
    assert isinstance(ask(runs, {}), list) and "experiments" in ask(experiments)
    assert ask(runs, {}, Host="evil.example") == 400
    assert ask(experiments, Host="evil.example") == 403
    make = f"{services.mlflow}/api/2.0/mlflow/experiments/create"
    assert ask(make, {"name": "x"}, Origin="http://evil.example") == 403
    preflight = urllib.request.Request(
        runs,
        method="OPTIONS",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(preflight, timeout=40)


def test_a_second_one_in_the_same_home_says_where_the_first_is(up: Up) -> None:
    ran = up.boostline("up")
    services = up.services
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        f"The services of {up.boostline.home} are up already (process {up.process.pid} on "
        f"{socket.gethostname()}, since {services.started}): Prefect {services.pages}, MLflow "
        f"{services.mlflow}, Dask {services.dashboard}. Stop them with Ctrl-C there, or with: "
        f"kill {up.process.pid}\n"
    )


def test_a_port_that_is_taken_is_one_message(alone: Boostline, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ports = ("--prefect-port", "0", "--mlflow-port", str(port), "--dask-port", str(port))
        ran = alone("up", *ports, BOOSTLINE_HOME=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    who = rf"process {os.getpid()} \(.*\) listens there\."
    assert re.fullmatch(
        rf"Port {port} \(--mlflow-port\) is taken: {who}\n"
        rf"Port {port} \(--dask-port\) is taken: {who}\n"
        rf"Stop what listens there, or choose another: --mlflow-port {port + 1}, or 0 for a free "
        r"one\.\n",
        ran.stderr,
    )


def test_a_training_in_the_home_takes_the_services_and_is_remembered(up: Up) -> None:
    boostline, services = up.boostline, up.services
    ran = boostline("train", *SMALL, "--set", "track.model=up", "--set", "track.run_name=first")
    assert ran.returncode == 0, ran.stderr
    start = r"^✓ start +[\d.]+ s   Prefect and MLflow of boostline up$"
    assert re.search(start, ran.stderr, re.MULTILINE)
    found = re.search(r"MLflow +run (\w+), .*\n +(\S+)\n", ran.stdout)
    assert found and found[2] == f"{services.mlflow}/#/runs/{found[1]}"
    flow_runs = ask(f"{services.prefect}/flow_runs/filter", {})
    assert [run["state_type"] for run in flow_runs] == ["COMPLETED"]
    assert f"{services.pages}/flow-runs/flow-run/{flow_runs[0]['id']}" in ran.stdout

    # the cluster's pages outlive the run, so its report leads to them
    pages = ask(f"{services.prefect}/artifacts/filter", {})
    (report,) = (page["data"] for page in pages if page["key"] == "up-report")
    assert f"[Dask dashboard]({services.dashboard})" in report

    listed = boostline("runs")
    assert re.search(
        rf"^{found[1][:8]} +\w+ \d\d \d\d:\d\d +finished +0\.9\d+ +1,000 +[\d.]+ s +up/1 +first *$",
        listed.stdout,
        re.MULTILINE,
    ), listed.stdout + listed.stderr
    # as train showed it, from the table of metrics to where the model is
    shown = boostline("show", found[1][:6])
    told = ran.stdout[: ran.stdout.index("Version")].strip()
    assert told in shown.stdout, shown.stdout + shown.stderr
    for line in (
        "Run      first\n",
        "Version  up/1\n",
        f"         {services.mlflow}/#/runs/{found[1]}\n",
        f"         {services.pages}/flow-runs/flow-run/{flow_runs[0]['id']}\n",
        f"cluster.address = {services.dask}\n",  # it ran on the cluster that is up
        "evaluate.bootstrap = 0\n",
        "track.model = up\n",
    ):
        assert line in shown.stdout
    assert "boost." not in shown.stdout


def test_status_and_doctor_name_the_services(up: Up) -> None:
    boostline, services = up.boostline, up.services
    ran = boostline("status")
    lines = {line[2:11].strip() or "cause": line[12:] for line in ran.stdout.splitlines()}
    assert ran.returncode == 0, ran.stdout
    assert lines["Services"].startswith(f"of boostline up (process {up.process.pid}, since ")
    assert re.fullmatch(rf"{services.pages}, version 3\.\S+", lines["Prefect"])
    assert re.fullmatch(rf"{services.mlflow}, version 3\.\S+", lines["MLflow"])
    assert re.fullmatch(rf"{services.dashboard}, version \S+, 2 workers", lines["Dask"])
    assert lines["Worker"] == "work pool 'boostline', online"
    assert lines["Running"] == "nothing"
    assert re.search(r": finished, started .* UTC, test R² 0\.9\d+$", lines["Last run"])
    elsewhere = boostline("status", PREFECT_API_URL="http://127.0.0.1:1/api")
    assert elsewhere.returncode == 1
    assert "✗ Prefect   http://127.0.0.1:1 (PREFECT_API_URL) does not answer\n" in elsewhere.stdout
    doctor = boostline("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert f"✓ Prefect   {services.prefect}, no password, loopback only" in doctor.stdout
    assert f"✓ MLflow    {services.mlflow}, no password, loopback only" in doctor.stdout
    assert f"✓ Dask      {services.dask}, loopback only" in doctor.stdout


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The URL of a database of a PostgreSQL server of its own, with `${PGWORD}` as the password."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(installed[-1]) if installed else None)
    if found is None:
        pytest.skip("PostgreSQL's server (initdb) is not installed")
    port = Ports(0, 0, 0).free(dask=False).prefect
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # not below pytest's, which is this user's alone
    (folder / "word").write_text(PGWORD)
    # PostgreSQL does not run as root
    user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "word", "postgres")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    control = [str(Path(found).with_name("pg_ctl")), "-D", "data", "-w", "-l", "log"]

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, **user)

    run(found, "-D", "data", "-U", "me", "--auth=scram-sha-256", "--pwfile=word")
    run(*control, "-o", options, "start")
    try:
        yield f"postgresql://me:${{PGWORD}}@127.0.0.1:{port}/postgres"
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.long
def test_with_postgresql_both_keep_all_of_it_there(
    boostline_alone: Boostline, postgres: str
) -> None:
    refused = boostline_alone("up", "--postgres", postgres, PGWORD="not-the-word")
    shown = postgres.replace("${PGWORD}", "***")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        f"--postgres '{shown}': the database does not let us in: connection failed: "
    )
    up = Up(boostline_alone, "--postgres", postgres, "--no-dask", PGWORD=PGWORD)
    try:
        assert f"The database is {shown}; artifacts are kept in" in up.output
        ran = boostline_alone("train", *SMALL, "--set", "track.model=pg")
        assert ran.returncode == 0, ran.stderr
        assert not list(boostline_alone.home.rglob("*.db"))
        url = postgres.replace("${PGWORD}", PGWORD).replace("postgresql:", "postgresql+psycopg:")
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            for states, state in (
                ("SELECT status FROM mlflow.runs", "FINISHED"),
                ("SELECT state_type::text FROM prefect.flow_run", "COMPLETED"),
            ):
                assert connection.execute(sqlalchemy.text(states)).scalars().all() == [state]
        engine.dispose()
        assert re.search(r" finished .* pg/1 ", boostline_alone("runs").stdout)
        assert up.end(signal.SIGTERM) == 0
        assert left(up.processes(), within_s=15) == []
    finally:
        up.process.kill()
        up.process.communicate()
    for file in [*boostline_alone.home.rglob("*.log"), *boostline_alone.home.rglob("*.json")]:
        assert PGWORD not in file.read_text(), file
    assert PGWORD not in up.output + ran.stdout + ran.stderr + refused.stderr


@pytest.mark.long
def test_ctrl_c_ends_a_deployed_run_too_and_leaves_no_process(up: Up) -> None:
    """The last one: the services are gone after it."""
    boostline, services = up.boostline, up.services
    ran = boostline("deploy", "--data", "mine:slow", "--target", "y", "--name", "slow")
    assert ran.returncode == 0, ran.stderr
    made = ask(f"{services.prefect}/deployments/name/boostline-train/slow")
    # standing where the user stands, the run finds the user's loader
    ask(
        f"{services.prefect}/deployments/{made['id']}/create_flow_run",
        {"state": {"type": "SCHEDULED"}},
    )
    deadline = time.monotonic() + 240
    while "Running   MLflow run" not in (status := boostline("status").stdout):
        assert time.monotonic() < deadline, status
    assert len([each for each in up.processes() if "prefect" in " ".join(each.cmdline())]) > 3
    assert up.end(signal.SIGINT) == 0
    assert up.output.endswith("Stopped.\n") and "! 1 run under way in this home" in up.output
    assert left(up.processes(), within_s=15) == []
    assert not (boostline.home / "services.json").exists()
    # killed by its own word; one that had no time for it is told as crashed, not as running
    shown = boostline("show", "last").stdout
    assert re.search(r"^State    (killed|crashed), started ", shown, re.MULTILINE), shown
