"""The kind `slurm`, on a real Slurm of one machine: pytest -m long tests/infra/test_slurm.py"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("dask_jobqueue", reason="needs the extra `slurm`")

from infra.cluster import ClusterError, open_cluster
from infra.cluster_plan import Asked, ClusterPlan, ClusterSettingError
from infra.growing import at_full_size
from infra.slurm_cluster import _cluster
from tests.conftest import Boostline
from tests.infra.slurm_site import slurm, squeue

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ("--set", "cluster.kind=slurm", "--set", "cluster.threads=1", "--set")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as p:
        for name, value in environment.items():
            p.setenv(name, value)
        yield environment


@pytest.mark.long
def test_it_trains_the_bytes_of_a_local_cluster(boostline: Boostline, site: dict[str, str]) -> None:
    tiny = ("--set", "boost.n_estimators=30")
    here = boostline.train(*tiny, "--set", "track.experiment=local")
    on_slurm = (*CLUSTER, "cluster.memory_limit=800MiB", "--set", "cluster.queue=night")
    there = boostline.train(*tiny, *on_slurm, BOOSTLINE_HOME=str(boostline.folder / "b"), **site)
    assert there.workers == 2 and there.resumed_from_round == 0
    assert there.model_sha256 == here.model_sha256
    until = time.monotonic() + 80
    while squeue(site):
        assert time.monotonic() < until, "the jobs outlive the run"
        time.sleep(0.3)


@pytest.mark.long
def test_a_training_that_is_a_job_itself(boostline: Boostline, site: dict[str, str]) -> None:
    folder = boostline.folder
    (folder / "demo.toml").write_text('[cluster]\nmemory_limit = "800MiB"\nthreads = 1\n')
    command = folder / "path" / "boostline"
    command.parent.mkdir()
    module = "import sys; from flows.command import main; sys.exit(main())"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{module}' \"$@\"\n")
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    submit = [
        "sbatch",
        "--wait",
        "--output=said.txt",
        str(ROOT / "infra" / "slurm.sh"),
        "demo.toml",
    ]
    done = subprocess.run(
        [*submit, "--set", "boost.n_estimators=30", "--summary", "summary.json"],
        env={**boostline.environment, **site, "PATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=680,
    )
    assert done.returncode == 0, (done.stderr, (folder / "said.txt").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["workers"], summary["rounds"]) == (2, 30)


@pytest.mark.long
def test_a_lost_job_is_asked_for_again(site: dict[str, str], tmp_path: Path) -> None:
    with open_cluster(
        kind="slurm",
        workers=2,
        threads=1,
        memory_limit="500MiB",
        local_directory=tmp_path,
        start_timeout_s=20,
    ) as client:
        gone, (worker, nanny) = next(iter(client.run(_process).items()))
        os.kill(nanny, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        until = time.monotonic() + 240
        while gone in (there := client.nthreads()) or len(there) < 2:
            assert time.monotonic() < until
            time.sleep(0.5)


def _process() -> tuple[int, int]:
    return os.getpid(), os.getppid()


@pytest.mark.long
def test_it_grows_to_its_maximum_while_it_trains(site: dict[str, str], tmp_path: Path) -> None:
    with open_cluster(
        kind="slurm",
        workers=1,
        max_workers=3,
        threads=1,
        memory_limit="500MiB",
        local_directory=tmp_path,
    ) as client:
        assert len(squeue(site)) == 1
        with at_full_size(client):
            assert squeue(site) == ["RUNNING"] * 3
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 3


@pytest.mark.long
def test_a_refused_job_and_a_queue_that_does_not_move(site: dict[str, str], tmp_path: Path) -> None:
    refused = (
        r"^Slurm refuses the job of a worker: sbatch: error: invalid partition specified: nope .*"
        r"It asks for 1 CPUs \(cluster\.threads\), 4GiB \(cluster\.memory_limit\), 0 GPUs "
        r"\(cluster\.gpus\) and 04:00:00 \(cluster\.walltime\) in the partition nope "
        r"\(cluster\.queue\) for the account that is the default \(cluster\.account\)\.$"
    )
    common = {"kind": "slurm", "workers": 1, "threads": 1, "local_directory": tmp_path}
    with (
        pytest.raises(ClusterSettingError, match=refused),
        open_cluster(**common, asked=Asked(queue="nope")),  # type: ignore[arg-type]
    ):
        pass
    waiting = (
        r"^None of the 1 Slurm jobs has brought a worker within 4 s \(cluster\.start_timeout\): "
        r"job \d+ PENDING \(BeginTime\)\. Allow more time where the queue is long\. "
    )
    with (
        pytest.raises(ClusterError, match=waiting),
        open_cluster(
            **common,  # type: ignore[arg-type]
            memory_limit="500MiB",
            start_timeout_s=4,
            asked=Asked(directives=("--begin=now+1hour",)),
        ),
    ):
        pass
    assert squeue(site) == []


def test_the_script_of_a_job(tmp_path: Path) -> None:
    plan = ClusterPlan(
        workers=2,
        threads=4,
        memory_limit="12GiB",
        address=None,
        log_folder=tmp_path,
        scratch_folder=tmp_path,
        dashboard=False,
        start_timeout_s=90,
        worker_ttl_s=25,
        quiet=True,
        environment={"MINE": "two words"},
        asked=Asked(
            gpus=1,
            queue="gpu",
            account="forecast",
            walltime="1-00:00:00",
            prologue=("module load cuda",),
            directives=("--exclusive",),
        ),
    )
    cluster = _cluster(plan)
    try:
        script = cluster.job_script()
    finally:
        cluster.close(timeout=10)
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH -A forecast",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=12G",
        "#SBATCH -t 1-00:00:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --exclusive",
        "module load cuda",
        "export OMP_NUM_THREADS=4",
        "export MINE='two words'",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
    ):
        assert line in script.splitlines()
    command = script.splitlines()[-1]
    assert " -m dask_cuda.cli worker tls://" in command
    assert " --nthreads 4 --memory-limit 12.00GiB " in command
    assert " --enable-cudf-spill --pre-import cudf,cupy,xgboost --rmm-async " in command
    key = tmp_path / "tls_worker_key.pem"
    assert f" --tls-key {key}" in command and key.stat().st_mode & 0o777 == 0o600


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = (
        r"^cluster\.kind='slurm' needs Slurm's commands sbatch, scancel, squeue on the PATH\. Run "
        r"it on a login node, or load Slurm's module\.$"
    )
    with (
        pytest.raises(ClusterSettingError, match=message),
        open_cluster(kind="slurm", local_directory=tmp_path),
    ):
        pass
