"""The profile pass: what the table holds, and the scaler fitted on its training rows."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.frames import Device
from tasks.engine.home import Home
from tasks.engine.profile import Profile, take_profile
from tasks.engine.progress import Progress, reporter
from tasks.engine.rows import Plan
from tasks.engine.secrets import with_clean_errors
from tasks.retrying import RETRIES, RETRY_DELAYS, may_help


@task(
    name="normalize",
    task_run_name="normalize · {dataset.rows} rows × {plan.width} features",
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
    return found
