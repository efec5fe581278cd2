"""The members of a group of workers: watched while they train, ended when one is lost."""

import queue
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from xgboost.core import XGBoostError

from tasks.engine.boost import round_metrics
from tasks.engine.checkpoints import History
from tasks.engine.dataset import Frozen
from tasks.engine.errors import UserError
from tasks.engine.memory import MatrixOptions
from tasks.engine.spec import BoostSpec
from tasks.engine.tracker import Tracker, TrackerError
from tasks.engine.workers import ANSWER_S, POLL_S, alive_workers, end_processes, restart

PREFIX = "boostline-"  # of the names of a group's tasks
GONE_S = 1.0  # for a neighbour's own error, once a member is known to be gone
# Exceptions of a task that the driver or the scheduler ended, by name.
ENDED_BY_OTHERS = ("CancelledError", "KilledWorker", "FutureCancelledError", "Cancelled")


class GroupOptions(Frozen):
    """Addresses and limits in seconds. `tracker_host` None is found out; port 0 is a free one.

    `form_timeout` bounds the group's coming together, `collective_timeout` how long workers wait
    for each other in it (unbalanced builds of the matrices included), `worker_ttl` how long a
    worker may be silent, `replace_timeout` the wait for a lost worker's replacement,
    `start_timeout` that for any where nobody is left, `end_timeout` the wait for the others' tasks
    before their processes are ended (in about one loss of ten XGBoost leaves the survivors waiting
    for ever), `lock_timeout` that for another training's end. `matrix` says where bins may go;
    `one_host`, that all workers are processes of one host, and one may use the threads of all.
    """

    tracker_host: str | None = None
    tracker_port: int = 0
    form_timeout: float = Field(300, ge=1)
    collective_timeout: float = Field(1800, ge=1)
    worker_ttl: float = 25
    replace_timeout: float = 20
    start_timeout: float = 60
    end_timeout: float = 4
    lock_timeout: float = 86_400
    recoveries: int = 10
    matrix: MatrixOptions = MatrixOptions()
    one_host: bool = False


@dataclass(frozen=True)
class Event:
    """`round`: round `round` is done, with its metrics. `formed`: a group of `workers` goes on from
    round `round`. `lost`: `workers` were lost, and `note` says why. `unsaved`: the checkpoint of
    round `round` could not be written, and `note` says why; told once. `external`: the bins of the
    features go to disk, and `note` says why; told once.
    """

    kind: Literal["round", "formed", "lost", "unsaved", "external"]
    round: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    workers: tuple[str, ...] = ()
    note: str = ""


OnEvent = Callable[[Event], None]


class Lost(Exception):
    """The group came to nothing, though another may not."""

    def __init__(self, workers: Sequence[str], note: str) -> None:
        super().__init__(note)
        self.workers = tuple(workers)
        self.note = note


class Rounds:
    """Tells each round once, in order, though a recovered training does some again."""

    def __init__(self, on_event: OnEvent, last: int) -> None:
        self.on_event = on_event
        self.last = last
        self._all_saved = True
        self._in_memory = True

    def tell(self, round_: int, metrics: dict[str, float]) -> None:
        if round_ > self.last:
            self.last = round_
            self.on_event(Event("round", round_, metrics))

    def tell_unsaved(self, round_: int, note: str) -> None:
        if self._all_saved:
            self._all_saved = False
            self.on_event(Event("unsaved", round_, note=note))

    def tell_external(self, note: str) -> None:
        if self._in_memory:
            self._in_memory = False
            self.on_event(Event("external", self.last, note=note))

    def complete(self, spec: BoostSpec, history: History) -> None:
        """Tells what did not arrive by the event log before the training's end."""
        for round_ in range(self.last + 1, history.rounds + 1):
            self.tell(round_, round_metrics(spec, history, round_))


def _tracker_host(client: Any, options: GroupOptions) -> str:
    """The address of this host that workers reach: the one we reach the scheduler from."""
    from distributed.comm.addressing import get_address_host
    from distributed.utils import get_ip

    if options.tracker_host:
        return options.tracker_host
    scheduler = get_address_host(client.scheduler.address)
    return scheduler if scheduler.startswith("127.") else str(get_ip(scheduler))


