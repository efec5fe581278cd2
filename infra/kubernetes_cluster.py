"""The kind `kubernetes`: a `DaskCluster` for the run, made by the Dask operator.

dask-kubernetes' own client, `KubeCluster`, is not used: it speaks no TLS to the scheduler, waits
for a pod that can't be scheduled without a limit, and brings 180 MB of packages along.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
import kr8s
import kr8s.asyncio
from dask.utils import parse_bytes
from distributed import Client
from kr8s.objects import new_class

from infra.address_cluster import open_address
from infra.cluster_plan import (
    SCHEDULER_SETTINGS,
    WORKER_SETTINGS,
    ClusterError,
    ClusterPlan,
    as_variables,
    worker_variables,
)
from infra.cuda_cluster import dask_cuda_options
from infra.growing import growing

API = "kubernetes.dask.org/v1"
DaskCluster = new_class("DaskCluster", API)
DaskWorkerGroup = new_class("DaskWorkerGroup", API)
DaskAutoscaler = new_class("DaskAutoscaler", API)

PORT = 8786
PORTS = {"tcp-comm": PORT, "http-dashboard": 8787}  # by the names that the operator looks for
SECRETS = "/etc/boostline/tls"
SCRATCH = "/scratch"
POLL_S = 0.5
# One answer of Kubernetes' API server.
ANSWER_S = 10
# The operator takes away a cluster whose run died without closing it.
IDLE_S = 1800
# What it asks the scheduler by: whether it is idle, how many workers there is work for.
HTTP_ROUTES = ["distributed.http.health", "distributed.http.scheduler.api"]
USER = 1000


@contextmanager
def open_kubernetes(plan: ClusterPlan) -> Iterator[Client]:
    """Make a `DaskCluster`, connect as to any address, and delete it at the end.

    This process must reach the pods by their names and be reached by them: it is a pod itself.
    """
    started = time.monotonic()
    api, namespace = connect(plan.asked.namespace)
    name = f"boostline-{uuid4().hex[:8]}"
    cluster = DaskCluster(manifest(plan, name, namespace), namespace=namespace, api=api)
    _ask(cluster.create, f"take the DaskCluster {name} in the namespace {namespace}")
    try:
        _wait_for_scheduler(api, namespace, name, plan, started)
        remaining = max(plan.start_timeout_s - (time.monotonic() - started), 1.0)
        there = replace(
            plan,
            address=f"{_scheme(plan)}://{name}-scheduler.{namespace}:{PORT}",
            start_timeout_s=remaining,
            environment={},
        )
        with open_address(there) as client:
            with suppress(TimeoutError):  # those that came are enough to begin with
                left = max(plan.start_timeout_s - (time.monotonic() - started), 1.0)
                client.wait_for_workers(plan.workers, timeout=left)
            with growing(client, _Group(api, namespace, name), plan):
                yield client
    finally:
        with suppress(httpx.HTTPError, kr8s.APITimeoutError, kr8s.ServerError, kr8s.NotFoundError):
            cluster.delete()


def manifest(plan: ClusterPlan, name: str, namespace: str) -> dict[str, Any]:
    """The `DaskCluster` of the plan: a scheduler with its service, and a group of workers."""
    service = f"{name}-scheduler"
    variables = {
        **worker_variables(plan.threads, plan.environment),
        **as_variables(WORKER_SETTINGS),
        **as_variables(SCHEDULER_SETTINGS),
        **as_variables({"distributed.scheduler.http.routes": HTTP_ROUTES}),
        # the operator's own says tcp
        "DASK_SCHEDULER_ADDRESS": f"{_scheme(plan)}://{service}.{namespace}:{PORT}",
        # CuPy makes the folder of its kernels when it is imported, and the home can't be written to
        "CUPY_CACHE_DIR": f"{SCRATCH}/cupy",
    }
    env = [{"name": key, "value": value} for key, value in variables.items()]
    return {
        "apiVersion": API,
        "kind": "DaskCluster",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "boostline"}},
        "spec": {
            "idleTimeout": IDLE_S,
            "scheduler": {
                "spec": _pod(plan, {"name": "scheduler", **_scheduler(plan), "env": env}),
                "service": {
                    "type": "ClusterIP",
                    "selector": {
                        "dask.org/cluster-name": name,
                        "dask.org/component": "scheduler",
                    },
                    "ports": [
                        {"name": port, "protocol": "TCP", "port": number, "targetPort": port}
                        for port, number in PORTS.items()
                    ],
                },
            },
            "worker": {
                "replicas": plan.workers,
                "spec": _pod(plan, {"name": "worker", **_worker(plan), "env": env}),
            },
        },
    }


def _scheme(plan: ClusterPlan) -> str:
    return "tls" if plan.tls else "tcp"


def _scheduler(plan: ClusterPlan) -> dict[str, Any]:
    healthy = {"httpGet": {"port": "http-dashboard", "path": "/health"}, "periodSeconds": 5}
    return {
        "args": [
            *("dask", "scheduler", "--host", "0.0.0.0", "--port", str(PORT)),
            *("--no-dashboard", "--dashboard-address", f":{PORTS['http-dashboard']}"),
            *_tls_options(plan),
        ],
        "ports": [
            {"name": name, "containerPort": number, "protocol": "TCP"}
            for name, number in PORTS.items()
        ],
        "readinessProbe": healthy,
        "livenessProbe": {**healthy, "initialDelaySeconds": 15, "failureThreshold": 12},
        "resources": {
            "requests": {"cpu": "500m", "memory": "1Gi"},
            "limits": {"memory": "2Gi"},
        },
    }


def _worker(plan: ClusterPlan) -> dict[str, Any]:
    # in bytes, as Kubernetes has no "GB" and its "G" is Dask's "GB"
    limits = {"memory": str(parse_bytes(str(plan.memory_limit)))}
    if plan.asked.gpus:
        limits["nvidia.com/gpu"] = str(plan.asked.gpus)
    return {
        "args": [
            *(("dask", "cuda", "worker") if plan.asked.gpus else ("dask", "worker")),
            *("--name", "$(DASK_WORKER_NAME)", "--nthreads", str(plan.threads)),
            *("--memory-limit", str(plan.memory_limit), "--no-dashboard"),
            *("--local-directory", SCRATCH, "--death-timeout", f"{plan.start_timeout_s:.0f}"),
            *(dask_cuda_options(plan.gpu) if plan.asked.gpus else []),
            *_tls_options(plan),
        ],
        "resources": {"requests": {"cpu": str(plan.threads), **limits}, "limits": limits},
    }


def _tls_options(plan: ClusterPlan) -> list[str]:
    if not plan.asked.tls_secret:
        return []
    files = {"ca-file": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
    named = [word for key, file in files.items() for word in (f"--tls-{key}", f"{SECRETS}/{file}")]
    return ["--protocol", _scheme(plan), *named]


def _pod(plan: ClusterPlan, container: dict[str, Any]) -> dict[str, Any]:
    """A pod without root or token, with a folder to write to and the secrets."""
    asked = plan.asked
    volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "scratch", "mountPath": "/tmp", "subPath": "tmp"},
    ]
    if asked.tls_secret:
        volumes.append({"name": "tls", "secret": {"secretName": asked.tls_secret}})
        mounts.append({"name": "tls", "mountPath": SECRETS, "readOnly": True})
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "containers": [
            {
                **container,
                "image": asked.image,
                "workingDir": SCRATCH,
                "volumeMounts": mounts,
                "envFrom": [{"secretRef": {"name": asked.env_secret}}] if asked.env_secret else [],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }


def connect(namespace: str | None) -> tuple[Any, str]:
    """The API server, and the namespace to use: the one asked for, or that of this process.

    Raises:
        ClusterError: there is none, or it does not answer.
    """
    kubeconfig = os.environ.get("KUBECONFIG")
    try:
        asyncio.run(_answers(kubeconfig))
        api = kr8s.api(kubeconfig=kubeconfig)
        api.timeout = ANSWER_S
    except (ValueError, OSError, httpx.HTTPError, kr8s.APITimeoutError, kr8s.ServerError) as error:
        raise ClusterError(
            f"Kubernetes does not answer (cluster.kind='kubernetes'): {_cause(error)}. Run it in a "
            "pod with a service account, or name a kubeconfig in KUBECONFIG."
        ) from error
    return api, namespace or str(api.namespace)


async def _answers(kubeconfig: str | None) -> None:
    """kr8s' own first question to the server has no limit."""
    async with asyncio.timeout(ANSWER_S):
        await kr8s.asyncio.api(kubeconfig=kubeconfig)


