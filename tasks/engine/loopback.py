"""Keeps XGBoost's own listening sockets off the network where a training is on one host.

A member of XGBoost's group listens on every interface while the group forms and, for word of
another's failure (on which it ends its process), as long as the training lasts. There is no setting
for it. So the sockets are bound to the loopback device from outside, a moment after they are made.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

POLL_S = 0.01
_EVERYWHERE = ("0.0.0.0", "::")


@contextmanager
def new_listeners_on_loopback(tracker: str) -> Iterator[None]:
    """Listening sockets that this process opens within the block take connections of this host.

    Nothing is done where `tracker`, the address of XGBoost's tracker, is no loopback address, or
    where the kernel does not allow it (Linux before 5.7).
    """
    if not _is_loopback(tracker):
        yield
        return
    known, ended = set(_sockets()), threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            _confine(known)

    watcher = threading.Thread(target=watch, name="loopback", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        _confine(known)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _sockets() -> Iterator[str]:
    """Names of the sockets of this process, as in `socket:[4711]`."""
    for _, name in _open():
        yield name


def _open() -> Iterator[tuple[int, str]]:
    with suppress(FileNotFoundError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                name = os.readlink(f"/proc/self/fd/{number}")
                if name.startswith("socket:"):
                    yield int(number), name


def _confine(known: set[str]) -> None:
    for number, name in _open():
        if name in known:
            continue
        # the descriptor may have been closed and given to another by now
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
            is_network = found.family in (socket.AF_INET, socket.AF_INET6)
            if is_network and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                if found.getsockname()[0] in _EVERYWHERE:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
                known.add(name)
