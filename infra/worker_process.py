"""A preload of the Dask workers that we start: manners of a child process."""

import os
import signal
import sys
import threading
from typing import Any

WORKER_LOG_VARIABLE = "BOOSTLINE_WORKER_LOG"


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver, and print into the file that the variable names, if it does."""
    # The terminal sends Ctrl-C to the whole group; who decides what becomes of us is the driver.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # as a fork may find it
    if not (path := os.environ.get(WORKER_LOG_VARIABLE)):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # The descriptors themselves, since native code prints too.
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
