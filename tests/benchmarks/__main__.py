"""Boostline beside other ways to the same model: whole processes, one after the other.

python -m tests.benchmarks                      1M rows, the sides A B F G once: about a minute
python -m tests.benchmarks --rows 10M --sides ABCDEFG --repeat 3 --markdown --out 10M.json
python -m tests.benchmarks startup --repeat 3   or again, nightly, workers, scoring, files,
                                                external, checkpoints
"""

import argparse
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.contest import SIDES, Measured, installed
from tests.benchmarks.measurements import MEASUREMENTS, Chosen
from tests.benchmarks.report import by_side, comparison, machine, steps, text
from tests.benchmarks.tables import KINDS

DATA = Path(tempfile.gettempdir(), "boostline-benchmarks")


def count(words: str) -> int:
    """`100k` and `10M` as numbers."""
    factor = {"k": 1_000, "M": 1_000_000}.get(words[-1:], 1)
    number = int(words.rstrip("kM")) * factor
    if number < 1:
        raise ValueError
    return number


def letters(words: str) -> str:
    unknown = set(words.upper()) - set(SIDES)
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"{words!r}: the sides are {''.join(SIDES)}")
    return words.upper()


def options() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asked.add_argument("what", nargs="?", default="sides", choices=MEASUREMENTS)
    asked.add_argument("--table", default="numeric", choices=[*KINDS])
    asked.add_argument("--rows", type=count, metavar="N", help="as in 100k or 10M")
    asked.add_argument(
        "--sides",
        type=letters,
        default="ABFG",
        help="; ".join(f"{letter} {side.name}" for letter, side in SIDES.items()),
    )
    asked.add_argument("--repeat", type=int, default=1, help="rounds; the medians are shown")
    asked.add_argument("--seed", type=int, default=0, help="of the tables and the splits")
    asked.add_argument("--data", type=Path, default=DATA, help=f"folder of tables ({DATA})")
    asked.add_argument("--out", type=Path, help="JSON file for every single run")
    asked.add_argument("--markdown", action="store_true", help="tables as in RESULTS.md")
    return asked


def main() -> int:
    asked = options().parse_args()
    # a side has a session of its own: it is ended on the way out, as after Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    data = asked.data.absolute()
    data.mkdir(parents=True, exist_ok=True)
    chosen = Chosen(data, asked.table, asked.rows, asked.sides, asked.repeat, asked.seed)
    head = machine()
    for name, line in head.items():
        print(f"{'- ' if asked.markdown else ''}{name}: {line}")
    if asked.what == "sides":
        for letter in asked.sides:
            if not installed(letter):
                print(f"{letter} is left out: {SIDES[letter].needs} is not installed")
    runs: list[Measured] = []
    for run in MEASUREMENTS[asked.what](chosen):
        runs.append(run)
        ended = run.error or f"{run.wall_s:.1f} s, {run.peak_mb:,.0f} MB"
        print(f"{run.side}: {ended}", file=sys.stderr, flush=True)
        if asked.out:  # after every run: a long series that is cut short keeps what it has
            asked.out.write_text(
                json.dumps(
                    {"machine": head, "asked": vars(asked), "runs": [*map(asdict, runs)]},
                    default=str,
                    indent=1,
                )
            )
    # beside whom the others stand: Boostline in a contest, else the first
    ours = "G" if asked.what == "sides" and "G" in by_side(runs) else runs[0].side
    for rows in (comparison(runs, ours), steps(runs)):
        print(f"\n{text(rows, asked.markdown)}")
    hashes = {run.model_sha256 for run in runs if run.model_sha256}
    if asked.what in ("workers", "external"):
        print(f"\nthe same bytes: {'yes' if len(hashes) == 1 else 'NO'}")
    return int(any(run.error for run in runs))


if __name__ == "__main__":
    sys.exit(main())
