"""`python -m tests.fuzz N [SEED [FIRST]]`: N mutations, a table of endings, every fault in full.

A fault is tried again by its number: `python -m tests.fuzz 1 SEED NUMBER`.
"""

import sys
import time
from collections import Counter

from tests.fuzz.children import RIGHT, outcomes
from tests.fuzz.subjects import SUBJECTS


def main(count: int, seed: int = 0, first: int = 0) -> int:
    began, slowest = time.monotonic(), 0.0
    endings: Counter[tuple[str, str]] = Counter()
    faults = 0
    for outcome in outcomes(iter(range(first, first + count)), seed):
        endings[outcome.subject, outcome.ending] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.ending not in RIGHT:
            faults += 1
            print(f"case {outcome.case} ({outcome.subject}): {outcome.ending}\n{outcome.detail}")
    kinds = sorted({ending for _, ending in endings})
    print(f"{'':20}" + "".join(f"{kind:>12}" for kind in kinds))
    for name in SUBJECTS:
        print(f"{name:20}" + "".join(f"{endings[name, kind]:12,}" for kind in kinds))
    seconds = time.monotonic() - began
    print(
        f"{sum(endings.values()):,} mutations (seed {seed}) in {seconds:.0f} s, the slowest in "
        f"{slowest:.1f} s, {faults} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
