"""The bootstrap draws by position alone, from Poisson(1), and its interval covers as it should."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score

from tasks.engine.bootstrap import BootstrapSums, Scale, bootstrap_sums, interval, weights
from tasks.engine.hashing import Float64, UInt64, positions


def scale_of(deviation: Float64, error: Float64) -> Scale:
    return Scale.over(float(np.abs(deviation).max()), float(np.abs(error).max()))


def table(rows: int, noise: float = 0.3, seed: int = 0) -> tuple[UInt64, Float64, Float64]:
    """Position, actual - train mean, error."""
    random = np.random.default_rng(seed)
    return (
        positions(f"part-{seed}.parquet", 0, rows),
        random.standard_t(4, size=rows) + 0.5,
        noise * random.normal(size=rows),
    )


def test_draws_are_poisson() -> None:
    drawn = weights(positions("a.parquet", 0, 5_000), 400, seed=0)
    expected = stats.poisson(1).pmf(np.arange(6)) * drawn.size
    counted = np.bincount(drawn.ravel(), minlength=9)
    assert counted[:6] == pytest.approx(expected, rel=0.02)
    assert drawn.mean() == pytest.approx(1, abs=0.003) and drawn.var() == pytest.approx(1, abs=0.01)


def test_draws_are_independent() -> None:
    drawn = weights(positions("a.parquet", 0, 20_000), 40, seed=0).astype(float)
    between_replicates = np.corrcoef(drawn.T)[np.triu_indices(40, 1)]
    assert np.abs(between_replicates).max() < 5 / np.sqrt(20_000)
    neighbours = np.mean((drawn[:-1] - 1) * (drawn[1:] - 1))
    assert abs(neighbours) < 5 / np.sqrt(drawn.size)
    assert np.var(drawn.sum(axis=0)) == pytest.approx(20_000, rel=0.6)


def test_another_seed_draws_others() -> None:
    position = positions("a.parquet", 0, 100)
    assert not np.array_equal(weights(position, 8, 0), weights(position, 8, 1))
    assert np.array_equal(weights(position, 8, 0), weights(position, 102, 0)[:, :8])


def test_replicates_are_r2_of_drawn_rows() -> None:
    position, deviation, error = table(3_000)
    scale = scale_of(deviation, error)
    sums = bootstrap_sums(position, deviation, error, scale, 101, seed=3)
    drawn = weights(position, 101, seed=3)
    assert np.array_equal(sums.sums[0], drawn.sum(axis=0, dtype=np.int64))
    for replicate in (0, 1, 2, 3, 100):
        one = BootstrapSums(sums.sums[:, replicate : replicate + 1])
        found = interval(one, scale, 0.5)
        expected = r2_score(deviation, deviation + error, sample_weight=drawn[:, replicate])
        assert found is not None and found.low == pytest.approx(expected, abs=1e-12)


def test_order_and_batches_do_not_matter() -> None:
    position, deviation, error = table(10_000)
    scale = scale_of(deviation, error)
    whole = bootstrap_sums(position, deviation, error, scale, 100, seed=0)
    order = np.random.default_rng(0).permutation(10_000)
    merged = BootstrapSums(np.zeros_like(whole.sums))
    for rows in np.array_split(order, [13, 4_000, 4_001]):
        part = bootstrap_sums(position[rows], deviation[rows], error[rows], scale, 100, seed=0)
        merged = merged.merge(part)
    assert np.array_equal(merged.sums, whole.sums)


def test_interval_has_the_width_of_many_samples() -> None:
    samples = [table(2_000, seed=seed)[1:] for seed in range(300)]
    spread = np.std([r2_score(d, d + e) for d, e in samples])
    widths = []
    for seed in range(20):
        position, deviation, error = table(2_000, seed=seed)
        scale = scale_of(deviation, error)
        sums = bootstrap_sums(position, deviation, error, scale, 400, seed=0)
        found = interval(sums, scale, 0.95)
        assert found is not None
        assert found.low < r2_score(deviation, deviation + error) < found.high
        widths.append(found.high - found.low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.2)


@pytest.mark.parametrize("deviation", [0.0, 0.1, -1e9 / 3])
def test_a_constant_target_has_no_interval(deviation: float) -> None:
    position, _, error = table(50)
    constant = np.full(50, deviation)
    scale = scale_of(constant, error)
    sums = bootstrap_sums(position, constant, error, scale, 100, seed=0)
    assert interval(sums, scale, 0.95) is None


def test_a_rare_giant_does_not_hide_the_rest() -> None:
    position, deviation, error = table(4_000)
    scale = Scale.over(1e6 * float(np.abs(deviation).max()), 1e6 * float(np.abs(error).max()))
    near = scale_of(deviation, error)
    coarse = interval(bootstrap_sums(position, deviation, error, scale, 100, 0), scale, 0.9)
    fine = interval(bootstrap_sums(position, deviation, error, near, 100, 0), near, 0.9)
    assert coarse is not None and fine is not None
    assert coarse.low == pytest.approx(fine.low, abs=1e-4)
