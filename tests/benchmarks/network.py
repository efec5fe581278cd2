"""What workers send each other in a round of boosting, beside what theory says.

python -m tests.benchmarks.network

Every worker is a process with the engine's own training on rows of its own. The kernel counts what
each of their connections sent (`TCP_INFO`), whatever it runs over.

A round adds up one histogram for each node that is built: the root, and of every two children the
smaller one, the other being the difference. In a ring of n each worker sends 2 (n - 1) / n of that.
XGBoost's sends 2 - 1 / n: its gathering half passes n pieces on, of which n - 1 would do.
"""

import argparse
import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np

from tasks.engine.batches import Batch, BatchSource, Float32, Sides
from tasks.engine.boost import boost_segment
from tasks.engine.spec import BoostSpec
from tasks.engine.tracker import Tracker
from tests.benchmarks.report import machine, text
from tests.benchmarks.tables import friedman

FEATURES, BINS, DEPTH = 28, 256, 6
ROWS = 20_000  # of a worker: trees are full, and what is sent does not depend on more
ROUNDS = 20
SUM_BYTES = 16  # of one bin: the sums of gradients and of hessians, float64
BYTES_SENT = slice(200, 208)  # tcpi_bytes_sent, linux/tcp.h
ON_PAPER = (16, 100)


def formula(workers: int, pieces: int) -> float:
    """Bytes that a worker sends in a round, of `pieces` n-ths of all histograms."""
    histograms = 2 ** (DEPTH - 1) * FEATURES * BINS * SUM_BYTES
    return pieces / workers * histograms


def sent() -> int:
    """Bytes that this process's TCP connections have sent so far."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with closing(socket.socket(fileno=os.dup(int(name)))) as each:
                if each.family == socket.AF_INET and each.type == socket.SOCK_STREAM:
                    info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += int.from_bytes(info[BYTES_SENT], sys.byteorder)
        except OSError:
            continue  # the folder's own descriptor, closed by now
    return total


def rows(seed: int) -> tuple[Float32, Any]:
    """Features float32 (ROWS, 28) and target float64 (ROWS,)."""
    random = np.random.default_rng(seed)
    x = random.random((ROWS, FEATURES), dtype=np.float32)
    return x, friedman(x) + x.sum(1) + random.normal(0, 1, ROWS)


def sides(seed: int) -> Sides:
    x, y = rows(seed)
    position = np.arange(ROWS, dtype=np.uint64)
    none = slice(0, 0)
    return Sides(Batch(x, y, position), Batch(x[none], y[none], position[none]))


def spec(workers: int) -> BoostSpec:
    y = np.concatenate([rows(seed)[1] for seed in range(workers)])
    mean = float(y.mean())
    return BoostSpec(
        n_estimators=ROUNDS,
        params={"max_depth": DEPTH, "learning_rate": 0.1, "max_bin": BINS},
        feature_names=tuple(f"f{j}" for j in range(FEATURES)),
        feature_types=("q",) * FEATURES,
        mean=mean,
        max_deviation=float(np.abs(y - mean).max()),
        train_variance=float(y.var()),
        checkpoint_every=ROUNDS,
    )


def member(
    rank: int, shared: BoostSpec, tracker: dict[str, Any], told: "SimpleQueue[float]"
) -> None:
    """Tells the bytes that it sent from the second round's start to the last one's, per round."""
    counts: list[int] = []
    boost_segment(
        shared,
        [BatchSource(partial(sides, rank), dict)],
        rows(0)[0],
        None,
        group={**tracker, "dmlc_task_id": f"{rank:06d}"},
        save=lambda checkpoint: None,
        on_round=lambda round_, metrics: None,
        check_stop=lambda: counts.append(sent()),
    )
    told.put((counts[-1] - counts[1]) / (len(counts) - 2))


def measured(workers: int) -> list[float]:
    """Bytes per round, of every worker."""
    spawn = multiprocessing.get_context("spawn")
    told: SimpleQueue[float] = spawn.SimpleQueue()
    tracker = Tracker(workers, "127.0.0.1", port=0, timeout=120)
    shared = spec(workers)
    members = [
        spawn.Process(target=member, args=(rank, shared, tracker.worker_args(), told))
        for rank in range(workers)
    ]
    for each in members:
        each.start()
    for each in members:
        each.join()
    tracker.free()
    if any(each.exitcode for each in members):
        raise SystemExit(f"a worker ended with codes {[each.exitcode for each in members]}")
    return [told.get() for _ in members]


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(prog="python -m tests.benchmarks.network", description=__doc__)
    asked.add_argument("--workers", type=int, nargs="*", default=[2, 4, 8])
    asked.add_argument("--markdown", action="store_true", help="tables as in RESULTS.md")
    chosen = asked.parse_args(words)
    for name, line in machine().items():
        print(f"{'- ' if chosen.markdown else ''}{name}: {line}")
    table = [("workers", "sent by one", "a ring", "XGBoost's ring", "sent / that", "at 10 Gbit/s")]
    for workers in (*chosen.workers, *ON_PAPER):
        expected = formula(workers, 2 * workers - 1)
        most = max(measured(workers)) if workers in chosen.workers else None
        table.append(
            (
                f"{workers}",
                f"{most / 1e6:.3f} MB" if most else "",
                f"{formula(workers, 2 * workers - 2) / 1e6:.3f} MB",
                f"{expected / 1e6:.3f} MB",
                f"{most / expected:.3f}" if most else "",
                f"{expected * 8 / 10e9 * 1e3:.1f} ms",
            )
        )
    print(f"\n{text(table, chosen.markdown)}")


if __name__ == "__main__":
    main()
