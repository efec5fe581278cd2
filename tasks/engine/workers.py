"""The workers of a cluster as the driver sees them: who is there, who is ended, what was lost."""

import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tasks.engine.errors import RunError

POLL_S = 0.25
RESTART_S = 20  # a nanny waits 4 s before it kills
ANSWER_S = 3
# How often a task may lose its worker, and how often to the worker's memory limit.
LOSSES = 5
MEMORY_LOSSES = 2
MEMORY_TOPIC = "worker-restart-memory"  # where Dask's nannies tell of it


def lost_scheduler(client: Any) -> RunError:
    address = getattr(getattr(client, "scheduler", None), "address", "the cluster")
    return RunError(
        f"The connection to the Dask scheduler at {address} was lost. Start it again; the same "
        "command then goes on from what was done."
    )


def check_connected(client: Any) -> None:
    """Raises RunError where the scheduler is gone."""
    if client.status != "running":
        raise lost_scheduler(client)


def alive_workers(client: Any) -> dict[str, Any]:
    """Workers by address, with what the scheduler knows of each.

    Raises:
        RunError: the scheduler is gone.
    """
    check_connected(client)
    try:
        # `client.scheduler_info` returns what the client's own periodic question, which leaves the
        # workers out, may have put in the answer's place: a group was given up for it
        return dict(client.sync(client.scheduler.identity, n_workers=-1)["workers"])
    except (OSError, RuntimeError, AttributeError):
        time.sleep(POLL_S)  # the client learns a moment later what became of the connection
        check_connected(client)
        raise


def restart(client: Any, addresses: Iterable[str]) -> None:
    """Ends workers that do not answer, by their nannies; one without is given up."""
    client.sync(
        client.scheduler.restart_workers,
        workers=list(addresses),
        timeout=RESTART_S,
        wait_for_workers=False,
        on_error="return",
        stimulus_id="boostline-restart",
    )


def end_processes(client: Any, addresses: Iterable[str]) -> None:
    """Ends workers that answer but whose task hangs; their nannies start others."""
    left = set(addresses)
    with suppress(OSError):  # those who did not hear it are ended below
        client.sync(
            client._run,
            _end_process,
            workers=list(left),
            wait=False,
            on_error="return",
            callback_timeout=ANSWER_S,
        )
    until = time.monotonic() + ANSWER_S
    while (left := left & set(alive_workers(client))) and time.monotonic() < until:
        time.sleep(POLL_S)
    if left:
        restart(client, left)


async def _end_process() -> None:  # Dask waits for the answer of what is no coroutine
    import os

    os._exit(1)


def memory_deaths(client: Any) -> dict[str, int]:
    """Bytes that workers held when they were ended for their memory limit, by address."""
    events = client.get_events(MEMORY_TOPIC) or ()
    return {str(event["worker"]): int(event["rss"]) for _, event in events}


@dataclass(frozen=True)
class Outcome:
    """What call `number` came to: a value, or the error that it raised."""

    number: int
    value: Any = None
    error: Exception | None = None


def each(
    client: Any,
    function: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    names: Callable[[int], str],
    at_once: int | None = None,
) -> Iterator[Outcome]:
    """Outcomes of `function(*arguments[i])` on the workers, as they come.

    A call whose worker was lost is made again. `at_once` bounds how many are with the scheduler;
    `arguments` is read no further ahead. `names` says what a call reads, for messages.

    Raises:
        RunError: the scheduler is gone, or a call lost its worker again and again.
    """
    from distributed.scheduler import KilledWorker

    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    calls: dict[Any, tuple[int, tuple[Any, ...]]] = {}
    losses: dict[int, list[str]] = {}
    ahead = enumerate(arguments)

    def submit(number: int, values: tuple[Any, ...]) -> None:
        future = client.submit(function, *values, pure=False)
        calls[future] = (number, values)
        future.add_done_callback(done.put)

    def fill() -> None:
        while at_once is None or len(calls) < at_once:
            following = next(ahead, None)
            if following is None:
                return
            submit(*following)

    try:
        fill()
        while calls:
            future = _next(client, done)
            number, values = calls.pop(future)
            try:
                # also of a future that is done: its worker may be lost before it gave the value
                outcome = Outcome(number, future.result())
            except KilledWorker as error:
                # a scheduler of its own may have tried several workers before it told
                tried = error.allowed_failures + 1
                losses.setdefault(number, []).extend([str(error.last_worker.address)] * tried)
                _check_losses(client, losses[number], names(number))
                submit(number, values)
                continue
            except CancelledError:
                raise lost_scheduler(client) from None
            except Exception as error:  # noqa: BLE001  whoever asked raises it
                outcome = Outcome(number, error=error)
            yield outcome
            fill()
    finally:
        if calls and client.status == "running":
            client.cancel(list(calls))


def _next(client: Any, done: "queue.SimpleQueue[Any]") -> Any:
    """The next future that is done, as long as there is a scheduler to do it."""
    while True:
        try:
            return done.get(timeout=POLL_S)
        except queue.Empty:
            check_connected(client)


def _check_losses(client: Any, lost: list[str], reads: str) -> None:
    deaths = memory_deaths(client)
    of_memory = [address for address in lost if address in deaths]
    if len(of_memory) > MEMORY_LOSSES:
        raise RunError(
            f"{of_memory_limit(client, of_memory[-1])}, as {len(of_memory) - 1} did before it, "
            f"while it read {reads}. Give workers more memory (cluster.memory_limit), or let each "
            "do less at once: fewer threads (cluster.threads), or smaller row groups "
            "(data.row_group_rows, or those of the Parquet file)."
        )
    if len(lost) > LOSSES:
        raise RunError(
            f"{len(lost)} workers died while reading {reads}. Give them more memory "
            "(cluster.memory_limit) or write smaller row groups."
        )


def of_memory_limit(client: Any, address: str) -> str:
    """`The worker … held … when it was ended at its memory limit of …`; no full stop."""
    held = memory_deaths(client).get(address, 0)
    until = time.monotonic() + RESTART_S
    while not (alive := alive_workers(client)) and time.monotonic() < until:
        time.sleep(POLL_S)  # its successor has the same limit
    limit = max((int(worker["memory_limit"] or 0) for worker in alive.values()), default=0)
    of = f" of {megabytes(limit)}" if limit else ""
    return (
        f"The worker {address} held {megabytes(held)} when it was ended at 95% of its memory limit"
        f"{of} (cluster.memory_limit)"
    )


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"
