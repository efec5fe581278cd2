"""Fold over row groups: map a summary over them, merge in their order.

Batches are cut by the data alone, never by the cluster, and merged with their neighbours, so an
answer is the same to the last bit on any number of workers.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from functools import reduce
from itertools import chain
from typing import Any, TypeVar

from tasks.engine.dataset import Batch, RowGroup, by_file, rows_in
from tasks.engine.workers import each

Summary = TypeVar("Summary")

BATCH_ROWS = 131_072
BATCH_VALUES = 4 << 20
# A GPU takes milliseconds to begin with each, whatever their number.
MORE_ON_A_GPU = 4
# Of small files, about a second's work: more of them in one call would leave workers idle, and a
# lost one would cost more.
SMALL_ROWS = 8_192
SMALL_FILES = 256


def rows_of_batch(columns: int, device: str = "cpu") -> int:
    """Rows that are read at once: fewer of a wide table."""
    more = MORE_ON_A_GPU if device == "cuda" else 1
    return more * max(1, min(BATCH_ROWS, BATCH_VALUES // max(1, columns)))


def batches(row_groups: Sequence[RowGroup], rows: int = BATCH_ROWS) -> list[Batch]:
    """Neighbouring row groups: of one file up to about `rows` rows together, or of small files of
    one layout up to SMALL_ROWS.
    """
    cut: list[list[Batch]] = []
    size, most = 0, min(rows, SMALL_ROWS)
    for part in (part for file in by_file(row_groups) for part in _parts(file, rows)):
        alike = cut and cut[-1][-1][0].layout == part[0].layout
        if alike and size + rows_in(part) <= most and len(cut[-1]) < SMALL_FILES:
            cut[-1].append(part)
            size += rows_in(part)
        else:
            cut.append([part])
            size = rows_in(part)
    return [tuple(chain.from_iterable(batch)) for batch in cut]


def _parts(file: Batch, rows: int) -> Iterator[Batch]:
    """Neighbouring row groups of a file, up to about `rows` rows together."""
    cut: list[RowGroup] = []
    size = 0
    for group in file:
        if cut and size + group.rows > rows:
            yield tuple(cut)
            cut, size = [], 0
        cut.append(group)
        size += group.rows
    yield tuple(cut)


def fold(
    client: Any,
    row_groups: Sequence[RowGroup],
    summarise: Callable[[Batch], Summary],
    merge: Callable[[Summary, Summary], Summary],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    columns: int = 1,
    device: str = "cpu",
) -> Summary:
    """The merged summary of all batches of row groups.

    `client` is a Dask client, a pool of threads of this process, or None for no other thread.
    `summarise` takes a batch (see `batches`), of which it reads so many `columns` into the memory
    of `device`, and must be picklable, as `merge` must be. `on_progress` gets rows done and rows in
    all.

    Raises:
        ValueError: there are no row groups.
        RunError: a batch lost its worker again and again, or the scheduler is gone.
        Whatever `summarise` raises.
    """
    calls = [(batch,) for batch in batches(row_groups, rows_of_batch(columns, device))]
    parts = mapped(client, summarise, calls, on_progress)
    # pair by pair: a summary that grows with the rows is copied a few times, not for each part
    while len(parts) > 1:
        parts = [reduce(merge, parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def mapped(
    client: Any,
    function: Callable[..., Summary],
    calls: Sequence[tuple[Any, ...]],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Summary]:
    """What `function(*call)` returns for each call, whose first argument is a batch, in order.

    Raises:
        ValueError: there are no calls.
        RunError, or whatever `function` raises, as `fold`.
    """
    if not calls:
        raise ValueError("nothing to fold over")
    sizes = [rows_in(call[0]) for call in calls]
    total = sum(sizes)
    done = 0
    results: dict[int, Summary] = {}
    for index, summary in _results(client, function, calls):
        results[index] = summary
        done += sizes[index]
        on_progress(done, total)
    return [results[index] for index in range(len(calls))]


def _results(
    client: Any, function: Callable[..., Summary], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Summary]]:
    """Results by the number of the call, as they come."""
    if client is None:
        for index, call in enumerate(calls):
            yield index, function(*call)
        return
    if isinstance(client, Executor):
        yield from _on_threads(client, function, calls)
        return
    for outcome in each(client, function, calls, lambda i: _named(calls[i][0])):
        if outcome.error is not None:
            raise outcome.error
        yield outcome.number, outcome.value


def _on_threads(
    pool: Executor, function: Callable[..., Summary], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Summary]]:
    """As `_results`; what has not begun when one fails, or nobody asks for more, never does."""
    futures = {pool.submit(function, *call): index for index, call in enumerate(calls)}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for future in futures:
            future.cancel()


def _named(batch: Batch) -> str:
    first, last = batch[0], batch[-1]
    until = f" to {last.path}" if last.path != first.path else ""
    return f"{rows_in(batch):,} rows of {first.path} from row {first.start:,} on{until}"
