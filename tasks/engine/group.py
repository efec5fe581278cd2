"""A training on a group of Dask workers that outlives them: deal, boost, recover, go on.

The driver starts XGBoost's tracker, sends one task to each worker and watches. When a worker is
lost or freezes, the group is ended, the row groups are dealt again to those that are there, and
the next group goes on from the last checkpoint. No wait is without a limit.
"""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field
from xgboost.core import XGBoostError
from xgboost.tracker import RabitTracker

from tasks.engine.boost import BoostSpec, Segment, finish, round_metrics
from tasks.engine.checkpoints import Checkpoint, CheckpointStore, History
from tasks.engine.dataset import Frozen, RowGroup
from tasks.engine.errors import RunError, UserError
from tasks.engine.matrix import BatchSource, Float32
from tasks.engine.segment import Job, run_job

LOCK = "boostline-training"
POLL_S = 0.25
# Of these the first takes part in no group for long: others follow it within a round.
ENDED_BY_OTHERS = ("CancelledError", "KilledWorker", "FutureCancelledError", "Cancelled")


class GroupOptions(Frozen):
    """Addresses and limits in seconds. `tracker_host` None is found out; port 0 is a free one.

    `form_timeout` bounds the group's coming together, `collective_timeout` how long workers wait
    for each other in it (unbalanced builds of the matrices included), `worker_ttl` how long a
    worker may be silent, `replace_timeout` the wait for a lost worker's replacement, `end_timeout`
    the wait for the others' tasks before their processes are restarted.
    """

    tracker_host: str | None = None
    tracker_port: int = 0
    form_timeout: float = Field(300, ge=1)
    collective_timeout: float = Field(1800, ge=1)
    worker_ttl: float = 30
    replace_timeout: float = 20
    end_timeout: float = 10
    lock_timeout: float | None = None
    recoveries: int = 10


@dataclass(frozen=True)
class Event:
    """`round`: round `round` is done, with its metrics. `formed`: a group of `workers` goes on from
    round `round`. `lost`: `workers` were lost, and `note` says why.
    """

    kind: Literal["round", "formed", "lost"]
    round: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    workers: tuple[str, ...] = ()
    note: str = ""


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class TrainResult:
    """`raw` is the final booster, which predicts y - mean; it holds `best_rounds` of the `rounds`
    that were trained. `resumed_from_round` is that of the checkpoint found at the start, or 0.
    """

    raw: bytes
    history: History
    rounds: int
    best_rounds: int
    resumed_from_round: int
    recoveries: int
    seconds: float
    model_sha256: str
    workers: int
    device: str


@dataclass(frozen=True)
class _Work:
    """What stays the same from group to group."""

    client: Any
    spec: BoostSpec
    row_groups: tuple[RowGroup, ...]
    make_batches: Callable[[Sequence[RowGroup]], Sequence[BatchSource]]
    sample: Callable[[], Float32]
    store: CheckpointStore
    options: GroupOptions


class _Lost(Exception):
    """The group came to nothing, though another may not."""

    def __init__(self, workers: Sequence[str], note: str) -> None:
        super().__init__(note)
        self.workers = tuple(workers)
        self.note = note


