"""A training's part on one Dask worker: what the driver sends and what the worker runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.engine.batches import BatchSource, Float32
from tasks.engine.boost import Segment, boost_segment
from tasks.engine.checkpoints import Checkpoint, CheckpointStore
from tasks.engine.dataset import RowGroup, rows_in
from tasks.engine.device_memory import DeviceRoom
from tasks.engine.errors import RunError, UserError
from tasks.engine.fold import batches, rows_of_batch
from tasks.engine.memory import AUTO, BOUNDLESS, MatrixOptions, Room, Share
from tasks.engine.spec import BoostSpec


class Cancelled(RunError):
    """The driver gave up this part of the training."""


@dataclass(frozen=True)
class Job:
    """One worker's part. `sample` and `make_batches` are picklable and run on the worker.

    `from_round` names the checkpoint to go on from, 0 for none. `members` are the arguments of
    XGBoost's communicator, None for a worker on its own. `topic` is where rounds are told.
    `sharing` members are on this worker's host, itself included. `threads` None are the worker's.
    """

    spec: BoostSpec
    row_groups: tuple[RowGroup, ...]
    make_batches: Callable[[Sequence[RowGroup]], Sequence[BatchSource]]
    sample: Callable[[], Float32]
    store: CheckpointStore
    from_round: int
    topic: str
    members: dict[str, Any] | None = field(default=None)
    matrix: MatrixOptions = AUTO
    sharing: int = 1
    threads: int | None = None


def run_job(job: Job) -> Segment:
    """Runs in the worker's own task thread.

    Raises:
        Cancelled: the driver cancelled this task; the other workers then end too.
        RunError: the checkpoint to go on from is gone.
        Whatever `boost_segment` raises.
    """
    from distributed import get_worker

    worker: Any = get_worker()
    key = worker.get_current_task()
    start = None
    if job.from_round:
        start = job.store.load(job.from_round)
        if start is None:
            raise RunError(
                f"The checkpoint of round {job.from_round} in {job.store.uri} can't be read from "
                f"{worker.address}. BOOSTLINE_HOME must be a place that every host reaches."
            )

    def check_stop() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state not in ("executing", "long-running"):
            raise Cancelled("The training was cancelled.")

    def on_round(round_: int, metrics: dict[str, float]) -> None:
        worker.log_event(job.topic, {"round": round_, "metrics": metrics})

    def save(checkpoint: Checkpoint) -> None:
        # a full disk costs the checkpoint, not the training
        try:
            job.store.save(checkpoint)
        except (OSError, UserError) as error:
            worker.log_event(job.topic, {"round": checkpoint.rounds, "unsaved": str(error)})

    def on_external(note: str) -> None:
        worker.log_event(job.topic, {"external": note})

    room = Room(
        limit=worker.memory_manager.memory_limit,
        scratch=worker.local_directory,
        sharing=job.sharing,
        worker=worker.address,
    )
    if job.spec.device == "cuda":
        room = DeviceRoom.of(room, job.matrix.gpu_memory)
    return boost_segment(
        job.spec,
        job.make_batches(job.row_groups),
        job.sample(),
        start,
        group=job.members,
        save=save,
        on_round=on_round,
        check_stop=check_stop,
        threads=job.threads or worker.state.nthreads,
        share=share_of(job.row_groups, job.spec, job.matrix, room),
        on_external=on_external,
    )


def share_of(
    row_groups: Sequence[RowGroup],
    spec: BoostSpec,
    options: MatrixOptions = AUTO,
    room: Room = BOUNDLESS,
) -> Share:
    """Counts the rows of a worker's row groups, and those of its largest batch."""
    cut = batches(row_groups, rows_of_batch(len(spec.feature_names), spec.device))
    sizes = [rows_in(batch) for batch in cut]
    return Share(sum(sizes), max(sizes, default=0), options, room)
