"""The tracking server: a client of it, its patience, and the run that is begun or gone on in."""

import os
import time
from collections.abc import Callable, Mapping

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.engine.errors import RunError
from tasks.engine.secrets import without_secrets
from tasks.sending import TAG_LENGTH, entity_name, is_refusal

_MLFLOW_SETTINGS = {
    # an outage is for the spool to meet: by itself MLflow repeats a request for four minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # and it writes to the terminal from whatever thread it is in
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_NO_SUCH_RUN = "RESOURCE_DOES_NOT_EXIST"
# Seconds between tries; the last holds for all that follow.
PAUSES = (0.25, 0.5, 1.0, 2.0, 5.0)


def tracking_client(uri: str) -> MlflowClient:
    """A client that tells within a minute that nobody answers.

    MLflow has no settings but the process's environment; those of `_MLFLOW_SETTINGS` are set
    there unless they are set already.
    """
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def is_gone(error: Exception) -> bool:
    """Whether the run that was asked for is not there, or was deleted."""
    no_such_run = getattr(error, "error_code", "") == _NO_SUCH_RUN
    return no_such_run or "must be in the 'active' state" in str(error)


def _status(error: Exception) -> int:
    return int(getattr(error, "get_http_status_code", int)())


def answered(request: Callable[[], str], where: str, timeout: float) -> str:
    """What the server says, asked again for `timeout` seconds. Raises RunError after these, and
    MlflowException where it refuses."""
    deadline = time.monotonic() + timeout
    pauses = iter(PAUSES)
    while True:
        try:
            return request()
        except (MlflowException, OSError) as error:
            if is_refusal(error) or is_gone(error) or _status(error) in (401, 403):
                raise
            pause = next(pauses, PAUSES[-1])
            if time.monotonic() + pause > deadline:
                raise RunError(
                    f"MLflow at {where} did not answer within {timeout:g} s (track.timeout): "
                    f"{without_secrets(str(error))}. Start it, or set MLFLOW_TRACKING_URI to one "
                    "that runs."
                ) from error
            time.sleep(pause)


def run_id_of(
    client: MlflowClient,
    existing: str | None,
    experiment: str,
    run_name: str,
    tags: Mapping[str, str],
    artifact_location: str | None,
) -> str:
    """The run `existing`, under way again, or a new one of the experiment, made where it is not."""
    if existing is not None:
        client.update_run(existing, status="RUNNING")
        return existing
    known = client.get_experiment_by_name(experiment)
    if known is None:
        try:
            experiment_id = client.create_experiment(experiment, artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            known = client.get_experiment_by_name(experiment)
    if known is not None:
        experiment_id = known.experiment_id
    taken = {entity_name(key): str(value)[:TAG_LENGTH] for key, value in tags.items()}
    return str(client.create_run(experiment_id, tags=taken, run_name=run_name).info.run_id)
