"""Every format that is read: its name, the endings of its files, how they begin, and its reader.

A new format is a reader in a module of its own and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tasks.engine.config import DataConfig
from tasks.engine.inputs import Input
from tasks.engine.read_arrow import read_arrow
from tasks.engine.read_csv import csv_header, read_csv, read_tsv, tsv_header
from tasks.engine.read_json import read_json
from tasks.engine.read_loader import read_demo, read_loader
from tasks.engine.read_sql import read_sql
from tasks.engine.reading import Reader


@dataclass(frozen=True)
class Format:
    """`reader` is None where files are read in place. `is_stored` formats are files. `header` gives
    the names of a file's columns from its first line, where a format has such a line. Of an
    `is_guessed` format the values alone say of which type a column is.

    Only what is stored can be recognised as unchanged; the others are read anew each time.
    """

    name: str
    reader: Reader | None
    endings: tuple[str, ...] = ()
    magic: bytes = b""
    is_stored: bool = True
    is_guessed: bool = False
    header: Callable[[Input, DataConfig], list[str]] | None = None


FORMATS = {
    known.name: known
    for known in (
        Format("parquet", None, (".parquet", ".pq", ".parq"), b"PAR1"),
        Format("csv", read_csv, (".csv",), header=csv_header, is_guessed=True),
        Format("tsv", read_tsv, (".tsv", ".tab"), header=tsv_header, is_guessed=True),
        Format("arrow", read_arrow, (".arrow", ".arrows", ".feather", ".ipc"), b"ARROW1"),
        Format("json", read_json, (".json", ".jsonl", ".ndjson"), is_guessed=True),
        Format("sql", read_sql, is_stored=False),
        Format("demo", read_demo, is_stored=False),
        Format("loader", read_loader, is_stored=False),
    )
}
