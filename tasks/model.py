"""A trained model as an MLflow model: code and data, no pickle, and nothing of this project.

Everything goes through an `MlflowClient` of the given URI: no global tracking URI, no active run.
"""

import decimal
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType

from tasks.engine import scoring
from tasks.engine.scoring import MANIFEST_FILE, Encoder, Scorer

MANIFEST_TAG = "boostline.manifest_sha256"
MODEL_ID_TAG = "boostline.model_id"
SCORER_ARTIFACT = "scorer"
CODE_FILE = "boostline_model.py"

_TAIL = """

# --- the MLflow side; what stands above is the code that trained and evaluated the model ---

import mlflow.models
import mlflow.pyfunc

MANIFEST_SHA256 = "{manifest_sha256}"


class BoostlineModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.scorer = Scorer.load(context.artifacts["{artifact}"], manifest_sha256=MANIFEST_SHA256)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return self.scorer.predict(model_input)


mlflow.models.set_model(BoostlineModel())
"""


@dataclass(frozen=True)
class ModelInfo:
    """Where a logged model is.

    Args:
        model_uri: `models:/<model id>`, valid at the tracking URI that it was logged to.
        model_id: of the logged model.
        version: of the registered model; None where it was not registered.
    """

    model_uri: str
    model_id: str
    version: str | None


@dataclass(frozen=True)
class StoredScorer:
    """A scorer's files on this machine and the digest that its tracking server holds for them."""

    folder: Path
    manifest_sha256: str

    def load(self, threads: int = 0, device: str = "cpu") -> Scorer:
        """Raises `TamperedModelError` where the files are not those that were logged."""
        return Scorer.load(
            self.folder, manifest_sha256=self.manifest_sha256, threads=threads, device=device
        )


def signature(encoder: Encoder, float_columns: Collection[str] = ()) -> ModelSignature:
    """The signature of a model that takes the encoder's raw columns and returns one double a row.

    MLflow's own types refuse what pandas makes of the same raw column on another day: `double`
    refuses a column of integers, `long` a missing value, `datetime` a zone, `string` a category,
    and a served `boolean` turns null into false. So a column is `any` here, and the encoder
    checks it, unless it is named in `float_columns`: those are floats in the source, and `double`.
    `any` costs about 0.4 µs a value in `PyFuncModel.predict`.
    """
    anything = AnyType()
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec("double" if column.name in float_columns else anything, column.name)
        for column in encoder.columns
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([ColSpec("double")]))


def requirements() -> list[str]:
    """What a model needs, pinned to what is installed here."""
    return [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("mlflow", _xgboost_distribution(), "numpy", "pandas", "pyarrow")
    ]


def request_rows(
    encoder: Encoder, rows: pd.DataFrame, float_columns: Collection[str] = ()
) -> pd.DataFrame:
    """Raw rows as a JSON request spells them: times in ISO 8601, durations in seconds."""
    spelled = {}
    for column, series in zip(encoder.columns, encoder.select(rows), strict=True):
        if column.name in float_columns:
            spelled[column.name] = pd.Series(series.to_numpy(np.float64, na_value=np.nan))
        elif column.kind == "category":
            codes, texts = scoring.category_levels(series)
            values = [None if code < 0 else texts[code] for code in codes]
            spelled[column.name] = pd.Series(values, dtype=object)
        else:
            values = [_spelled(value, column.kind) for value in series.astype(object)]
            spelled[column.name] = pd.Series(values, dtype=object)
    return pd.DataFrame(spelled)


