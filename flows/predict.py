"""Scoring a table with a recorded model: streamed over the workers, in the table's order."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from dask.system import CPU_COUNT

from flows.outputs import Output
from flows.places import check_let_in, chosen, client_of, cluster_of, device_of, store_of
from infra.mlflow_store import quiet_mlflow
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.config import DataConfig
from tasks.engine.dataset import Dataset, rows_in
from tasks.engine.errors import UserError, listing, nearest, unknown_column
from tasks.engine.fold import BATCH_ROWS, batches
from tasks.engine.formats import FORMATS
from tasks.engine.frames import open_input
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.need import BATCH_BYTES
from tasks.engine.predictions import (
    Predictions,
    ScorerRef,
    predict_table,
    store_scorer,
    texts_of,
)
from tasks.engine.progress import Progress, reporter
from tasks.engine.scoring import Encoder, TamperedModelError
from tasks.engine.sources import resolve

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
    output = Output(out)
    home.prepare()
    with ExitStack() as stack:
        here = stack.enter_context(_scratch(Home(str(home.local))))
        scorer = _fetched(model, home, here)
        encoder = scorer.load().encoder
        if output.may_be_there:  # which files are the table's takes a second listing
            output.check_apart(_files(data))
        dataset = ingest(_as_trained(data, encoder), home, texts=texts_of(encoder))
        keep = dataset.names if list(keep) == ["all"] else list(keep)
        _check_columns(dataset, encoder, keep)
        output.check_kept(_schema_of(dataset, keep))
        place, _ = chosen(cluster)
        client: Any
        columns = len(encoder.names) + len(keep)
        if _scored_here(dataset, place, columns):
            client, folder = stack.enter_context(_threads(dataset, columns)), here
        else:
            client = stack.enter_context(cluster_of(place, home, data.source))
            folder = stack.enter_context(_scratch(home))
            if "://" in home.root:  # this host's folders are not the workers'
                scorer = store_scorer(scorer.load(), Home(folder))
            scorer = replace(scorer, device=device_of(client, place))
        found = predict_table(
            client,
            dataset.row_groups(),
            encoder.names,
            keep,
            scorer,
            folder,
            lambda done, total: tell(Progress("predict", done, total)),
        )
        output.write(found.parts)
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


@contextmanager
def _scratch(home: Home) -> Iterator[str]:
    """A folder under `home` for as long as it is needed."""
    folder = home.path("scored", uuid4().hex)
    filesystem, path = fsspec.core.url_to_fs(folder)
    filesystem.makedirs(path)
    try:
        yield folder
    finally:
        with suppress(OSError):
            filesystem.rm(path, recursive=True)


def _files(data: DataConfig) -> list[str]:
    source = resolve(data)
    return [file.uri for file in source.files] if FORMATS[source.format].is_stored else []


def _as_trained(data: DataConfig, encoder: Encoder) -> DataConfig:
    """Only the model's columns have to make sense, and texts of its categories may be numbers."""
    return data.model_copy(
        update={"features": tuple(encoder.names), "categories": texts_of(encoder)}
    )


def _schema_of(dataset: Dataset, keep: Sequence[str]) -> pa.Schema:
    with open_input(dataset.files[0].uri) as file:
        schema = pq.read_schema(file)
    return pa.schema([schema.field(name) for name in keep])


def _fetched(model: str, home: Home, scratch: str) -> ScorerRef:
    """The model's scorer in the folder `scratch`."""
    quiet_mlflow()
    uri = store_of(home)
    from mlflow.exceptions import MlflowException

    from tasks.engine.secrets import without_secrets
    from tasks.model import fetch_scorer

    client = client_of(uri)
    try:
        stored = fetch_scorer(client, _model_uri(model, client), Path(scratch))
        stored.load()
    except TamperedModelError as error:
        raise UserError(f"The model {model!r} from {without_secrets(uri)}: {error}") from None
    except (MlflowException, ValueError) as error:
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
