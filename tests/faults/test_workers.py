"""Workers that die or freeze in every step: the run ends with the bytes of the undisturbed one."""

from pathlib import Path

import pytest

from tasks.engine.summary import Summary
from tests.conftest import Boostline
from tests.faults.harness import (
    BETWEEN,
    FIRST,
    INGEST,
    LAST,
    PROFILE,
    SCORING,
    SUMMING,
    address_cluster,
    arguments,
    freeze,
    hit_all,
    running,
    same,
)

# the first test also makes the table and the undisturbed run
pytestmark = pytest.mark.slow


def test_a_worker_is_killed_in_every_step(
    boostline: Boostline, table: Path, undisturbed: Summary
) -> None:
    with running(boostline, *arguments(table)) as run:
        hit_all(run, [INGEST, PROFILE, FIRST, BETWEEN, LAST, SCORING, SUMMING], run.workers)
        found = run.summary()
    same(found, undisturbed)
    assert 2 <= found.recoveries <= 3  # the last round may have been over
    run.check_not_done_again()


@pytest.mark.long
def test_without_nannies_those_left_go_on(
    boostline: Boostline, table: Path, undisturbed: Summary
) -> None:
    with (
        address_cluster(boostline, workers=4, nanny=False) as cluster,
        running(
            boostline, *arguments(table, cluster__replace_timeout=0.5), *cluster.settings()
        ) as run,
    ):
        hit_all(run, [INGEST, BETWEEN, SCORING], cluster.workers)
        found = run.summary()
        assert len(cluster.workers()) == 1
    same(found, undisturbed)
    assert found.recoveries == 1
    run.check_not_done_again()


@pytest.mark.long
def test_a_frozen_worker_counts_as_lost(
    boostline: Boostline, table: Path, undisturbed: Summary
) -> None:
    with running(boostline, *arguments(table, cluster__worker_ttl=6)) as run:
        hit_all(run, [INGEST, PROFILE, BETWEEN, SCORING], run.workers, freeze)
        found = run.summary()
    same(found, undisturbed)
    assert found.recoveries == 1
    run.check_not_done_again()
