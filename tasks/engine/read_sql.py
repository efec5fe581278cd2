"""A database table or query, streamed in chunks by a server-side cursor, read-only if it can be."""

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tasks.engine.config import DataConfig
from tasks.engine.errors import RunError, UserError, listing, nearest
from tasks.engine.inputs import Input
from tasks.engine.reading import Reading
from tasks.engine.schema import check_names
from tasks.engine.secrets import resolved
from tasks.engine.spool import spooled

_CHUNK = 16_384
_READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
}
_PARAMETER = re.compile(r"(?<![:\w\\]):(?=\w)(?!\w+:)")


def read_sql(source: Input, config: DataConfig) -> Reading:
    """Raises UserError for a place that can't be reached, a statement that fails, odd columns."""
    is_sqlite = config.source.startswith("sqlite")
    return spooled(source, _tables(source, config), times_in_text=is_sqlite)


def _unordered(what: str) -> str:
    return (
        f"{what}: the database may return the rows in another order next time, and a row's place "
        "decides its side of the split."
    )


def _tables(source: Input, config: DataConfig) -> Iterator[Any]:
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    engine = _engine(source, config)
    try:
        with engine.connect() as connected:
            connection = _streaming(connected, engine.dialect.name)
            statement = _statement(connection, config, source)
            result = connection.execute(statement)
            if not result.returns_rows:
                connection.rollback()
                raise UserError("data.query returns no rows: it must be a SELECT.")
            names = [str(name) for name in result.keys()]  # noqa: SIM118
            check_names(names, "The result of data.query" if config.query else source.shown)
            start, empty = 0, True
            for rows in result.partitions(_CHUNK):
                yield _table(source, names, rows, start)
                start, empty = start + len(rows), False
            if empty:
                yield pa.table({name: pa.nulls(0) for name in names})
            connection.rollback()
    except DBAPIError as error:
        cause = _without_password(str(error.orig or error).strip().rstrip("."), config.source)
        if error.connection_invalidated:
            raise RunError(f"{source.shown}: the connection was lost ({cause}).") from None
        what = "data.query fails" if config.query and _is_statement(error) else "the database says"
        raise UserError(f"{source.shown}: {what}: {cause}.") from None
    except SQLAlchemyError as error:
        cause = _without_password(str(error).strip().rstrip("."), config.source)
        raise UserError(f"{source.shown}: {cause}.") from None
    finally:
        engine.dispose()


def _is_statement(error: Any) -> bool:
    """Whether a statement of the user's failed, and not the connection."""
    return bool(error.statement) and not str(error.statement).startswith(("PRAGMA", "SET "))


def _engine(source: Input, config: DataConfig) -> Any:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    if not config.query and not config.table:
        raise UserError(
            f"{source.shown} is a database: set data.table, or data.query to an SQL query."
        )
    try:
        url = sqlalchemy.make_url(resolved(config.source))
        _check_sqlite(url, source)
        return sqlalchemy.create_engine(url, poolclass=NullPool)
    except NoSuchModuleError:
        scheme = config.source.partition(":")[0]
        raise UserError(
            f"SQLAlchemy has no dialect {scheme!r} ({source.shown}). Install its package, or "
            "correct the scheme."
        ) from None
    except ModuleNotFoundError as error:
        raise UserError(
            f"{source.shown} needs the Python package {error.name!r}: pip install {error.name}."
        ) from None
    except (ArgumentError, ValueError):  # what stands for the port is no number
        raise UserError(
            f"{source.shown} is not a database URL. It reads "
            "dialect+driver://user:password@host:port/database, with @, : and / of a password as "
            "%40, %3A and %2F."
        ) from None


def _check_sqlite(url: Any, source: Input) -> None:
    """Raises UserError for a file that is not there: SQLite would make an empty one."""
    from pathlib import Path

    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name.startswith((":", "file:")):
        return
    if Path(name).is_dir():
        raise UserError(f"{name!r} is a folder, not a database file.")
    if not Path(name).is_file():
        folder = Path(name).absolute().parent
        known = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        raise UserError(f"There is no database file {name!r}.{nearest(Path(name).name, known)}")


def _streaming(connection: Any, dialect: str) -> Any:
    if dialect in _READ_ONLY:
        connection.exec_driver_sql(_READ_ONLY[dialect])
    options: dict[str, Any] = {"postgresql_readonly": True} if dialect == "postgresql" else {}
    if dialect == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    return connection.execution_options(stream_results=True, yield_per=_CHUNK, **options)


def _statement(connection: Any, config: DataConfig, source: Input) -> Any:
    import sqlalchemy as sa

    if config.query:
        if not re.search(r"\border\s+by\b", config.query, re.IGNORECASE):
            source.notes.append(_unordered("data.query has no ORDER BY"))
        return sa.text(_PARAMETER.sub(r"\\:", config.query))
    schema, _, name = (config.table or "").rpartition(".")
    try:
        table = sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=connection)
    except sa.exc.NoSuchTableError:
        look = sa.inspect(connection)
        known = look.get_table_names(schema or None) + look.get_view_names(schema or None)
        raise UserError(
            f"There is no table {config.table!r} (data.table) in {source.shown}."
            f"{nearest(name, known)} Its tables are: {listing(sorted(known))}."
        ) from None
    if not table.primary_key.columns:
        source.notes.append(
            _unordered(f"The table {config.table!r} (data.table) has no primary key")
        )
    return sa.select(table).order_by(*table.primary_key.columns)


def _table(source: Input, names: list[str], rows: Any, start: int) -> Any:
    arrays = [_array(source, name, [row[i] for row in rows], start) for i, name in enumerate(names)]
    return pa.table(dict(zip(names, arrays, strict=True)))


def _array(source: Input, name: str, values: list[Any], start: int) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if all(value is None or type(value).__name__ == "UUID" for value in values):
            return pa.array([None if value is None else str(value) for value in values])
    kinds: dict[str, int] = {}
    for row, value in enumerate(values, start + 1):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(
                f"{source.shown}, row {row}: the integer {value} in the column {name!r} does not "
                "fit 64 bits. Cast it in data.query."
            )
        if value is not None:
            kinds.setdefault(type(value).__name__, row)
    places = ", ".join(f"{kind} in row {row}" for kind, row in kinds.items())
    raise UserError(
        f"{source.shown}: the column {name!r} mixes types ({places}). Cast it in data.query."
    )


def _without_password(text: str, url: str) -> str:
    from urllib.parse import unquote, urlsplit

    password = urlsplit(resolved(url)).password
    for secret in {password, unquote(password)} if password else ():
        text = text.replace(secret, "***")
    return text
