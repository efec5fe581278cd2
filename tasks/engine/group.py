"""A training on a group of Dask workers that outlives them: deal, boost, recover, go on.

The driver starts XGBoost's tracker, sends one task to each worker and watches. When a worker is
lost or freezes, the group is ended, the row groups are dealt again to those that are there, and
the next group goes on from the last checkpoint. No wait is without a limit.
"""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

from tasks.engine.batches import BatchSource, Float32
from tasks.engine.boost import Segment
from tasks.engine.booster import finish
from tasks.engine.checkpoints import Checkpoint, CheckpointStore, History
from tasks.engine.dataset import RowGroup, rows_in
from tasks.engine.dealing import deal, members
from tasks.engine.errors import RunError
from tasks.engine.frames import Device
from tasks.engine.members import (
    PREFIX,
    Event,
    GroupOptions,
    Lost,
    OnEvent,
    Rounds,
    drain,
    end_group,
    free_of_others,
    member_arguments,
    start_tracker,
    watch,
)
from tasks.engine.segment import Job, run_job, share_of
from tasks.engine.spec import BoostSpec
from tasks.engine.workers import (
    MEMORY_LOSSES,
    POLL_S,
    alive_workers,
    memory_deaths,
    of_memory_limit,
)

LOCK = "boostline-training"
# Busy hosts now and then fail to connect to each other though nobody died.
FALSE_STARTS = 3


