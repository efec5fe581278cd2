"""What tests share: real worker processes, started once, and the tables beside the checkout."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.engine.summary import Summary
from tests.mlflow_server import MlflowServer

# before libgomp loads, here and in every process started from here
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a plain mistake shows before the first server starts.

    What needs a GPU is skipped where there is none, with the reason.
    """
    if on_gpu := [item for item in items if item.get_closest_marker("gpu")]:
        from infra.cuda_cluster import no_gpu

        if reason := no_gpu():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes share the tests: all of them by two, which mostly wait for others.

    What is chosen by name or mark runs in this one, where a debugger and `-s` reach it, and where
    a measurement or a GPU is not shared.
    """
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return 2 if everything and config.option.markexpr in config.getini("addopts") else 0


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, kind)
        yield
    finally:
        os.close(file)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` runs while the other processes of pytest-xdist wait before their next.

    Who comes to the gate while it waits for their present tests waits behind it.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    gate, room = Path(__file__), Path(__file__).parent
    if item.get_closest_marker("alone"):
        with _locked(gate, fcntl.LOCK_EX), _locked(room, fcntl.LOCK_EX):
            return (yield)
    with _locked(gate, fcntl.LOCK_SH):
        pass
    with _locked(room, fcntl.LOCK_SH):
        return (yield)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of housing.csv and diamonds.csv."""
    if not (SHARED / "housing.csv").exists():
        pytest.skip(f"the tables of {SHARED} are not here")
    return SHARED


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Four worker processes of one thread each, with nannies that replace a lost one."""
    import dask

    from infra.cluster_plan import SCHEDULER_SETTINGS, WORKER_SETTINGS
    from infra.local_cluster import WorkerProcesses

    with (
        # as the product's: what idle workers do by a timer takes a busy machine a lot of its time
        dask.config.set({**SCHEDULER_SETTINGS, **WORKER_SETTINGS}),
        WorkerProcesses(
            n_workers=4,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            local_directory=str(tmp_path_factory.mktemp("dask")),
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def dask_client(dask_cluster: Any) -> Iterator[Any]:
    from distributed import Client

    with Client(dask_cluster) as client:
        yield client


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prefect server of its own process, on loopback."""
    from infra.prefect_server import start_embedded_prefect

    with start_embedded_prefect(tmp_path_factory.mktemp("prefect-home"), ui=False) as server:
        server.wait()
        yield server


@pytest.fixture(scope="session")
def standing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server with all its services, as `prefect server start` starts it; its API's URL.

    What it does by a timer it does every second or so.
    """
    folder = tmp_path_factory.mktemp("standing-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            env={
                **clean_environment(),
                "PREFECT_HOME": str(folder),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
                "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
            },
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 360
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(120)


@dataclass(frozen=True)
class Boostline:
    """Runs the installed command in a folder of its own, with a home of its own.

    `store` is a home with a fresh MLflow store, copied where a home has none: making one takes
    some seconds, which the tests of the store itself and `boostline_alone` spend.
    """

    folder: Path
    environment: dict[str, str]
    store: Path | None = None

    @property
    def home(self) -> Path:
        return self.folder / ".boostline"

    def command(self, *arguments: str) -> list[str]:
        # the script as pip writes it: worker processes import it once more
        script = self.folder / "bin" / "boostline"
        if not script.exists():  # another process may just be reading it
            script.parent.mkdir(exist_ok=True)
            script.write_text(
                "import sys\nfrom flows.command import main\n"
                'if __name__ == "__main__":\n    sys.exit(main())\n'
            )
        return [sys.executable, str(script), *arguments]

    def start(self, *arguments: str, **more: str) -> "subprocess.Popen[str]":
        environment = {**self.environment, **more}
        home = Path(environment.get("BOOSTLINE_HOME", self.home))
        if self.store and not (home / "mlflow.db").exists():
            shutil.copytree(self.store, home, dirs_exist_ok=True)
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*arguments, **more) as process:
            try:
                out, err = process.communicate(timeout=600)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def train(self, *arguments: str, **more: str) -> Summary:
        """A training that must succeed; its summary."""
        file = self.folder / "summary.json"
        file.unlink(missing_ok=True)
        ran = self("train", "--summary", str(file), *arguments, **more)
        assert ran.returncode == 0, ran.stderr
        return Summary.model_validate_json(file.read_bytes())


def clean_environment() -> dict[str, str]:
    """The environment of a user who has configured nothing."""
    prefixes = ("PREFECT_", "MLFLOW_", "BOOSTLINE_", "DASK_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    root = str(Path(__file__).resolve().parents[1])
    return {**kept, "PYTHONPATH": root, "COLUMNS": "100"}


@pytest.fixture
def boostline_alone(tmp_path: Path) -> Boostline:
    """The command of a user who has configured nothing."""
    return Boostline(tmp_path, clean_environment())


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds a fresh MLflow store and nothing else."""
    from infra.mlflow_store import prepare_mlflow

    home = tmp_path_factory.mktemp("mlflow-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        prepare_mlflow(home)
    return home


@pytest.fixture
def boostline(boostline_beside: Callable[[Path], Boostline], tmp_path: Path) -> Boostline:
    """The command beside a standing Prefect server, which makes a run some seconds shorter."""
    return boostline_beside(tmp_path)


@pytest.fixture(scope="session")
def boostline_beside(prefect_server: Any, mlflow_store: Path) -> Callable[[Path], Boostline]:
    """The same for a folder of one's own choice, for what several tests share."""
    environment = {**clean_environment(), "PREFECT_API_URL": prefect_server.api_url}
    return lambda folder: Boostline(folder, environment, mlflow_store)


@pytest.fixture
def mlflow_server(
    mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copytree(mlflow_store, folder, dirs_exist_ok=True)
    server = MlflowServer(folder)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
