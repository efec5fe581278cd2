"""What is fuzzed: each subject has files, damages one of them, and says what came of it."""

import gzip
import io
import json
import shutil
from abc import ABC, abstractmethod
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb

from tasks.engine.checkpoints import Checkpoint, CheckpointStore, History
from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.early import check_early
from tasks.engine.frames import read_arrow
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.planning import plan_of
from tasks.engine.profile import take_profile
from tasks.engine.scoring import MANIFEST_FILE, Column, Encoder, Scorer
from tasks.engine.settings import load_config, parse
from tests.fuzz.mutate import mutated

Ending = Literal["same", "other", "silent"]

ROWS = 120


class Subject(ABC):
    """`folder` is the subject's own; `run` may leave anything in it but what `make` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases = 0
        folder.mkdir(parents=True)
        self.make()

    def place(self) -> Path:
        """A path that no case had before: readers remember what they saw at one."""
        shutil.rmtree(self.folder / f"case-{self.cases}", ignore_errors=True)
        self.cases += 1
        return self.folder / f"case-{self.cases}"

    @abstractmethod
    def make(self) -> None:
        """Writes what is damaged later, and remembers what is right."""

    @abstractmethod
    def run(self, random: Random) -> Ending:
        """`same`: as if nothing were damaged; `other`: accepted as something else, and seen to be;
        `silent`: accepted as what it is not. Raises what the engine raises."""


def table() -> pa.Table:
    """Every kind of column, 120 rows."""
    number = np.arange(ROWS)
    return pa.table(
        {
            "i": number,
            "f": np.sin(number) * 10,
            "s": [("abc" * 3)[n % 3 : n % 3 + 3] for n in number.tolist()],
            "d": pa.array((20_000 + number).astype("datetime64[D]")),
            "t": pa.array((number * 10**9).astype("datetime64[us]")),
            "b": number % 2 == 0,
            "y": np.cos(number) + number / 10,
        }
    )


class Table(Subject):
    """A source of one file in a format."""

    name: str
    settings: dict[str, Any] = {}  # noqa: RUF012

    def make(self) -> None:
        self.content = self.packed()
        self.right = self._seen(self.content)

    @abstractmethod
    def packed(self) -> bytes:
        """The whole file."""

    def run(self, random: Random) -> Ending:
        content = mutated(self.content, random)
        digest, values = self._seen(content)
        if digest == self.right[0]:
            return "same" if values == self.right[1] else "silent"
        return "other"

    def _seen(self, content: bytes) -> tuple[str, bytes]:
        """The dataset's digest, and a digest of all of its values."""
        folder = self.place()
        folder.mkdir()
        file = folder / self.name
        file.write_bytes(content)
        values = {"source": str(file), "target": "y", "max_rejected": 0.5, "max_gigabytes": 0.2}
        return seen(parse({"data": values}), Home(str(folder / "home")))


def seen(config: Config, home: Home) -> tuple[str, bytes]:
    check_early(config, home)
    dataset = ingest(config.data, home)
    dataset, _ = take_profile(None, dataset, plan_of(config, dataset), config, home)
    assert dataset.digest is not None
    return dataset.digest, values_of(dataset)


def values_of(dataset: Dataset) -> bytes:
    digest = sha256()
    for group in dataset.row_groups():
        found = read_arrow([group], dataset.names)
        for name, column in zip(dataset.names, found.columns, strict=True):
            digest.update(repr((name, str(column.type), _plain(column).to_pylist())).encode())
    return digest.digest()


