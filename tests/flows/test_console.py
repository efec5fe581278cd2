"""What the screen shows, in full, at the width of a plain terminal."""

import io
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from flows.console import showing_steps
from flows.results import show_check, show_notes, show_prediction, show_training
from tasks.engine.errors import RunError, UserError
from tasks.engine.profile import ColumnProfile, Profile, TargetProfile
from tasks.engine.progress import Progress, reporter
from tasks.engine.report import Histogram, Interval, Metrics, Report, Slice
from tasks.engine.summary import Seconds, Summary
from tasks.figures import duration, figure, score, size

ROOT = Path(__file__).resolve().parents[2]


def plain(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, emoji=False, markup=False)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def metrics(rows: int, r2: float, error: float, mape: float = 0.183) -> Metrics:
    return Metrics(
        rows=rows,
        r2=r2,
        adjusted_r2=r2,
        rmse=error,
        mae=0.7 * error,
        median_absolute_error=error / 2,
        mape=mape,
        explained_variance=r2,
    )


def report(**changes: object) -> Report:
    histogram = Histogram(x_edges=(0, 1), y_edges=(0, 1), counts=((1,),))
    whole = Report(
        metrics={
            "train": metrics(14447, 0.8012, 51234.2),
            "valid": metrics(2060, 0.7712, 55123.1),
            "test": metrics(4133, 0.7699, 55312.9),
        },
        baseline={"test": metrics(4133, -0.0002, 115333.1, 0.6012)},
        deciles=(),
        categories=(),
        interval=Interval(low=0.7571, high=0.7822, confidence=0.95, replicates=400),
        predicted_actual=histogram,
        residuals=histogram,
    )
    return whole.model_copy(update=changes)


def summary(**changes: object) -> Summary:
    whole = Summary(
        r2=0.7699,
        rmse=55312.9,
        mae=38719.0,
        rows={"train": 14447, "valid": 2060, "test": 4133},
        rounds=100,
        model_sha256="3f2ab01c9d44" * 5 + "0000",
        dataset_digest="d1",
        mlflow_run_id="8d2f",
        model_uri="models:/housing/3",
        flow_run_id="77aa",
        device="cpu",
        workers=2,
        resumed_from_round=0,
        recoveries=0,
        seconds=Seconds(ingest=1, normalize=1, train=8, evaluate=1, record=2, total=14.24),
    )
    return whole.model_copy(update=changes)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(0.96614, "0.9661", id="share"),
        pytest.param(12.3456, "12.35", id="tens"),
        pytest.param(1234.56, "1,235", id="thousands"),
        pytest.param(51234567.8, "51,234,568", id="millions"),
        pytest.param(0.00123456, "0.001235", id="thousandths"),
        pytest.param(-0.5, "-0.5000", id="negative"),
        pytest.param(0.0, "0.0000", id="zero"),
        pytest.param(1.2345e12, "1.234e+12", id="huge"),
        pytest.param(1.2345e-7, "1.235e-07", id="tiny"),
        pytest.param(math.nan, "undefined", id="undefined"),
        pytest.param(-math.inf, "-infinite", id="infinite"),
    ],
)
def test_figures_keep_four_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("r2", "shown"),
    [
        pytest.param(0.96614, "0.9661", id="usual"),
        pytest.param(0.9999876, "0.99999", id="never-rounded-to-one"),
        pytest.param(1.0, "1.0000", id="one"),
        pytest.param(-3.25, "-3.2500", id="worse-than-the-mean"),
        pytest.param(math.nan, "undefined", id="constant-target"),
    ],
)
def test_r2_never_reads_one_when_it_is_less(r2: float, shown: str) -> None:
    assert score(r2) == shown


