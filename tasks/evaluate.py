"""The model judged on every row: scored once into parts, then folded over."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.evaluate import evaluate
from tasks.engine.home import Home, digest_of
from tasks.engine.predictions import ScorerRef, predict_usable
from tasks.engine.profile import Profile
from tasks.engine.progress import Progress, reporter
from tasks.engine.report import Report
from tasks.engine.rows import Plan
from tasks.engine.secrets import with_clean_errors
from tasks.retrying import RETRIES, RETRY_DELAYS, may_help
from tasks.train import Trained


@task(
    name="evaluate",
    task_run_name="evaluate · {profile.usable} rows",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_help,
)
@with_clean_errors
def evaluate_model(
    config: Config,
    dataset: Dataset,
    plan: Plan,
    profile: Profile,
    trained: Trained,
    home: Home,
    client: Any,
) -> Report:
    """Exact metrics over all usable rows of each side."""
    tell, rows = reporter(), profile.usable
    scorer = ScorerRef(trained.scorer_uri, trained.manifest_sha256, device=trained.device)
    key = digest_of(scorer.manifest_sha256, dataset.digest, plan)
    # two passes of about the same length: one scores, one sums
    tell(Progress("evaluate", 0, rows))
    predictions = predict_usable(
        client,
        dataset.row_groups(),
        plan,
        scorer,
        home,
        key,
        lambda done, total: tell(Progress("evaluate", rows * done // total // 2, rows)),
    )
    return evaluate(
        client,
        predictions.row_groups(),
        by=plan.by,
        train_mean=profile.target["train"].mean,
        features=len(plan.features),
        bootstrap=config.evaluate.bootstrap,
        confidence=config.evaluate.confidence,
        seed=config.boost.seed,
        on_progress=lambda done, total: tell(Progress("evaluate", (rows + done) // 2, rows)),
    )