def _plain(column: Any) -> Any:
    """Values that Python can show whatever they are: times as numbers, texts as bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_temporal(column.type):
        return column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column


class Csv(Table):
    name = "t.csv"

    def packed(self) -> bytes:
        return bytes(table().to_pandas().to_csv(index=False).encode())


class PackedCsv(Csv):
    name = "t.csv.gz"

    def packed(self) -> bytes:
        return gzip.compress(super().packed(), mtime=0)


class JsonLines(Table):
    name = "t.jsonl"

    def packed(self) -> bytes:
        rows = table().to_pandas().astype({"d": str, "t": str}).to_dict("records")
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Arrow(Table):
    name = "t.arrow"

    def packed(self) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table().schema) as writer:
            writer.write_table(table(), 50)
        return bytes(sink.getvalue())


class Parquet(Table):
    name = "t.parquet"
    options: dict[str, Any] = {}  # noqa: RUF012

    def packed(self) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(table(), buffer, row_group_size=40, **self.options)
        return buffer.getvalue()


class PlainParquet(Parquet):
    options = {"compression": "none", "use_dictionary": False}  # noqa: RUF012


class CheckedParquet(Parquet):
    options = {"write_page_checksum": True, "compression": "zstd"}  # noqa: RUF012


class Conversion(Subject):
    """What a CSV became, and its record, between two runs."""

    def make(self) -> None:
        self.file = self.folder / "t.csv"
        table().to_pandas().to_csv(self.file, index=False)
        self.config = parse({"data": {"source": str(self.file), "target": "y"}})
        self.right = seen(self.config, Home(str(self.folder / "home")))

    def run(self, random: Random) -> Ending:
        home = self.place()
        shutil.copytree(self.folder / "home", home)
        files = sorted(path for path in home.rglob("*") if path.is_file())
        damaged = random.choice(files)
        damaged.write_bytes(mutated(damaged.read_bytes(), random))
        return "same" if seen(self.config, Home(str(home))) == self.right else "silent"


class Toml(Subject):
    def make(self) -> None:
        self.content = (
            b'[data]\nsource = "a.csv"\ntarget = "y"\nfeatures = ["a", "b"]\nrules = ["a > 0"]\n'
            b'[split]\nkind = "time"\ncolumn = "t"\nvalid_from = 2026-01-01\ntest_from = '
            b"2026-02-01T12:00:00Z\n[boost]\nmax_depth = 6\nlearning_rate = 0.3\n"
            b'monotone_constraints = {a = 1, "b c" = -1}\n[track]\ntags = {team = "sales"}\n'
        )
        (self.folder / "right.toml").write_bytes(self.content)
        self.right = load_config(str(self.folder / "right.toml"))

    def run(self, random: Random) -> Ending:
        file = self.folder / "case.toml"
        file.write_bytes(mutated(self.content, random))
        return "same" if load_config(str(file)) == self.right else "other"


def model() -> tuple[Scorer, pd.DataFrame]:
    frame = table().to_pandas()[["f", "s"]]
    encoder = Encoder(
        (
            Column("f", "number", 0.5, 2.0),
            Column("s", "category", categories=tuple(sorted(set(frame["s"])))),
        )
    )
    matrix = xgb.DMatrix(
        encoder.encode(frame),
        table()["y"].to_numpy(),
        feature_types=encoder.feature_types,
        enable_categorical=True,
    )
    booster = xgb.train({"max_depth": 3, "nthread": 1, "base_score": 0.0}, matrix, 8)
    return Scorer(encoder, booster, 5.0, threads=1), frame


class Checkpoints(Subject):
    def make(self) -> None:
        scorer, _ = model()
        self.saved = {
            rounds: Checkpoint(
                rounds,
                bytes(scorer.booster[:rounds].save_raw("ubj")),
                History(train_rmse=tuple(1 / (i + 1) for i in range(rounds))),
            )
            for rounds in (2, 4, 6)
        }
        store = CheckpointStore(str(self.folder / "right"))
        for checkpoint in self.saved.values():
            store.save(checkpoint)

    def run(self, random: Random) -> Ending:
        folder = self.place()
        shutil.copytree(self.folder / "right", folder)
        damaged = random.choice(sorted(folder.iterdir()))
        damaged.write_bytes(mutated(damaged.read_bytes(), random))
        found = CheckpointStore(str(folder)).latest(100)
        if found is None or found != self.saved.get(found.rounds):
            return "silent"
        xgb.Booster(model_file=bytearray(found.raw))
        return "same" if found.rounds == 6 else "other"


class StoredScorer(Subject):
    """Loaded with and without the manifest's digest from elsewhere."""

    def make(self) -> None:
        scorer, self.frame = model()
        self.digest = scorer.save(self.folder / "right")[MANIFEST_FILE]
        self.right = scorer.predict(self.frame).tobytes()

    def run(self, random: Random) -> Ending:
        folder = self.place()
        shutil.copytree(self.folder / "right", folder)
        damaged = random.choice(sorted(folder.iterdir()))
        damaged.write_bytes(mutated(damaged.read_bytes(), random))
        digest = self.digest if random.random() < 0.5 else None
        scorer = Scorer.load(folder, manifest_sha256=digest, threads=1)
        return "same" if scorer.predict(self.frame).tobytes() == self.right else "silent"


SUBJECTS: dict[str, type[Subject]] = {
    "parquet": Parquet,
    "parquet, plain": PlainParquet,
    "parquet, checksums": CheckedParquet,
    "csv": Csv,
    "csv.gz": PackedCsv,
    "json": JsonLines,
    "arrow": Arrow,
    "toml": Toml,
    "conversion": Conversion,
    "checkpoints": Checkpoints,
    "scorer": StoredScorer,
}
