"""Where scored rows go: one Parquet or CSV file, or a folder of Parquet parts."""

import gzip
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.engine.errors import RunError, UserError
from tasks.engine.frames import open_input
from tasks.engine.parts import write_part
from tasks.engine.predictions import Part

_PART = re.compile(r"part-\d{5,}\.parquet")


@dataclass(frozen=True)
class Output:
    """What `out` names: a file that ends in .parquet, .csv or .csv.gz, or a folder."""

    out: str

    def __post_init__(self) -> None:
        """Raises UserError for another ending, or a folder that isn't there or is closed."""
        try:
            filesystem, path = fsspec.core.url_to_fs(self.out)
        except (ImportError, ValueError) as error:
            raise UserError(f"OUT is {self.out!r}: {str(error).rstrip('.')}.") from None
        if isinstance(filesystem, LocalFileSystem):
            self._check_place(Path(path))
        if Path(self.out).suffix and not self.is_file:
            raise UserError(
                f"OUT is {self.out!r}: it must end in .parquet, .csv or .csv.gz, or be a folder's "
                "name."
            )

    def _check_place(self, place: Path) -> None:
        parent = str(place.parent) if "://" in self.out else str(Path(self.out).parent)
        if not place.parent.is_dir():
            raise UserError(f"The folder {parent!r} of OUT does not exist. Make it first.")
        if not os.access(place.parent, os.W_OK):
            raise UserError(f"The folder {parent!r} of OUT can't be written to.")
        if self.is_file and place.is_dir():
            raise UserError(f"OUT is {self.out!r}, which is a folder. Name a file.")
        if not self.is_file and place.is_file():
            raise UserError(
                f"OUT is {self.out!r}, a file that is there and does not end in .parquet, .csv or "
                ".csv.gz. Name another, or a folder."
            )

    @property
    def is_csv(self) -> bool:
        return self.out.endswith((".csv", ".csv.gz"))

    @property
    def is_file(self) -> bool:
        return self.is_csv or self.out.endswith(".parquet")

    @property
    def may_be_there(self) -> bool:
        """False only for a place on this host where nothing stands."""
        return "://" in self.out or os.path.lexists(self.out)

    def check_apart(self, sources: Collection[str]) -> None:
        """Raises UserError where writing would replace a file of the table that is read."""
        place = _place(self.out)
        if self.is_file and any(_place(uri) == place for uri in sources):
            raise UserError(f"OUT is {self.out!r}, a file of the table to be scored. Name another.")
        if not self.is_file and any(_place(uri).rpartition("/")[0] == place for uri in sources):
            raise UserError(
                f"OUT is {self.out!r}, a folder of the table to be scored. Name another."
            )

    def check_kept(self, schema: pa.Schema) -> None:
        """Raises UserError for a column that the file can't hold."""
        for field in schema if self.is_csv else []:
            try:
                pyarrow.csv.write_csv(pa.schema([field]).empty_table(), pa.BufferOutputStream())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise UserError(
                    f"The column {field.name!r} (--keep) is of the type {field.type}, which CSV "
                    "can't hold. Write to a .parquet file or a folder, or leave the column out."
                ) from None

    def write(self, parts: Sequence[Part]) -> None:
        """In the order of the parts. What was there stays until all of the new is written."""
        if self.is_csv:
            _write_file(parts, self.out, pyarrow.csv.CSVWriter)
        elif self.is_file:
            _write_file(parts, self.out, parquet_writer)
        else:
            _write_folder(parts, self.out)


def _place(uri: str) -> str:
    """One name for one file, however it is written."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    if isinstance(filesystem, LocalFileSystem):
        return os.path.realpath(path)
    return str(filesystem.unstrip_protocol(path)).rstrip("/")


def _schemas(parts: Sequence[Part]) -> list[pa.Schema]:
    """Of each part: a kept column may hold integers in one file and floats in another."""
    found = []
    for part in parts:
        with open_input(part.uri) as file:
            found.append(_plain(pq.read_schema(file)))
    return found


def _unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    return pa.unify_schemas(schemas, promote_options="permissive")


def _table(part: Part, schema: pa.Schema) -> pa.Table:
    with open_input(part.uri) as file:
        table = pq.read_table(file)
    # integers that become floats are rounded, as everywhere
    columns = [
        column.cast(field.type, safe=not pa.types.is_floating(field.type))
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Parts read categories each with a dictionary of its own; written out they are texts."""
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in schema
    ]
    return pa.schema(fields)


