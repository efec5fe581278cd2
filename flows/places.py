"""Where a run takes place: the cluster of a configuration, with the project's own errors."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.errors import RunError, UserError
from tasks.engine.frames import Device
from tasks.engine.home import Home
from tasks.engine.profile import Profile
from tasks.engine.secrets import keep_logs_clean, referred, without_secrets
from tasks.engine.sources import is_data

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from infra.cluster_plan import Asked

# what workers need in any case: loaded while the first task is still on its way
AHEAD = ("xgboost", "pandas", "pyarrow.parquet", "tasks.engine.profile")
LEAN = "tasks.engine.lean_xgboost"


def chosen(config: ClusterConfig) -> tuple[ClusterConfig, tuple[str, ...]]:
    """The configuration with `auto` decided, and a note where there is no GPU."""
    if config.kind != "auto":
        return config, ()
    from infra.cuda_cluster import no_gpu

    reason = no_gpu()
    if reason is None:
        return config.model_copy(update={"kind": "cuda"}), ()
    note = f"Trained on the CPU (cluster.kind=auto): {reason}."
    return config.model_copy(update={"kind": "local", "gpu_devices": ()}), (note,)


def device_of(client: Any, config: ClusterConfig) -> Device:
    """Where the workers of a cluster that `cluster_of` opened read and train.

    Raises:
        UserError: some of them have a GPU and some have none.
    """
    from infra.cluster_plan import ClusterSettingError
    from infra.cuda_cluster import device_of

    if config.kind == "local":
        return "cpu"
    try:
        return "cuda" if device_of(client) == "cuda" else "cpu"
    except ClusterSettingError as error:
        raise UserError(str(error)) from error


@contextmanager
def telemetry(
    client: Any, device: Device, record: Callable[[dict[str, float], int], None]
) -> Iterator[None]:
    """While the block runs, `record` gets what the workers' GPUs do, and the seconds since."""
    if device == "cpu":
        yield
        return
    from infra.gpu_telemetry import watching_gpus

    def on_sample(second: int, values: dict[str, float]) -> None:
        # MLflow shows what stands under this name as metrics of the system
        record({f"system/{name}": value for name, value in values.items()}, second)

    with watching_gpus(client, on_sample):
        yield


def begin_cluster(config: ClusterConfig, source: str) -> None:
    """Lets the workers of a local cluster for `source` import while other things start."""
    config, _ = chosen(config)
    if config.kind == "local":
        from infra.forking import begin_local

        begin_local(config.workers, config.threads, _imports(config, source))


def _imports(config: ClusterConfig, source: str) -> tuple[str, ...]:
    return (LEAN, *AHEAD) if config.kind == "local" and is_data(source) else AHEAD


@contextmanager
def cluster_of(config: ClusterConfig, home: Home, source: str = "") -> Iterator[Any]:
    """The Dask client of the configured cluster; the user's folder is last on its workers' path.

    It is for a run on `source`, whose secrets its workers get; those of this host's inherit them.

    Raises:
        UserError: TLS can't be set up, the scheduler does not trust this host, or the kind's extra
            is not installed.
        RunError: the cluster did not come up.
    """
    from infra.cluster import (
        ClusterError,
        on_every_worker,
        open_cluster,
        send_user_folder,
        send_variables,
    )
    from infra.cluster_plan import ClusterSettingError, GpuPlan, TlsFiles

    config, _ = chosen(config)
    tls = None
    if config.tls_ca and config.tls_cert and config.tls_key:
        tls = TlsFiles(config.tls_ca, config.tls_cert, config.tls_key)

    try:
        with open_cluster(
            kind=config.kind,
            workers=config.workers,
            threads=config.threads,
            memory_limit=config.memory_limit or "auto",
            address=config.address,
            local_directory=home.local / "dask",
            dashboard=config.dashboard,
            start_timeout_s=config.start_timeout,
            worker_ttl_s=config.worker_ttl,
            imports=_imports(config, source),
            tls=tls,
            gpu=GpuPlan(
                devices=config.gpu_devices,
                memory_limit=config.gpu_memory_limit,
                allocator=config.gpu_allocator,
                pool_size=config.gpu_pool_size,
                spill=config.gpu_spill,
                protocol=config.protocol,
            ),
            max_workers=config.max_workers,
            asked=_asked(config),
        ) as client:
            send_user_folder(client, os.getcwd())
            on_every_worker(client, keep_logs_clean)
            if config.kind in ("address", "kubernetes"):
                send_variables(client, referred(source))
            yield client
    except ClusterSettingError as error:
        raise UserError(str(error)) from error
    except ClusterError as error:
        raise RunError(str(error)) from error


