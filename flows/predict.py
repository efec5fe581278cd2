"""Scoring a table with a recorded model: streamed over the workers, in the table's order."""

import gzip
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import fsspec
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from dask.system import CPU_COUNT

from flows.places import check_let_in, chosen, client_of, cluster_of, device_of, store_of
from infra.mlflow_store import quiet_mlflow
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.config import DataConfig
from tasks.engine.dataset import Dataset, rows_in
from tasks.engine.errors import UserError, listing, nearest, unknown_column
from tasks.engine.fold import BATCH_ROWS, batches
from tasks.engine.frames import open_input
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.need import BATCH_BYTES
from tasks.engine.parts import write_part
from tasks.engine.predictions import Part, Predictions, ScorerRef, predict_table
from tasks.engine.progress import Progress, reporter
from tasks.engine.scoring import Encoder, TamperedModelError
from tasks.engine.secrets import referred

# Workers of this host take some seconds to start: about as long as so many values take here.
VALUES_SCORED_HERE = 1 << 29
# Python's own part of a batch runs on one thread at a time.
MOST_THREADS = 8


@dataclass(frozen=True)
class PredictResult:
    """How many rows went where; `unseen` counts categories that training did not know."""

    rows: int
    out: str
    unseen: dict[str, int]
    seconds: float


def run(
    model: str, data: DataConfig, out: str, keep: Sequence[str], home: Home, cluster: ClusterConfig
) -> PredictResult:
    """Scores every row of `data` with `model` and writes `keep` and the prediction to `out`.

    `model` is a URI (`models:/…`) or a registered name, with a version or an alias behind it
    (`houses/3`, `houses@champion`) or without (its latest version). `out` ends in `.parquet` or
    `.csv` (`.csv.gz`), or is a folder for Parquet parts. What this process scores sooner than
    workers of this host would start is scored here.

    Raises:
        UserError: there is no such model, the table lacks columns of it, `out` can't be written.
    """
    started = time.monotonic()
    tell = reporter()
    tell(Progress("predict", 0, 0, ""))
    writer = _writer(out)
    home.prepare()
    scorer = _fetched(model, home)
    encoder = scorer.load().encoder
    with ExitStack() as stack:
        dataset = ingest(data, home)
        keep = dataset.names if list(keep) == ["all"] else list(keep)
        _check_columns(dataset, encoder, keep)
        place, _ = chosen(cluster)
        client: Any
        columns = len(encoder.names) + len(keep)
        if _scored_here(dataset, place, columns):
            client = stack.enter_context(_threads(dataset, columns))
        else:
            client = stack.enter_context(cluster_of(place, home, referred(data.source)))
            scorer = replace(scorer, device=device_of(client, place))
        folder = mkdtemp(prefix="scored-", dir=_scratch(home))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        found = predict_table(
            client,
            dataset.row_groups(),
            encoder.names,
            keep,
            scorer,
            folder,
            lambda done, total: tell(Progress("predict", done, total)),
        )
        writer(found.parts, out)
    return PredictResult(
        rows=sum(part.rows for part in found.parts),
        out=out,
        unseen=_seen_to_be_new(found),
        seconds=time.monotonic() - started,
    )


def _scored_here(dataset: Dataset, place: ClusterConfig, columns: int) -> bool:
    values = dataset.rows * columns
    return dataset.rows <= BATCH_ROWS or (place.kind == "local" and values <= VALUES_SCORED_HERE)


def _threads(dataset: Dataset, columns: int) -> ThreadPoolExecutor:
    """As many as this process may use processors, and as batches fit half of the free memory."""
    sizes = [rows_in(batch) for batch in batches(dataset.row_groups())]
    largest = max(sizes, default=0) * columns * BATCH_BYTES
    room = psutil.virtual_memory().available // 2 // max(1, largest)
    count = max(1, min(CPU_COUNT, MOST_THREADS, room))
    return ThreadPoolExecutor(count, thread_name_prefix="predict")


def _seen_to_be_new(found: Predictions) -> dict[str, int]:
    return {name: count for name, count in found.unseen.items() if count}