def save_model(
    folder: Path,
    scorer_folder: Path,
    *,
    input_example: pd.DataFrame,
    float_columns: Collection[str] = (),
    metadata: Mapping[str, Any] | None = None,
    mlflow_model: Model | None = None,
) -> str:
    """Write the MLflow model into `folder`, which must not exist or be empty.

    Args:
        scorer_folder: what `Scorer.save` wrote.
        input_example: a few raw rows; they are scored twice, raw and as a served request.

    Returns:
        The SHA-256 of the scorer's manifest, which the model's code insists on.

    Raises:
        TamperedModelError: the scorer's files are not those that were saved.
        RuntimeError: the example as a served request gets other predictions than its raw rows.
    """
    scorer = Scorer.load(scorer_folder, threads=1)
    manifest_sha256 = hashlib.sha256((scorer_folder / MANIFEST_FILE).read_bytes()).hexdigest()
    example = request_rows(scorer.encoder, input_example, float_columns)
    received = pd.DataFrame(**json.loads(json.dumps(example.to_dict("split", index=False))))
    if scorer.predict(received).tobytes() != scorer.predict(input_example).tobytes():
        raise RuntimeError("the input example gets other predictions as a served request")
    with tempfile.TemporaryDirectory() as scratch, _quiet("mlflow"):
        # MLflow keeps the last part of an artifact's path, and the whole of it in its notes
        files = shutil.copytree(scorer_folder, Path(scratch) / SCORER_ARTIFACT)
        code = Path(scratch) / CODE_FILE
        tail = _TAIL.format(manifest_sha256=manifest_sha256, artifact=SCORER_ARTIFACT)
        code.write_text(Path(scoring.__file__).read_text() + tail)
        mlflow.pyfunc.save_model(
            path=folder,
            python_model=code,
            artifacts={SCORER_ARTIFACT: str(files)},
            signature=signature(scorer.encoder, float_columns),
            input_example=example,
            pip_requirements=requirements(),
            metadata=dict(metadata or {}),
            mlflow_model=mlflow_model,
        )
    for cache in list(folder.rglob("__pycache__")):
        shutil.rmtree(cache)
    return manifest_sha256


def log_model(
    client: MlflowClient,
    run_id: str,
    scorer_folder: Path,
    *,
    input_example: pd.DataFrame,
    float_columns: Collection[str] = (),
    registered_name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Collection[str] = (),
) -> ModelInfo:
    """Log a scorer as a logged model of the run, and register it when a name is given.

    A second call for the same run and scorer finds what the first one finished.

    Args:
        client: `MlflowClient(tracking_uri, registry_uri)`.
        scorer_folder: what `Scorer.save` wrote.
        input_example: a few raw rows.
        metadata: JSON values kept in the model's `MLmodel`.
        tags: of the logged model and of the registered version.
        metrics: names of the run's metrics that are shown with the model.

    Raises:
        MlflowException: the store can't be reached or refuses.
    """
    manifest_sha256 = hashlib.sha256((scorer_folder / MANIFEST_FILE).read_bytes()).hexdigest()
    all_tags = {**(tags or {}), MANIFEST_TAG: manifest_sha256}
    run = client.get_run(run_id)
    model = _logged_before(client, run.info.experiment_id, run_id, manifest_sha256)
    if model is None:
        model = client.create_logged_model(
            run.info.experiment_id,
            name="model",
            source_run_id=run_id,
            tags=all_tags,
            params=run.data.params,
            model_type="regressor",
        )
        try:
            _upload(client, model, run_id, scorer_folder, input_example, float_columns, metadata)
        except BaseException:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
            raise
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    shown = {name: run.data.metrics[name] for name in metrics if name in run.data.metrics}
    if shown:
        _show_metrics(client, run_id, model.model_id, list(shown))
    version = None
    if registered_name is not None:
        version = _register(client, registered_name, model, run_id, all_tags)
    return ModelInfo(f"models:/{model.model_id}", model.model_id, version)


def fetch_scorer(client: MlflowClient, model_uri: str, folder: Path) -> StoredScorer:
    """Copy the scorer of a logged or registered model into `folder`; none of its code is run.

    Args:
        model_uri: `models:/<model id>`, `models:/<name>/<version>` or `models:/<name>@<alias>`.

    Raises:
        MlflowException: there is no such model.
        ValueError: the URI is of another form, or the model was not made by this project.
    """
    model = client.get_logged_model(_model_id(client, model_uri))
    if MANIFEST_TAG not in model.tags:
        raise ValueError(f"{model_uri} was not recorded by Boostline: it lacks {MANIFEST_TAG}")
    place = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{model.artifact_location}/artifacts/{SCORER_ARTIFACT}",
        dst_path=str(folder),
        tracking_uri=client.tracking_uri,
    )
    return StoredScorer(Path(place), model.tags[MANIFEST_TAG])


