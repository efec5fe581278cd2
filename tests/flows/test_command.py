"""The command as a process: exit codes, whole messages, and never a traceback."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("prefect", "dask", "distributed", "mlflow", "xgboost", "pandas", "pyarrow", "sklearn")

Boostline = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def boostline(tmp_path: Path) -> Boostline:
    """The console script as pip writes it, in an empty folder of its own."""
    script = tmp_path / "bin" / "boostline"
    script.parent.mkdir()
    script.write_text("from flows.command import main\nmain()\n")
    (tmp_path / "here").mkdir()

    def run(*arguments: str, code: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        start = [sys.executable, "-c", code] if code else [sys.executable, str(script)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **more}
        environment.pop("BOOSTLINE_HOME", None)
        return subprocess.run(
            [*start, *arguments],
            check=False,
            cwd=tmp_path / "here",
            env=environment,
            capture_output=True,
            text=True,
            timeout=480,
        )

    return run


def ends(code: str) -> str:
    """A script whose `train` ends as `code` says, in place of training."""
    return textwrap.dedent(
        f"""
        import sys
        from flows import cli, command
        from tasks.engine.errors import RunError, UserError
        def load(*arguments):
            {code}
        cli.load = load
        sys.argv = ["boostline", "train", *sys.argv[1:]]
        command.main()
        """
    )


def test_help_imports_nothing_heavy(boostline: Boostline) -> None:
    code = (
        "import sys; from flows.command import main\n"
        "assert not {'typer', 'rich', 'pydantic'} & set(sys.modules), 'the entry is light'\n"
        "sys.argv = ['boostline', *sys.argv[1:]]\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (["--help"], ["train", "--help"], ["predict", "--help"], ["clean", "--help"]):
        ran = boostline(*arguments, code=code)
        assert (ran.returncode, ran.stderr) == (0, "[]\n"), arguments


def test_help_reads_well(boostline: Boostline) -> None:
    shown = boostline("--help").stdout
    lines = [line.strip("│ ").rstrip() for line in shown.splitlines()]
    assert "Usage: boostline [OPTIONS] COMMAND [ARGS]..." in lines
    for line in (
        "train    Train a model and record it in MLflow.",
        "predict  Score a table with a model from MLflow.",
        "check    Say what `train` would do, without training.",
        "init     Look at a table and write a commented configuration for it.",
        "clean    Remove old checkpoints, converted tables and rejected rows.",
    ):
        assert line in lines
    assert max(map(len, shown.splitlines())) <= 80


def test_version_names_what_it_runs_on(boostline: Boostline) -> None:
    ran = boostline("--version")
    assert ran.returncode == 0
    assert ran.stdout.startswith("boostline ")
    assert f"(Python {sys.version.split()[0]}, XGBoost " in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["train", "absent.toml"],
            "There is no configuration file 'absent.toml'. `boostline init FILE` writes one.",
            id="no-such-file",
        ),
        pytest.param(
            ["train", "houses.csv"],
            "'houses.csv' looks like a table, not like a configuration. Name its column to "
            "predict: --data houses.csv --target COLUMN, or let `boostline init houses.csv` write "
            "a configuration.",
            id="table-in-place-of-configuration",
        ),
        pytest.param(
            ["train", "--set", "boost.max_deph=6"],
            "The configuration is wrong: there is no setting 'boost.max_deph'. "
            "Did you mean 'boost.max_depth'?",
            id="misspelt-setting",
        ),
        pytest.param(
            ["check", "--set", "boost.learning_rate=nan"],
            "The configuration is wrong: boost.learning_rate is nan: it should be a finite number.",
            id="not-a-number",
        ),
        pytest.param(
            ["train", "--summary", "no/such/result.json"],
            "--summary 'no/such/result.json': there is no folder '{here}/no/such'. "
            "Create it, or name another file.",
            id="summary-nowhere",
        ),
        pytest.param(
            ["predict", "models:/m/1", "in.csv", "out.csv", "--set", "boost.max_depth=3"],
            "--set 'boost.max_depth=3' has no meaning for predict: it takes settings of data and "
            "cluster, as in --set cluster.workers=4. The rest is the model's own.",
            id="setting-without-meaning",
        ),
        pytest.param(
            ["clean", "--older-than", "soon"],
            "--older-than 'soon' is not an age. Write a whole number and m, h, d or w "
            "(minutes, hours, days, weeks), as in 30d.",
            id="not-an-age",
        ),
    ],
)
def test_a_wrong_input_is_one_message_and_exit_code_2(
    boostline: Boostline, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ran = boostline(*arguments)
    assert ran.stderr == message.replace("{here}", str(tmp_path / "here")) + "\n"
    assert (ran.returncode, ran.stdout) == (2, "")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        pytest.param(["trian"], "No such command 'trian'. Did you mean 'train'?", id="command"),
        pytest.param(["train", "--tarjet", "y"], "No such option: --tarjet", id="option"),
        pytest.param(["predict", "m"], "Missing argument 'SOURCE'", id="argument"),
    ],
)
def test_a_wrong_call_says_what_is_known(
    boostline: Boostline, arguments: list[str], part: str
) -> None:
    ran = boostline(*arguments)
    assert ran.returncode == 2
    assert part in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("code", "returncode", "message"),
    [
        pytest.param("raise UserError('Wrong column.')", 2, "Wrong column.\n", id="user"),
        pytest.param("raise RunError('No workers.')", 1, "No workers.\n", id="run"),
        pytest.param(
            "raise KeyboardInterrupt",
            130,
            "Interrupted. What was done up to the last checkpoint is kept: the same command goes "
            "on from there.\n",
            id="ctrl-c",
        ),
        pytest.param(
            "sys.argv[1:2] = ['predict']; raise KeyboardInterrupt",
            130,
            "Interrupted.\n",
            id="ctrl-c-where-nothing-is-kept",
        ),
        pytest.param(
            "import os, httpx; from prefect.exceptions import PrefectHTTPStatusError as Refused; "
            "os.environ['PREFECT_API_URL'] = 'http://me:s3cret@here/api'; "
            "request = httpx.Request('GET', 'http://here'); "
            "raise Refused('no', request=request, response=httpx.Response(401, request=request))",
            2,
            "The Prefect server at http://***@here/api (PREFECT_API_URL) wants another password: "
            "it answers 401. Set PREFECT_API_AUTH_STRING to user:password, or PREFECT_API_KEY.\n",
            id="prefect-lets-nobody-in",
        ),
        pytest.param(
            "command._told = load; raise KeyboardInterrupt",
            130,
            "Interrupted. What was done up to the last checkpoint is kept: the same command goes "
            "on from there.\n",
            id="ctrl-c-twice",
        ),
        pytest.param(
            "raise BrokenPipeError(32, 'Broken pipe')",
            1,
            "Whoever read this command's output closed it before the end.\n",
            id="pipe",
        ),
    ],
)
def test_every_end_has_its_exit_code(
    boostline: Boostline, code: str, returncode: int, message: str
) -> None:
    ran = boostline(code=ends(code))
    assert (ran.returncode, ran.stdout, ran.stderr) == (returncode, "", message)


def test_check_finds_a_cluster_that_is_not_there(boostline: Boostline) -> None:
    settings = ["kind=address", "address=tcp://127.0.0.1:1", "start_timeout=0.5"]
    ran = boostline("check", *(f"--set=cluster.{each}" for each in settings))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "No Dask scheduler answers at tcp://127.0.0.1:1 (cluster.address)" in ran.stderr


def test_a_bug_is_one_line_and_a_traceback_in_a_file(boostline: Boostline, tmp_path: Path) -> None:
    code = ends("raise RuntimeError('no way\\nto postgresql://me:geheim@db/x')")
    ran = boostline(code=code)
    first, second = ran.stderr.splitlines()
    assert first == (
        "Unexpected, probably a bug in Boostline: RuntimeError: no way to postgresql://***@db/x"
    )
    kept = Path(second.removeprefix("The traceback is in ").removesuffix("."))
    assert kept.parent == tmp_path / "here" / ".boostline" / "logs"
    assert "Traceback (most recent call last)" in kept.read_text()
    assert "geheim" not in ran.stderr + kept.read_text()
    assert ran.returncode == 1


def test_verbose_shows_the_traceback(boostline: Boostline) -> None:
    ran = boostline("--verbose", code=ends("raise RuntimeError('no way')"))
    assert ran.stderr.startswith("Traceback (most recent call last)")
    assert ran.returncode == 1


def test_a_bug_where_nothing_can_be_written_is_still_told(boostline: Boostline) -> None:
    code = "import os; os.environ['BOOSTLINE_HOME'] = '/dev/null/home'" + ends("raise OSError")
    ran = boostline(code=code)
    assert ran.stderr == (
        "Unexpected, probably a bug in Boostline: OSError\nSee it whole with --verbose.\n"
    )


def test_the_users_folder_takes_nothings_place(boostline: Boostline, tmp_path: Path) -> None:
    for name in ("tasks.py", "flows.py", "rich.py", "logging.py"):
        (tmp_path / "here" / name).write_text("raise SystemExit('not this one')\n")
    ran = boostline("clean")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == (
        f"Nothing in {tmp_path / 'here' / '.boostline'} has been unused for 30d.\n"
    )


def test_output_survives_a_terminal_without_unicode(boostline: Boostline) -> None:
    ran = boostline("train", "--set", "boost.größe=1", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 2
    assert ran.stderr.startswith("The configuration is wrong: there is no setting 'boost.gr??e'.")
