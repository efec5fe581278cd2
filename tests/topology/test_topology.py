"""The services of infra/compose.yaml as processes on five hosts, and a night of theirs.

    pytest -m long tests/topology

A host is a network namespace. One has PostgreSQL, S3-compatible storage (moto), Prefect's server
and MLflow's with its artifact proxy; one Prefect's worker; the others a Dask scheduler and two Dask
workers with TLS. `boostline deploy` puts a configuration on a schedule that fires every minute; the
run reads its table from S3, keeps what it keeps on S3, and is seen through the servers' APIs.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.security.hosts import Certificates, Host, clean_environment, hosts, make_certificates

pytestmark = [pytest.mark.long, pytest.mark.timeout(420)]
for package in ("moto", "s3fs", "boto3", "psycopg"):
    pytest.importorskip(package, reason="needs the packages moto[server], s3fs and psycopg[binary]")

POSTGRES, S3, PREFECT, MLFLOW, DASK = 5432, 9000, 4200, 5000, 8786
# a run that comes while another is under way is cancelled, as it should be
ENDED = ("COMPLETED", "FAILED", "CRASHED")
NIGHT_S = 200

TABLE = """
import boto3, random
s3 = boto3.client("s3")
for bucket in ("tables", "boostline", "mlflow"):
    s3.create_bucket(Bucket=bucket)
random.seed(7)
lines = ["rooms,age,zone,price"]
for _ in range(5000):
    rooms, age, zone = random.uniform(1, 9), random.uniform(0, 80), random.choice("ABC")
    lines.append(f"{rooms},{age},{zone},{40 * rooms - age + 25 * (zone == 'B')}")
