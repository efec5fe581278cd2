"""What is measured of a process: its memory with that of all it starts, shared pages once."""

import os
import sys
from pathlib import Path

import pytest

from tests.benchmarks.processes import Ended, run

pytestmark = pytest.mark.slow

# On a busy machine a look takes 50 ms, and the next one comes a second later.

MB = 100
HOLD = f"held = b'x' * {MB}_000_000; import os, sys, time, subprocess; "


def ended(program: str, folder: Path, limit_s: float = 30) -> Ended:
    return run([sys.executable, "-c", program], folder, os.environ, limit_s)


@pytest.mark.parametrize(
    ("program", "shares"),
    [
        pytest.param("time.sleep(3)", 1, id="alone"),
        pytest.param("os.fork(); time.sleep(3)", 1, id="shared with a child"),
        pytest.param("os.fork(); other = b'y' * 100_000_000; time.sleep(3)", 3, id="each its own"),
    ],
)
def test_pages_count_once(program: str, shares: int, tmp_path: Path) -> None:
    found = ended(HOLD + program, tmp_path)
    assert not found.code and found.wall_s > 3 > found.sampling_s > 0
    assert shares * MB < found.peak_mb < shares * MB + 60
    assert not found.servers_mb


def test_an_orphan_of_another_session_counts_and_is_ended(tmp_path: Path) -> None:
    grandchild = f"[sys.executable, '-c', {HOLD + 'time.sleep(60)'!r}]"
    child = (
        "import sys, time, subprocess; "
        f"print(subprocess.Popen({grandchild}, start_new_session=True).pid); time.sleep(3)"
    )
    root = (
        "import sys, time, subprocess; "
        f"subprocess.run([sys.executable, '-c', {child!r}]); time.sleep(3)"
    )
    found = ended(root, tmp_path)
    assert not found.code, found.err
    assert found.peak_mb > MB
    state = Path(f"/proc/{int(found.out)}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_server_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "prefect_child.py").write_text(HOLD + "time.sleep(3)")
    # the name stands in the command line of the child alone
    program = "import os, subprocess, sys; subprocess.run([sys.executable, *os.listdir()])"
    found = ended(program, tmp_path)
    assert not found.code, found.err
    assert MB < found.servers_mb < found.peak_mb


def test_one_that_does_not_end(tmp_path: Path) -> None:
    found = ended(HOLD + "time.sleep(60)", tmp_path, 0.5)
    assert found.code == -9 and found.wall_s < 10
    assert found.err == "not done after 0.5 s"
