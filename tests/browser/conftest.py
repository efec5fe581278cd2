"""A browser, and services that it looks at: Prefect with a worker, and MLflow."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import Boostline, clean_environment
from tests.mlflow_server import MlflowServer

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTH, HEIGHT = 1280, 860
SCREENSHOTS = os.environ.get("BOOSTLINE_SCREENSHOTS")
POOL = "seen"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the extra `browser` (playwright) is not installed"
    )
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS]) as browser,
    ):
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab of its own; what does not show within a minute fails the test."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def screenshot(page: Any, name: str, width: int = WIDTH, height: int = HEIGHT) -> None:
    """The tab's upper left part, as `BOOSTLINE_SCREENSHOTS/NAME.png`, where that is given."""
    if SCREENSHOTS is None:
        return
    page.wait_for_timeout(4_000)  # what moves in has come to rest, pictures are drawn
    clip = {"x": 0, "y": 0, "width": width, "height": height}
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as image:
        small = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        small.save(Path(SCREENSHOTS, f"{name}.png"), optimize=True)


@dataclass(frozen=True)
class Stand:
    """Services as they stand for a team: addresses of Prefect's and of MLflow's pages."""

    prefect: str
    mlflow: str
    boostline: Boostline

    def api(self, path: str, query: dict[str, Any] | None = None) -> Any:
        """Prefect's answer: a GET, or a POST of `query`."""
        url = f"{self.prefect}/api{path}"
        answer = httpx.get(url) if query is None else httpx.post(url, json=query)
        answer.raise_for_status()
        return answer.json()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    from infra.prefect_server import start_embedded_prefect

    # its name is in the pictures
    folder = Path(tempfile.mkdtemp(prefix="houses-"))
    mlflow = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    mlflow.start()
    worker = None
    try:
        with start_embedded_prefect(tmp_path_factory.mktemp("prefect")) as prefect:
            prefect.wait()
            mlflow.wait()
            environment = {
                **clean_environment(),
                "PREFECT_API_URL": prefect.api_url,
                "MLFLOW_TRACKING_URI": mlflow.uri,
            }
            with (folder / "worker.log").open("w") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL,
                     "--type", "process"],
                    cwd=folder, env=environment, stdout=log, stderr=log,
                )  # fmt: skip
            boostline = Boostline(folder, environment)
            yield Stand(prefect.api_url.removesuffix("/api"), mlflow.uri, boostline)
            worker.terminate()
            worker.wait(120)
    finally:
        if worker is not None and worker.poll() is None:
            worker.kill()
            worker.wait()
        mlflow.kill()
        shutil.rmtree(folder)