def start_tracker(client: Any, members: int, options: GroupOptions) -> Tracker | None:
    """None for a worker on its own, which needs no group.

    Raises:
        UserError: the address is not this host's, or its port is taken.
        Lost: it died.
    """
    if members == 1:
        return None
    host, port = _tracker_host(client, options), options.tracker_port
    try:
        return Tracker(members, host, port, int(options.form_timeout))
    except TrackerError as error:
        cause = re.search(r"system error:(.+)", str(error))
        if cause is None:
            raise Lost((), f"XGBoost's tracker did not start: {error}") from None
        raise UserError(
            f"XGBoost's tracker can't listen on {host}, port {port or 'any'} "
            f"(cluster.tracker_host, cluster.tracker_port): {cause[1].strip()}. Name an address of "
            "this host that workers reach, and a free port or 0."
        ) from None


def member_arguments(
    tracker: Tracker | None, rank: int, options: GroupOptions
) -> dict[str, Any] | None:
    if tracker is None:
        return None
    return {
        **tracker.worker_args(),
        "dmlc_task_id": f"{rank:06d}",
        "dmlc_timeout": int(options.collective_timeout),
    }


def drain(events: "queue.SimpleQueue[Any]", told: Rounds) -> None:
    while not events.empty():
        message = events.get()
        if "unsaved" in message:
            told.tell_unsaved(message["round"], message["unsaved"])
        elif "external" in message:
            told.tell_external(message["external"])
        else:
            told.tell(message["round"], message["metrics"])


def watch(
    client: Any,
    futures: dict[str, Any],
    events: "queue.SimpleQueue[Any]",
    told: Rounds,
    options: GroupOptions,
) -> list[Any]:
    """What the members came to, once every one has finished.

    Raises Lost once a member is gone, silent for `worker_ttl`, or ended by another's loss; or
    the exception that a member's own work raised.
    """
    seen: dict[str, tuple[float, float]] = {}
    looked = time.monotonic()
    while not all(future.status == "finished" for future in futures.values()):
        time.sleep(POLL_S)
        drain(events, told)
        alive, now = alive_workers(client), time.monotonic()
        if any(future.status in ("error", "cancelled") for future in futures.values()):
            raise _cause(client, futures, options)
        if any(address not in alive for address in futures):
            raise _cause(client, futures, options)
        if now - looked > options.worker_ttl / 2:
            seen.clear()  # this process slept, and has heard of nobody
        looked = now
        for address in futures:
            last_seen = float(alive[address]["last_seen"])
            if address not in seen or seen[address][0] != last_seen:
                seen[address] = (last_seen, now)
        silent = [address for address in futures if now - seen[address][1] > options.worker_ttl]
        if silent:
            restart(client, silent)
            note = f"fell silent for {options.worker_ttl:g} s (cluster.worker_ttl)"
            raise Lost(silent, f"{', '.join(silent)} {note}")
    return _results(client, futures, options)


def _results(client: Any, futures: dict[str, Any], options: GroupOptions) -> list[Any]:
    """A worker may be lost before it gave its result away: nobody else can do its task again."""
    from distributed.scheduler import KilledWorker

    try:
        return [future.result(timeout=options.worker_ttl) for future in futures.values()]
    except (TimeoutError, CancelledError, KilledWorker):
        raise _cause(client, futures, options) from None


def _cause(client: Any, futures: dict[str, Any], options: GroupOptions) -> BaseException:
    """Why a group ended: the exception of a member's own work before that of a lost neighbour.

    Members fail one after another, so the root may come last: those still at work are waited for,
    but not for long where it is plain that a neighbour was lost.
    """
    began = time.monotonic()
    while True:
        alive = alive_workers(client)
        own = _own_errors(futures)
        if own:
            return own[0]
        gone = [address for address in futures if address not in alive]
        at_work = any(f.status == "pending" for address, f in futures.items() if address in alive)
        limit = min(GONE_S, options.end_timeout) if gone else options.end_timeout
        if not at_work or time.monotonic() - began > limit:
            break
        time.sleep(POLL_S)
    if gone:
        return Lost(gone, f"{', '.join(gone)} left the cluster")
    return Lost((), f"the workers lost each other ({_reason(futures)})")