def _asked(config: ClusterConfig) -> "Asked":
    """The configuration's settings of clusters that are asked for, where they are set."""
    from infra.cluster_plan import Asked

    named: dict[str, Any] = {each.name: getattr(config, each.name) for each in fields(Asked)}
    return replace(Asked(), **{name: value for name, value in named.items() if value})


def store_of(home: Home) -> str:
    """MLflow's tracking URI, with the embedded store ready where it is that.

    Raises:
        RunError: the embedded store could not be made.
    """
    from infra.mlflow_store import MlflowStoreError, prepare_mlflow

    try:
        return prepare_mlflow(home.local)
    except MlflowStoreError as error:
        raise RunError(str(error)) from error


def tracking_of(experiment: str, home: Home) -> str:
    """MLflow's tracking URI, with its store and the experiment ready.

    Whether a server answers is left to who opens the run, and waits for it.

    Raises:
        UserError: MLflow does not let this user in, or refuses the experiment.
        RunError: the embedded store could not be made, or fails.
    """
    uri = store_of(home)
    from mlflow.exceptions import MlflowException

    from infra.mlflow_store import open_experiment
    from tasks.sending import is_refusal

    place = without_secrets(uri)
    try:
        client = client_of(uri)
        found = client.get_experiment(open_experiment(client, experiment, home.local))
    except MlflowException as error:
        check_let_in(error, uri)
        if is_refusal(error):
            raise UserError(
                f"MLflow at {place} refuses the experiment {experiment!r} (track.experiment): "
                f"{error.message}"
            ) from None
        if not uri.startswith("http"):
            cause = str(error.message).splitlines()[0]
            raise RunError(f"MLflow's store {place} fails: {cause}.") from error
        return uri
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"The experiment {experiment!r} (track.experiment) was deleted in MLflow at {place}. "
            f"Name another, or restore it: mlflow experiments restore -x {found.experiment_id}, "
            f"with MLFLOW_TRACKING_URI={place}."
        )
    return uri


def client_of(uri: str) -> "MlflowClient":
    """A client of the store that the URI names.

    Raises:
        UserError: MLflow has no such kind of store.
    """
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    from tasks.tracking_store import tracking_client

    try:
        return tracking_client(uri)
    except UnsupportedModelRegistryStoreURIException:
        raise UserError(
            f"MLFLOW_TRACKING_URI={without_secrets(uri)!r} is no store that MLflow knows. Write it "
            "as in http://127.0.0.1:5000 or sqlite:////home/me/mlflow.db, or unset it to use the "
            "embedded store."
        ) from None


def check_let_in(error: Exception, uri: str) -> None:
    """Raises UserError where MLflow does not know the user, or does not allow it."""
    status = getattr(error, "get_http_status_code", int)()
    if status in (401, 403):
        known = (
            "refuses the user" if os.environ.get("MLFLOW_TRACKING_USERNAME") else "asks for a user"
        )
        raise UserError(
            f"MLflow at {without_secrets(uri)} (MLFLOW_TRACKING_URI) {known} ({status}). Set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to "
            "those of a user who may."
        ) from None


def aside(profile: Profile, home: Home) -> list[str]:
    """Where the rows are that were set aside, as a note; none where there are none."""
    if not profile.rejected:
        return []
    return [f"The rows that were set aside are under {home.path('rejected')}, with the reason."]
