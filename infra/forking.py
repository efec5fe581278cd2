"""Workers of this host as forks of one process that has imported what they need.

Most of a worker's start are imports. Here one process does them, early, beside whatever else
starts, and a worker is there at once, also in place of one that was lost; and the libraries are in
memory once for all workers. It imports and waits; threads that libraries start meanwhile (BLAS,
Arrow's allocator) are theirs to start again in a fork, which they do.
"""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker

from infra.cluster_plan import environment, threads_here, worker_variables

SETTINGS = {"distributed.worker.multiprocessing-method": "forkserver"}
# Imported before what is asked for: Dask's side of a worker, and what comes last.
_FIRST = ("distributed", "distributed.nanny", "infra.worker_process")
_LAST = ("infra.forked",)


@dataclass(frozen=True)
class _Server:
    variables: Mapping[str, str]
    imports: tuple[str, ...]


_begun: list[_Server] = []  # none or one


def begin_local(workers: int, threads: int | None, imports: Sequence[str]) -> None:
    """Begins what `open_cluster` will need for such workers, kind `local`, while others start."""
    begin(worker_variables(threads or threads_here(workers), {}, quiet=True), imports)


def begin(variables: Mapping[str, str], imports: Sequence[str]) -> bool:
    """Starts the process with these variables, there before any library is loaded, and goes on.

    Returns whether workers with these variables and imports can be forked: not where this process
    began one with others, nor on systems whose libraries do not bear it, nor where there is no
    place for its socket (a name of 108 bytes in TMPDIR).
    """
    if sys.platform != "linux":
        return False
    wanted = _Server(dict(variables), (*_FIRST, *imports, *_LAST))
    if not _begun:
        try:
            _start(wanted)
        except OSError:
            return False
        _begun.append(wanted)
    return _begun == [wanted]


def ensure() -> None:
    """Starts the process anew where it was lost. Dask takes its forks for dead, and ends them."""
    for server in _begun:
        _start(server)


def _start(server: _Server) -> None:
    forkserver.set_forkserver_preload(list(server.imports))  # Dask has put a list of its own there
    resource_tracker.ensure_running()  # or it lets Ctrl-C through again
    # `python -c` looks for modules in the user's folder first, where `tasks.py` may be another
    with environment({**server.variables, "PYTHONSAFEPATH": "1"}), _ctrl_c_blocked():
        forkserver.ensure_running()


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """For what starts meanwhile: the terminal sends Ctrl-C to all processes of a group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