def train(
    client: Any,
    spec: BoostSpec,
    row_groups: Sequence[RowGroup],
    make_batches: Callable[[Sequence[RowGroup]], Sequence[BatchSource]],
    sample: Callable[[], Float32],
    store: CheckpointStore,
    on_event: OnEvent = lambda event: None,
    options: GroupOptions = GroupOptions(),
) -> TrainResult:
    """Trains to the last round from the newest checkpoint of `store`.

    `make_batches` gets a worker's row groups; `sample` gives float32 (n, p), the same on every
    worker; both are picklable and run on the workers. `on_event` is called in this thread, once
    for each round that is new. Two trainings on one cluster take turns.

    Raises:
        UserError: the input or the device is wrong.
        RunError: too many groups were lost, no worker is left, or another training held the
            cluster for `lock_timeout`.
        Whatever a batch source raises.
    """
    began = time.monotonic()
    work = _Work(client, spec, tuple(row_groups), make_batches, sample, store, options)
    start = store.latest(spec.n_estimators, spec.column_chunk)
    resumed_from = start.rounds if start else 0
    recoveries, size, device = 0, 0, spec.device
    if start is None or not spec.is_complete(start.history):
        with _turn(client, options.lock_timeout):
            told = _Rounds(on_event, resumed_from)
            while True:
                workers = _workers(client, size or 1, options)
                size = max(size, len(workers))
                try:
                    segments = _run_group(work, workers, start, told)
                    break
                except _Lost as lost:
                    recoveries += 1
                    on_event(Event("lost", told.last, {}, lost.workers, lost.note))
                    if recoveries > options.recoveries:
                        raise RunError(
                            f"{recoveries} groups of workers were lost during training, the last "
                            f"one because {lost.note}. cluster.recoveries allows "
                            f"{options.recoveries}. Workers that die again and again mostly lack "
                            "memory (cluster.memory_limit)."
                        ) from None
                start = store.latest(spec.n_estimators, spec.column_chunk)
        start = next(part.checkpoint for part in segments if part.checkpoint is not None)
        device = segments[0].device
        told.complete(spec, start.history)
    return _result(spec, start, resumed_from, recoveries, began, size, device)


def _result(
    spec: BoostSpec,
    last: Checkpoint,
    resumed_from: int,
    recoveries: int,
    began: float,
    workers: int,
    device: str,
) -> TrainResult:
    history = last.history
    best = history.best_rounds() if spec.early_stopping_rounds else history.rounds
    raw = finish(last.raw, best)
    return TrainResult(
        raw=raw,
        history=history,
        rounds=history.rounds,
        best_rounds=best,
        resumed_from_round=resumed_from,
        recoveries=recoveries,
        seconds=time.monotonic() - began,
        model_sha256=sha256(raw).hexdigest(),
        workers=workers,
        device=device,
    )


def deal(row_groups: Sequence[RowGroup], workers: int) -> list[tuple[RowGroup, ...]]:
    """Contiguous blocks of about as many rows each, none empty: at most `workers`."""
    groups = [group for group in row_groups if group.rows]
    count = min(workers, len(groups))
    total = sum(group.rows for group in groups)
    blocks: list[tuple[RowGroup, ...]] = []
    begin, before = 0, 0
    for index in range(count):
        left = count - index - 1
        end = begin + 1
        reached = before + groups[begin].rows
        goal = total * (index + 1) / count
        while end < len(groups) - left and reached + groups[end].rows / 2 <= goal:
            reached += groups[end].rows
            end += 1
        end = len(groups) if left == 0 else end
        blocks.append(tuple(groups[begin:end]))
        begin, before = end, reached
    return blocks


class _Rounds:
    """Tells each round once, in order, though a recovered training does some again."""

    def __init__(self, on_event: OnEvent, last: int) -> None:
        self.on_event = on_event
        self.last = last

    def tell(self, round_: int, metrics: dict[str, float]) -> None:
        if round_ > self.last:
            self.last = round_
            self.on_event(Event("round", round_, metrics))

    def complete(self, spec: BoostSpec, history: History) -> None:
        """Tells what did not arrive by the event log before the training's end."""
        for round_ in range(self.last + 1, history.rounds + 1):
            self.tell(round_, round_metrics(spec, history, round_))


@contextmanager
def _turn(client: Any, timeout: float | None) -> Iterator[None]:
    """This training's turn on the cluster: tasks of two groups on one worker wait for ever.

    A lease, not a lock: it ends by itself when this process dies.
    """
    from distributed import Semaphore

    turn = Semaphore(max_leases=1, name=LOCK, scheduler_rpc=client.scheduler, loop=client.loop)
    if not turn.acquire(timeout=timeout):
        raise RunError(f"Another training has held the cluster for {timeout:g} s.")
    try:
        yield
    finally:
        if client.status == "running":
            turn.release()
        client.loop.add_callback(turn.refresh_callback.stop)


