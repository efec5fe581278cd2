"""Arguments and options that several commands take."""

from typing import TYPE_CHECKING, Annotated

import typer

from tasks.engine.errors import UserError

if TYPE_CHECKING:
    from datetime import date

    from tasks.engine.config import Config

TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".json", ".jsonl", ".ndjson", ".gz")

ConfigFile = Annotated[
    str | None,
    typer.Argument(
        metavar="CONFIG.toml",
        show_default=False,
        help="Settings of the run; `boostline init` writes such a file. Defaults without one.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        show_default=False,
        help="A setting, as in boost.max_depth=6; stands above the file. May be repeated.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="SOURCE", show_default=False, help="The table: short for data.source."
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="COLUMN",
        show_default=False,
        help="The numeric column to predict: short for data.target.",
    ),
]
Day = Annotated[
    str | None,
    typer.Option(
        "--date",
        metavar="DAY",
        show_default=False,
        help="The day of {date} in the source, as in 2026-11-24; today without it.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", metavar="", help="Show other libraries' log lines, and tracebacks of errors."
    ),
]


def load(
    path: str | None, settings: list[str] | None, data: str | None, target: str | None
) -> "Config":
    """The configuration of a command. Raises UserError where it is wrong."""
    from tasks.engine.settings import load_config

    if path and path.lower().endswith(TABLES):
        raise UserError(
            f"{path!r} looks like a table, not like a configuration. Name its column to predict: "
            f"--data {path} --target COLUMN, or let `boostline init {path}` write a configuration."
        )
    return load_config(path, settings or (), data, target)


def on_day(config: "Config", day: str | None) -> tuple["date", "Config"]:
    """The day that is meant, and the configuration with its dates. Raises UserError."""
    from tasks.engine.dates import dated, day_from, today

    meant = day_from(day) if day else today(config)
    return meant, dated(config, meant)
