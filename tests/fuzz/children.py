"""Cases in child processes: a crash or a hang ends a child, never the parent."""

import multiprocessing
import resource
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tasks.engine.errors import RunError, UserError
from tasks.engine.scoring import TamperedModelError
from tests.fuzz.subjects import SUBJECTS, Subject

MEMORY_BYTES = 6 << 30
START_S = 60.0
Subjects = Mapping[str, type[Subject]]
# endings that are right, the others are faults
RIGHT = ("same", "other", "refused")


@dataclass(frozen=True)
class Outcome:
    """Of one case: `same`, `other`, `refused`, or a fault: `silent`, `traceback`, `crash`, `hang`.

    `detail` is the message of a refusal, or what there is to find a fault with.
    """

    case: int
    subject: str
    ending: str
    detail: str
    seconds: float


def serve(connection: Connection, seed: int, folder: str, kinds: Subjects) -> None:
    """Runs the cases whose numbers come, until None does. The child's main function."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    names = list(kinds)
    subjects = {name: kinds[name](Path(folder) / str(i)) for i, name in enumerate(names)}
    connection.send(None)
    while (case := connection.recv()) is not None:
        name = names[case % len(names)]
        try:
            answer: tuple[str, str] = (subjects[name].run(Random(f"{seed}:{case}")), "")
        except (UserError, RunError, TamperedModelError) as error:
            answer = ("refused", str(error))
        except Exception:  # noqa: BLE001  what is looked for
            answer = ("traceback", traceback.format_exc(limit=-6))
        connection.send(answer)


class Child:
    """A child process and the case that it is at, since when."""

    def __init__(self, seed: int, kinds: Subjects) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = TemporaryDirectory(prefix="fuzz-")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, seed, self.folder.name, kinds))
        self.process.start()
        there.close()
        if not self.connection.poll(START_S):
            raise TimeoutError(f"a child did not start within {START_S:g} s")
        self.connection.recv()
        self.case: int | None = None
        self.since = 0.0

    def begin(self, case: int) -> None:
        self.case, self.since = case, time.monotonic()
        self.connection.send(case)

    def ended(self, limit: float) -> tuple[str, str] | None:
        """The ending and its detail, None while the case is running."""
        if self.connection.poll():
            try:
                answer: tuple[str, str] = self.connection.recv()
                return answer
            except EOFError:
                self.process.join(5)
                return "crash", f"exit code {self.process.exitcode}"
        if time.monotonic() - self.since > limit:
            return "hang", f"longer than {limit:g} s"
        return None

    def close(self) -> None:
        """Ends the process, gently where it waits for a case."""
        if self.case is None and self.process.is_alive():
            self.connection.send(None)
            self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()
        self.folder.cleanup()


def outcomes(
    numbers: Iterator[int],
    seed: int,
    kinds: Subjects = SUBJECTS,
    children: int = 2,
    limit: float = 20.0,
) -> Iterator[Outcome]:
    """Of each case, as they end. A child that crashes or hangs is replaced."""
    names = list(kinds)
    running = [Child(seed, kinds) for _ in range(children)]
    try:
        for child in running:
            _next(child, numbers)
        while busy := [child for child in running if child.case is not None]:
            wait([child.connection for child in busy], timeout=1.0)
            for child in busy:
                answer = child.ended(limit)
                if answer is None:
                    continue
                case: Any = child.case
                seconds = time.monotonic() - child.since
                yield Outcome(case, names[case % len(names)], *answer, seconds)
                if answer[0] in ("crash", "hang"):
                    running.remove(child)
                    child.close()
                    child = Child(seed, kinds)  # noqa: PLW2901  takes the other's place
                    running.append(child)
                _next(child, numbers)
    finally:
        for child in running:
            child.close()


def _next(child: Child, numbers: Iterator[int]) -> None:
    child.case = None
    case = next(numbers, None)
    if case is not None:
        child.begin(case)