def _alive(client: Any) -> dict[str, Any]:
    """Workers by address, with what the scheduler knows of each."""
    return dict(client.scheduler_info(n_workers=-1)["workers"])


def _workers(client: Any, wanted: int, options: GroupOptions) -> list[str]:
    """Addresses in order; waits up to `replace_timeout` for as many as there were."""
    until = time.monotonic() + options.replace_timeout
    while len(found := _alive(client)) < wanted and time.monotonic() < until:
        time.sleep(POLL_S)
    if not found:
        raise RunError("The cluster has no workers left, and none came within the wait for them.")
    return sorted(found)


def _tracker_host(client: Any, options: GroupOptions) -> str:
    """The address of this host that workers reach: the one we reach the scheduler from."""
    from distributed.comm.addressing import get_address_host
    from distributed.utils import get_ip

    if options.tracker_host:
        return options.tracker_host
    scheduler = get_address_host(client.scheduler.address)
    return scheduler if scheduler.startswith("127.") else str(get_ip(scheduler))


def _run_group(
    work: _Work, workers: list[str], start: Checkpoint | None, told: _Rounds
) -> list[Segment]:
    """One group from its start to the training's end. Raises _Lost where it came to nothing."""
    blocks = deal(work.row_groups, len(workers))
    members = workers[: len(blocks)]
    from_round = start.rounds if start else 0
    told.on_event(Event("formed", from_round, {}, tuple(members)))
    client, topic = work.client, f"boostline-{uuid4().hex}"
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.subscribe_topic(topic, lambda event: events.put(event[1]))
    futures: dict[str, Any] = {}
    tracker = _start_tracker(client, len(members), work.options)
    try:
        for rank, (address, block) in enumerate(zip(members, blocks, strict=True)):
            job = Job(
                spec=work.spec,
                row_groups=block,
                make_batches=work.make_batches,
                sample=work.sample,
                store=work.store,
                from_round=from_round,
                topic=topic,
                members=_member(tracker, rank, work.options),
            )
            futures[address] = client.submit(
                run_job,
                job,
                workers=[address],
                allow_other_workers=False,
                pure=False,
                key=f"{topic}-{rank}",
            )
        _watch(client, futures, events, told, work.options)
        return [future.result() for future in futures.values()]
    finally:
        _end_group(client, futures, tracker, work.options)
        client.unsubscribe_topic(topic)
        _drain(events, told)


def _start_tracker(client: Any, members: int, options: GroupOptions) -> Any:
    """None for a worker on its own, which needs no group."""
    if members == 1:
        return None
    tracker = RabitTracker(
        n_workers=members,
        host_ip=_tracker_host(client, options),
        port=options.tracker_port,
        sortby="task",
        timeout=int(options.form_timeout),
    )
    tracker.start()
    return tracker


def _member(tracker: Any, rank: int, options: GroupOptions) -> dict[str, Any] | None:
    if tracker is None:
        return None
    return {
        **tracker.worker_args(),
        "dmlc_task_id": f"{rank:06d}",
        "dmlc_timeout": int(options.collective_timeout),
    }


def _drain(events: "queue.SimpleQueue[Any]", told: _Rounds) -> None:
    while not events.empty():
        message = events.get()
        told.tell(message["round"], message["metrics"])


