"""Opening and closing Dask clusters."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import dask
import psutil
import pytest
from distributed import LocalCluster
from distributed.scheduler import KilledWorker

from infra.address_cluster import different_versions
from infra.cluster import EXTRAS, ClusterError, open_cluster, send_user_folder, send_variables
from infra.cluster_plan import ClusterSettingError
from infra.growing import at_full_size
from tests.worker_processes import worker_processes

pytestmark = pytest.mark.slow

QUIET_RUN = """
import os, signal, sys, time
from infra.cluster import open_cluster
def shout() -> None:
    print("a worker prints", flush=True)
    os.system("echo native code prints")
if __name__ == "__main__":
    with open_cluster(threads=1, local_directory=sys.argv[1]) as client:
        client.submit(shout).result()
        lost = client.submit(time.sleep, 60, pure=False, workers=list(client.run(os.getpid))[:1])
        time.sleep(0.3)
        for pid in client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        lost.exception()
        client.wait_for_workers(2, timeout=120)
"""


def worker_variables() -> dict[str, str | None]:
    names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: os.environ.get(name) for name in (*names, "MINE")}


def worker_path() -> list[str]:
    return list(sys.path)


def has_imported(name: str) -> bool:
    return name in sys.modules


def workers_here() -> set[int]:
    return {worker.pid for worker in worker_processes(os.getpid())}


def test_a_local_cluster_from_open_to_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # cluster.threads decides, not the user's shell
    before = workers_here()
    with open_cluster(
        workers=2,
        threads=1,
        local_directory=tmp_path / "scratch",
        environment={"MINE": "yes"},
        imports=["colorsys"],
    ) as client:
        started = workers_here() - before
        assert len(started) == 2
        assert list(client.nthreads().values()) == [1, 1]
        expected = {
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "MINE": "yes",
        }
        assert list(client.run(worker_variables).values()) == [expected] * 2
        send_user_folder(client, tmp_path)
        for path in client.run(worker_path).values():
            assert path.index(str(tmp_path)) == len(path) - 1
        deadline = time.monotonic() + 40
        while not all(client.run(has_imported, "colorsys").values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for pid in (*started, os.getpid()):
            listening = [
                c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"
            ]
            assert set(listening) <= {"127.0.0.1", "::1"}
        # A task that does not end must not hold the closing up.
        client.submit(time.sleep, 60, pure=False)
        time.sleep(0.2)
        closing = time.monotonic()
    assert time.monotonic() - closing < 20
    assert workers_here() == before
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MINE" not in os.environ
    assert [path for path in (tmp_path / "scratch").iterdir() if path.is_dir()] == []


def test_a_lost_worker_fails_its_task_and_its_successor_knows_the_folder(tmp_path: Path) -> None:
    with open_cluster(workers=1, threads=1) as client:
        send_user_folder(client, tmp_path)
        (pid,) = client.run(os.getpid).values()
        lost = client.submit(time.sleep, 60, pure=False)
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(KilledWorker):
            lost.result(timeout=40)
        deadline = time.monotonic() + 120
        while list(client.run(os.getpid).values()) in ([], [pid]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (path,) = client.run(worker_path).values()
        assert path[-1] == str(tmp_path)


def test_a_worker_that_is_lost_twice_comes_back_twice() -> None:
    """Dask looks some time after a loss, and gives up for good who is just starting again."""
    after_s = 4.0
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": f"{after_s}s"}),
        open_cluster(workers=1, threads=1) as client,
    ):
        scheduler = cast(LocalCluster, client.cluster).scheduler
        (first,) = client.run(os.getpid).values()
        os.kill(first, signal.SIGKILL)
        while scheduler.workers:
            time.sleep(0.01)
        lost = time.monotonic()
        client.wait_for_workers(1, timeout=120)
        (second,) = client.run(os.getpid).values()
        time.sleep(max(0.0, lost + after_s - 0.3 - time.monotonic()))
        os.kill(second, signal.SIGKILL)
        while scheduler.workers:
            time.sleep(0.01)
        client.wait_for_workers(1, timeout=120)
        assert set(client.run(os.getpid).values()).isdisjoint({first, second})


def test_nothing_reaches_the_terminal(tmp_path: Path) -> None:
    script = tmp_path / "quiet_run.py"
    script.write_text(QUIET_RUN)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "scratch")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    said = (tmp_path / "scratch" / "workers.log").read_text()
    assert "a worker prints\n" in said and "native code prints\n" in said
    assert "Restarting worker" in (tmp_path / "scratch" / "dask.log").read_text()


def test_workers_end_with_a_killed_driver(tmp_path: Path) -> None:
    script = tmp_path / "killed_driver.py"
    script.write_text(
        "import os\nfrom infra.cluster import open_cluster\n"
        "if __name__ == '__main__':\n"
        f"    with open_cluster(local_directory={str(tmp_path)!r}) as client:\n"
        "        print(*client.run(os.getpid).values(), flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pids = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(pids) == 2
    deadline = time.monotonic() + 40
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("hit", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_worker_that_is_lost_while_it_starts_is_started_anew(
    hit: signal.Signals, tmp_path: Path
) -> None:
    hits: list[int] = []
    before = workers_here()  # workers of other tests

    def strike() -> None:
        deadline = time.monotonic() + 120
        while not hits and time.monotonic() < deadline:
            for pid in workers_here() - before:
                with suppress(ProcessLookupError):
                    os.kill(pid, hit)
                    hits.append(pid)
                    return
            time.sleep(0.005)

    striker = threading.Thread(target=strike)
    striker.start()
    with open_cluster(
        threads=1, local_directory=tmp_path, start_timeout_s=48, worker_ttl_s=1
    ) as client:
        pids = client.run(os.getpid).values()
    striker.join()
    assert len(hits) == 1 and len(pids) == 2 and hits[0] not in pids


def test_a_running_scheduler_is_used_and_left_running() -> None:
    with open_cluster(workers=1, threads=1) as owner:
        address = owner.scheduler_info()["address"]
        with open_cluster(kind="address", address=address) as client:
            assert client.submit(sum, [1, 2]).result(timeout=40) == 3
            found = cast(dict[str, Any], client.get_versions(packages=["xgboost", "numpy"]))
        assert owner.submit(sum, [2, 3]).result(timeout=40) == 5
    assert different_versions(found) == []
    (worker,) = found["workers"]
    found["workers"][worker]["packages"]["xgboost"] = "0.1"
    ours = found["client"]["packages"]["xgboost"]
    assert different_versions(found) == [f"xgboost {ours} here, 0.1 on worker {worker}"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"kind": "locl"},
            r"Unknown cluster\.kind 'locl'\. There are 'address', 'cuda', 'kubernetes', 'local', "
            r"'slurm'\. Did you mean 'local'\?",
            id="unknown kind",
        ),
        pytest.param(
            {"kind": "address"},
            r"cluster\.kind='address' needs cluster\.address, as in 'tcp://scheduler:8786'\.",
            id="no address",
        ),
        pytest.param(
            {"kind": "address", "address": "tcp://127.0.0.1:9", "start_timeout_s": 0.5},
            r"No Dask scheduler answers at tcp://127\.0\.0\.1:9 \(cluster\.address\) after \d s: "
            r".*cluster\.start_timeout \(now 0\.5 s\)\.",
            id="unreachable",
        ),
        pytest.param(
            {"kind": "address", "address": "nonsense://x:1", "start_timeout_s": 0.5},
            r"No Dask scheduler answers at nonsense://x:1 \(cluster\.address\)",
            id="unknown protocol",
        ),
        pytest.param(
            {"kind": "local", "address": "tcp://127.0.0.1:9"},
            r"cluster\.address='tcp://127\.0\.0\.1:9' is given but cluster\.kind is 'local'",
            id="address of a local cluster",
        ),
        pytest.param(
            {"workers": 0},
            r"at least one worker and one thread: cluster\.workers=0",
            id="no workers",
        ),
    ],
)
def test_what_cannot_be_opened_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ClusterError, match=message), open_cluster(**settings):  # type: ignore[arg-type]
        pass


def test_a_scheduler_without_workers_is_named() -> None:
    with open_cluster(workers=1, threads=1) as owner:
        address = owner.scheduler_info()["address"]
        cast(LocalCluster, owner.cluster).scale(0)
        deadline = time.monotonic() + 40
        while owner.scheduler_info()["workers"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with (
            pytest.raises(ClusterError, match=r"has no worker after 1 s \(cluster\.start_timeout"),
            open_cluster(kind="address", address=address, start_timeout_s=1),
        ):
            pass


def test_it_grows_for_a_training_and_gives_idle_workers_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("infra.growing.PATIENCE_LOOKS", 3)
    with open_cluster(workers=1, max_workers=2, threads=1) as client:
        with at_full_size(client):
            assert len(client.nthreads()) == 2
            time.sleep(5)  # idle for longer than its patience, and nobody is sent away
            assert len(client.nthreads()) == 2
        deadline = time.monotonic() + 80
        while len(client.nthreads()) == 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert client.submit(sum, [1, 2], pure=False).result(timeout=80) == 3


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "slurm", "dask_jobqueue_is_not_here")
    message = (
        r"^cluster\.kind='slurm' needs the package dask-jobqueue-is-not-here, which is not "
        r"installed\. Install it with: pip install 'boostline\[slurm\]'$"
    )
    with pytest.raises(ClusterSettingError, match=message), open_cluster(kind="slurm"):
        pass


def test_runs_on_one_cluster_leave_each_other_their_variables() -> None:
    names = ("BOOSTLINE_TEST_ONE", "BOOSTLINE_TEST_TWO")
    with open_cluster(workers=1, threads=1) as client:
        send_variables(client, {names[0]: "1"})
        send_variables(client, {names[1]: "2"})
        send_variables(client, {})
        for name, value in zip(names, "12", strict=True):
            assert list(client.run(os.getenv, name).values()) == [value]
        for value in "313":  # and of two that name the same each has its own
            send_variables(client, {names[0]: value})
            assert list(client.run(os.getenv, names[0]).values()) == [value]
        send_variables(client, dict.fromkeys(names, "old"))
        send_variables(client, {names[0]: "new"})
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while list(client.run(os.getpid, on_error="ignore").values()) in ([], [pid]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert list(client.run(os.getenv, names[0]).values()) == ["new"]
