"""The sides that are measured beside each other, and how one of them is run.

A new side is a script in `sides/` (arguments: folder and seed; its last line: JSON with `r2`) and a
line in SIDES.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.processes import Ended, run
from tests.conftest import clean_environment

SCRIPTS = Path(__file__).with_name("sides")
LIMIT_S = 7200.0


@dataclass(frozen=True)
class Side:
    """`needs` is the package without which it is left out. G has no script."""

    name: str
    script: str | None = None
    needs: str | None = None


SIDES = {
    "A": Side("pandas, XGBRegressor", "a_pandas.py"),
    "B": Side("Arrow, xgboost.train", "b_expert.py"),
    "C": Side("LightGBM", "c_lightgbm.py", "lightgbm"),
    "D": Side("CatBoost", "d_catboost.py", "catboost"),
    "E": Side("scikit-learn", "e_sklearn.py"),
    "F": Side("xgboost.dask", "f_dask.py"),
    "G": Side("boostline train"),
}
# what the scripts of the other sides say, too
SETTINGS = {
    "boost.n_estimators": 100,
    "boost.max_depth": 6,
    "boost.learning_rate": 0.1,
    "boost.max_bin": 256,
    "split.valid": 0,
    "split.test": 0.2,
}


@dataclass(frozen=True)
class Measured:
    """One run of one side. Times in seconds, memory in MB (10⁶ bytes).

    `steps_s` are those of Boostline's summary. A side that failed has `error` and no R².
    """

    side: str
    wall_s: float
    peak_mb: float
    servers_mb: float
    sampling_s: float
    r2: float | None = None
    steps_s: Mapping[str, float] = field(default_factory=dict)
    model_sha256: str = ""
    model_uri: str = ""
    error: str = ""


def installed(side: str) -> bool:
    needs = SIDES[side].needs
    return needs is None or importlib.util.find_spec(needs) is not None


def contest(letters: str, table: Path, seed: int, repeat: int) -> Iterator[Measured]:
    """Every side once, in the order of `letters`, and so on for `repeat` rounds."""
    for _ in range(repeat):
        for letter in letters:
            yield measure(letter, table, seed)


def measure(letter: str, table: Path, seed: int) -> Measured:
    """One side from the start of its process to its test R², in a new empty folder."""
    warm(table)
    script = SIDES[letter].script
    with scratch(table.parent) as folder:
        if script is None:
            return boostline(letter, folder, table, seed)
        return python(letter, script, folder, str(table), str(seed))


def python(side: str, script: str, folder: Path, *words: str) -> Measured:
    """A script of `sides/`; the last line that it prints is JSON."""
    ended = run(
        [sys.executable, str(SCRIPTS / script), *words], folder, clean_environment(), LIMIT_S
    )
    if ended.code:
        return failed(side, ended)
    said = json.loads(ended.out.splitlines()[-1])
    return measured(side, ended, said.get("r2"), steps_s=said.get("steps_s", {}))


def boostline(side: str, folder: Path, table: Path | None, seed: int, **more: object) -> Measured:
    """`boostline train` with its home in `folder`; `more` are settings, dots as double underscores.

    Without a table it is the command alone, with all its defaults.
    """
    summary = folder / "summary.json"
    words = [*command(), "train", "--summary", str(summary)]
    settings: dict[str, object] = {}
    if table:
        words += ["--data", f"{table}/*.parquet", "--target", "y"]
        settings = {**SETTINGS, "split.seed": seed}
    settings |= {key.replace("__", "."): value for key, value in more.items()}
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    ended = run(words, folder, home_environment(folder), LIMIT_S)
    if ended.code:
        return failed(side, ended)
    said = json.loads(summary.read_text())
    return measured(
        side,
        ended,
        said["r2"],
        steps_s=said["seconds"],
        model_sha256=said["model_sha256"],
        model_uri=said["model_uri"],
    )


def command() -> list[str]:
    """The installed `boostline` of this environment.

    Raises:
        SystemExit: it is not installed.
    """
    path = Path(sys.executable).with_name("boostline")
    if not path.exists():
        raise SystemExit(f"{path} is not there: pip install -c constraints.txt -e .")
    return [str(path)]


def home_environment(folder: Path) -> dict[str, str]:
    """A new home in `folder`."""
    return {**clean_environment(), "BOOSTLINE_HOME": str(folder / "home")}


def measured(
    side: str,
    ended: Ended,
    r2: float | None,
    *,
    steps_s: Mapping[str, float],
    model_sha256: str = "",
    model_uri: str = "",
) -> Measured:
    return Measured(
        side,
        ended.wall_s,
        ended.peak_mb,
        ended.servers_mb,
        ended.sampling_s,
        r2,
        steps_s,
        model_sha256,
        model_uri,
    )


def failed(side: str, ended: Ended) -> Measured:
    last = ended.err.strip().splitlines()[-1:] or [""]
    error = f"ended with code {ended.code}: {last[0]}"
    return Measured(
        side, ended.wall_s, ended.peak_mb, ended.servers_mb, ended.sampling_s, error=error
    )


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """An empty folder on the disk of the tables, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=beside) as name:
        yield Path(name)


def warm(table: Path) -> None:
    """Reads the files once: nobody's first reading pays for the disk where memory suffices."""
    for file in sorted(table.iterdir()):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass
