"""The commands about schedules: what a standing Prefect server does by itself."""

from pathlib import Path
from typing import Annotated

import typer

from flows.options import ConfigFile, Data, Set, Target, Verbose, load

Notify = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        metavar="BLOCK",
        show_default=False,
        help="A Prefect block that is told of runs that failed, crashed or are late, as in "
        "slack-webhook/ops. May be repeated.",
    ),
]


def deploy(
    config: ConfigFile = None,
    cron: Annotated[
        str,
        typer.Option(
            "--cron", metavar="CRON", help="When: minute, hour, day, month, day of the week."
        ),
    ] = "0 3 * * *",
    timezone: Annotated[
        str, typer.Option("--timezone", metavar="ZONE", help="Whose clock, as in Europe/Berlin.")
    ] = "UTC",
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", show_default=False, help="Its name; the file's without one."
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="POOL",
            show_default=False,
            help="Work pool whose worker runs it: boostline, or with cluster.kind=cuda "
            "boostline-gpu, which runs one at a time.",
        ),
    ] = None,
    notify: Notify = None,
    settings: Set = None,
    data: Data = None,
    target: Target = None,
    verbose: Verbose = False,
) -> None:
    """Put a training on a schedule, on a standing Prefect server.

    The configuration becomes the parameters of a deployment; deployed again, it is brought up to
    date. Shows when it runs next.
    """
    from flows.console import quiet
    from flows.deploy import deploy as deploy_config
    from flows.deploy import lines
    from flows.standing import use_services
    from tasks.engine.home import Home

    loaded = load(config, settings, data, target)
    quiet(verbose)
    use_services(Home.at())
    chosen = name or (Path(config).stem if config else "nightly")
    done = deploy_config(loaded, chosen, pool, cron, timezone, Home.at(), notify or ())
    for line in lines(done):
        typer.echo(line)


def watch(
    notify: Notify = None,
    deployment: Annotated[
        str | None,
        typer.Option(
            "--deployment",
            metavar="NAME",
            show_default=False,
            help="Whose runs --notify tells of; every training of the server without it.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Have a standing Prefect server watch its trainings.

    For deployments that `prefect deploy` made; `boostline deploy` does the same for its own.
    """
    from flows.console import quiet
    from flows.deploy import watch as watch_runs
    from flows.standing import use_services
    from tasks.engine.home import Home

    quiet(verbose)
    use_services(Home.at())
    for line in watch_runs(notify or (), deployment, Home.at()):
        typer.echo(line)
