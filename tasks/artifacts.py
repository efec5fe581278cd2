"""What the Prefect UI shows of a run: a table of its metrics, and where MLflow keeps it."""

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.engine.report import SIDES, Report
from tasks.engine.secrets import without_secrets
from tasks.engine.summary import Summary
from tasks.tracking import Recorder


def show_results(report: Report, summary: Summary, recorder: Recorder) -> None:
    """The table `boostline-metrics` and the page `boostline-run` among the run's artifacts."""
    rows = [
        {"rows": side, **report.metrics[side].model_dump()}
        | {"rows": f"{side} ({report.metrics[side].rows:,})"}
        for side in SIDES
        if side in report.metrics
    ]
    place = without_secrets(recorder.client.tracking_uri)
    create_table_artifact(
        table=rows, key="boostline-metrics", description="Exact metrics over all rows of each side"
    )
    create_markdown_artifact(
        key="boostline-run",
        description="The recorded run",
        markdown=(
            f"Test R² **{summary.r2:.4f}** after {summary.rounds:,} rounds.\n\n"
            f"- MLflow run `{summary.mlflow_run_id}` at `{place}`\n"
            f"- model `{summary.model_uri}` (sha256 `{summary.model_sha256}`)\n"
            f"- dataset digest `{summary.dataset_digest}`\n"
        ),
    )