s3.put_object(Bucket="tables", Key="houses/houses.csv", Body="\\n".join(lines).encode())
"""
RUNS = """
import httpx, json, os
url = os.environ["PREFECT_API_URL"] + "/flow_runs/filter"
runs = httpx.post(url, json={"sort": "START_TIME_ASC"}).raise_for_status().json()
print(json.dumps([run for run in runs if run["deployment_id"]]))
"""
RECORDED = """
import json, mlflow, pandas as pd
client = mlflow.MlflowClient()
version = client.search_model_versions("name='houses'", order_by=["version_number ASC"])[0]
run = client.get_run(version.run_id)
rounds = {n: len(client.get_metric_history(version.run_id, n)) for n in run.data.metrics}
model = mlflow.pyfunc.load_model(f"models:/houses/{version.version}")
rows = pd.DataFrame({"rooms": [5.0], "age": [10.0], "zone": ["B"]})
print(json.dumps({
    "status": run.info.status,
    "tags": run.data.tags,
    "artifact_uri": run.info.artifact_uri,
    "rounds": rounds,
    "artifacts": [file.path for file in client.list_artifacts(version.run_id)],
    "prediction": float(model.predict(rows)[0]),
}))
"""
KEPT = """
import boto3, json
listed = {b: boto3.client("s3").list_objects_v2(Bucket=b) for b in ("boostline", "mlflow")}
print(json.dumps({b: [o["Key"] for o in found["Contents"]] for b, found in listed.items()}))
"""
CONFIG = """
[data]
source = "s3://tables/houses/"
format = "csv"
target = "price"
[boost]
n_estimators = 40
checkpoint_every = 10
[cluster]
kind = "address"
address = "{address}"
tls_ca = "{files.ca}"
tls_cert = "{files.cert}"
tls_key = "{files.key}"
[track]
experiment = "houses"
model = "houses"
"""


@dataclass(frozen=True)
class Site:
    """The five hosts; `folder` is the runner's, `services` where the servers keep their files."""

    services_host: Host
    runner: Host
    scheduler: Host
    workers: tuple[Host, Host]
    certificates: Certificates
    folder: Path
    services: Path

    @property
    def dask(self) -> str:
        return f"tls://{self.scheduler.address}:{DASK}"

    @property
    def storage(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://{self.services_host.address}:{S3}",
            "AWS_ACCESS_KEY_ID": "boostline",
            "AWS_SECRET_ACCESS_KEY": "an-s3-secret-4711",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def environment(self) -> dict[str, str]:
        """Of the runner; it has no way to MLflow's files but through MLflow's server."""
        return {
            **self.storage,
            "PREFECT_API_URL": f"http://{self.services_host.address}:{PREFECT}/api",
            "MLFLOW_TRACKING_URI": f"http://{self.services_host.address}:{MLFLOW}",
            "BOOSTLINE_HOME": "s3://boostline/home",
            "BOOSTLINE_LOCAL": str(self.folder / "local"),
        }

    def ask(self, code: str) -> Any:
        """What a program on the runner's host prints, as JSON."""
        done = subprocess.run(
            self.runner.command([sys.executable, "-c", code]),
            env={**clean_environment(), **self.environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, services = tmp_path_factory.mktemp("runner"), tmp_path_factory.mktemp("services")
    with ExitStack() as stack:
        first, runner, scheduler, one, two = stack.enter_context(hosts(5))
        certificates = make_certificates(folder / "certificates", scheduler.address)
        site = Site(first, runner, scheduler, (one, two), certificates, folder, services)
        stack.enter_context(_postgres(site))
        _start_storage(site)
        _start_servers(site)
        _start_dask(site)
        for port, name in ((MLFLOW, "mlflow"), (PREFECT, "prefect")):
            runner.wait_for(f"http://{first.address}:{port}/health", services / f"{name}.log")
        yield site


def _postgres(site: Site) -> ExitStack:
    """PostgreSQL with a database for each server, as its own user, stopped by its own way."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
    if binaries is None or not shutil.which("runuser"):
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    home = Path("/var/lib/postgresql") / f"boostline-{os.getpid()}"
    home.mkdir()
    user = pwd.getpwnam("postgres")
    os.chown(home, user.pw_uid, user.pw_gid)
    stack = ExitStack()
    stack.callback(shutil.rmtree, home, ignore_errors=True)
    as_postgres = ["runuser", "-u", "postgres", "--"]
    initdb = [str(binaries), "-D", str(home / "data"), "--no-sync", "--auth=trust"]
    subprocess.run([*as_postgres, *initdb], check=True, capture_output=True, cwd=home, timeout=240)
    with (home / "data" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all samenet trust\n")
    host, address = site.services_host, site.services_host.address
    log = site.services / "postgres.log"
    program = str(binaries.with_name("postgres"))
    host.start_program(
        log,
        *as_postgres,
        *(program, "-D", str(home / "data"), "-h", address, "-p", str(POSTGRES)),
        *("-k", str(home), "-c", "fsync=off"),
    )
    for name in ("prefect", "mlflow"):
        created = 1
        until = time.monotonic() + 120
        while created:
            command = [*as_postgres, str(binaries.with_name("createdb")), "-h", str(home), name]
            created = subprocess.run(command, capture_output=True, cwd=home, check=False).returncode
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.3 if created else 0)
    return stack


def _start_storage(site: Site) -> None:
    host, log = site.services_host, site.services / "s3.log"
    host.start(log, "moto.server", "-H", host.address, "-p", str(S3))
    host.wait_for(f"http://{host.address}:{S3}/", log)
    site.ask(TABLE)


def _start_servers(site: Site) -> None:
    host, folder = site.services_host, site.services
    database = f"{host.address}:{POSTGRES}"
    host.start(
        folder / "prefect.log",
        *("prefect", "server", "start", "--host", host.address, "--port", str(PREFECT), "--no-ui"),
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_API_URL=f"http://{host.address}:{PREFECT}/api",
        PREFECT_SERVER_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://postgres@{database}/prefect",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
    )
    host.start(
        folder / "mlflow.log",
        *("mlflow", "server", "--workers", "1", "--host", host.address, "--port", str(MLFLOW)),
        *("--allowed-hosts", f"{host.address}:{MLFLOW}"),
        *("--backend-store-uri", f"postgresql+psycopg://postgres@{database}/mlflow"),
        *("--artifacts-destination", "s3://mlflow/artifacts"),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_S3_ENDPOINT_URL=site.storage["AWS_ENDPOINT_URL"],
        **site.storage,
    )


def _start_dask(site: Site) -> None:
    options = site.certificates.dask_options
    site.scheduler.start(
        site.services / "scheduler.log",
        "distributed.cli.dask_scheduler",
        *("--host", site.scheduler.address, "--port", str(DASK), "--protocol", "tls"),
        *("--no-dashboard", *options),
    )
    for number, host in enumerate(site.workers):
        host.start(
            site.services / f"worker-{number}.log",
            "distributed.cli.dask_worker",
            *(site.dask, "--host", host.address, "--nthreads", "1", "--no-dashboard"),
            *("--protocol", "tls", "--local-directory", str(site.services / f"dask-{number}")),
            *options,
            **site.storage,
        )


@pytest.fixture(scope="module")
def night(site: Site) -> dict[str, Any]:
    """The first run that the schedule brought, when it has ended."""
    config = site.folder / "houses.toml"
    config.write_text(CONFIG.format(address=site.dask, files=site.certificates))
    deployed = site.runner.run(
        *("deploy", "houses.toml", "--cron", "* * * * *", "--timezone", "Europe/Berlin"),
        cwd=site.folder,
        **site.environment,
    )
    assert deployed.returncode == 0, deployed.stderr
    log = site.services / "runner.log"
    site.runner.start(log, "prefect", "worker", "start", "--pool", "boostline", **site.environment)
    until = time.monotonic() + NIGHT_S
    while True:
        runs = [run for run in site.ask(RUNS) if run["state_type"] in ENDED]
        if runs:
            assert runs[0]["state_type"] == "COMPLETED", (runs[0]["state"], log.read_text())
            return dict(runs[0])
        assert time.monotonic() < until, log.read_text()
        time.sleep(2)


def test_the_scheduled_run_is_complete(site: Site, night: dict[str, Any]) -> None:
    assert night["auto_scheduled"] and night["work_pool_name"] == "boostline"
    waited = site.services / "runner.log"
    assert "Traceback" not in waited.read_text(), waited.read_text()


def test_mlflow_has_the_run_and_its_registered_model(site: Site, night: dict[str, Any]) -> None:
    found = site.ask(RECORDED)
    assert found["status"] == "FINISHED"
    assert found["tags"]["prefect.flow_run_id"] == night["id"]
    assert found["artifact_uri"].startswith("mlflow-artifacts:/")
    assert 40 in found["rounds"].values() and found["artifacts"]
    assert found["prediction"] == pytest.approx(40 * 5 - 10 + 25, abs=15)


def test_it_is_all_on_the_storage(site: Site, night: dict[str, Any]) -> None:
    kept = site.ask(KEPT)
    kinds = {key.split("/")[1] for key in kept["boostline"]}
    assert {"converted", "checkpoints", "models", "profiles"} <= kinds
    assert any(key.endswith("MLmodel") for key in kept["mlflow"])


def test_what_cannot_be_on_the_storage_outlives_the_workers_folder(
    site: Site, night: dict[str, Any]
) -> None:
    # a digest stands in the first line
    files = site.folder.glob("local/runs/*/entry.json")
    entries = [json.loads(file.read_text().splitlines()[1]) for file in files]
    (mine,) = (entry for entry in entries if entry["flow_run_id"] == night["id"])
    assert mine["state"] == "finished" and mine["recorded"]


def test_both_workers_took_part(site: Site, night: dict[str, Any]) -> None:
    found = site.ask(RECORDED)
    assert found["tags"].get("workers") == "2", found["tags"]