def _upload(
    client: MlflowClient,
    model: LoggedModel,
    run_id: str,
    scorer_folder: Path,
    input_example: pd.DataFrame,
    float_columns: Collection[str],
    metadata: Mapping[str, Any] | None,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        about = Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            run_id=run_id,
            model_id=model.model_id,
        )
        save_model(
            folder,
            scorer_folder,
            input_example=input_example,
            float_columns=float_columns,
            metadata=metadata,
            mlflow_model=about,
        )
        client.log_model_artifacts(model.model_id, str(folder))


def _logged_before(
    client: MlflowClient, experiment_id: str, run_id: str, manifest_sha256: str
) -> LoggedModel | None:
    found = client.search_logged_models(
        [experiment_id], filter_string=f"source_run_id = '{run_id}'", max_results=50
    )
    for model in found:
        ready = model.status == LoggedModelStatus.READY
        if ready and model.tags.get(MANIFEST_TAG) == manifest_sha256:
            return model
    return None


def _show_metrics(client: MlflowClient, run_id: str, model_id: str, names: list[str]) -> None:
    shown = []
    for name in names:
        last = max(client.get_metric_history(run_id, name), key=lambda m: (m.step, m.timestamp))
        shown.append(Metric(name, last.value, last.timestamp, last.step, model_id=model_id))
    client.log_batch(run_id, metrics=shown)


def _register(
    client: MlflowClient, name: str, model: LoggedModel, run_id: str, tags: Mapping[str, str]
) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'", max_results=100):
        if version.tags.get(MODEL_ID_TAG) == model.model_id:
            return str(version.version)
    with _default_tracking_uri(client.tracking_uri) as is_default:
        version = client.create_model_version(
            name,
            f"models:/{model.model_id}" if is_default else model.artifact_location,
            run_id=run_id,
            tags={**tags, MODEL_ID_TAG: model.model_id},
            model_id=model.model_id,
            await_creation_for=0,
        )
    return str(version.version)


@contextmanager
def _default_tracking_uri(uri: str) -> Iterator[bool]:
    # MLflow's SQL registry looks for the model of a `models:/` source in the process's default
    # store, whatever store the client was made for; yields whether that is now the same
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield mlflow.get_tracking_uri() == uri
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _model_id(client: MlflowClient, model_uri: str) -> str:
    scheme, _, path = model_uri.partition(":/")
    path = path.strip("/")
    if scheme != "models" or not path:
        raise ValueError(
            f"{model_uri!r} names no model; write models:/<model id>, models:/<name>/<version> "
            "or models:/<name>@<alias>"
        )
    if "@" in path:
        name, _, alias = path.rpartition("@")
        version = client.get_model_version_by_alias(name, alias)
    elif "/" in path:
        name, _, number = path.rpartition("/")
        version = client.get_model_version(name, number)
    else:
        return path
    if MODEL_ID_TAG not in version.tags:
        raise ValueError(f"{model_uri} was not recorded by Boostline: it lacks {MODEL_ID_TAG}")
    return str(version.tags[MODEL_ID_TAG])


def _xgboost_distribution() -> str:
    for name in ("xgboost", "xgboost-cu13", "xgboost-cu12", "xgboost-cpu"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    raise RuntimeError("no distribution of XGBoost is installed")


def _spelled(value: Any, kind: str) -> Any:
    if pd.isna(value):
        return None
    if isinstance(value, str):
        return value
    if kind == "time":
        return value.isoformat()
    if kind == "duration":
        return pd.Timedelta(value).total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value) if kind == "decimal" else float(value)
    return value.item() if hasattr(value, "item") else value


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
