"""Which workers make a group, with how many threads, and which rows each of them takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.engine.dataset import RowGroup, rows_in
from tasks.engine.memory import FILLED, MatrixOptions, Room
from tasks.engine.need import HISTOGRAM_BYTES, Need
from tasks.engine.segment import share_of
from tasks.engine.spec import BoostSpec

# What workers of one host send each other in a round, from where on one of them alone is quicker,
# in so far as rows are few: adding up a bin of a node, and looking for its splits, takes 11 ns of
# each round, and with a member of two threads in place of two a value takes 0.27 ns longer.
SENT_BYTES = 64 << 20
BIN_NS = 11
VALUE_NS = 0.27
LIBRARIES_BYTES = 500_000_000  # of a worker beside the matrix


@dataclass(frozen=True)
class Member:
    """A worker's part; `threads` None for as many as it has."""

    address: str
    row_groups: tuple[RowGroup, ...]
    threads: int | None = None


def deal(row_groups: Sequence[RowGroup], workers: int) -> list[tuple[RowGroup, ...]]:
    """Contiguous blocks of about as many rows each, none empty: at most `workers`."""
    groups = [group for group in row_groups if group.rows]
    count = min(workers, len(groups))
    total = rows_in(groups)
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


def members(
    spec: BoostSpec,
    row_groups: Sequence[RowGroup],
    workers: Mapping[str, Any],
    matrix: MatrixOptions,
    *,
    one_host: bool,
) -> list[Member]:
    """In the order of the workers, by address; of what Dask says of each its threads and memory
    limit are used. `one_host` where all are processes of one host and may use all their threads.
    """
    if one_host and len(workers) > 1:
        address, worker = next(iter(workers.items()))
        room = Room(worker["memory_limit"] or None)
        share = share_of(row_groups, spec, matrix, room)
        if better_alone(share.expected_need(spec), room.limit):
            threads = sum(each["nthreads"] for each in workers.values())
            return [Member(address, tuple(group for group in row_groups if group.rows), threads)]
    blocks = deal(row_groups, len(workers))
    return [Member(address, block) for address, block in zip(workers, blocks, strict=False)]


def better_alone(need: Need, limit: int | None) -> bool:
    """Whether one worker with everyone's threads is quicker than several, and has the memory."""
    sent = need.tree * need.all_bins / 2  # of two siblings one is sent
    if sent * HISTOGRAM_BYTES < SENT_BYTES:
        return False
    if BIN_NS * need.tree * need.all_bins < VALUE_NS * need.rows * need.features:
        return False
    return not limit or LIBRARIES_BYTES + need.in_memory <= FILLED * limit
