"""What is no Parquet becomes Parquet, once: one file for each source file, kept under the home."""

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from tasks.engine.config import DataConfig
from tasks.engine.dataset import Column, Dataset, File, Frozen
from tasks.engine.errors import UserError
from tasks.engine.formats import FORMATS
from tasks.engine.frames import modified
from tasks.engine.home import Home, digest_of, writing
from tasks.engine.infer import Evidence, check_evidence
from tasks.engine.inputs import CHUNK, Input, SourceFile, changed, too_large
from tasks.engine.parquet import check_rows, footer_digest
from tasks.engine.reading import Reading
from tasks.engine.schema import EXACT, Conflict, columns_of, rounded, unify
from tasks.engine.sources import Source, current, partition_note
from tasks.engine.workers import Outcome, each

_VERSION = 3
_FOLDER = "converted"


class Converted(Frozen):
    """One source file's Parquet file: kept beside it, and trusted only while both are whole.

    `source_digest` is of the source's bytes, "" for what is not stored; the file's own digest says
    also how they were read. `wide` are the columns with integers beyond 2^53. `opened_bytes` is 0
    for what was not packed. `is_ended` is False for a text whose last line has no end. `footer` is
    the digest of the Parquet file's footer, which no checksum of a page covers.
    """

    file: File
    footer: str
    columns: tuple[Column, ...]
    source_digest: str = ""
    wide: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    opened_bytes: int = 0
    is_ended: bool = True
    notes: tuple[str, ...] = ()


def convert(
    source: Source,
    config: DataConfig,
    home: Home,
    client: Any = None,
    texts: Collection[str] = (),
) -> Dataset:
    """The source's Parquet files under one schema, converted where they are not yet.

    `client` is a Dask client, or None to convert here. Which error is raised does not depend on
    the cluster: it is that of the first file. The columns `texts` of a format whose types are
    guessed are texts, whatever else their values might be.

    Raises:
        UserError: a file is not what its format promises, the files don't fit together, a column
            of numbers holds something else, there are no rows.
        RunError: workers kept dying.
    """
    records = list(_records(source, config, home, client, tuple(sorted(texts))))
    opened = sum(record.opened_bytes for record in records)
    if opened > config.max_gigabytes * 1e9:
        raise too_large(source.shown, source.size, config.max_gigabytes)
    for file, record in zip(source.files, records, strict=True):
        doubts = [found for found in record.evidence if found.column not in texts]
        check_evidence(file.shown, doubts, config)
    shown = [file.shown for file in source.files]
    try:
        columns, notes = unify(
            [(s, record.columns) for s, record in zip(shown, records, strict=True)]
        )
    except Conflict as conflict:
        raise _with_line(conflict, source, records) from None
    names = {column.name for column in columns}
    more = [
        note
        for file, record in zip(source.files, records, strict=True)
        for note in _notes(file, record)
    ]
    wide = [
        rounded(file.shown, name)
        for file, record in zip(source.files, records, strict=True)
        for name in record.wide
        if name in names
    ]
    dataset = Dataset(
        source=source.shown,
        columns=columns,
        files=tuple(record.file for record in records),
        notes=(*notes, *partition_note(source), *more, *wide),
    )
    check_rows(dataset)
    return dataset


def _notes(file: SourceFile, record: Converted) -> list[str]:
    cut_short = f"{file.shown}: the last line has no line end. Was the file cut short?"
    return [*record.notes, *([] if record.is_ended else [cut_short])]


def convert_file(
    file: SourceFile, kind: str, config: DataConfig, home: Home, texts: tuple[str, ...] = ()
) -> Converted:
    """Converts one file, or finds it converted. Runs on a Dask worker.

    Processes that convert the same file at once each write their own and put it in place whole.

    Raises:
        UserError: the file is not what its format promises, or changes while it is read; there
            is no space left.
    """
    if not FORMATS[kind].is_stored:  # read anew each time, whatever is asked
        return _converted(file, kind, config, home, texts)
    usual = _converted(file, kind, config, home, ())
    if not FORMATS[kind].is_guessed:
        return usual
    guessed = [column.name for column in usual.columns if column.arrow not in ("string", "null")]
    others = tuple(name for name in texts if name in guessed)
    return _converted(file, kind, config, home, others) if others else usual


