"""The profile pass: what the table holds, and the scaler fitted on its training rows."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import task_run

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.frames import Device
from tasks.engine.home import Home
from tasks.engine.profile import Profile, take_profile
from tasks.engine.progress import Progress, reporter
from tasks.engine.rows import Plan
from tasks.engine.secrets import with_clean_errors
from tasks.figures import amount, figure, rows_of
from tasks.retrying import RETRIES, RETRY_DELAYS, may_help


def _name() -> str:
    parameters = task_run.parameters
    rows, features = parameters["dataset"].rows, parameters["plan"].width
    return f"normalize · {rows_of(rows)} × {amount(features, 'features')}"


@task(
    name="normalize",
    task_run_name=_name,
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_help,
)
@with_clean_errors
def fit_scaler(
    config: Config,
    dataset: Dataset,
    plan: Plan,
    home: Home,
    client: Any,
    device: Device = "cpu",
) -> tuple[Dataset, Profile]:
    """The dataset with content digests, and its profile. Raises UserError as the profile does."""
    tell, rows = reporter(), dataset.rows
    tell(Progress("normalize", 0, rows))
    found = take_profile(
        client,
        dataset,
        plan,
        config,
        home,
        lambda done, total: tell(Progress("normalize", done, total)),
        device,
    )
    tell(Progress("normalize", rows, rows))
    _log(found[1], plan)
    return found


def _log(profile: Profile, plan: Plan) -> None:
    """Says how many rows each side has and what the target looks like; notes are warnings."""
    log, train = get_run_logger(), profile.target["train"]
    sides = ", ".join(f"{rows:,} {side}" for side, rows in profile.rows.items())
    log.info("%s to use: %s", amount(profile.usable, "rows"), sides)
    spread = f"mean {figure(train.mean)}, deviation {figure(train.deviation)}"
    values = f"{figure(train.low)} to {figure(train.high)}, {spread}"
    log.info("Target %s in the train rows: %s", plan.target.name, values)
    for note in profile.notes:
        log.warning(note)
