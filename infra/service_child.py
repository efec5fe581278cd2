"""Runs a command for `boostline up` and leaves nothing of it behind, however `up` ends.

Run by its file's path (``python -P service_child.py PARENT_PID GRACE_S COMMAND...``), so that
nothing of the caller's folder is imported. What the command starts may have sessions of its own
(Prefect's worker gives each flow run one): orphans come to this process, which ends them too.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

import psutil

PARENT_POLL_S = 0.5
POLL_S = 0.05
PR_SET_CHILD_SUBREAPER = 36


class Watched:
    """The command, and all that came of it."""

    def __init__(self, command: list[str], grace_s: float) -> None:
        # Before anything starts: an orphan of ours becomes our child, not init's.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._stopping = threading.Event()
        signal.signal(signal.SIGTERM, self._stop)
        self._grace_s = grace_s
        self._command = subprocess.Popen(command)

    def run(self, parent_pid: int) -> int:
        """The command's exit code, once it and all that came of it are gone."""
        while self._command.poll() is None and not self._stopping.is_set():
            if os.getppid() != parent_pid:
                self._stopping.set()
            self._stopping.wait(PARENT_POLL_S)
            self._reap()
        if self._stopping.is_set():
            self._ask()
        self._end_all()
        return self._command.wait()

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def _ask(self) -> None:
        """SIGTERM to the command and to its children: Prefect's worker would wait for its runs."""
        asked = [psutil.Process(self._command.pid)] if self._command.poll() is None else []
        for process in asked + (asked[0].children() if asked else []):
            _send(process, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while psutil.Process().children() and time.monotonic() < deadline:
            time.sleep(POLL_S)
            self._reap()

    def _end_all(self) -> None:
        while left := psutil.Process().children(recursive=True):
            for process in left:
                _send(process, signal.SIGKILL)
            time.sleep(POLL_S)
            self._reap()

    def _reap(self) -> None:
        """Wait for the orphans that have ended; the command's exit code is for Popen alone."""
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid == self._command.pid:
                    self._command.poll()
                else:
                    os.waitpid(ended.si_pid, 0)


def _send(process: psutil.Process, signum: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


if __name__ == "__main__":
    sys.exit(Watched(sys.argv[3:], float(sys.argv[2])).run(int(sys.argv[1])))
