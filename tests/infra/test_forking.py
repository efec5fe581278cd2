"""Workers that are forks of a process which has imported for all of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.cluster import open_cluster
from tests.worker_processes import worker_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems' workers are spawned"),
]

INTERRUPTED = """
import os, signal, sys, time
from infra.cluster import open_cluster
from infra.forking import begin_local

def mask() -> str:
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("SigBlk"))

if __name__ == "__main__":
    begin_local(1, 1, ["pandas"])
    time.sleep(float(sys.argv[1]))
    try:
        os.killpg(0, signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    with open_cluster(workers=1, threads=1, local_directory=sys.argv[2], imports=["pandas"]) as c:
        assert set(c.run(mask).values()) == {"0" * 16}, c.run(mask)
        (parent,) = c.run(os.getppid).values()
        assert parent != os.getpid(), "no fork"
        try:
            os.killpg(0, signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            print("again", flush=True)
        print(c.submit(sum, [1, 2]).result())
"""


SPAWNED = """
import os, sys
from infra.cluster import open_cluster
if __name__ == "__main__":
    with open_cluster(workers=1, threads=1, local_directory=sys.argv[1]) as client:
        print(list(client.run(os.getppid).values()) == [os.getpid()])
"""


LOST = """
import os, signal, sys, threading, time
import psutil
from infra.cluster import open_cluster

def lose() -> None:
    while True:
        for child in psutil.Process().children():
            if "forkserver" in " ".join(child.cmdline()):
                time.sleep(float(sys.argv[1]))
                child.send_signal(signal.SIGKILL)
                return
        time.sleep(0.005)

if __name__ == "__main__":
    losing = threading.Thread(target=lose)
    losing.start()
    with open_cluster(workers=2, threads=1, local_directory=sys.argv[2], imports=["pandas"]) as c:
        losing.join()
        c.wait_for_workers(2, timeout=60)
        print(len(c.nthreads()), c.submit(sum, [1, 2]).result())
"""


def variable(name: str) -> str | None:
    return os.environ.get(name)


def has_imported(name: str) -> bool:
    return name in sys.modules


def test_they_end_with_that_process_and_are_replaced() -> None:
    with open_cluster(workers=2, threads=1) as client:
        workers = worker_processes(os.getpid())
        (server,) = {worker.ppid() for worker in workers}
        assert server != os.getpid()
        os.kill(server, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
        deadline = time.monotonic() + 60
        while len(client.run(os.getpid, on_error="ignore")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.submit(sum, [1, 2], pure=False).result(timeout=60) == 3
        assert len(worker_processes(os.getpid())) == 2
        assert list(client.run(has_imported, "infra.forked").values()) == [True, True]


@pytest.mark.parametrize("after_s", [0.05, 0.3])
def test_that_process_is_lost_while_they_start(tmp_path: Path, after_s: float) -> None:
    """While it imports, and their nannies wait for it."""
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    ended = subprocess.run(
        [sys.executable, str(script), str(after_s), str(tmp_path / "dask")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (0, "2 3\n"), ended.stderr


def test_they_have_the_environment_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_cluster(workers=1, threads=1):
        pass
    with open_cluster(workers=1, threads=1, imports=["colorsys"]) as client:
        assert list(client.run(os.getppid).values()) == [os.getpid()]  # not what was imported
    monkeypatch.setenv("MINE", "since then")
    with open_cluster(workers=1, threads=1) as client:
        assert list(client.run(variable, "MINE").values()) == ["since then"]
        # which would change what a user's own processes find
        assert list(client.run(variable, "PYTHONSAFEPATH").values()) == [None]


def test_where_their_socket_has_no_place_they_are_spawned(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "dask")],
        env={**os.environ, "TMPDIR": str(folder)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("after_s", [0.02, 0.3])
def test_ctrl_c_meets_none_of_them_nor_a_users_module(tmp_path: Path, after_s: float) -> None:
    (tmp_path / "distributed.py").write_text("raise SystemExit('the wrong module')\n")
    script = tmp_path / "elsewhere" / "interrupted.py"
    script.parent.mkdir()
    script.write_text(INTERRUPTED)
    ended = subprocess.run(
        [sys.executable, str(script), str(after_s), str(tmp_path / "dask")],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert (ended.returncode, ended.stdout) == (0, "interrupted\nagain\n3\n"), ended.stderr
    assert ended.stderr == ""