def test_sizes_and_durations() -> None:
    assert [size(n) for n in (0, 999, 1500, 999_999, 2_500_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "1 MB",
        "2.5 GB",
    ]
    assert [duration(s) for s in (0.04, 99.9, 133.2, 3725)] == [
        "0.0 s",
        "99.9 s",
        "2 min 13 s",
        "1 h 2 min",
    ]


def test_results_read_well_at_80_columns() -> None:
    console = plain()
    categories = (
        Slice(column="sea", value="INLAND", rows=1300, r2=0.7, rmse=5e4, mae=3e4, bias=-120.5),
        Slice(column="sea", value="[red]<1H", rows=2833, r2=0.71, rmse=6e4, mae=4e4, bias=7.0),
    )
    show_training(
        console,
        summary(resumed_from_round=40, recoveries=1),
        report(categories=categories),
        ["The column 'c' is\nconstant."],
        {"MLflow": ("run 8d2f", "mlflow ui"), "Prefect": ("run happy-otter",)},
        trained_rounds=100,
    )
    assert (
        text(console)
        == """
             rows        R²      RMSE      MAE   median error      MAPE
───────────────────────────────────────────────────────────────────────
train      14,447    0.8012    51,234   35,864         25,617   18.30 %
valid       2,060    0.7712    55,123   38,586         27,562   18.30 %
test        4,133    0.7699    55,313   38,719         27,656   18.30 %
baseline    4,133   -0.0002   115,333   80,733         57,667   60.12 %

baseline: the mean of the training target for every test row
test R² 0.7699, 95 % interval 0.7571 to 0.7822 (400 bootstrap replicates)

test rows by sea    rows       R²     RMSE      MAE     bias
────────────────────────────────────────────────────────────
[red]<1H           2,833   0.7100   60,000   40,000    7.000
INLAND             1,300   0.7000   50,000   30,000   -120.5

! The column 'c' is constant.

Model    models:/housing/3
         100 rounds · resumed from round 40
         workers lost and replaced once
         cpu, 2 workers · sha256 3f2ab01c9d44 · 14.2 s
MLflow   run 8d2f
         mlflow ui
Prefect  run happy-otter
"""
    )


def test_what_is_undefined_or_absent_is_said_or_left_out() -> None:
    console = plain()
    nan = math.nan
    test = metrics(3, nan, 0.0, nan)
    show_training(
        console,
        summary(rounds=1, workers=1),
        report(
            metrics={"train": metrics(9, 0.5, 1.0), "valid": metrics(0, nan, nan), "test": test},
            interval=None,
        ),
    )
    assert (
        text(console)
        == """
            rows          R²      RMSE      MAE   median error        MAPE
──────────────────────────────────────────────────────────────────────────
train          9      0.5000     1.000   0.7000         0.5000     18.30 %
test           3   undefined    0.0000   0.0000         0.0000   undefined
baseline   4,133     -0.0002   115,333   80,733         57,667     60.12 %

baseline: the mean of the training target for every test row

Model    models:/housing/3
         1 round
         cpu, 1 worker · sha256 3f2ab01c9d44 · 14.2 s
"""
    )


def test_long_addresses_and_piped_notes_stay_in_one_piece() -> None:
    console = plain()
    address = "mlflow ui --backend-store-uri sqlite:////" + "folder/" * 20
    show_training(console, summary(), report(), ["word " * 30], {"MLflow": (address,)})
    lines = text(console).splitlines()
    assert f"MLflow   {address}" in lines
    assert f"! {' '.join(['word'] * 30)}" in lines


def test_notes_hang_at_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=30, force_terminal=True, color_system=None)
    show_notes(console, ["The column 'total_bedrooms' has gaps."])
    lines = [line.rstrip() for line in text(console).splitlines()]
    assert lines == ["", "! The column 'total_bedrooms'", "  has gaps."]


def test_predictions_say_what_the_model_did_not_know() -> None:
    console = plain()
    show_prediction(console, 1, "out.parquet", {"sea": 2, "cut": 0}, 3.21)
    assert text(console) == (
        "\n! sea: 2 values unknown to the model, taken as missing.\n"
        "1 prediction in out.parquet, 3.2 s\n"
    )


