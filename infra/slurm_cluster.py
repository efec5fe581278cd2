"""The kind `slurm`: the scheduler in this process, each worker a job of Slurm's (dask-jobqueue)."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue import SLURMCluster
from dask_jobqueue.slurm import SLURMJob
from distributed import Client
from distributed.core import Status
from distributed.security import Security

from infra.cluster_plan import (
    SCHEDULER_SETTINGS,
    WORKER_SETTINGS,
    ClusterError,
    ClusterPlan,
    ClusterSettingError,
    as_variables,
    worker_variables,
)
from infra.cluster_watch import watching, workers_of
from infra.cuda_cluster import dask_cuda_options
from infra.growing import growing

COMMANDS = ("sbatch", "scancel", "squeue")
# One answer of Slurm's controller, which itself gives up after 100 s or so.
ANSWER_S = 30
CLOSING_LIMIT_S = 15


class SlurmJob(SLURMJob):
    """A job that says when it is closed, which Dask's closing of a cluster insists on."""

    async def close(self) -> None:
        await super().close()
        self.status = Status.closed


class SlurmJobs(SLURMCluster):
    """A cluster of jobs in which a job that is lost for good is asked for again."""

    job_cls = SlurmJob

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # As in WorkerProcesses: Dask's picture of the scheduler lags behind it.
        with suppress(KeyError):
            super()._update_worker_status(op, msg)
        if op == "remove":
            # Dask gives the job up after this time, unless its nanny starts another worker.
            limit = dask.utils.parse_timedelta(
                dask.config.get("distributed.deploy.lost-worker-timeout")
            )
            asyncio.get_running_loop().call_later(limit + 1, self._correct_state)


@contextmanager
def open_slurm(plan: ClusterPlan) -> Iterator[Client]:
    """Submit a job for each worker, connect, and cancel the jobs at the end.

    Between scheduler and workers nothing but TLS is spoken, with certificates made for the run.
    They lie in the scratch folder, which every node must see, as it must see the log folder.
    """
    _check_commands()
    settings = {
        **SCHEDULER_SETTINGS,
        "distributed.deploy.lost-worker-timeout": f"{plan.start_timeout_s}s",
        "distributed.comm.timeouts.connect": f"{plan.start_timeout_s}s",
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        cluster = _cluster(plan)
        stack.enter_context(_closing(cluster))
        _submit(cluster, plan)
        client = stack.enter_context(Client(cluster, timeout=plan.start_timeout_s))
        try:
            client.wait_for_workers(plan.workers, timeout=plan.start_timeout_s)
        except TimeoutError as error:
            # A busy queue starts jobs one by one: those that run can begin.
            if not workers_of(client):
                raise ClusterError(_no_worker(cluster, plan)) from error
        stack.enter_context(watching(client, plan))
        stack.enter_context(growing(client, cluster, plan))
        yield client


def _check_commands() -> None:
    if missing := [name for name in COMMANDS if not shutil.which(name)]:
        raise ClusterSettingError(
            f"cluster.kind='slurm' needs Slurm's command{'s' * (len(missing) > 1)} "
            f"{', '.join(missing)} on the PATH. Run it on a login node, or load Slurm's module."
        )


def _cluster(plan: ClusterPlan) -> SlurmJobs:
    asked = plan.asked
    variables = {
        **worker_variables(plan.threads, plan.environment),
        **as_variables(WORKER_SETTINGS),
    }
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    folder = plan.log_folder / "slurm"
    try:
        return SlurmJobs(
            cores=plan.threads,
            processes=1,
            memory=str(plan.memory_limit),
            queue=asked.queue,
            account=asked.account,
            walltime=asked.walltime,
            interface=asked.interface,
            job_name="boostline",
            python=shlex.quote(sys.executable),
            worker_command="dask_cuda.cli worker" if asked.gpus else None,
            worker_extra_args=[
                "--no-dashboard",
                *(dask_cuda_options(plan.gpu) if asked.gpus else []),
            ],
            job_extra_directives=[
                *([f"--gres=gpu:{asked.gpus}"] if asked.gpus else []),
                *asked.directives,
            ],
            job_script_prologue=[*asked.prologue, *exports],
            local_directory='"${TMPDIR:-/tmp}"',
            death_timeout=f"{plan.start_timeout_s:.0f}",
            log_directory=str(folder),
            security=_certificates(plan.scratch_folder),
            scheduler_options={
                # Given even without a dashboard: the scheduler's health page would take 8787.
                "dashboard_address": "127.0.0.1:0",
                "dashboard": plan.dashboard,
                **({"interface": asked.interface} if asked.interface else {}),
            },
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ClusterSettingError(
            f"The cluster of Slurm jobs could not be set up: {error}. cluster.interface is "
            f"{asked.interface!r}, cluster.memory_limit {plan.memory_limit!r}."
        ) from error


def _certificates(folder: Path) -> Security:
    """New ones, in files that only this user reads; they go with the folder at the end."""
    security = Security.temporary()
    for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
        file = folder / f"{name}.pem"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as pem:
            pem.write(getattr(security, name))
        setattr(security, name, str(file))
    return security


def _submit(cluster: SlurmJobs, plan: ClusterPlan) -> None:
    """Submit the jobs.

    Raises:
        ClusterSettingError: sbatch refuses them.
        ClusterError: it does not answer in time.
    """

    async def submit() -> None:
        cluster.scale(plan.workers)
        await cluster._correct_state()

    limit = max(ANSWER_S, plan.start_timeout_s)
    try:
        cluster.sync(submit, callback_timeout=limit)
    except TimeoutError as error:
        raise ClusterError(
            f"Slurm's sbatch has not answered for {limit:g} s. `scontrol ping` tells whether its "
            "controller is up."
        ) from error
    except RuntimeError as error:
        said = re.search(r"stderr:\s*(.*\S)", str(error), re.DOTALL)
        cause = " ".join((said[1] if said else str(error)).split()).rstrip(".")
        raise ClusterSettingError(
            f"Slurm refuses the job of a worker: {cause}. It asks for {plan.threads} CPUs "
            f"(cluster.threads), {plan.memory_limit} (cluster.memory_limit), "
            f"{plan.asked.gpus} GPUs (cluster.gpus) and {plan.asked.walltime} "
            f"(cluster.walltime) in the partition {plan.asked.queue or 'that is the default'} "
            f"(cluster.queue) for the account {plan.asked.account or 'that is the default'} "
            f"(cluster.account)."
        ) from error


def _no_worker(cluster: SlurmJobs, plan: ClusterPlan) -> str:
    jobs = [str(job.job_id) for job in cluster.workers.values() if job.job_id]
    return (
        f"None of the {plan.workers} Slurm jobs has brought a worker within "
        f"{plan.start_timeout_s:g} s (cluster.start_timeout): {_states(jobs)}. Allow more time "
        f"where the queue is long. What the jobs said is in {plan.log_folder / 'slurm'}."
    )


def _states(jobs: list[str]) -> str:
    """What squeue says of the jobs: state and reason."""
    asking = ["squeue", "--noheader", "--jobs", ",".join(jobs), "--format", "job %i %T (%r)"]
    try:
        done = subprocess.run(asking, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        return "squeue does not answer"
    return ", ".join(done.stdout.split("\n")[:-1]) or "they have ended"


@contextmanager
def _closing(cluster: SlurmJobs) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(TimeoutError):
            cluster.close(timeout=CLOSING_LIMIT_S)
