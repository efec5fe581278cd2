"""The processes of Dask's workers below another process."""

import psutil


def worker_processes(pid: int) -> list[psutil.Process]:
    """Those that nannies of this process, or of its children, have started."""
    return [child for child in psutil.Process(pid).children(recursive=True) if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    """Whether it was spawned, or forked from the process that has imported for all of them."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        words = " ".join(process.cmdline())
        if "forkserver" not in words:
            return "spawn_main" in words
        parent = process.parent()
        return parent is not None and "forkserver" in " ".join(parent.cmdline())
    except psutil.Error:
        return False
