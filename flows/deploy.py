"""A deployment of the train flow from one's own configuration, on a standing Prefect server."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.schedule import check_schedule, clock_changes, next_times, told
from flows.standing import standing
from infra.services import Services
from tasks.engine.config import Config
from tasks.engine.dates import has_dates
from tasks.engine.errors import RunError, UserError, listing
from tasks.engine.home import Home
from tasks.engine.secrets import PREFIX, referred
from tasks.engine.sources import is_file_path

ENTRYPOINT = "flows.pipeline.train_flow"
SHOWN_TIMES = 3
POOL = "boostline"
# GPUs have one limit over all deployments: this pool's.
GPU_POOL = "boostline-gpu"


@dataclass(frozen=True)
class Deployed:
    """What was deployed: `times` are the next ones it runs at, in the schedule's zone.

    `server` is Prefect's API where another shell does not know of it, as it is that of `boostline
    up`; `is_served` says that its worker runs what is deployed.
    """

    name: str
    pool: str
    made_pool: bool
    timezone: str
    times: tuple[datetime, ...]
    notes: tuple[str, ...]
    notified: tuple[str, ...] = ()
    server: str = ""
    is_served: bool = False


def deploy(
    config: Config,
    name: str,
    pool: str | None,
    cron: str,
    timezone: str,
    home: Home,
    notify: Sequence[str] = (),
) -> Deployed:
    """Makes the deployment `boostline-train/<name>`, or brings it up to date.

    Dates in the source are those of the schedule's time zone, where the configuration names no
    other. `notify` are the blocks that are told of runs that went wrong. A pool that is not there
    is made; the one for GPUs runs one training at a time.

    Raises:
        UserError: the schedule, the name, the source or a block can't be deployed.
        RunError: the server does not answer, or refuses the deployment.
    """
    _check_source(config)
    if not re.fullmatch(r"[^/%&<>]+", name):
        raise UserError(f"The name {name!r} (--name) may hold none of the characters / % & < >.")
    check_schedule(cron, timezone)
    if has_dates(config) and "timezone" not in config.data.model_fields_set:
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"timezone": timezone})}
        )
    parameters = {
        "config": absolute(config, Path.cwd()).model_dump(mode="json", exclude_unset=True),
        "home": home.root,
    }
    check_server(home)
    from flows.automations import check_blocks, tell_of_wrong_runs

    check_blocks(notify)
    pool = pool or (GPU_POOL if config.cluster.kind == "cuda" else POOL)
    made = _make_pool(pool)
    _apply(name, pool, cron, timezone, parameters)
    if notify:
        tell_of_wrong_runs(notify, name)
    now = datetime.now(UTC)
    return Deployed(
        name=f"boostline-train/{name}",
        pool=pool,
        made_pool=made,
        timezone=timezone,
        times=tuple(next_times(cron, timezone, SHOWN_TIMES, now)),
        notes=(
            *told(clock_changes(cron, timezone, now), timezone),
            *_also_training(config.track.model, name),
        ),
        notified=tuple(notify),
        server=services.prefect if (services := _of_up(home)) else "",
        is_served=services is not None and services.pool == pool,
    )


def _of_up(home: Home) -> Services | None:
    """The services of `boostline up`, where it was them that were talked to."""
    services = standing(home)
    same = services is not None and os.environ.get("PREFECT_API_URL") == services.prefect
    return services if same else None


def watch(notify: Sequence[str], deployment: str | None, home: Home) -> list[str]:
    """Has the server watch the trainings that are deployed there; what it does now, as sentences.

    Raises:
        UserError: there is no such block or deployment.
        RunError: the server does not answer.
    """
    check_server(home)
    from flows.automations import SILENCE_SECONDS, tell_of_wrong_runs, watch_silent_runs

    if deployment and not notify:
        raise UserError("--deployment says whose runs --notify tells of: name a block with it.")
    watch_silent_runs()
    shown = [f"A training without a heartbeat for {SILENCE_SECONDS} s is told as crashed."]
    if notify:
        tell_of_wrong_runs(notify, deployment)
        whose = f"A run of {deployment}" if deployment else "A training"
        shown.append(_telling(whose, notify))
    return shown


def _telling(whose: str, blocks: Sequence[str]) -> str:
    return f"{whose} that failed, crashed or is late is told to {listing(blocks)}."


def absolute(config: Config, folder: Path) -> Config:
    """The configuration with its paths from the root: a worker stands in a folder of its own."""

    def whole(path: str) -> str:
        return os.path.normpath(folder / Path(path).expanduser())

    data, cluster = config.data, config.cluster
    if is_file_path(data.source):
        data = data.model_copy(update={"source": whole(data.source)})
    if database := re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/:?].*)", data.source):
        data = data.model_copy(update={"source": f"{database[1]}{whole(database[2])}"})
    files = {
        key: whole(path)
        for key in ("tls_ca", "tls_cert", "tls_key")
        if (path := getattr(cluster, key))
    }
    cluster = cluster.model_copy(update=files)
    return config.model_copy(update={"data": data, "cluster": cluster})


def _check_source(config: Config) -> None:
    ours = [name for name in referred(config.data.source) if name.startswith(PREFIX)]
    if ours:
        raise UserError(
            f"data.source={config.data.shown!r} holds a secret, and Prefect keeps parameters in "
            f"clear. Write {config.data.source!r} and set {', '.join(ours)} in the environment of "
            "the worker."
        )


def check_server(home: Home) -> None:
    """Raises UserError where no Prefect server is named, RunError where it does not answer."""
    from infra.prefect_server import PrefectServerError, start_embedded_prefect

    if not os.environ.get("PREFECT_API_URL"):
        raise UserError(
            "PREFECT_API_URL is not set: a schedule needs a Prefect server that stays. Start one "
            "with `boostline up` in this home, or with `prefect server start`, then: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        with start_embedded_prefect(home.local) as server:
            server.wait()
    except PrefectServerError as error:
        raise RunError(str(error)) from error


def _make_pool(name: str) -> bool:
    """Makes a process pool where there is none of that name; whether it did."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            limit = 1 if name == GPU_POOL else None
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", concurrency_limit=limit)
            )
            return True
    return False


def _also_training(model: str | None, name: str) -> list[str]:
    """A note where other deployments train the same model: each waits for its own runs alone."""
    if not model:
        return []
    from prefect.client.orchestration import get_client

    from flows.automations import deployments_of

    with get_client(sync_client=True) as client:
        others = [
            other.name
            for other in deployments_of(client)
            if other.name != name
            and (other.parameters.get("config") or {}).get("track", {}).get("model") == model
        ]
    if not others:
        return []
    return [
        f"The model {model!r} (track.model) is trained by {listing(sorted(others))}, too, and "
        "their runs don't wait for each other. Put them at other hours, or name one of the models "
        "otherwise."
    ]


def _apply(name: str, pool: str, cron: str, timezone: str, parameters: dict[str, Any]) -> None:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from flows.automations import HEARTBEAT_SECONDS, WATCHED, watch_silent_runs
    from flows.pipeline import train_flow

    deployment = RunnerDeployment.from_flow(
        train_flow,
        name=name,
        schedules=[CronSchedule(cron=cron, timezone=timezone)],
        parameters=parameters,
        # what comes while another is under way waits; of several that wait the last one runs
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
        ),
        tags=["boostline", WATCHED],
        work_pool_name=pool,
        job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    watch_silent_runs()
    try:
        deployment.apply()
    except DeploymentApplyError as error:
        raise RunError(f"Prefect refuses the deployment {name!r}: {error}") from error


def lines(deployed: Deployed) -> Sequence[str]:
    """What to show of a deployment, a line each."""
    zone = deployed.timezone
    shown = [f"Deployed {deployed.name}; runs go to the work pool {deployed.pool!r}."]
    if deployed.made_pool:
        shown.append(f"Made the work pool {deployed.pool!r} (process): there was none.")
    shown += ["", f"{'It runs next at':<18}{zone:<26}UTC"]
    for number, time in enumerate(deployed.times, 1):
        local = f"{time:%a %Y-%m-%d %H:%M}"
        shown.append(f"{number:>15}   {local:<26}{time.astimezone(UTC):%a %Y-%m-%d %H:%M}")
    shown += [f"! {note}" for note in deployed.notes]
    if deployed.notified:
        shown += ["", _telling("A run", deployed.notified)]
    at = f"PREFECT_API_URL={deployed.server} " if deployed.server else ""
    worker = f"{at}prefect worker start --pool {deployed.pool}"
    shown += [
        "",
        f"A worker runs it:  {'that of boostline up' if deployed.is_served else worker}",
        f"Run it now:        {at}prefect deployment run '{deployed.name}'",
    ]
    return shown
