"""Two hosts: scheduler, workers and servers with TLS and passwords on one, Boostline on the other.

The cluster's host runs Dask with certificates, MLflow with basic authentication and Prefect with
an authentication string. Everything between the two goes over a wire of its own.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.security.hosts import Certificates, Host, make_certificates, two_hosts
from tests.security.search import found_in

pytestmark = pytest.mark.slow
pytest.importorskip("flask_wtf", reason="MLflow's basic authentication needs Flask-WTF")

USER, PASSWORD = "admin", "mlflow/pass-word-4711"
AUTH_STRING = "admin:prefect-pass-0815"
DASK, MLFLOW, PREFECT = 8786, 5000, 4200


@dataclass(frozen=True)
class Site:
    """The two hosts. `services` is where the servers keep what they keep."""

    cluster: Host
    client: Host
    certificates: Certificates
    folder: Path
    services: Path

    @property
    def dask(self) -> str:
        return f"tls://{self.cluster.address}:{DASK}"

    @property
    def mlflow(self) -> str:
        return f"http://{self.cluster.address}:{MLFLOW}"

    @property
    def environment(self) -> dict[str, str]:
        encoded = PASSWORD.replace("/", "%2F")
        return {
            "MLFLOW_TRACKING_URI": self.mlflow.replace("//", f"//{USER}:{encoded}@"),
            "PREFECT_API_URL": f"http://{self.cluster.address}:{PREFECT}/api",
            "PREFECT_API_AUTH_STRING": AUTH_STRING,
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, services = tmp_path_factory.mktemp("client"), tmp_path_factory.mktemp("services")
    with ExitStack() as stack:
        cluster, client = stack.enter_context(two_hosts())
        certificates = make_certificates(folder / "certificates", cluster.address)
        site = Site(cluster, client, certificates, folder, services)
        _start_prefect(site)
        _start_mlflow(site)
        _start_dask(site)
        for port, name in ((MLFLOW, "mlflow"), (PREFECT, "prefect")):
            client.wait_for(f"http://{cluster.address}:{port}/health", services / f"{name}.log")
        yield site


def _start_dask(site: Site) -> None:
    address, options = site.cluster.address, site.certificates.dask_options
    site.cluster.start(
        site.services / "scheduler.log",
        "distributed.cli.dask_scheduler",
        *("--host", address, "--port", str(DASK), "--protocol", "tls", "--no-dashboard"),
        *options,
    )
    for number in range(2):
        site.cluster.start(
            site.services / f"worker-{number}.log",
            "distributed.cli.dask_worker",
            *(site.dask, "--host", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"),
            *("--protocol", "tls", "--local-directory", str(site.services / f"dask-{number}")),
            *options,
        )


def _start_mlflow(site: Site) -> None:
    folder, address = site.services, site.cluster.address
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\nadmin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    site.cluster.start(
        folder / "mlflow.log",
        *("mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
        *("--host", address, "--port", str(MLFLOW), "--allowed-hosts", f"{address}:{MLFLOW}"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        MLFLOW_FLASK_SERVER_SECRET_KEY="signs the forms of MLflow's pages",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )


def _start_prefect(site: Site) -> None:
    site.cluster.start(
        site.services / "prefect.log",
        *("prefect", "server", "start", "--host", site.cluster.address, "--port", str(PREFECT)),
        "--no-ui",
        PREFECT_HOME=str(site.services / "prefect"),
        PREFECT_SERVER_API_AUTH_STRING=AUTH_STRING,
        PREFECT_API_AUTH_STRING=AUTH_STRING,
        PREFECT_API_URL=f"http://{site.cluster.address}:{PREFECT}/api",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
    )


@pytest.fixture(scope="module")
def trained(site: Site) -> dict[str, object]:
    """The summary of a training from the one host on the other's workers."""
    ran = site.client.run(
        *("train", "--summary", "summary.json", "--set", "boost.n_estimators=20"),
        *("--set", "cluster.kind=address", "--set", f"cluster.address={site.dask}"),
        *("--set", "track.model=demo", "--set", "track.timeout=30", *site.certificates.settings),
        cwd=site.folder,
        **site.environment,
    )
    assert ran.returncode == 0, ran.stderr
    summary: dict[str, object] = json.loads((site.folder / "summary.json").read_bytes())
    return summary