def test_a_check_says_what_a_run_would_do() -> None:
    from flows.check import CheckResult

    columns = (
        ColumnProfile(name="rooms", kind="number", rows=24, missing=1, low=1.0, high=9.0, mean=4.5),
        ColumnProfile(name="[sea] " + "side " * 9, kind="category", rows=24, missing=0, distinct=5),
    )
    side = TargetProfile(rows=7, mean=206855.8, deviation=115395.6, low=14999, high=500001)
    profile = Profile(
        dataset_digest="d",
        columns=columns,
        target={"train": side.model_copy(update={"rows": 14}), "test": side},
        mean=206855.8,
        max_weight=None,
        encoder="",
        sample=(),
        sample_share=1.0,
        rejected=3,
        reasons={"price > 0": 3},
    )
    console = plain()
    show_check(
        console,
        CheckResult(24, profile.rows, profile, ("A note.",), 100, 60, 40, 130_023),
        "price",
    )
    assert (
        text(console)
        == """
feature                        kind            missing     low    mean    high
──────────────────────────────────────────────────────────────────────────────
rooms                          number            4.2 %   1.000   4.500   9.000
[sea] side side side side s…   category of 5                 –       –       –

! A note.

Rows      24: 14 train, 7 test
Target    price, 14,999 to 500,001, mean 206,856, deviation 115,396 (train)
Features  1 number, 1 category
Training  100 rounds, 60 of them left after a checkpoint's 40
Memory    130 kB of binned features over all workers
"""
    )


def told(console: Console, steps: list[Progress]) -> None:
    with showing_steps(console):
        tell = reporter()
        for progress in steps:
            tell(progress)


def test_a_pipe_gets_one_line_per_finished_step() -> None:
    console = plain()
    told(
        console,
        [
            Progress("ingest", 0, 20640),
            Progress("ingest", 20640, 20640),
            Progress("ingest", 20640, 20640),
            Progress("train", 0, 100, "rounds"),
            Progress("train", 37, 100, "rounds", "valid R² 0.7712"),
            Progress("record", 0, 1, ""),
        ],
    )
    assert text(console) == (
        "✓ ingest      20,640 rows                0.0 s\n"
        "✓ train       37 rounds                  0.0 s   valid R² 0.7712\n"
        "✓ record                                 0.0 s\n"
    )


def test_a_step_told_of_from_a_thread_shows() -> None:
    console = plain()
    with showing_steps(console):
        tell = reporter()
        thread = threading.Thread(target=tell, args=(Progress("train", 2, 2, "rounds"),))
        thread.start()
        thread.join()
    assert text(console) == "✓ train       2 rounds                   0.0 s\n"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        pytest.param(
            RunError("lost"), "✗ train       3 of 10 rounds             0.0 s\n", id="failed"
        ),
        pytest.param(
            KeyboardInterrupt(), "✗ train       3 of 10 rounds             0.0 s\n", id="stopped"
        ),
        pytest.param(UserError("wrong"), "", id="users-mistake"),
    ],
)
def test_a_step_cut_short_has_no_tick(error: BaseException, shown: str) -> None:
    console = plain()

    def fail() -> None:
        with showing_steps(console):
            reporter()(Progress("train", 3, 10, "rounds"))
            raise error

    with pytest.raises(type(error)):
        fail()
    assert text(console) == shown


def test_a_terminal_shows_a_bar_and_keeps_the_line() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    steps = [Progress("train", done, 100, "rounds", "valid R² 0.7712") for done in (40, 70, 100)]
    told(console, steps)
    shown = text(console)
    assert "━" in shown and "40/100 rounds" in shown and "valid R² 0.7712" in shown
    assert shown.endswith("✓ train       100 rounds                 0.0 s   valid R² 0.7712\n")
    assert max(len(line) for line in shown.splitlines()) <= 100


def test_nothing_of_other_libraries_gets_through() -> None:
    script = (
        "from flows.console import quiet; quiet()\n"
        "import logging, warnings, distributed\n"
        "warnings.warn('w'); logging.getLogger('other').error('x')\n"
        "for name in ('distributed.worker', 'mlflow.store', 'alembic.runtime', 'xgboost'):\n"
        "    logging.getLogger(name).error('x')\n"
        "import mlflow; logging.getLogger('mlflow.store').error('x')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
