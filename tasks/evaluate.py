"""The model judged on every row: scored once into parts, then folded over."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import task_run

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
from tasks.figures import figure, rows_of, score
from tasks.retrying import RETRIES, RETRY_DELAYS, may_help
from tasks.train import Trained


def _name() -> str:
    parameters = task_run.parameters
    return f"evaluate · {rows_of(parameters['profile'].usable)}"


@task(
    name="evaluate",
    task_run_name=_name,
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
    report = evaluate(
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
    for side, found in report.metrics.items():
        if not found.rows:
            continue
        errors = f"RMSE {figure(found.rmse)}, MAE {figure(found.mae)}"
        get_run_logger().info("R² of the %s rows: %s; %s", side, score(found.r2), errors)
    return report
