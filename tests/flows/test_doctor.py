"""What the doctor says of real services."""

import importlib.metadata
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flows.doctor import Finding, _elsewhere, _installation
from flows.reach import own_addresses
from infra.cluster import EXTRAS
from tasks.engine.cluster_config import ClusterConfig
from tests.conftest import Boostline
from tests.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow


def test_all_is_well_with_nothing_set_up(boostline_alone: Boostline) -> None:
    ran = boostline_alone("doctor")
    assert ran.returncode == 0, ran.stdout
    lines = ran.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["✓", name]
        for name in (
            *("Python", "Packages", "XGBoost", "GPU", "Machine", "Home", "Disk"),
            *("MLflow", "Prefect", "Dask"),
            *["Ports"] * (len(lines) - 10),
        )
    ]
    assert not boostline_alone.home.exists()


def test_services_that_do_not_answer_are_named(boostline_alone: Boostline) -> None:
    ran = boostline_alone(
        "doctor", "--set", "cluster.kind=address", "--set", "cluster.address=tcp://127.0.0.1:1",
        MLFLOW_TRACKING_URI="http://me:s3cret@127.0.0.1:1",
    )  # fmt: skip
    assert ran.returncode == 1
    assert "✗ MLflow    http://***@127.0.0.1:1 does not answer\n" in ran.stdout
    assert "✗ Dask      tcp://127.0.0.1:1 does not answer" in ran.stdout
    assert "s3cret" not in ran.stdout + ran.stderr


def test_places_that_cannot_be_reached_are_named(boostline_alone: Boostline) -> None:
    ran = boostline_alone(
        "doctor", "--set", "cluster.kind=kubernetes", "--set", "cluster.image=boostline:cpu",
        "--set", "cluster.allow_insecure=true",
        BOOSTLINE_HOME="nosuch://bucket/home",
        MLFLOW_TRACKING_URI="postgresql+psycopg2://me:s3cret@127.0.0.1:1/mlflow",
        KUBECONFIG=str(boostline_alone.folder / "missing"),
    )  # fmt: skip
    assert ran.returncode == 1
    told = ran.stdout
    assert "✗ Home      nosuch://bucket/home\n" in told
    assert "Protocol not known: nosuch" in told and "correct BOOSTLINE_HOME, or unset it." in told
    assert "✗ Dask      Kubernetes does not answer (cluster.kind='kubernetes'): " in told
    assert "name a kubeconfig in KUBECONFIG." in told
    assert "s3cret" not in told + ran.stderr
    if find_spec("psycopg2"):
        assert "✗ MLflow    postgresql+psycopg2://***@127.0.0.1:1/mlflow does not answer (" in told


def test_a_package_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "2.12" if name == "prefect" else known(name)
    )
    packages = next(found for found in _installation() if found.what == "Packages")
    assert packages == Finding(
        "Packages",
        "not what Boostline needs: prefect 2.12",
        "pip install -c constraints.txt -e .",
    )


@pytest.mark.skipif(not own_addresses(), reason="this host has no address but loopback")
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_service_that_is_open_to_others_is_told(
    boostline: Boostline, prefect_server: Any, mlflow_store: Path, tmp_path: Path, host: str
) -> None:
    shutil.copytree(mlflow_store, tmp_path, dirs_exist_ok=True)
    server = MlflowServer(tmp_path, host)
    server.start()
    try:
        server.wait()
        ran = boostline("doctor", MLFLOW_TRACKING_URI=server.uri)
    finally:
        server.kill()
    assert f"✓ Prefect   {prefect_server.api_url}, no password, loopback only" in ran.stdout
    if host == "127.0.0.1":
        assert ran.returncode == 0, ran.stdout
        assert f"✓ MLflow    {server.uri}, no password, loopback only" in ran.stdout
    else:
        assert ran.returncode == 1
        assert (
            f"✗ MLflow    {server.uri} is open: anyone who reaches "
            f"{own_addresses()[0]}:{server.port} may use it"
        ) in ran.stdout


def test_workers_that_slurm_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs the extra `slurm`")
    cluster = ClusterConfig(kind="slurm", workers=4)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = Finding("Dask", "Slurm's sbatch is not on the PATH", "Run it on a login node.")
    assert _elsewhere(cluster) == missing
    (tmp_path / "sbatch").touch(mode=0o755)
    assert _elsewhere(cluster) == Finding("Dask", "4 jobs of Slurm, started for each run")
    monkeypatch.setitem(EXTRAS, "slurm", "dask_jobqueue_is_not_here")
    assert _elsewhere(cluster) == Finding(
        "Dask",
        "cluster.kind=slurm needs a package that is not installed",
        "pip install 'boostline[slurm]'",
    )
