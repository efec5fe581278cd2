"""Events of a recording as requests to MLflow; each may be sent twice without harm."""

import hashlib
import json
import posixpath
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tasks.spool import Event, Spool

# MLflow's limits; tests hold that they are still what the installed version says
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
DIGEST_LENGTH = 36
SCHEMA_LENGTH = 1_048_575
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}

_REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE"}


def entity_name(name: str) -> str:
    """A name that MLflow takes for a metric, parameter or tag; a changed one ends in a hash."""
    taken = re.sub(r"[^/\w.\- :]", "_", name)[:240]
    if not taken or posixpath.normpath(taken) != taken or taken.startswith(("/", "..")):
        taken = taken.replace("/", "_").replace("..", "__") or "_"
        taken = taken if taken != "." else "_"
    return taken if taken == name else f"{taken}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_refusal(error: Exception) -> bool:
    """Whether sending again can't help: the store has read the request and refuses it."""
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def next_batch(pending: deque[Event]) -> list[Event]:
    """The events at the head of the queue that one request takes."""
    batch: list[Event] = []
    counts = dict.fromkeys(_BATCH, 0)
    for event in pending:
        kind = event["kind"]
        if kind not in counts:
            return batch or [event]
        counts[kind] += len(event["items"])
        if batch and (counts[kind] > _BATCH[kind] or sum(counts.values()) > 1000):
            return batch
        batch.append(event)
    return batch


def send(client: MlflowClient, run_id: str, batch: list[Event], spool: Spool) -> None:
    """Send what `next_batch` returned; files are read from `spool`.

    Raises:
        MlflowException: the store can't be reached or refuses.
    """
    match batch[0]["kind"]:
        case "artifact":
            place, folder = spool.folder / batch[0]["file"], batch[0]["folder"]
            if place.is_dir():
                client.log_artifacts(run_id, str(place), posixpath.join(folder, place.name))
            else:
                client.log_artifact(run_id, str(place), folder or None)
        case "dataset":
            client.log_inputs(run_id, [_dataset_input(batch[0])])
        case "status":
            client.set_terminated(run_id, batch[0]["status"], batch[0]["end_time"])
        case _:
            items: dict[str, list[Any]] = {kind: [] for kind in _BATCH}
            for event in batch:
                items[event["kind"]] += event["items"]
            client.log_batch(
                run_id,
                metrics=[Metric(*item) for item in items["metrics"]],
                params=[Param(*item) for item in dict(items["params"]).items()],
                tags=[RunTag(*item) for item in items["tags"]],
                synchronous=True,
            )


def _dataset_input(event: Event) -> DatasetInput:
    schema = event["schema"] if len(event["schema"]) <= SCHEMA_LENGTH else None
    scheme = event["source"].partition("://")[0] if "://" in event["source"] else "local"
    source_type = {"file": "local", "https": "http"}.get(scheme, scheme)
    dataset = Dataset(
        name=event["name"],
        digest=event["digest"][:DIGEST_LENGTH],
        source_type=source_type,
        source=json.dumps({"url" if source_type == "http" else "uri": event["source"]}),
        schema=schema,
        profile=event["profile"],
    )
    tags = [InputTag("mlflow.data.context", event["context"]), InputTag("digest", event["digest"])]
    return DatasetInput(dataset, tags)
