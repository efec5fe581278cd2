"""The same through the real command: how it ends, how soon, and what it leaves."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.config import DataConfig
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tests.conftest import Boostline

pytestmark = pytest.mark.slow

# What is refused takes so many times the processor's time of importing what reads a table: 2 s
# where that takes 0.8. MLflow and Prefect would take as much again.
TIMES = 2.5
IMPORTS = "import pandas, pyarrow.csv, pyarrow.parquet, pydantic, typer, rich.console"
TRIES = 3  # of which one must be quick enough: a busy host makes every second longer


def csv_of_10_mb(file: Path) -> int:
    """The last line is cut short. Returns the number of whole rows."""
    block = "".join(f"{i / 7:.9f},{i * 3.25:.6f},{'xyz'[i % 3]},{i % 97}\n" for i in range(40_000))
    file.write_text("a,b,c,y\n" + block * 7 + "1,2,x\n")
    return 280_000


def parquet_of_10_mb(file: Path) -> int:
    """The last row has an infinite target."""
    random, rows = np.random.default_rng(0), 320_000
    columns = {name: random.normal(size=rows) for name in "aby"}
    for name, last in (("a", 1.5), ("b", 2.5), ("y", np.inf)):
        columns[name][-1] = last
    pq.write_table(pa.table(columns), file, row_group_size=100_000)
    return rows


def cut_parquet_of_10_mb(file: Path) -> int:
    rows = parquet_of_10_mb(file)
    file.write_bytes(file.read_bytes()[:-100])
    return rows


def cpu_of(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds of the processor in processes that `call` starts and waits for, and its result."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = call(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, result


CASES: list[Any] = [
    pytest.param(
        csv_of_10_mb,
        [],
        "{file}, line 280002: 3 fields where the header has 4; the line may have been cut short. "
        "Correct the line or write the file again.\n",
        id="csv",
    ),
    pytest.param(
        parquet_of_10_mb,
        [],
        "1 of 320,000 rows can't be used (the target 'y' is infinite), more than "
        "data.max_rejected=0 allows.\n- row 320,000 of table.parquet: the target 'y' is infinite "
        "(y=inf, a=1.5, b=2.5)\nAll of them are in "
        "{rejected}. Mend the data, or set data.max_rejected to the share that may be left out.\n",
        id="parquet",
    ),
    pytest.param(
        cut_parquet_of_10_mb,
        [],
        "{file} is a damaged Parquet file (it does not end in PAR1: it was cut short). Write it "
        "again.\n",
        id="cut-parquet",
    ),
    pytest.param(
        csv_of_10_mb,
        ["--set", "boost.max_dept=3"],
        "The configuration is wrong: there is no setting 'boost.max_dept'. Did you mean "
        "'boost.max_depth'?\n",
        id="misspelt",
    ),
]


@pytest.mark.alone
@pytest.mark.parametrize(("make", "settings", "message"), CASES)
def test_refused_soon_and_nothing_is_left_half_done(
    make: Callable[[Path], int],
    settings: list[str],
    message: str,
    boostline_alone: Boostline,
    tmp_path: Path,
) -> None:
    file = tmp_path / ("table.csv" if make is csv_of_10_mb else "table.parquet")
    make(file)
    assert 9e6 < file.stat().st_size <= 10e6
    words = ["train", "--data", str(file), "--target", "y", *settings]
    times: list[float] = []
    while len(times) < TRIES and (not times or min(times) > TIMES):
        imports, _ = cpu_of(subprocess.check_call, [sys.executable, "-c", IMPORTS])
        took, ran = cpu_of(boostline_alone, *words)
        times.append(took / imports)
        rejected = next(iter((boostline_alone.home / "rejected").glob("*")), "")
        expected = message.replace("{file}", str(file)).replace("{rejected}", str(rejected))
        assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", expected)
    assert min(times) <= TIMES, times
    left = [path.name for path in boostline_alone.home.rglob("*") if path.is_file()]
    assert "mlflow.db" not in left
    assert not [name for name in left if name.endswith(".part")]
    assert not list(boostline_alone.home.glob("converted/part-*"))


def test_what_was_refused_is_read_anew_once_it_is_mended(
    boostline_alone: Boostline, tmp_path: Path
) -> None:
    file = tmp_path / "table.csv"
    rows = csv_of_10_mb(file)
    ran = boostline_alone("train", "--data", str(file), "--target", "y")
    assert ran.returncode == 2
    with file.open("ab") as table:
        table.seek(-1, 2)
        table.truncate()
        table.write(b",3\n")
    dataset = ingest(DataConfig(source=str(file)), Home(str(boostline_alone.home)))
    assert dataset.rows == rows + 1


def test_a_part_of_the_home_here_that_can_not_be_written(boostline_alone: Boostline) -> None:
    place = "/dev/null/x"
    more = {"BOOSTLINE_HOME": f"file://{boostline_alone.folder}/far", "BOOSTLINE_LOCAL": place}
    ran = boostline_alone("train", **more)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        f"{place} can't be written, where this host keeps what BOOSTLINE_HOME "
        f"({more['BOOSTLINE_HOME']}) can't hold: not a directory. Set BOOSTLINE_LOCAL to a folder "
        "of yours.\n"
    )


def test_a_home_that_can_not_be_written(boostline_alone: Boostline, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,y\n" + "1,2\n3,4\n" * 20)
    home = f"{file}/home"
    for words in (
        ["train", "--data", str(file), "--target", "y"],
        ["predict", "m", str(file), "o"],
    ):
        ran = boostline_alone(*words, BOOSTLINE_HOME=home)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.splitlines()[-1] == (
            f"BOOSTLINE_HOME ({home}) can't be written: not a directory. Set it to a folder of "
            "yours."
        )


def test_a_summary_that_can_not_be_written(boostline_alone: Boostline, tmp_path: Path) -> None:
    """Said before an hour of training, not after it."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    plain: list[str] = []
    if os.access(closed, os.W_OK):  # root may write anywhere
        if not shutil.which("setpriv"):
            pytest.skip("this user may write anywhere, and there is no setpriv to mend that")
        plain = ["setpriv", "--bounding-set=-dac_override"]
    ran = subprocess.run(
        [*plain, *boostline_alone.command("train", "--summary", "closed/result.json")],
        cwd=tmp_path,
        env=boostline_alone.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (
        2,
        "",
        f"--summary 'closed/result.json': the folder '{closed}' can't be written. Name another "
        "file.\n",
    )