@dataclass(frozen=True)
class TrainResult:
    """`raw` is the final booster, which predicts y - mean; it holds `best_rounds` of the `rounds`
    that were trained. `resumed_from_round` is that of the checkpoint found at the start, or 0;
    `workers` took part in the last group, 0 where nothing was left to train. `external` says
    whether the bins were on disk in the last group, None where there was none.
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
    device: Device
    external: bool | None = None


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


def train(
    client: Any,
    spec: BoostSpec,
    row_groups: Sequence[RowGroup],
    make_batches: Callable[[Sequence[RowGroup]], Sequence[BatchSource]],
    sample: Callable[[], Float32],
    store: CheckpointStore,
    on_event: OnEvent = lambda event: None,
    options: GroupOptions | None = None,
) -> TrainResult:
    """Trains to the last round from the newest checkpoint of `store`.

    `make_batches` gets a worker's row groups; `sample` gives float32 (n, p), the same on every
    worker; both are picklable and run on the workers. `on_event` is called in this thread, once
    for each round that is new. Two trainings on one cluster take turns.

    Raises:
        UserError: the input or the device is wrong.
        RunError: too many groups were lost, the workers' memory is too small, no worker or no
            scheduler is left, or another training held the cluster for `lock_timeout`.
        Whatever a batch source raises.
    """
    began = time.monotonic()
    options = options or GroupOptions()
    work = _Work(client, spec, tuple(row_groups), make_batches, sample, store, options)
    start = spec.latest(store)
    told = Rounds(on_event, start.rounds if start else 0)
    if start is not None and spec.is_complete(start.history):
        return _result(spec, start, start.rounds, 0, began, 0, spec.device)
    with _turn(client, options.lock_timeout):
        # who had the turn before may have trained the same
        start = spec.latest(store)
        resumed_from = start.rounds if start else 0
        if start is not None:
            told.complete(spec, start.history)
            if spec.is_complete(start.history):
                return _result(spec, start, resumed_from, 0, began, 0, spec.device)
        done = _run_groups(work, start, told)
    told.complete(spec, done.last.history)
    result = _result(
        spec, done.last, resumed_from, done.recoveries, began, done.workers, done.device
    )
    return replace(result, external=done.external)


@dataclass(frozen=True)
class _Done:
    last: Checkpoint
    recoveries: int
    workers: int
    device: Device
    external: bool | None = None


def _run_groups(work: _Work, start: Checkpoint | None, told: Rounds) -> _Done:
    """One group after another until one comes to the end."""
    recoveries, false_starts, size, of_memory = 0, 0, 1, 0
    while True:
        workers = _workers(work.client, size, work.options)
        size = max(size, len(workers))
        try:
            parts = _run_group(work, workers, start, told)
        except Lost as lost:
            recoveries += bool(lost.workers)
            false_starts += not lost.workers
            told.on_event(Event("lost", told.last, {}, lost.workers, lost.note))
            _check_losses(recoveries, false_starts, lost, work.options)
            before, start = start, work.spec.latest(work.store)
            if start is not None and work.spec.is_complete(start.history):
                return _Done(start, recoveries, len(workers), work.spec.device)
            got_on = start is not None and (before is None or start.rounds > before.rounds)
            died = _of_memory(work.client, lost)
            of_memory = 0 if got_on else of_memory + died
            if of_memory > MEMORY_LOSSES:
                raise _too_large(work, lost, len(workers)) from None
            work = _on_disk(work) if died else work
        else:
            last = next(part.checkpoint for part in parts if part.checkpoint is not None)
            return _Done(last, recoveries, len(parts), parts[0].device, parts[0].external)


def _check_losses(recoveries: int, false_starts: int, lost: Lost, options: GroupOptions) -> None:
    if recoveries <= options.recoveries and false_starts <= FALSE_STARTS:
        return
    raise RunError(
        f"{recoveries + false_starts} groups of workers were lost during training, the last one "
        f"because {lost.note}. cluster.recoveries allows {options.recoveries}. Workers that die "
        "again and again mostly lack memory (cluster.memory_limit); those that lose each other "
        "though nobody died may need more time (cluster.form_timeout is now "
        f"{options.form_timeout:g} s, cluster.collective_timeout {options.collective_timeout:g} s)."
    ) from None


def _of_memory(client: Any, lost: Lost) -> bool:
    deaths = memory_deaths(client)
    return any(address in deaths for address in lost.workers)


def _on_disk(work: _Work) -> _Work:
    """The estimate was too low where a worker died in memory: later groups use all workers, and
    the disk.
    """
    changes: dict[str, Any] = {"one_host": False}
    if work.options.matrix.external == "auto":
        later = {"external": "always", "after_loss": True}
        changes["matrix"] = work.options.matrix.model_copy(update=later)
    return replace(work, options=work.options.model_copy(update=changes))


def _too_large(work: _Work, lost: Lost, workers: int) -> RunError:
    """What the share of the largest member takes."""
    address = next(iter(a for a in lost.workers if a in memory_deaths(work.client)))
    block = max(deal(work.row_groups, workers), key=rows_in)
    spec, matrix = work.spec, work.options.matrix
    need = share_of(block, spec, matrix).expected_need(spec)
    return RunError(
        f"{of_memory_limit(work.client, address)}, as {MEMORY_LOSSES} did before it, "
        f"in training. {need.too_large(matrix.external)}"
    )


def _result(
    spec: BoostSpec,
    last: Checkpoint,
    resumed_from: int,
    recoveries: int,
    began: float,
    workers: int,
    device: Device,
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


@contextmanager
def _turn(client: Any, timeout: float) -> Iterator[None]:
    """This training's turn on the cluster: tasks of two groups on one worker wait for ever.

    A lease, not a lock: it ends by itself when this process dies.
    """
    from distributed import Semaphore

    turn = Semaphore(max_leases=1, name=LOCK, scheduler_rpc=client.scheduler, loop=client.loop)
    if not turn.acquire(timeout=timeout):
        raise RunError(
            f"Another training has held the cluster for {timeout:g} s (cluster.lock_timeout)."
        )
    try:
        yield
    finally:
        if client.status == "running":
            turn.release()
        client.loop.add_callback(turn.refresh_callback.stop)


def _workers(client: Any, wanted: int, options: GroupOptions) -> dict[str, Any]:
    """By address in order, of as many as there were if they come in time; one at the least."""
    began = time.monotonic()
    while len(found := _ready(client)) < wanted:
        limit = options.replace_timeout if found else options.start_timeout
        if time.monotonic() - began > limit:
            break
        time.sleep(POLL_S)
    if not found:
        raise RunError(
            "The cluster has no workers left to train on, and none came within "
            f"{options.start_timeout:g} s (cluster.start_timeout)."
        )
    return dict(sorted(found.items()))


def _ready(client: Any) -> dict[str, Any]:
    """Workers that take work: one that is paused for its memory would never start its part."""
    alive = alive_workers(client)
    return {address: each for address, each in alive.items() if each["status"] == "running"}


def _on_host_of(address: str, members: Sequence[str]) -> int:
    """How many of the members, itself included, share its host and so perhaps its disk."""
    host = address.rpartition(":")[0]
    return sum(member.rpartition(":")[0] == host for member in members)


def _run_group(
    work: _Work, workers: dict[str, Any], start: Checkpoint | None, told: Rounds
) -> list[Segment]:
    """One group from its start to the training's end. Raises Lost where it came to nothing."""
    group = members(
        work.spec,
        work.row_groups,
        workers,
        work.options.matrix,
        one_host=work.options.one_host,
    )
    addresses = [member.address for member in group]
    from_round = start.rounds if start else 0
    told.on_event(Event("formed", from_round, {}, tuple(addresses)))
    client, topic = work.client, f"{PREFIX}{uuid4().hex}"
    free_of_others(client, addresses, work.options)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.subscribe_topic(topic, lambda event: events.put(event[1]))
    futures: dict[str, Any] = {}
    tracker = start_tracker(client, len(group), work.options)
    try:
        for rank, member in enumerate(group):
            job = Job(
                spec=work.spec,
                row_groups=member.row_groups,
                make_batches=work.make_batches,
                sample=work.sample,
                store=work.store,
                from_round=from_round,
                topic=topic,
                members=member_arguments(tracker, rank, work.options),
                matrix=work.options.matrix,
                sharing=_on_host_of(member.address, addresses),
                threads=member.threads,
            )
            futures[member.address] = client.submit(
                run_job,
                job,
                workers=[member.address],
                allow_other_workers=False,
                pure=False,
                key=f"{topic}-{rank}",
            )
        return watch(client, futures, events, told, work.options)
    finally:
        end_group(client, futures, tracker, work.options)
        if client.status == "running":
            client.unsubscribe_topic(topic)
        drain(events, told)
