"""Fold over row groups: map a summary over them, merge in their order.

Batches are cut by the data alone, never by the cluster, and merged left to right, so an answer is
the same to the last bit on any number of workers.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, TypeVar

from tasks.engine.dataset import RowGroup
from tasks.engine.workers import each

Summary = TypeVar("Summary")

BATCH_ROWS = 131_072
BATCH_VALUES = 4 << 20


def rows_of_batch(features: int) -> int:
    """Rows to train on that are read at once: fewer of a wide table."""
    return max(1, min(BATCH_ROWS, BATCH_VALUES // max(1, features)))


def batches(row_groups: Sequence[RowGroup], rows: int = BATCH_ROWS) -> list[tuple[RowGroup, ...]]:
    """Neighbouring row groups of one file, up to about `rows` rows together."""
    cut: list[list[RowGroup]] = []
    size = 0
    for group in row_groups:
        if cut and cut[-1][0].uri == group.uri and size + group.rows <= rows:
            cut[-1].append(group)
            size += group.rows
        else:
            cut.append([group])
            size = group.rows
    return [tuple(batch) for batch in cut]


def fold(
    client: Any,
    row_groups: Sequence[RowGroup],
    summarise: Callable[[tuple[RowGroup, ...]], Summary],
    merge: Callable[[Summary, Summary], Summary],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """The merged summary of all batches of row groups.

    `client` is a Dask client, or None to run here. `summarise` takes a batch (neighbouring row
    groups of one file) and must be picklable. `on_progress` gets rows done and rows in all.

    Raises:
        ValueError: there are no row groups.
        RunError: a batch lost its worker again and again, or the scheduler is gone.
        Whatever `summarise` raises.
    """
    cut = batches(row_groups)
    if not cut:
        raise ValueError("nothing to fold over")
    total = sum(group.rows for group in row_groups)
    done = 0
    results: dict[int, Summary] = {}
    for index, summary in _summaries(client, cut, summarise):
        results[index] = summary
        done += sum(group.rows for group in cut[index])
        on_progress(done, total)
    return reduce(merge, (results[index] for index in range(len(cut))))


def _summaries(
    client: Any,
    cut: list[tuple[RowGroup, ...]],
    summarise: Callable[[tuple[RowGroup, ...]], Summary],
) -> Iterator[tuple[int, Summary]]:
    """Summaries by batch number, as they come."""
    if client is None:
        for index, batch in enumerate(cut):
            yield index, summarise(batch)
        return
    for outcome in each(client, summarise, ((batch,) for batch in cut), lambda i: _named(cut[i])):
        if outcome.error is not None:
            raise outcome.error
        yield outcome.number, outcome.value


def _named(batch: tuple[RowGroup, ...]) -> str:
    rows = sum(group.rows for group in batch)
    return f"{rows:,} rows of {batch[0].path} from row {batch[0].start:,} on"