def _own_errors(futures: dict[str, Any]) -> list[BaseException]:
    """Exceptions that no neighbour's loss explains, the user's first."""
    errors = [future.exception() for future in futures.values() if future.status == "error"]
    own = [
        error
        for error in errors
        if error is not None
        and type(error).__name__ not in ENDED_BY_OTHERS
        and not (isinstance(error, XGBoostError) and _is_collective(str(error)))
    ]
    return sorted(own, key=lambda error: not isinstance(error, UserError))


def _is_collective(message: str) -> bool:
    """Whether XGBoost failed in talking to other workers."""
    return any(word in message for word in ("/collective/", "allreduce", "allgather", "rabit"))


def _reason(futures: dict[str, Any]) -> str:
    """XGBoost's own, which it gives in lines with a dash, or what else is known of the members."""
    errors = [future.exception() for future in futures.values() if future.status == "error"]
    lines = [line for error in errors for line in str(error).splitlines() if line.startswith("- ")]
    if lines:
        return lines[-1].removeprefix("- ")
    states = [f"{address} {future.status}" for address, future in futures.items()]
    return ", ".join([*states, *(repr(error) for error in errors)])


def end_group(
    client: Any, futures: dict[str, Any], tracker: Tracker | None, options: GroupOptions
) -> None:
    """Leaves no task of the group running, whatever state its members are in.

    Cancelled members end at their next round, and take the others along. One that waits for a
    group that never forms ends with the tracker; one that still hangs has its process ended.
    """
    try:
        pending = {address: f.key for address, f in futures.items() if f.status == "pending"}
        if client.status != "running":
            return
        client.cancel(list(futures.values()), force=True)
        pending = _still_at_work(client, pending, options.end_timeout / 2)
        if tracker is not None:
            tracker.free()
        pending = _still_at_work(client, pending, options.end_timeout / 2)
        if pending:
            end_processes(client, pending)
    finally:
        if tracker is not None:
            tracker.free()


def free_of_others(client: Any, members: Sequence[str], options: GroupOptions) -> None:
    """Ends what a group of a driver that died may have left running on the members.

    Only for who has the turn: no other group can be at work.
    """
    until = time.monotonic() + options.end_timeout
    while busy := _busy(client, members):
        if time.monotonic() > until:
            end_processes(client, busy)
            raise Lost((), f"an earlier training still ran on {', '.join(busy)}")
        time.sleep(POLL_S)


def _busy(client: Any, members: Sequence[str]) -> list[str]:
    """Members with a group's task on them; one that does not answer is not known to have one."""
    with suppress(TimeoutError):
        active = client.sync(
            client._run,
            _active_keys,
            workers=list(members),
            on_error="ignore",
            callback_timeout=ANSWER_S,
        )
        return [a for a, keys in active.items() if any(key.startswith(PREFIX) for key in keys)]
    return []


def _still_at_work(client: Any, tasks: dict[str, str], limit: float) -> dict[str, str]:
    """Of the tasks by worker those that run after `limit` seconds still."""
    until = time.monotonic() + limit
    while True:
        alive = alive_workers(client) if tasks else {}
        tasks = {a: key for a, key in tasks.items() if a in alive and _runs(client, a, key)}
        if not tasks or time.monotonic() > until:
            return tasks
        time.sleep(POLL_S)


def _runs(client: Any, address: str, key: str) -> bool:
    """Whether the task runs on the worker; a worker that doesn't answer counts as running it."""
    try:
        active = client.sync(
            client._run,
            _active_keys,
            workers=[address],
            on_error="return",
            callback_timeout=ANSWER_S,
        )
    except TimeoutError:
        return True
    keys = active.get(address)
    return key in keys if isinstance(keys, list) else True


def _active_keys(dask_worker: Any) -> list[str]:
    with dask_worker.active_threads_lock:
        return [str(key) for key in dask_worker.active_threads.values()]
