"""The embedded Prefect server's own process.

Run by its file's path (``python -P prefect_child.py LISTENING_FD PARENT_PID LOCK_FILE``), so that
nothing of the caller's folder is imported. Uvicorn and Prefect are imported here, and only here.
"""

import fcntl
import gc
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

PARENT_POLL_S = 0.5
GRACE_S = 3


def _end_with_parent(parent_pid: int) -> None:
    """End this process once `parent_pid` is gone, however it died.

    PR_SET_PDEATHSIG would fire when the *thread* that started us ends; asking for the parent's id
    has no such trap, and the check also covers a parent that died before we came here.
    """
    while os.getppid() == parent_pid:
        time.sleep(PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S + 2)
    os._exit(1)


def main(arguments: list[str]) -> None:
    listening_fd, parent_pid, lock_file = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    listener = socket.socket(fileno=listening_fd)

    # Importing Prefect makes a million objects that all stay; collecting meanwhile costs 10%.
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A page whose name was made to point here (DNS rebinding) would start flow runs.
    app = TrustedHostMiddleware(create_app(), allowed_hosts=["127.0.0.1", "localhost"])
    gc.freeze()
    gc.enable()

    class MigratingServer(uvicorn.Server):
        """Takes the lock while Prefect migrates its database, so that others wait their turn."""

        async def startup(self, sockets: Any = None) -> None:
            with lock_file.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                await super().startup(sockets=sockets)

    config = uvicorn.Config(
        app, log_level="error", lifespan="on", timeout_graceful_shutdown=GRACE_S
    )
    server = MigratingServer(config)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1:])
