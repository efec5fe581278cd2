"""The pages of Prefect and of MLflow in a real browser: a form, the run it starts, and its record.

    pip install -c constraints.txt -e '.[test,browser]'
    pytest -m long tests/browser

With BOOSTLINE_SCREENSHOTS=.github/readme it renews the README's screenshots.
"""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import HEIGHT, POOL, WIDTH, Stand, screenshot

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

ROUNDS = 300
RUN_HEIGHT = 1500  # with the log
MLFLOW_WIDTH, ASSISTANT_WIDTH = 1244, 432
HELP = (
    "The numeric column to predict.",
    "Share of test rows.",
    "Boosting rounds.",
    "Registers the model under this name.",
)


@pytest.fixture(scope="module")
def deployment(stand: Stand, shared_data: Path) -> str:
    """The id of a deployment that trains on housing; it was trained once, and is the champion."""
    from mlflow import MlflowClient

    shutil.copy(shared_data / "housing.csv", stand.boostline.folder)
    (stand.boostline.folder / "houses.toml").write_text(
        '[data]\nsource = "housing.csv"\ntarget = "median_house_value"\n'
        '[boost]\nn_estimators = 100\nmax_depth = 6\n[evaluate]\nby = ["ocean_proximity"]\n'
        '[track]\nexperiment = "houses"\nmodel = "houses"\n'
    )
    stand.boostline.train("houses.toml")
    MlflowClient(stand.mlflow, stand.mlflow).set_registered_model_alias("houses", "champion", "1")
    words = ["deploy", "houses.toml", "--cron", "30 2 * * *", "--pool", POOL]
    deployed = stand.boostline(*words)
    assert deployed.returncode == 0, deployed.stderr
    return str(stand.api("/deployments/name/boostline-train/houses")["id"])


def ended(stand: Stand, deployment: str) -> dict[str, Any]:
    """The flow run that somebody started, once it has ended."""
    query = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}},
    }
    deadline = time.monotonic() + 960
    while not (runs := stand.api("/flow_runs/filter", query)):
        assert time.monotonic() < deadline, (stand.boostline.folder / "worker.log").read_text()
        time.sleep(1)
    (run,) = runs
    return dict(run)


def test_from_the_form_to_the_record(stand: Stand, deployment: str, page: Any) -> None:
    # Prefect: the form has every setting with its help, and starts the run
    page.goto(f"{stand.prefect}/v2/deployments/deployment/{deployment}/run")
    for text in HELP:
        page.get_by_text(text).first.wait_for()
    rounds = page.locator("input[type=number]").and_(
        page.get_by_label(re.compile("estimators", re.IGNORECASE))
    )
    assert rounds.input_value() == "100"
    screenshot(page, "prefect-form")
    rounds.fill(str(ROUNDS))
    page.get_by_role("button", name="Submit").click()
    run = ended(stand, deployment)
    assert (run["state_type"], run["parameters"]["config"]["boost"]["n_estimators"]) == (
        "COMPLETED",
        ROUNDS,
    )

    # the run's page: its tasks by name, its log
    page.set_viewport_size({"width": WIDTH, "height": RUN_HEIGHT})
    page.goto(f"{stand.prefect}/v2/runs/flow-run/{run['id']}")
    page.get_by_text(re.compile(r"Round 300 of 300: valid R² 0\.8")).first.wait_for()
    screenshot(page, "prefect-run", height=RUN_HEIGHT)
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    page.get_by_role("tab", name="Artifacts").click()
    for key in ("houses-progress", "houses-metrics", "houses-report"):
        page.get_by_text(key, exact=True).first.wait_for()
    artifacts = {
        each["key"]: each["id"]
        for each in stand.api(
            "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
        )
    }

    # the table beside the last run and the champion
    page.goto(f"{stand.prefect}/v2/artifacts/artifact/{artifacts['houses-metrics']}")
    page.get_by_text(
        re.compile(r"champion: version 1\. Difference: this run − champion")
    ).wait_for()
    page.get_by_text(re.compile(r"\+0\.\d+ \(better\)")).first.wait_for()
    screenshot(page, "prefect-metrics")

    # the report, with plots that are drawn, and a link to MLflow
    page.goto(f"{stand.prefect}/v2/artifacts/artifact/{artifacts['houses-report']}")
    plot = page.get_by_alt_text("R² by boosting round")
    plot.wait_for()
    widths = "[...document.images].filter(i => i.alt).map(i => i.naturalWidth)"
    assert len(found := page.evaluate(widths)) == 4 and min(found) > 800
    screenshot(page, "prefect-report")
    link = page.get_by_role("link", name="the run", exact=True).get_attribute("href")
    assert link.startswith(f"{stand.mlflow}/#/experiments/")

    # MLflow, where that link leads: description, charts by round, plots, the model
    # MLflow's assistant takes the right of the page
    page.set_viewport_size({"width": MLFLOW_WIDTH + ASSISTANT_WIDTH, "height": HEIGHT})
    page.goto(link)
    page.get_by_text(re.compile(r"\(95 %: 0\.8")).wait_for()
    page.get_by_text("houses", exact=True).first.wait_for()
    back = page.get_by_role("link", name="Flow run in Prefect").get_attribute("href")
    assert back == f"{stand.prefect}/runs/flow-run/{run['id']}" or back.endswith(run["id"])
    screenshot(page, "mlflow-run", width=MLFLOW_WIDTH)
    page.goto(back)
    page.get_by_text(run["name"]).first.wait_for()
    # the registered version, with its signature
    page.goto(f"{stand.mlflow}/#/models/houses/versions/2")
    page.get_by_text(re.compile(r"^Inputs")).first.click()
    page.get_by_text("median_income").first.wait_for()
    page.goto(f"{link}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("round")
    page.locator(".js-plotly-plot .scatterlayer .trace").nth(3).wait_for(state="attached")
    screenshot(page, "mlflow-charts", width=MLFLOW_WIDTH)
    page.goto(f"{link}/artifacts/plots/predicted_actual.png")
    image = page.locator("img[src^='blob:'], img[src*='predicted_actual']").first
    image.wait_for()
    screenshot(page, "mlflow-plot", width=MLFLOW_WIDTH)
    page.goto(f"{link}/system-metrics")
    page.get_by_text("system/workers", exact=False).first.wait_for()
