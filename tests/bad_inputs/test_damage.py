"""Flipped bits in a page: seen by the checksum where one was written, by the digest elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.engine.errors import UserError
from tasks.engine.frames import read_arrow
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tests.bad_inputs.early import columns, configured, parquet, refused, seen


def with_a_flipped_bit(folder: Path, **options: Any) -> Path:
    """One cell of the column a differs, and nothing else."""
    file = parquet(folder, columns(), compression="none", use_dictionary=False, **options)
    content = bytearray(file.read_bytes())
    content[content.index(np.float64(columns()["a"][7]).tobytes())] ^= 1
    file.write_bytes(content)
    return file


def test_checksums_are_verified(tmp_path: Path, home: Home) -> None:
    file = with_a_flipped_bit(tmp_path / "data", write_page_checksum=True)
    assert refused(file, home) == (
        f"The file {file} is damaged (row groups 0): could not verify page integrity, CRC checksum "
        "verification failed for page_ordinal 0. Restore it or write it anew."
    )


def test_without_checksums_the_digest_shows_it(tmp_path: Path, home: Home) -> None:
    plain: Any = {"compression": "none", "use_dictionary": False}
    whole = seen(parquet(tmp_path / "whole", columns(), **plain), home)
    flipped = seen(with_a_flipped_bit(tmp_path / "flipped"), home)
    assert whole.dataset.digest is not None
    assert flipped.dataset.digest != whole.dataset.digest


def test_a_column_name_that_is_no_text(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.arrow"
    table = pa.table({"naïve": [1, 2], "y": [1, 2]})
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    file.write_bytes(file.read_bytes().replace("ï".encode(), b"\xff\xff"))
    assert refused(file, home) == (
        f"{file} can't be read as Arrow IPC ('utf-8' codec can't decode byte 0xff in position 2: "
        "invalid start byte). It was cut short, damaged, or is of another format: write it again "
        "or set data.format."
    )


def test_a_text_that_is_no_text(tmp_path: Path, home: Home) -> None:
    table = columns(c=["naïve"] * 60)
    file = parquet(tmp_path / "data", table, compression="none", column_encoding=None)
    file.write_bytes(file.read_bytes().replace("ï".encode(), b"\xff\xff"))
    assert refused(file, home) == (
        f"The file {file} is damaged (row groups 0): values that are not what their column says "
        "(Unknown error: Wrapping na\ufffd\ufffdve failed). Restore it or write it anew."
    )


def test_a_footer_that_is_damaged_after_it_was_listed(tmp_path: Path, home: Home) -> None:
    file = parquet(tmp_path / "data", columns())
    group = ingest(configured(file).data, home).row_groups()[0]
    content = file.read_bytes()
    file.write_bytes(content[:-200] + b"\xff" * 192 + content[-8:])
    with pytest.raises(UserError) as error:
        read_arrow([group.model_copy(update={"stamp": ""})], ["y"])
    assert str(error.value).startswith(f"The file {file} is damaged (its footer): ")
    assert str(error.value).endswith(". Restore it or write it anew.")