def _converted(
    file: SourceFile, kind: str, config: DataConfig, home: Home, texts: tuple[str, ...]
) -> Converted:
    key = _key(file, kind, config, texts)
    known = home.load(Converted, _FOLDER, key, "record.json")
    if known and file.modified and _is_whole(known, home, key):
        is_checked = config.verify and FORMATS[kind].is_stored
        if not is_checked or _digest(file, config) == known.source_digest:
            return known.model_copy(update={"file": _placed(known.file, file, home, key)})
    with (
        writing(home.path(_FOLDER)),
        tempfile.TemporaryDirectory(dir=_workshop(home), prefix="part-") as folder,
    ):
        path = os.path.join(folder, "data.parquet")
        source = Input(file, config, scratch=folder, texts=texts)
        reader = FORMATS[kind].reader
        assert reader is not None, "Parquet is read in place"
        try:
            record = _write(file, reader(source, config), config, path)
        except pa.ArrowInvalid:
            _check_unchanged(file)  # a second pass that fails where the first did not
            raise
        if FORMATS[kind].is_stored:
            record = _checked(file, source, record)
            options = _options(kind, config, texts)
            # where batches are cut decides the last bits of means
            cut = config.row_group_rows
            read_as = digest_of(_VERSION, kind, record.source_digest, cut, *options)
            record = _with_digest(record, read_as)
        else:
            record = _with_digest(record, _file_digest(path))
            record = record.model_copy(update={"notes": tuple(source.notes)})
        if not file.modified:  # only the content tells whether it changed
            key = digest_of(key, record.file.digest)
        _publish(path, home.path(_FOLDER, key, "data.parquet"))
    home.save(record, _FOLDER, key, "record.json")
    return record.model_copy(update={"file": _placed(record.file, file, home, key)})


def _key(file: SourceFile, kind: str, config: DataConfig, texts: tuple[str, ...]) -> str:
    """What a conversion depends on: the file as it is and how it is read and written."""
    place = (file.uri, file.size, file.modified)
    options = _options(kind, config, texts)
    return digest_of("convert", _VERSION, kind, *place, config.row_group_rows, *options)


def _options(kind: str, config: DataConfig, texts: tuple[str, ...]) -> tuple[Any, ...]:
    """What says which values a source of that kind holds, beside its bytes."""
    return {
        "csv": (config.separator, config.encoding, config.missing_values, texts),
        "tsv": (config.separator, config.encoding, config.missing_values, texts),
        "json": (config.encoding, texts),
        "sql": (config.query, config.table),
    }.get(kind, ())


def _is_whole(record: Converted, home: Home, key: str) -> bool:
    try:
        uri = home.path(_FOLDER, key, "data.parquet")
        return modified(uri)[0] == record.file.size and footer_digest(uri) == record.footer
    except FileNotFoundError:
        return False


def _placed(converted: File, file: SourceFile, home: Home, key: str) -> File:
    """Where the home and the original are now: both may have been moved as a whole.

    Without a time of change: what stands under a key never changes, even if it is put there twice.
    """
    uri = home.path(_FOLDER, key, "data.parquet")
    return converted.model_copy(update={"uri": uri, "path": file.path, "modified": ""})


def _workshop(home: Home) -> str | None:
    """Where unfinished files are: beside the finished ones, so that renaming moves no bytes."""
    if "://" in home.root:
        return None
    folder = home.path(_FOLDER)
    os.makedirs(folder, exist_ok=True)
    return folder


def _publish(path: str, uri: str) -> None:
    filesystem, target = fsspec.core.url_to_fs(uri)
    filesystem.makedirs(filesystem._parent(target), exist_ok=True)
    if isinstance(filesystem, LocalFileSystem):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, target)
    else:
        filesystem.put_file(path, target)


def _digest(file: SourceFile, config: DataConfig) -> str:
    source = Input(file, config)
    for _ in source.chunks():
        pass
    return source.digest


def _file_digest(path: str) -> str:
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _checked(file: SourceFile, source: Input, record: Converted) -> Converted:
    """The record with facts of the source. Raises UserError if the source changed meanwhile."""
    _check_unchanged(file)
    ended = not source.tail or source.tail.endswith((b"\n", b"\r"))
    facts = {
        "source_digest": source.digest,
        "opened_bytes": source.opened_bytes,
        "is_ended": ended,
    }
    return record.model_copy(update=facts)


def _check_unchanged(file: SourceFile) -> None:
    try:
        now = current(file)
    except FileNotFoundError:
        raise changed(file.shown) from None
    listed = (file.size, file.modified)
    if any(old and old != new for old, new in zip(listed, now, strict=True)):
        raise changed(file.shown)