def test_it_trains_through_tls_and_passwords(site: Site, trained: dict[str, object]) -> None:
    assert (trained["workers"], trained["rounds"]) == (2, 20)
    run = f"{site.mlflow}/api/2.0/mlflow/runs/get?run_id={trained['mlflow_run_id']}"
    assert site.client.status_of(run, f"{USER}:{PASSWORD}") == 200
    flow_run = f"{site.environment['PREFECT_API_URL']}/flow_runs/{trained['flow_run_id']}"
    assert site.client.status_of(flow_run, AUTH_STRING) == 200
    secrets = [PASSWORD, PASSWORD.replace("/", "%2F"), AUTH_STRING]
    # of the services only what they keep of the run: the key files are theirs
    kept = [site.folder, site.services / "mlflow.db", site.services / "artifacts"]
    assert found_in([*kept, site.services / "prefect"], secrets) == []


def test_without_a_password_no_model_is_to_be_had(site: Site, trained: dict[str, object]) -> None:
    run = f"{site.mlflow}/api/2.0/mlflow/runs/get?run_id={trained['mlflow_run_id']}"
    assert site.client.status_of(run) == 401
    model = str(trained["model_uri"]).removeprefix("models:/")
    artifact = f"mlflow-artifacts/artifacts/1/models/{model}/artifacts/MLmodel"
    assert site.client.status_of(f"{site.mlflow}/api/2.0/{artifact}") == 401
    assert site.client.status_of(f"{site.mlflow}/api/2.0/{artifact}", f"{USER}:{PASSWORD}") == 200
    ran = site.client.run(
        *("predict", "demo", "demo:regression", "out.csv"),
        cwd=site.folder,
        MLFLOW_TRACKING_URI=site.mlflow,
    )
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == (
        f"MLflow at {site.mlflow} (MLFLOW_TRACKING_URI) asks for a user (401). Set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those "
        "of a user who may."
    )
    assert not (site.folder / "out.csv").exists()


def test_a_web_page_of_others_can_not_use_mlflow(site: Site) -> None:
    """Neither under a name of its own for the server's address, nor by the user's browser."""
    experiments = f"{site.mlflow}/api/2.0/mlflow/experiments/create"
    asked = ["-X", "POST", "-H", "Content-Type: application/json", "-d"]
    allowed = [*asked, '{"name": "ours"}']
    assert site.client.status_of(experiments, f"{USER}:{PASSWORD}", *allowed) == 200
    for header in ("Host: evil.example:5000", "Origin: http://evil.example"):
        words = [*asked, '{"name": "theirs"}', "-H", header]
        assert site.client.status_of(experiments, f"{USER}:{PASSWORD}", *words) == 403, header


def test_a_client_without_the_certificate_is_not_let_in(site: Site) -> None:
    strangers = make_certificates(site.folder / "strangers", site.client.address)
    mixed = Certificates(site.certificates.ca, strangers.cert, strangers.key)
    common = ["--set", "cluster.kind=address", "--set", f"cluster.address={site.dask}"]
    ran = site.client.run("train", *common, *mixed.settings, cwd=site.folder, **site.environment)
    message = ran.stderr.splitlines()[-1]
    assert ran.returncode == 2, ran.stderr
    assert message.startswith(
        f"The scheduler at {site.dask} (cluster.address) and this host don't trust each other: "
    )
    assert message.endswith(
        "The certificates of both (cluster.tls_cert here) must be signed by the CA of "
        "cluster.tls_ca, and be valid today."
    )


def test_without_a_password_nothing_is_heard_of_prefect(site: Site) -> None:
    assert site.client.status_of(f"{site.environment['PREFECT_API_URL']}/admin/version") == 401
