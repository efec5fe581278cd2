"""The commands that start services, and those that look: at services, at runs, at this machine."""

from typing import Annotated

import typer

from flows.options import ConfigFile, Set, Verbose
from tasks.engine.errors import UserError

app = typer.Typer()


@app.command()
def up(
    prefect_port: Annotated[
        int,
        typer.Option("--prefect-port", metavar="PORT", min=0, max=65_535, help="0: a free one."),
    ] = 4200,
    mlflow_port: Annotated[
        int, typer.Option("--mlflow-port", metavar="PORT", min=0, max=65_535, help="0: a free one.")
    ] = 5000,
    dask_port: Annotated[
        int,
        typer.Option(
            "--dask-port",
            metavar="PORT",
            min=0,
            max=65_535,
            help="Of its dashboard; 0: a free one.",
        ),
    ] = 8787,
    dask: Annotated[
        bool,
        typer.Option(
            " /--no-dask", metavar="", show_default=False, help="No Dask cluster: each run has one."
        ),
    ] = True,
    worker: Annotated[
        bool,
        typer.Option(
            " /--no-worker", metavar="", show_default=False, help="No worker for deployments."
        ),
    ] = True,
    pool: Annotated[
        str, typer.Option("--pool", metavar="POOL", help="Work pool whose runs the worker takes.")
    ] = "boostline",
    postgres: Annotated[
        str | None,
        typer.Option(
            "--postgres",
            metavar="URL",
            show_default=False,
            help="A PostgreSQL database in place of SQLite files, as in "
            "postgresql://me:${PASSWORD}@db/mine. Needs the extra `postgres`.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=1, help="For each service to answer."),
    ] = 120,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            show_default=False,
            help="A cluster.* setting, as in cluster.workers=4. May be repeated.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Start the services here, with their pages, until Ctrl-C.

    Prefect's server, MLflow's server, a Dask cluster and a worker for deployments, on loopback.
    Other commands in the same home use them by themselves.
    """
    from flows.console import quiet, screen

    for setting in settings or ():
        if setting.partition(".")[0].strip() != "cluster":
            raise UserError(
                f"--set {setting!r} has no meaning for up: it takes settings of the Dask cluster, "
                "as in --set cluster.workers=4."
            )
    quiet(verbose)
    from flows.up import Wanted, run
    from infra.up import Ports
    from tasks.engine.home import Home
    from tasks.engine.settings import load_config

    wanted = Wanted(
        ports=Ports(prefect_port, mlflow_port, dask_port),
        dask=dask,
        pool=pool if worker else None,
        postgres=postgres,
        timeout=timeout,
    )
    run(wanted, load_config(None, settings or ()).cluster, Home.at(), screen())


@app.command()
def status() -> None:
    """Say which services answer, what is running, and how the last run ended.

    Those of `boostline up` in this home, or the ones that the environment names. The exit code is 1
    where one does not answer.
    """
    from flows.status import look
    from tasks.engine.home import Home

    lines = look(Home.at())
    for line in lines:
        typer.echo(f"{'✓' if line.well else '✗'} {line.what:<9} {line.state}")
    if not all(line.well for line in lines):
        raise typer.Exit(1)


@app.command()
def runs(
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="How many.")
    ] = 10,
    experiment: Annotated[
        str | None,
        typer.Option(
            "--experiment",
            metavar="NAME",
            show_default=False,
            help="Of one MLflow experiment; of all without it.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """List the last runs.

    From MLflow: state, test R², rows, duration, version of the model.
    """
    from flows.console import quiet, screen

    quiet(verbose)
    from flows.runs import list_runs
    from tasks.engine.home import Home

    list_runs(screen(), Home.at(), experiment, limit)


@app.command()
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run by its MLflow id, the beginning of that, its name, or `last`.",
        ),
    ] = "last",
    verbose: Verbose = False,
) -> None:
    """Print the report of one run.

    What `train` showed at its end, where the run is, and the settings that are not the defaults. Of
    a run that failed: why.
    """
    from flows.console import quiet, screen

    quiet(verbose)
    from flows.runs import show_run
    from tasks.engine.home import Home

    show_run(screen(), Home.at(), run)


@app.command()
def doctor(config: ConfigFile = None, settings: Set = None) -> None:
    """Look for what is wrong here, and say what mends it.

    Versions, disk, and whether the configured services answer or are open to others.
    """
    from flows.doctor import examine
    from tasks.engine.home import Home
    from tasks.engine.settings import load_config

    findings = examine(load_config(config, settings or ()), Home.at())
    for finding in findings:
        typer.echo(f"{'✗' if finding.remedy else '✓'} {finding.what:<9} {finding.state}")
        if finding.remedy:
            typer.echo(f"            {finding.remedy}")
    if any(finding.remedy for finding in findings):
        raise typer.Exit(1)
