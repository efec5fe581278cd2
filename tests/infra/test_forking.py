"""Workers that are forks of a process which has imported for all of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


REPLACED = """
import os, signal, sys, time
import psutil
from infra.cluster import open_cluster

def has_imported(name):
    return name in sys.modules

if __name__ == "__main__":
    with open_cluster(workers=2, threads=1, local_directory=sys.argv[1]) as client:
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        (server,) = {worker.ppid() for worker in workers}
        assert server != os.getpid()
        os.kill(server, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
        until = time.monotonic() + 60
        while len(client.run(os.getpid, on_error="ignore")) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert list(client.run(has_imported, "infra.forked").values()) == [True, True]
        assert server not in client.run(os.getppid).values()
        print(client.submit(sum, [1, 2], pure=False).result(timeout=60))
"""

ENVIRONMENT = """
import os, sys
from infra.cluster import open_cluster

if __name__ == "__main__":
    with open_cluster(workers=1, threads=1, local_directory=sys.argv[1]) as client:
        assert list(client.run(os.getppid).values()) != [os.getpid()]
    with open_cluster(
        workers=1, threads=1, local_directory=sys.argv[1], imports=["colorsys"]
    ) as client:
        assert list(client.run(os.getppid).values()) == [os.getpid()]  # not what was imported
    os.environ["MINE"] = "since then"
    with open_cluster(workers=1, threads=1, local_directory=sys.argv[1]) as client:
        assert list(client.run(os.getppid).values()) != [os.getpid()]
        # the second would change what a user's own processes find
        for name in ("MINE", "PYTHONSAFEPATH"):
            print(*client.run(os.getenv, name).values())
"""


def run(code: str, folder: Path, *words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: this one may have begun to fork for other tests."""
    script = folder / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script), *words, str(folder / "dask")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param(REPLACED, "3\n", id="end and are replaced with that process"),
        pytest.param(ENVIRONMENT, "since then\nNone\n", id="have the environment of the time"),
    ],
)
def test_they(code: str, said: str, tmp_path: Path) -> None:
    ended = run(code, tmp_path)
    assert (ended.returncode, ended.stdout) == (0, said), ended.stderr


@pytest.mark.parametrize("after_s", [0.05, 0.3])
def test_that_process_is_lost_while_they_start(tmp_path: Path, after_s: float) -> None:
    """While it imports, and their nannies wait for it."""
    ended = run(LOST, tmp_path, str(after_s))
    assert (ended.returncode, ended.stdout) == (0, "2 3\n"), ended.stderr


def test_where_their_socket_has_no_place_they_are_spawned(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    ended = run(SPAWNED, tmp_path, env={**os.environ, "TMPDIR": str(folder)})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("after_s", [0.02, 0.3])
def test_ctrl_c_meets_none_of_them_nor_a_users_module(tmp_path: Path, after_s: float) -> None:
    (tmp_path / "distributed.py").write_text("raise SystemExit('the wrong module')\n")
    ended = run(INTERRUPTED, tmp_path, str(after_s), cwd=tmp_path, start_new_session=True)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\nagain\n3\n"), ended.stderr
    assert ended.stderr == ""
