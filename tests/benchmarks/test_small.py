"""The benchmark at its smallest: that it works, never how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.contest import SIDES, installed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("sides", ["BG", pytest.param("all", marks=pytest.mark.long)])
def test_every_side_is_measured(sides: str, tmp_path: Path) -> None:
    every = "".join(letter for letter in SIDES if installed(letter))
    letters = every if sides == "all" else sides
    out = tmp_path / "out.json"
    words = ["--rows", "100k", "--sides", letters, "--data", str(tmp_path), "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    runs = {run["side"]: run for run in json.loads(out.read_text())["runs"]}
    assert "".join(runs) == letters
    for letter, run in runs.items():
        assert f"\n{letter}: {SIDES[letter].name} " in ran.stdout
        assert abs(run["r2"] - runs["B"]["r2"]) < 0.02
        assert run["peak_mb"] > 100 and run["wall_s"] > run["sampling_s"] > 0
    ours = runs["G"]
    assert 0 < ours["servers_mb"] < ours["peak_mb"]
    assert 0 < sum(ours["steps_s"].values()) - ours["steps_s"]["total"] <= ours["wall_s"]
    assert not runs["B"]["servers_mb"] and not list(tmp_path.glob("run-*"))
