"""Arguments and options that several commands take."""

from typing import Annotated

import typer

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
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", metavar="", help="Show other libraries' log lines, and tracebacks of errors."
    ),
]
