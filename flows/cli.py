"""The commands and their help. What a command needs is imported when it runs, not before."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import cli_services
from flows.cli_deploy import deploy, watch
from flows.options import ConfigFile, Data, Day, Set, Target, Verbose, load, on_day
from tasks.engine.errors import UserError

if TYPE_CHECKING:
    from tasks.engine.config import Config
    from tasks.engine.home import Home

# What settings of `data` say of training alone.
OF_TRAINING = {
    "data.target",
    "data.features",
    "data.exclude",
    "data.weight",
    "data.rules",
    "data.max_rejected",
    "data.categories",
    "data.max_categories",
}

app = typer.Typer(
    name="boostline",
    help="Trains gradient-boosted regressors on tables of any size: the same model on one worker "
    "or ten, resumed after any crash, scored exactly, remembered by MLflow.",
    epilog="Try `boostline train` alone: it makes a small table and trains on it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    others = {"Prefect": "prefect", "Dask": "dask", "MLflow": "mlflow"}
    names = ("xgboost", "xgboost-cu13", "xgboost-cpu")
    xgboost = [found for found in map(of, names) if found != "not installed"]
    shown = [f"Python {platform.python_version()}", f"XGBoost {(xgboost or ['not installed'])[0]}"]
    shown += [f"{label} {of(name)}" for label, name in others.items()]
    typer.echo(f"boostline {of('boostline')} ({', '.join(shown)})")
    raise typer.Exit


@app.callback()
def boostline(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            is_eager=True,
            callback=_version,
            help="Show the versions of Boostline and of what it runs on.",
        ),
    ] = False,
) -> None:
    pass


@app.command(
    help="Train a model and record it in MLflow.\n\n"
    "Reads the table, splits and scales it, trains, measures the model on train, valid and test "
    "rows, and records the run. Started again after a crash, or with more rounds, it goes on "
    "where it was."
)
def train(
    config: ConfigFile = None,
    settings: Set = None,
    data: Data = None,
    target: Target = None,
    date: Day = None,
    summary: Annotated[
        str | None,
        typer.Option(
            "--summary",
            metavar="FILE",
            show_default=False,
            help="Write the result as one JSON object, for other programs.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    from flows.console import quiet, screen, showing_steps
    from flows.results import show_training
    from tasks.engine.home import Home, write_atomically

    loaded = load(config, settings, data, target)
    day, meant = on_day(loaded, date)
    _refuse_unwritable(summary, "--summary")
    quiet(verbose)
    home = Home.at()
    _check_early(meant, home)
    with showing_steps(screen(stderr=True)):
        _lean_xgboost(loaded)
        from flows.train import run

        outcome = run(loaded, home, day, verbose)
    if summary:
        write_atomically(
            str(Path(summary).absolute()), outcome.summary.model_dump_json(indent=2).encode()
        )
    show_training(
        screen(),
        outcome.summary,
        outcome.report,
        outcome.notes,
        outcome.links,
        outcome.trained_rounds,
    )


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A registered model, as in housing, housing/3 or housing@champion, or the model "
            "URI that a run printed.",
        ),
    ],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The rows to score: whatever `train` reads.")
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="What to write: a .parquet, .csv or .csv.gz file, or a folder."
        ),
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="COLUMN",
            show_default=False,
            help="A column to copy beside the predictions, or all. May be repeated.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            show_default=False,
            help="A data.* or cluster.* setting, as in data.separator=';'. May be repeated.",
        ),
    ] = None,
    date: Day = None,
    verbose: Verbose = False,
) -> None:
    """Score a table with a model from MLflow.

    Rows stream through the workers in their order; columns are matched by name.
    """
    from flows.console import quiet, screen, showing_steps
    from flows.results import show_prediction

    for setting in settings or ():
        if setting.partition(".")[0].strip() not in ("data", "cluster"):
            raise UserError(
                f"--set {setting!r} has no meaning for predict: it takes settings of data and "
                "cluster, as in --set cluster.workers=4. The rest is the model's own."
            )
        if setting.partition("=")[0].strip() in OF_TRAINING:
            raise UserError(
                f"--set {setting!r} has no meaning for predict: it scores every row, from the "
                "columns that the model was trained on."
            )
    _, loaded = on_day(load(None, settings, source, "-"), date)
    quiet(verbose)
    with showing_steps(screen(stderr=True)):
        _lean_xgboost(loaded)
        from flows.predict import run
        from flows.standing import use_services
        from tasks.engine.home import Home

        use_services(Home.at())
        home = _settled(Home.at())
        # A source to be scored needs no target; "-" only stood in for the check of the rest.
        table = loaded.data.model_copy(update={"target": None})
        result = run(model, table, out, list(keep or ()), home, loaded.cluster)
    show_prediction(screen(), result.rows, result.out, result.unseen, result.seconds)


@app.command(
    help="Say what `train` would do, without training.\n\n"
    "Reads the configuration and the table as `train` would, and stops before the first round."
)
def check(
    config: ConfigFile = None,
    settings: Set = None,
    data: Data = None,
    target: Target = None,
    date: Day = None,
    verbose: Verbose = False,
) -> None:
    from flows.console import quiet, screen, showing_steps
    from flows.results import show_check
    from tasks.engine.home import Home

    _, loaded = on_day(load(config, settings, data, target), date)
    quiet(verbose)
    home = Home.at()
    _check_early(loaded, home)
    with showing_steps(screen(stderr=True)):
        _lean_xgboost(loaded)
        from flows.check import check as check_run

        result = check_run(loaded, _settled(home))
    show_check(screen(), result, loaded.target)


@app.command()
def init(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="The table to look at: whatever `train` reads."),
    ],
    target: Target = None,
    settings: Set = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="The configuration to write.")
    ] = "boostline.toml",
    verbose: Verbose = False,
) -> None:
    """Look at a table and write a commented configuration for it.

    Names a target, lists the columns, and explains every setting. Never overwrites a file.
    """
    from flows.console import quiet, screen, showing_steps
    from flows.init import write_config

    quiet(verbose)
    with showing_steps(screen(stderr=True)):
        written = write_config(file, target, out, settings or ())
    for note in written.notes:
        typer.echo(" ".join(note.split()))
    typer.echo(f"Wrote {out}. Look it over, then: boostline train {out}")


app.command()(deploy)
app.command()(watch)


@app.command()
def record(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", show_default=False, help="One run by its id; all that wait without it."
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Finish recordings that MLflow was not there for.

    A run that could not be recorded whole is kept on disk with its model; this sends the rest.
    """
    from flows.console import quiet
    from flows.standing import use_services
    from tasks.engine.home import Home

    quiet(verbose)
    use_services(Home.at())
    from flows.record import finish

    done, errors = finish(_settled(Home.at()), run)
    for finished in done:
        model = finished.model_uri or "it ended before there was a model"
        typer.echo(f"Recorded: MLflow run {finished.mlflow_run_id}, {model}")
    if not done and not errors:
        typer.echo("Nothing waits to be recorded.")
    for error in errors[:-1]:
        typer.echo(str(error), err=True)
    if errors:
        raise errors[-1]