def _with_digest(record: Converted, digest: str) -> Converted:
    return record.model_copy(update={"file": record.file.model_copy(update={"digest": digest})})


def _write(file: SourceFile, reading: Reading, config: DataConfig, path: str) -> Converted:
    """Writes row groups of exactly `row_group_rows` rows, the last with what is left."""
    columns = columns_of(reading.schema, file.shown)
    wide: dict[str, None] = {}
    texts = [column.name for column in columns if column.kind == "string"]
    try:
        writer = pq.ParquetWriter(
            path, reading.schema, use_dictionary=texts or False, write_page_checksum=True
        )
    except pa.ArrowNotImplementedError as error:
        raise _unwritable(file, reading.schema, error) from None
    row_groups = []
    with writer:
        for table in _sliced(reading, config.row_group_rows):
            wide.update(dict.fromkeys(_beyond(table)))
            writer.write_table(table, row_group_size=config.row_group_rows)
            row_groups.append(table.num_rows)
    converted = File(
        uri=file.uri,
        path=file.path,
        size=os.path.getsize(path),
        modified=file.modified,
        row_groups=tuple(row_groups),
    )
    return Converted(
        file=converted,
        footer=footer_digest(path),
        columns=columns,
        wide=tuple(wide),
        evidence=reading.evidence,
    )


def _unwritable(file: SourceFile, schema: Any, error: Exception) -> UserError:
    for field in schema:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
        except pa.ArrowNotImplementedError:
            return UserError(
                f"{file.shown}: the column {field.name!r} is of the type {field.type}, which "
                "Parquet can't hold. Leave it out or write it as another type."
            )
    return UserError(f"{file.shown} can't be written as Parquet: {error}.")


def _sliced(reading: Reading, rows: int) -> Iterator[Any]:
    """Tables of exactly `rows` rows, however the batches are cut; never much more in memory."""
    waiting: list[Any] = []
    count = 0
    for batch in reading.batches:
        waiting.append(batch)
        count += batch.num_rows
        if count < rows:
            continue
        table = pa.Table.from_batches(waiting, reading.schema)
        whole = count - count % rows
        for start in range(0, whole, rows):
            yield table.slice(start, rows)
        waiting = table.slice(whole).to_batches()
        count -= whole
    if count:
        yield pa.Table.from_batches(waiting, reading.schema)


def _beyond(table: Any) -> Iterator[str]:
    """Columns with integers that 64-bit floats can't hold."""
    for field in table.schema:
        if pa.types.is_integer(field.type) and field.type.bit_width == 64:
            ends = pc.min_max(table[field.name]).as_py()
            if ends["min"] is not None and max(-ends["min"], ends["max"]) > EXACT:
                yield field.name


def _with_line(conflict: Conflict, source: Source, records: list[Converted]) -> UserError:
    """The conflict with the line of the first text, where the format knows lines."""
    for number in (conflict.first, conflict.second):
        for found in records[number].evidence:
            if found.column == conflict.column:
                return UserError(
                    f"{conflict} The first text is {found.text!r} in "
                    f"{source.files[number].shown}, line {found.line}."
                )
    return conflict


def _records(
    source: Source, config: DataConfig, home: Home, client: Any, texts: tuple[str, ...]
) -> Iterable[Converted]:
    """The files' records in the files' order."""
    if client is None:
        return [convert_file(file, source.format, config, home, texts) for file in source.files]
    return _over_cluster(source, config, home, client, texts)


def _over_cluster(
    source: Source, config: DataConfig, home: Home, client: Any, texts: tuple[str, ...]
) -> list[Converted]:
    """A few files for each thread at a time. The first file's error is raised."""
    outcomes: dict[int, Outcome] = {}

    def ahead() -> Iterator[tuple[Any, ...]]:
        for file in source.files:
            if any(outcome.error for outcome in outcomes.values()):
                return
            yield file, source.format, config, home, texts

    threads = max(1, sum(client.nthreads().values()))
    for outcome in each(
        client, convert_file, ahead(), lambda i: source.files[i].shown, at_once=2 * threads
    ):
        outcomes[outcome.number] = outcome
    records: list[Converted] = []
    for number in sorted(outcomes):
        if error := outcomes[number].error:
            raise error
        records.append(outcomes[number].value)
    return records
