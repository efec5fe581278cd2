"""Some seconds of fuzzing; `python -m tests.fuzz 10000 SEED` goes on for longer."""

import itertools
import os
import time
from collections.abc import Iterator
from random import Random

import pytest

from tests.fuzz.children import RIGHT, outcomes
from tests.fuzz.subjects import SUBJECTS, Ending, Subject

pytestmark = pytest.mark.slow

SECONDS = 10.0
SEED = 20261124


def test_no_damage_crashes_hangs_or_passes_unseen() -> None:
    until = 0.0

    def numbers() -> Iterator[int]:
        nonlocal until
        until = until or time.monotonic() + SECONDS
        yield from itertools.takewhile(lambda _: time.monotonic() < until, itertools.count())

    found = list(outcomes(numbers(), SEED))
    assert [outcome for outcome in found if outcome.ending not in RIGHT] == []
    assert {outcome.subject for outcome in found} == set(SUBJECTS)
    assert {outcome.ending for outcome in found} == set(RIGHT)


class Faulty(Subject):
    """Does in turn what must never be."""

    def make(self) -> None:
        pass

    def run(self, random: Random) -> Ending:
        raise AssertionError


class Crashes(Faulty):
    def run(self, random: Random) -> Ending:
        os.abort()


class Hangs(Faulty):
    def run(self, random: Random) -> Ending:
        time.sleep(60)
        return "same"


class IsSilent(Faulty):
    def run(self, random: Random) -> Ending:
        return "silent"


def test_every_fault_is_seen() -> None:
    kinds = {"crash": Crashes, "hang": Hangs, "silent": IsSilent, "traceback": Faulty}
    found = list(outcomes(iter(range(4)), SEED, kinds, limit=1.0))
    assert sorted(outcome.ending for outcome in found) == sorted(kinds)
    assert all(outcome.ending == outcome.subject for outcome in found)