def _scratch(home: Home) -> str:
    folder = home.local / "scored"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _fetched(model: str, home: Home) -> ScorerRef:
    """The model's scorer under `home/models`, where every worker can reach it."""
    quiet_mlflow()
    uri = store_of(home)
    from mlflow.exceptions import MlflowException

    from tasks.engine.secrets import without_secrets
    from tasks.model import fetch_scorer

    client = client_of(uri)
    folder = home.local / "models" / uuid4().hex
    folder.mkdir(parents=True)
    try:
        stored = fetch_scorer(client, _model_uri(model, client), folder)
        stored.load()
    except TamperedModelError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"The model {model!r} from {without_secrets(uri)}: {error}") from None
    except (MlflowException, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        check_let_in(error, uri)
        raise UserError(
            f"The model {model!r} can't be had from {without_secrets(uri)}: "
            f"{str(error).rstrip('.')}. Name one as NAME, NAME/VERSION or NAME@ALIAS, or by the "
            "model URI that a run printed."
        ) from None
    return ScorerRef(str(stored.folder), stored.manifest_sha256)


def _model_uri(model: str, client: Any) -> str:
    if model.startswith("models:/"):
        return model
    if "/" in model or "@" in model:
        return f"models:/{model}"
    versions = client.search_model_versions(f"name = '{model}'")
    if not versions:
        names = [found.name for found in client.search_registered_models()]
        raise ValueError(
            f"no model is registered under that name.{nearest(model, names)} "
            f"Registered are: {listing(names) or 'none'}"
        )
    return f"models:/{model}/{max(int(version.version) for version in versions)}"


def _check_columns(dataset: Dataset, encoder: Encoder, keep: Sequence[str]) -> None:
    missing = [name for name in encoder.names if name not in dataset.names]
    if len(missing) == 1:
        raise unknown_column(missing[0], "model's feature", "of training", dataset.names)
    if missing:
        raise UserError(
            f"The table lacks {len(missing)} of the model's {len(encoder.names)} feature columns: "
            f"{listing(missing)}. Its columns are: {listing(dataset.names)}."
        )
    for name in keep:
        if name not in dataset.names:
            raise unknown_column(name, "kept", "--keep", dataset.names)


def _writer(out: str) -> Any:
    """By the name's ending; whatever can't be written is refused before any row is read."""
    parent = Path(out).parent if "://" not in out else None
    if parent is not None and not parent.is_dir():
        raise UserError(f"The folder {str(parent)!r} of OUT does not exist. Make it first.")
    if parent is not None and not os.access(parent, os.W_OK):
        raise UserError(f"The folder {str(parent)!r} of OUT can't be written to.")
    if out.endswith(".parquet"):
        return _write_parquet
    if out.endswith((".csv", ".csv.gz")):
        return _write_csv
    if Path(out).suffix:
        raise UserError(
            f"OUT is {out!r}: it must end in .parquet, .csv or .csv.gz, or be a folder's name."
        )
    return _write_folder


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


def _write_parquet(parts: Sequence[Part], out: str) -> None:
    _write_file(parts, out, _parquet_writer)


def _parquet_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    # predictions hardly repeat: a dictionary of them takes time and is given up in the end
    *kept, _ = _leaves(schema)
    return pq.ParquetWriter(file, schema, use_dictionary=kept or False)


def _leaves(schema: pa.Schema) -> list[str]:
    """What Parquet calls the columns, of which a list or a struct has some of its own."""
    nothing = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), nothing)
    leaves = pq.read_metadata(pa.BufferReader(nothing.getvalue())).schema
    return [leaves.column(place).path for place in range(len(leaves))]


def _write_csv(parts: Sequence[Part], out: str) -> None:
    _write_file(parts, out, pyarrow.csv.CSVWriter)


def _write_file(
    parts: Sequence[Part], out: str, writer_of: Callable[[Any, pa.Schema], Any]
) -> None:
    """Part by part into one file, which takes its name when it is whole."""
    beside = out if "://" in out else f"{out}.{uuid4().hex}.part"
    schema = _unified(_schemas(parts))
    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(fsspec.open(beside, "wb"))
            if out.endswith(".gz"):
                # without the time of writing, which would make other bytes every time
                file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb", mtime=0))
            writer = stack.enter_context(writer_of(file, schema))
            for part in parts:
                writer.write_table(_table(part, schema))
        if beside != out:
            os.replace(beside, out)
    finally:
        if beside != out:
            Path(beside).unlink(missing_ok=True)


def _write_folder(parts: Sequence[Part], out: str) -> None:
    filesystem, path = fsspec.core.url_to_fs(out)
    filesystem.makedirs(path, exist_ok=True)
    for old in filesystem.glob(f"{path}/part-*.parquet"):
        filesystem.rm(old)
    schemas = _schemas(parts)
    schema = _unified(schemas)
    differ = any(each != schema for each in schemas)
    for number, part in enumerate(parts):
        if differ:
            write_part(part.uri, _table(part, schema))
        filesystem.put_file(part.uri, f"{path}/part-{number:05d}.parquet")
