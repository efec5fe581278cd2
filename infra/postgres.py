"""One PostgreSQL database for both Prefect and MLflow, each in a schema of its own."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

CONNECT_TIMEOUT_S = 10
# Both have a table `alembic_version`, and each would take the other's for its own.
PREFECT_SCHEMA = "prefect"
MLFLOW_SCHEMA = "mlflow"


class PostgresError(RuntimeError):
    """The database can't be used; the message holds no password."""


@dataclass(frozen=True)
class Database:
    """A database in which both schemas are there.

    `prefect` are variables for Prefect's server, `mlflow` is the store's URI: both hold the
    password. `shown` does not.
    """

    prefect: dict[str, str]
    mlflow: str
    shown: str


def open_database(url: str) -> Database:
    """Connect once, and make the two schemas where they are not there.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; parameters as libpq takes them.

    Raises:
        PostgresError: the URL is none of PostgreSQL's, a driver is missing, or the server refuses.
    """
    try:
        given = make_url(url)
    except (ArgumentError, ValueError):  # what stands for the port is no number
        given = URL.create("none")
    if given.get_backend_name() not in ("postgresql", "postgres") or not given.database:
        raise PostgresError(
            "it is not the URL of a PostgreSQL database. It should read "
            "postgresql://USER:${PASSWORD_VARIABLE}@HOST:5432/DATABASE, with @, : and / of a "
            "password as %40, %3A and %2F"
        )
    for driver in ("psycopg", "asyncpg"):
        if importlib.util.find_spec(driver) is None:
            raise PostgresError(
                f"the driver {driver} is not installed. "
                "Install it: pip install -c constraints.txt -e '.[postgres]'"
            )
    plain = given.set(drivername="postgresql+psycopg")
    _make_schemas(plain)
    options = f"-csearch_path={MLFLOW_SCHEMA}"
    if "options" in given.query:
        options = f"{given.query['options']} {options}"
    return Database(
        prefect={
            "PREFECT_API_DATABASE_CONNECTION_URL": _text(
                given.set(drivername="postgresql+asyncpg")
            ),
            # The second for extensions that stand in `public` already.
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH": (
                f"{PREFECT_SCHEMA}, public"
            ),
        },
        mlflow=_text(plain.update_query_dict({"options": options})),
        shown=given.set(drivername="postgresql", query={}).render_as_string(hide_password=True),
    )


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _make_schemas(url: URL) -> None:
    engine = create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
    try:
        with engine.begin() as connection:
            for schema in (PREFECT_SCHEMA, MLFLOW_SCHEMA):
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
    except (SQLAlchemyError, UnicodeError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        said = " ".join(str(cause).split())
        password = str(url.password or "")
        said = said.replace(password, "***") if password else said
        raise PostgresError(f"the database does not let us in: {said}") from None
    finally:
        engine.dispose()