def _watch(
    client: Any,
    futures: dict[str, Any],
    events: "queue.SimpleQueue[Any]",
    told: _Rounds,
    options: GroupOptions,
) -> None:
    """Returns once every member has finished.

    Raises _Lost once a member is gone, silent for `worker_ttl`, or ended by another's loss; or
    the exception that a member's own work raised.
    """
    seen: dict[str, tuple[float, float]] = {}
    while not all(future.status == "finished" for future in futures.values()):
        time.sleep(POLL_S)
        _drain(events, told)
        if any(future.status in ("error", "cancelled") for future in futures.values()):
            raise _cause(client, futures, options)
        alive, now = _alive(client), time.monotonic()
        gone = [address for address in futures if address not in alive]
        if gone:
            raise _cause(client, futures, options)
        for address in futures:
            last_seen = float(alive[address]["last_seen"])
            if address not in seen or seen[address][0] != last_seen:
                seen[address] = (last_seen, now)
        silent = [address for address in futures if now - seen[address][1] > options.worker_ttl]
        if silent:
            client.restart_workers(silent, timeout=options.end_timeout, raise_for_error=False)
            raise _Lost(silent, f"{', '.join(silent)} fell silent for {options.worker_ttl:g} s")


def _cause(client: Any, futures: dict[str, Any], options: GroupOptions) -> BaseException:
    """Why a group ended: the exception of a member's own work before that of a lost neighbour.

    Members fail one after another, so the root may come last: those still at work are waited for.
    """
    until = time.monotonic() + options.end_timeout
    while time.monotonic() < until:
        alive = _alive(client)
        if not any(
            future.status == "pending" and address in alive for address, future in futures.items()
        ):
            break
        own = _own_errors(futures)
        if own:
            return own[0]
        time.sleep(POLL_S)
    own = _own_errors(futures)
    if own:
        return own[0]
    gone = [address for address in futures if address not in _alive(client)]
    if gone:
        return _Lost(gone, f"{', '.join(gone)} left the cluster")
    errors = [future.exception() for future in futures.values() if future.status == "error"]
    return _Lost((), f"the workers lost each other ({_first_line(errors)})")


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


def _first_line(errors: Sequence[BaseException | None]) -> str:
    lines = [line for error in errors for line in str(error).splitlines() if line.startswith("- ")]
    return lines[-1].removeprefix("- ") if lines else "no reason given"


def _end_group(client: Any, futures: dict[str, Any], tracker: Any, options: GroupOptions) -> None:
    """Leaves no task of the group running, whatever state its members are in.

    Cancelled members end at their next round, and take the others along. One that waits for a
    group that never forms ends with the tracker; one that still hangs has its process restarted.
    """
    try:
        pending = {address: f.key for address, f in futures.items() if f.status == "pending"}
        if client.status != "running":
            return
        client.cancel(list(futures.values()), force=True)
        pending = _still_at_work(client, pending, options.end_timeout / 2)
        _free(tracker)
        pending = _still_at_work(client, pending, options.end_timeout / 2)
        if pending:
            client.restart_workers(
                list(pending), timeout=options.end_timeout, raise_for_error=False
            )
    finally:
        _free(tracker)


def _still_at_work(client: Any, tasks: dict[str, str], limit: float) -> dict[str, str]:
    """Of the tasks by worker those that run after `limit` seconds still."""
    until = time.monotonic() + limit
    while True:
        alive = _alive(client) if tasks else {}
        tasks = {a: key for a, key in tasks.items() if a in alive and _runs(client, a, key)}
        if not tasks or time.monotonic() > until:
            return tasks
        time.sleep(POLL_S)


def _runs(client: Any, address: str, key: str) -> bool:
    """Whether the task runs on the worker; a worker that doesn't answer counts as running it."""
    try:
        active = client.sync(
            client._run, _active_keys, workers=[address], on_error="return", callback_timeout=3
        )
    except TimeoutError:
        return True
    return key in active.get(address, ()) if isinstance(active.get(address, ()), list) else False


def _active_keys(dask_worker: Any) -> list[str]:
    with dask_worker.active_threads_lock:
        return [str(key) for key in dask_worker.active_threads.values()]


def _free(tracker: Any) -> None:
    """Closes the tracker's port; it complains when the group did not end in order."""
    if tracker is not None:
        with suppress(XGBoostError):
            tracker.free()
