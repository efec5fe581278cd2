"""A service that a command starts for itself: a process with a log, a first answer and an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infra.cluster_plan import fresh_log

POLL_S = 0.05
STOP_TIMEOUT_S = 8.0
LOG_TAIL_LINES = 20


class ServiceError(RuntimeError):
    """A service did not come up, or has ended by itself."""


class ServiceProcess:
    """A running service; `wait` tells when it answers, `stop` ends it.

    It has a session of its own, so that Ctrl-C does not reach it: whoever uses it may still have
    something to tell it.

    Args:
        name: how messages begin, as in `MLflow's server`.
        environment: the whole environment of the process.
        folder: where it runs.
        is_ready: whether the service answers.
        startup_timeout_s: seconds from its start within which `wait` has to see that.
        way_out: what messages say of that limit, its name first.
        stop_timeout_s: seconds that it may take to end, 8 by default.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log_file: Path,
        is_ready: Callable[[], bool],
        startup_timeout_s: float,
        way_out: str,
        pass_fds: Sequence[int] = (),
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self.name = name
        self.log_file = fresh_log(log_file)
        self._is_ready = is_ready
        self._startup_timeout_s = startup_timeout_s
        self._way_out = way_out
        self._stop_timeout_s = stop_timeout_s
        self._started_at = time.monotonic()
        with log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code of the process; None while it runs."""
        return self._process.poll()

    def wait(self) -> None:
        """Wait for the service's first answer.

        Raises:
            ServiceError: it ended, or did not answer within the limit (and is stopped); with the
                last lines of its log.
        """
        deadline = self._started_at + self._startup_timeout_s
        while not self._is_ready():
            if (code := self._process.poll()) is not None:
                raise ServiceError(
                    f"{self.name} ended with code {code} before it was ready. {self.last_lines()}"
                )
            if time.monotonic() > deadline:
                self.stop()
                raise ServiceError(
                    f"{self.name} was not ready after {self._startup_timeout_s:g} s "
                    f"{self._way_out} {self.last_lines()}"
                )
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raises ServiceError where the service has ended."""
        if (code := self._process.poll()) is not None:
            raise ServiceError(f"{self.name} has ended with code {code}. {self.last_lines()}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after `stop_timeout_s`. Calling it again does nothing."""
        process = self._process
        if process.returncode is not None:
            return
        # A stopped process keeps SIGTERM pending for ever.
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_lines(self) -> str:
        """The end of what it has logged since its start."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        tail = "\n".join(lines[-LOG_TAIL_LINES:]) or "(empty)"
        return f"The last lines of {self.log_file}:\n{tail}"


def watched(command: Sequence[str], grace_s: float) -> list[str]:
    """The command, run so that it and all that it starts end with this process (see the child)."""
    child = str(Path(__file__).with_name("service_child.py"))
    return [sys.executable, "-P", child, str(os.getpid()), str(grace_s), *command]
