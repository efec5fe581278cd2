"""XGBoost's tracker, by which the workers of a group find each other, in a process of its own.

Where a worker is lost while the tracker talks to it, a thread of XGBoost's ends the whole process
(`std::terminate`). That must not be the driver's.
"""

import json
import os
import select
import subprocess
import sys
from typing import Any

# What XGBoost's package would load beside its library, and no tracker needs.
UNUSED = ("sklearn", "pandas", "pyarrow", "matplotlib", "graphviz", "dask", "distributed")


class TrackerError(Exception):
    """The tracker did not start; XGBoost's reason, or ours."""


class Tracker:
    """For a group of `workers`, listening at `host` (port 0 is a free one) until it is freed.

    `timeout` in seconds bounds the group's coming together. It ends with this process, too.

    Raises:
        TrackerError: it can't listen there, or it died at once.
    """

    def __init__(self, workers: int, host: str, port: int, timeout: int) -> None:
        self._process = subprocess.Popen(
            # -P: this folder's modules are not meant to stand before Python's own
            [sys.executable, "-P", __file__, str(workers), host, str(port), str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the driver's to answer
        )
        try:
            said = self._answer(timeout)
        except BaseException:
            self.free()
            raise
        self._arguments: dict[str, Any] = said

    def _answer(self, timeout: float) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], timeout)[0]:
            raise TrackerError(f"it did not start within {timeout:g} s")
        line = out.readline()
        if not line:
            raise TrackerError(f"its process ended with code {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise TrackerError(said["error"])
        return said

    def worker_args(self) -> dict[str, Any]:
        """What a member's communicator needs."""
        return dict(self._arguments)

    def free(self) -> None:
        """Closes its port: members that wait for others come to an end."""
        self._process.kill()
        with self._process:  # closes the pipes, and waits
            pass


def serve(workers: int, host: str, port: int, timeout: int) -> None:
    """Runs a tracker until the standard input ends; says its address in a line of JSON."""
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    from xgboost.core import XGBoostError
    from xgboost.tracker import RabitTracker

    try:
        tracker = RabitTracker(workers, host, port, sortby="task", timeout=timeout)
        tracker.start()
        said = dict(tracker.worker_args())
    except XGBoostError as error:
        said = {"error": str(error)}
    print(json.dumps(said), flush=True)  # noqa: T201  the driver reads it
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