def _ask(what: Callable[[], Any], task: str) -> Any:
    try:
        return what()
    except kr8s.NotFoundError as error:
        raise ClusterError(_no_operator()) from error
    except (OSError, httpx.HTTPError, kr8s.APITimeoutError, kr8s.ServerError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 404:
            raise ClusterError(_no_operator()) from error
        raise ClusterError(f"Kubernetes did not {task}: {_cause(error)}.") from error


def _no_operator() -> str:
    return (
        "Kubernetes knows no DaskCluster: the Dask operator is not installed. Install it with: "
        "helm install --repo https://helm.dask.org --create-namespace -n dask-operator "
        "--generate-name dask-kubernetes-operator"
    )


def _cause(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _wait_for_scheduler(
    api: Any, namespace: str, name: str, plan: ClusterPlan, started: float
) -> None:
    """Until the operator has acted and the scheduler's pod is ready.

    Raises:
        ClusterError: not within `start_timeout`; it says what the pods wait for.
    """
    while True:
        pods = _pods(api, namespace, name)
        if any(_is_ready(pod) for pod in pods if _component(pod) == "scheduler"):
            return
        if time.monotonic() - started > plan.start_timeout_s:
            break
        time.sleep(POLL_S)
    if not pods:
        cause = "the operator has made no pod; is its own running?"
    else:
        cause = "; ".join(f"{_component(pod)}: {_state(pod)}" for pod in pods)
    raise ClusterError(
        f"The scheduler of the DaskCluster {name} in the namespace {namespace} was not ready "
        f"within {plan.start_timeout_s:g} s (cluster.start_timeout): {cause}."
    )


def _pods(api: Any, namespace: str, name: str) -> list[dict[str, Any]]:
    found = _ask(
        lambda: list(
            api.get("pods", namespace=namespace, label_selector=f"dask.org/cluster-name={name}")
        ),
        f"list the pods of {name}",
    )
    return [pod.raw for pod in found]


def _component(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"].get("dask.org/component"))


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _state(pod: dict[str, Any]) -> str:
    """Why a pod is not ready, in Kubernetes' words."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{waiting.get('reason')} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message', '')}".strip()
    return str(status.get("phase", "unknown"))


class _Group:
    """The workers of a `DaskCluster`, scaled by the operator."""

    def __init__(self, api: Any, namespace: str, name: str) -> None:
        self._place = {"namespace": namespace, "api": api}
        self._name = name

    def scale(self, n: int) -> None:
        group = DaskWorkerGroup.get(f"{self._name}-default", **self._place)
        # its own `scale` waits for the number to be there, without a limit
        group.patch({"spec": {"worker": {"replicas": n}}})

    def adapt(self, *, minimum: int, maximum: int, wait_count: int) -> "_Autoscaler":
        made = DaskAutoscaler(
            {
                "apiVersion": API,
                "kind": "DaskAutoscaler",
                # one of this name may still be on its way out
                "metadata": {"name": f"{self._name}-{uuid4().hex[:6]}"},
                "spec": {"cluster": self._name, "minimum": minimum, "maximum": maximum},
            },
            **self._place,
        )
        _ask(made.create, f"take the DaskAutoscaler {self._name}")
        return _Autoscaler(made)


class _Autoscaler:
    def __init__(self, made: Any) -> None:
        self._made = made

    def stop(self) -> None:
        with suppress(httpx.HTTPError, kr8s.APITimeoutError, kr8s.ServerError, kr8s.NotFoundError):
            self._made.delete()