def parquet_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Of scored rows, whose last column is the prediction."""
    # predictions hardly repeat: a dictionary of them takes time and is given up in the end
    *kept, _ = _leaves(schema)
    return pq.ParquetWriter(file, schema, use_dictionary=kept or False)


def _leaves(schema: pa.Schema) -> list[str]:
    """What Parquet calls the columns, of which a list or a struct has some of its own."""
    nothing = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), nothing)
    leaves = pq.read_metadata(pa.BufferReader(nothing.getvalue())).schema
    return [leaves.column(place).path for place in range(len(leaves))]


def _write_file(
    parts: Sequence[Part], out: str, writer_of: Callable[[Any, pa.Schema], Any]
) -> None:
    schema = _unified(_schemas(parts))
    filesystem, path = _connected(out)
    _make_folder(filesystem, filesystem._parent(path))
    with _new(filesystem, [path]) as (new,), ExitStack() as stack:
        file: Any = stack.enter_context(filesystem.open(new, "wb"))
        if out.endswith(".gz"):
            # without the time of writing, which would make other bytes every time
            file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb", mtime=0))
        writer = stack.enter_context(writer_of(file, schema))
        for part in parts:
            writer.write_table(_table(part, schema))


def _write_folder(parts: Sequence[Part], out: str) -> None:
    filesystem, path = _connected(out)
    _make_folder(filesystem, path)
    schemas = _schemas(parts)
    schema = _unified(schemas)
    differ = any(each != schema for each in schemas)
    names = [f"{path}/part-{number:05d}.parquet" for number in range(len(parts))]
    with _new(filesystem, names) as files:
        for part, new in zip(parts, files, strict=True):
            if differ:
                write_part(part.uri, _table(part, schema))
            with open_input(part.uri) as source, filesystem.open(new, "wb") as file:
                shutil.copyfileobj(source, file)
    filesystem.invalidate_cache()
    for old in filesystem.ls(path, detail=False):
        name = str(old).rpartition("/")[2]
        if _PART.fullmatch(name) and f"{path}/{name}" not in names:
            filesystem.rm_file(old)


def _connected(out: str) -> tuple[Any, str]:
    """Anew: servers end a connection that was idle while the rows were scored."""
    filesystem, path = fsspec.core.url_to_fs(out, skip_instance_cache=True)
    return filesystem, path


def _make_folder(filesystem: Any, path: str) -> None:
    # what is asynchronous is object storage, which knows no folders and would make a bucket
    if not isinstance(filesystem, AsyncFileSystem):
        filesystem.makedirs(path, exist_ok=True)


class _UnmovedError(RunError):
    """What was to be replaced is gone, and what was to take its place has another name."""


def _move(filesystem: Any, name: str, path: str) -> None:
    """Raises _UnmovedError."""
    if isinstance(filesystem, LocalFileSystem):
        os.replace(name, path)
    elif type(filesystem).mv is not AbstractFileSystem.mv:
        _rename(filesystem, name, path)
    else:  # what `mv` does there, but names are no patterns; object storage copies by itself
        filesystem.cp_file(name, path)
        written, copied = filesystem.info(name)["size"], filesystem.info(path)["size"]
        if written != copied:
            raise _UnmovedError(
                f"{path} has {copied:,} bytes in place of {written:,}. All of it is in {name}."
            )
        try:
            filesystem.rm_file(name)
        except OSError as error:
            raise RunError(f"{path} is written, but {name} can't be removed: {error}") from error


def _rename(filesystem: Any, name: str, path: str) -> None:
    """Some take the place of what is there, some refuse to, and some do neither and say nothing."""
    refused: Exception | None = None
    try:
        filesystem.mv(name, path)
    except Exception as error:  # noqa: BLE001 - FTP and SFTP have errors of their own
        refused = error
    if not _stands(filesystem, name):
        return
    if not _stands(filesystem, path):
        raise refused or RunError(f"{path} could not be written: {name} was not renamed.")
    whole = f"All of it is in {name}."
    try:
        filesystem.rm_file(path)
        filesystem.mv(name, path)
        moved = _stands(filesystem, path)
    except BaseException as error:  # what ends it here must not take the only copy along
        raise _UnmovedError(f"{path} could not be written ({error!r}). {whole}") from error
    if not moved:
        raise _UnmovedError(f"{path} could not be written: {name} was not renamed. {whole}")


def _stands(filesystem: Any, path: str) -> bool:
    """As `exists`, which says no where nobody answers."""
    filesystem.invalidate_cache()
    try:
        filesystem.info(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _new(filesystem: Any, paths: Sequence[str]) -> Iterator[list[str]]:
    """Names to write to for what stands at `paths` when all of it is written, or not at all."""
    mark = uuid4().hex
    # a dot in front: who reads the folder meanwhile passes over it
    places = [path.rpartition("/") for path in paths]
    names = [f"{folder}{slash}.{name}.{mark}.part" for folder, slash, name in places]
    left = list(names)
    try:
        yield names
        for name, path in zip(names, paths, strict=True):
            try:
                _move(filesystem, name, path)
            except _UnmovedError:
                left.remove(name)
                raise
    finally:
        for name in left:
            # an error that brought us here says more
            with suppress(Exception):
                if _stands(filesystem, name):
                    filesystem.rm_file(name)
        filesystem.invalidate_cache()
