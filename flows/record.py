"""Recordings that could not be finished, finished: from what the runs kept on disk."""

from dataclasses import dataclass
from shutil import rmtree

from mlflow.exceptions import MlflowException

from flows.places import check_let_in, tracking_of
from tasks.engine.config import TrackConfig
from tasks.engine.errors import RunError, UserError
from tasks.engine.home import Home
from tasks.engine.secrets import without_secrets
from tasks.ledger import FINDINGS, Entry, RunFolder, entries, held
from tasks.record import Findings, begin_again, finish_recording
from tasks.spool import RUN
from tasks.tracking import open_run
from tasks.tracking_store import is_gone


@dataclass(frozen=True)
class Finished:
    """A run whose recording is whole now; `model_uri` is None where it had no model yet."""

    name: str
    mlflow_run_id: str
    model_uri: str | None


def waiting(home: Home) -> list[Entry]:
    """Runs that have ended, or died, before MLflow had taken all of them."""
    return [entry for entry in entries(home) if not entry.recorded]


def finish(home: Home, name: str | None = None) -> tuple[list[Finished], list[RunError]]:
    """Finishes the recording of the run `name`, or of all that wait for it; errors of the others.

    Raises:
        UserError: no such run waits.
    """
    found = [entry for entry in waiting(home) if name in (None, entry.name, entry.mlflow_run_id)]
    if name is not None and not found:
        names = ", ".join(entry.name for entry in waiting(home)) or "none"
        raise UserError(f"No recording of a run {name!r} waits to be finished. Waiting: {names}.")
    done: list[Finished] = []
    errors: list[RunError] = []
    for entry in found:
        folder = None
        try:
            folder = held(home, entry)
            if folder is not None and not folder.entry.recorded:
                done.append(_finish(folder, home))
        except RunError as error:
            errors.append(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are not to wait
            told = without_secrets(str(error)) or type(error).__name__
            errors.append(RunError(f"The run {entry.name} could not be recorded: {told}"))
        finally:
            if folder is not None:
                folder.release()
    return done, errors


def _nothing_to_record(folder: RunFolder) -> Finished:
    """Of a run that ended before it had a model, and that MLflow never had, or has no more."""
    rmtree(folder.spool, ignore_errors=True)
    folder.update(recorded=True)
    return Finished(folder.entry.name, folder.entry.mlflow_run_id or "none", None)


def _finish(folder: RunFolder, home: Home) -> Finished:
    findings = folder.kept(FINDINGS, Findings)
    if findings is None and folder.is_trained:
        raise RunError(
            f"What the run {folder.entry.name} has found, {folder.path / FINDINGS}, is damaged or "
            "was kept by another version of Boostline. Record it with that one."
        )
    if findings is None and not (folder.spool / RUN).exists():
        return _nothing_to_record(folder)
    track = findings.config.track if findings else TrackConfig()
    uri = tracking_of(track.experiment, home)
    if folder.entry.tracking_uri not in ("", without_secrets(uri)):
        raise RunError(
            f"The run {folder.entry.name} records at {folder.entry.tracking_uri}, but "
            f"MLFLOW_TRACKING_URI is {without_secrets(uri)}. Set it to the former."
        )
    tags = {"prefect.flow_run_id": folder.entry.flow_run_id}
    try:
        recorder = open_run(
            uri,
            track.experiment,
            track.run_name or folder.entry.name,
            tags,
            folder.spool,
            folder.entry.mlflow_run_id,
            timeout=track.timeout,
            renewed=findings is not None,
        )
    except MlflowException as error:
        check_let_in(error, uri)
        if findings is not None or not is_gone(error):
            raise
        return _nothing_to_record(folder)
    model_uri = None
    try:
        if findings is not None:
            if recorder.run_id != folder.entry.mlflow_run_id:
                begin_again(recorder, findings, tags)
                folder.update(mlflow_run_id=recorder.run_id)
            model_uri = finish_recording(findings, recorder, folder).model_uri
    except BaseException:
        recorder.close("FAILED")
        raise
    # without findings it ended before there was a model: it keeps the state it had
    ended = recorder.close(
        "FINISHED" if findings else "KILLED" if folder.entry.state == "killed" else "FAILED"
    )
    if not ended.complete:
        raise RunError(
            f"MLflow has still not taken {ended.pending + ended.refused:,} entries of the run "
            f"{folder.entry.name}: {ended.cause}. They are kept in {folder.path}."
        )
    folder.update(
        state="finished" if findings else folder.entry.state,
        recorded=True,
        mlflow_run_id=recorder.run_id,
    )
    return Finished(folder.entry.name, recorder.run_id, model_uri)
