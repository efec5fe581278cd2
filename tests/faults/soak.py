"""Workers and flows killed every few seconds, for minutes: the bytes must be those of peace.

python -m tests.faults.soak --minutes 15
"""

import argparse
import sys
import time
from random import Random

import psutil

from tests.faults.full import prepared
from tests.faults.harness import Run, arguments, freeze, kill, running, same

LIMIT_S = 1200  # of a whole training of that length beside other work
SETTINGS = {
    "boost__n_estimators": 1001,
    "cluster__worker_ttl": 4,
    "cluster__replace_timeout": 2,
    "cluster__start_timeout": 40,
    "cluster__recoveries": 100_000,
    "cluster__threads": 1,
}


def strike(run: Run, random: Random) -> str:
    """One process of the run, most often a worker's, now and then the flow's own."""
    if random.random() < 0.1:
        run.kill()
        return "flow"
    workers = run.workers()
    if not workers:
        return "nobody"
    victim = random.choice(workers)
    frozen = random.random() < 0.2
    try:
        (freeze if frozen else kill)(victim)
    except psutil.NoSuchProcess:
        return "nobody"
    return "frozen worker" if frozen else "worker"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=15)
    chosen = options.parse_args()
    random = Random(chosen.seed)
    struck: dict[str, int] = {}
    with prepared() as (place, table, _):
        words = arguments(table, **SETTINGS)
        with running(place("long-undisturbed"), *words) as run:
            undisturbed = run.summary(LIMIT_S)
        until = time.monotonic() + 60 * chosen.minutes
        trainings = 0
        while time.monotonic() < until:
            trainings += 1
            boostline = place(f"training-{trainings}")
            ended = False
            while not ended:
                with running(boostline, *words) as run:
                    while run.process.poll() is None:
                        time.sleep(random.uniform(2, 6))
                        if run.process.poll() is None and time.monotonic() < until:
                            victim = strike(run, random)
                            struck[victim] = struck.get(victim, 0) + 1
                    if run.process.returncode >= 0:
                        found, ended = run.summary(LIMIT_S), True
            same(found, undisturbed)
            print(
                f"training {trainings}: the same bytes; recoveries {found.recoveries}; struck so "
                f"far: {struck}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
