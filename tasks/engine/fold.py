"""Fold over row groups: map a summary over them, merge in their order.

Batches and bundles are cut by the data alone, never by the cluster, and merged with their
neighbours, so an answer is the same to the last bit on any number of workers.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, TypeVar

from tasks.engine.dataset import RowGroup
from tasks.engine.workers import each

Summary = TypeVar("Summary")
Batch = tuple[RowGroup, ...]
Bundle = tuple[Batch, ...]

BATCH_ROWS = 131_072
# Of small files, about a second's work: more of them in one call would leave workers idle, and a
# lost one would cost more.
BUNDLE_ROWS = 8_192
BUNDLE_BATCHES = 256
BATCH_VALUES = 4 << 20


def rows_of_batch(columns: int) -> int:
    """Rows that are read at once: fewer of a wide table."""
    return max(1, min(BATCH_ROWS, BATCH_VALUES // max(1, columns)))


def batches(row_groups: Sequence[RowGroup], rows: int = BATCH_ROWS) -> list[Batch]:
    """Neighbouring row groups of one file, up to about `rows` rows together."""
    cut: list[list[RowGroup]] = []
    size = 0
    for group in row_groups:
        same = cut and (cut[-1][0].uri, cut[-1][0].path) == (group.uri, group.path)
        if same and size + group.rows <= rows:
            cut[-1].append(group)
            size += group.rows
        else:
            cut.append([group])
            size = group.rows
    return [tuple(batch) for batch in cut]


def bundles(row_groups: Sequence[RowGroup], rows: int = BATCH_ROWS) -> list[Bundle]:
    """Neighbouring batches, up to BUNDLE_ROWS rows together: small files share a call."""
    cut: list[list[Batch]] = []
    size = 0
    for batch in batches(row_groups, rows):
        more = sum(group.rows for group in batch)
        if cut and size + more <= BUNDLE_ROWS and len(cut[-1]) < BUNDLE_BATCHES:
            cut[-1].append(batch)
            size += more
        else:
            cut.append([batch])
            size = more
    return [tuple(bundle) for bundle in cut]


@dataclass(frozen=True)
class _Merged(Generic[Summary]):
    """A bundle's summary: of its batches, from left to right."""

    summarise: Callable[[Batch], Summary]
    merge: Callable[[Summary, Summary], Summary]

    def __call__(self, bundle: Bundle) -> Summary:
        return reduce(self.merge, map(self.summarise, bundle))


def fold(
    client: Any,
    row_groups: Sequence[RowGroup],
    summarise: Callable[[Batch], Summary],
    merge: Callable[[Summary, Summary], Summary],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    columns: int = 1,
) -> Summary:
    """The merged summary of all batches of row groups.

    `client` is a Dask client, a pool of threads of this process, or None for no other thread.
    `summarise` takes a batch (neighbouring row groups of one file), of which it reads so many
    `columns`, and must be picklable, as `merge` must be. `on_progress` gets rows done and rows in
    all.

    Raises:
        ValueError: there are no row groups.
        RunError: a batch lost its worker again and again, or the scheduler is gone.
        Whatever `summarise` raises.
    """
    calls = [(bundle,) for bundle in bundles(row_groups, rows_of_batch(columns))]
    return _together(merge, mapped(client, _Merged(summarise, merge), calls, on_progress))


def fold_bundles(
    client: Any,
    row_groups: Sequence[RowGroup],
    summarise: Callable[[Bundle], Summary],
    merge: Callable[[Summary, Summary], Summary],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    columns: int = 1,
) -> Summary:
    """As `fold`, for a `summarise` that takes a whole bundle: neighbouring batches of any files."""
    calls = [(bundle,) for bundle in bundles(row_groups, rows_of_batch(columns))]
    return _together(merge, mapped(client, summarise, calls, on_progress))


def _together(merge: Callable[[Summary, Summary], Summary], parts: list[Summary]) -> Summary:
    """Pair by pair: a summary that grows with the rows is copied a few times, not for each part."""
    while len(parts) > 1:
        parts = [reduce(merge, parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def mapped(
    client: Any,
    function: Callable[..., Summary],
    calls: Sequence[tuple[Any, ...]],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Summary]:
    """What `function(*call)` returns for each call, whose first argument is a bundle, in order.

    Raises:
        ValueError: there are no calls.
        RunError, or whatever `function` raises, as `fold`.
    """
    if not calls:
        raise ValueError("nothing to fold over")
    sizes = [_rows(call[0]) for call in calls]
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


def _rows(bundle: Bundle) -> int:
    return sum(group.rows for batch in bundle for group in batch)


def _named(bundle: Bundle) -> str:
    first, last = bundle[0][0], bundle[-1][0]
    until = f" to {last.path}" if last.path != first.path else ""
    return f"{_rows(bundle):,} rows of {first.path} from row {first.start:,} on{until}"
