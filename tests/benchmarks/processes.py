"""One process from its start to its end: wall time, and the memory of it and all it starts.

Memory is the proportional set size (Pss), in which a page that several processes share counts once.
Reading it walks the page tables of a process, some milliseconds for one of 4 GB, so a sample is
followed by a pause of 20 times what it took, and of 0.2 s at least.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PAUSE_S = 0.2
PAUSE_FACTOR = 20
GONE_S = 10
KB = 1024  # what the kernel calls kB
# what stands in the command line of a server that is a side's fixed cost
SERVERS = ("prefect_child.py", "prefect.server", "mlflow.server")


@dataclass(frozen=True)
class Ended:
    """How a process went. `peak_mb` is the largest sum over its tree, `servers_mb` the part that
    servers had of it then, `sampling_s` what looking cost."""

    code: int
    wall_s: float
    peak_mb: float
    servers_mb: float
    sampling_s: float
    out: str
    err: str


def run(words: list[str], folder: Path, environment: Mapping[str, str], limit_s: float) -> Ended:
    """Runs a command in `folder` to its end; what outlives it is ended, and so it is at the limit.

    The output goes through files, so that nobody has to read it meanwhile.
    """
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        began = time.monotonic()
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        # where memory runs out, the side ends and not what measures it
        with suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("500")
        sampler = Sampler(process.pid)
        sampler.start()
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            err.write(f"not done after {limit_s:g} s")
        finally:
            wall_s = time.monotonic() - began
            process.poll()
            sampler.end()
            process.wait()
        for file in (out, err):
            file.seek(0)
        return Ended(
            process.returncode,
            wall_s,
            sampler.peak_kb * KB / 1e6,
            sampler.servers_kb * KB / 1e6,
            sampler.spent_s,
            out.read(),
            err.read(),
        )


class Sampler(threading.Thread):
    """Follows a process that leads its own session, its children, and theirs."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.peak_kb = 0
        self.servers_kb = 0
        self.spent_s = 0.0
        self._ended = threading.Event()
        # by process id and start: one whose parent died still counts, one with its number does not
        self._known: set[tuple[int, str]] = set()

    def run(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            began = time.monotonic()
            self._sample()
            took = time.monotonic() - began
            self.spent_s += took
            pause = max(PAUSE_S, PAUSE_FACTOR * took)

    def end(self) -> None:
        """Stops looking, ends every process that is left, and waits until it is gone."""
        self._ended.set()
        self.join()
        deadline = time.monotonic() + GONE_S
        while (members := self._members()) and time.monotonic() < deadline:
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _sample(self) -> None:
        sizes = {pid: pss_kb(pid) for pid in self._members()}
        if sum(sizes.values()) > self.peak_kb:
            self.peak_kb = sum(sizes.values())
            self.servers_kb = sum(size for pid, size in sizes.items() if is_server(pid))

    def _members(self) -> list[int]:
        parents, members = {}, set()
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                pid, text = int(entry.name), Path(entry.path, "stat").read_text()
                # after the name in parentheses: state, parent, group, session, …, start (proc(5))
                fields = text.rpartition(")")[2].split()
                parents[pid] = int(fields[1]), fields[19]
                if fields[0] == "Z":
                    continue
                if int(fields[3]) == self.root or (pid, fields[19]) in self._known:
                    members.add(pid)
        while more := {p for p, (up, _) in parents.items() if up in members} - members:
            members |= more
        self._known |= {(pid, parents[pid][1]) for pid in members}
        return sorted(members)


def pss_kb(pid: int) -> int:
    """Proportional set size in kB, 0 of a process that has just ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def is_server(pid: int) -> bool:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text()
        return any(name in words for name in SERVERS)
    return False
