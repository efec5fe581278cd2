"""The table becomes a dataset: Parquet in place, everything else converted once."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.planning import plan_of
from tasks.engine.progress import Progress, reporter
from tasks.engine.rows import Plan
from tasks.engine.secrets import with_clean_errors
from tasks.figures import amount
from tasks.retrying import RETRIES, RETRY_DELAYS, may_help


@task(
    name="ingest",
    task_run_name="ingest · {config.data.shown}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_help,
)
@with_clean_errors
def ingest_table(config: Config, home: Home, client: Any) -> tuple[Dataset, Plan]:
    """The dataset, and which of its columns is what. Raises UserError as `engine.ingest` does."""
    tell = reporter()
    tell(Progress("ingest", 0, 0, ""))
    dataset = ingest(config.data, home, client)
    plan = plan_of(config, dataset, client)
    log = get_run_logger()
    groups = amount(len(dataset.row_groups()), "row groups")
    size = f"{amount(dataset.rows, 'rows')} × {amount(len(dataset.columns), 'columns')} in {groups}"
    log.info("Read %s: %s", config.data.shown, size)
    for note in dataset.notes:
        log.warning(note)
    tell(Progress("ingest", dataset.rows, dataset.rows))
    return dataset, plan