app.add_typer(cli_services.app)


@app.command()
def clean(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="AGE", help="Keep what was used since: 30d, 12h, 2w, 90m."
        ),
    ] = "30d",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove old checkpoints, converted tables and rejected rows.

    Never touches models and runs recorded in MLflow, nor what a run under way is using.
    """
    from flows.clean import age, remove_old, sentences
    from tasks.engine.home import Home

    home = _settled(Home.at())
    for line in sentences(remove_old(home, age(older_than), dry_run), home, older_than, dry_run):
        typer.echo(line)


def _check_early(config: "Config", home: "Home") -> None:
    """Imported late: a wrong configuration is told before pandas and the readers are loaded."""
    from tasks.engine.early import check_early

    check_early(config, home)


def _lean_xgboost(config: "Config") -> None:
    """Before anything imports XGBoost; but a loader may be the user's own use of it."""
    from tasks.engine.sources import is_data

    if is_data(config.data.source):
        import tasks.engine.lean_xgboost  # noqa: F401


def _settled(home: "Home") -> "Home":
    """The home, where every run whose process died has been told as such."""
    from flows.train import settle_left

    settle_left(home)
    return home


def _refuse_unwritable(path: str | None, option: str) -> None:
    """Before an hour of training, not after it."""
    if path is None:
        return
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{option} {path!r} is a folder. Name a file.")
    if not file.absolute().parent.is_dir():
        raise UserError(
            f"{option} {path!r}: there is no folder {str(file.absolute().parent)!r}. "
            "Create it, or name another file."
        )
    if not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(
            f"{option} {path!r}: the folder {str(file.absolute().parent)!r} can't be written. Name "
            "another file."
        )
