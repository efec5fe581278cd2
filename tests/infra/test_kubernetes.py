"""The kind `kubernetes` as far as it goes without one: its manifest, and what failures say."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kr8s", reason="needs the extra `kubernetes`")

from infra.cluster import ClusterError, open_cluster
from infra.cluster_plan import Asked, ClusterPlan, TlsFiles
from infra.growing import at_full_size
from infra.kubernetes_cluster import _state, manifest
from tests.infra.kubernetes_stand_in import Operator, kubernetes


def made(**asked: Any) -> dict[str, Any]:
    plan = ClusterPlan(
        workers=3,
        threads=4,
        memory_limit="8GB",
        address=None,
        log_folder=Path(),
        scratch_folder=Path(),
        dashboard=False,
        start_timeout_s=90,
        worker_ttl_s=25,
        quiet=True,
        tls=TlsFiles("ca", "cert", "key") if "tls_secret" in asked else None,
        asked=Asked(image="registry.example/boostline:1", **asked),
    )
    return manifest(plan, "boostline-1", "forecast")


def container(made: dict[str, Any], part: str) -> dict[str, Any]:
    (found,) = made["spec"][part]["spec"]["containers"]
    return dict(found)


def test_the_manifest_asks_for_what_was_set() -> None:
    spec = made(gpus=1, tls_secret="dask-tls", env_secret="s3")
    worker, scheduler = container(spec, "worker"), container(spec, "scheduler")
    assert spec["spec"]["worker"]["replicas"] == 3
    assert worker["resources"] == {
        "requests": {"cpu": "4", "memory": "8000000000", "nvidia.com/gpu": "1"},
        "limits": {"memory": "8000000000", "nvidia.com/gpu": "1"},
    }
    assert worker["args"][:3] == ["dask", "cuda", "worker"]
    assert {"--enable-cudf-spill", "--rmm-async"} < set(worker["args"])
    assert worker["envFrom"] == [{"secretRef": {"name": "s3"}}]
    address = {
        "name": "DASK_SCHEDULER_ADDRESS",
        "value": "tls://boostline-1-scheduler.forecast:8786",
    }
    assert address in worker["env"]
    assert {"name": "CUPY_CACHE_DIR", "value": "/scratch/cupy"} in worker["env"]
    for each in (worker, scheduler):
        assert each["args"][-8:] == [
            *("--protocol", "tls", "--tls-ca-file", "/etc/boostline/tls/ca.crt"),
            *(
                "--tls-cert",
                "/etc/boostline/tls/tls.crt",
                "--tls-key",
                "/etc/boostline/tls/tls.key",
            ),
        ]
        assert each["securityContext"]["readOnlyRootFilesystem"]
    plain = container(made(), "worker")
    assert plain["args"][:2] == ["dask", "worker"] and "--protocol" not in plain["args"]
    assert not any("rmm" in word or "cudf" in word for word in plain["args"])
    assert "nvidia.com/gpu" not in plain["resources"]["limits"]


def test_the_operator_takes_the_manifest() -> None:
    pytest.importorskip("dask_kubernetes", reason="its schema is in the package dask-kubernetes")
    from jsonschema import Draft7Validator

    folder = files("dask_kubernetes") / "operator/deployment/helm/dask-kubernetes-operator/crds"
    crd = yaml.safe_load((folder / "daskcluster.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    validator = Draft7Validator(schema)
    for spec in (made(), made(gpus=1, tls_secret="dask-tls", env_secret="s3")):
        assert [error.message for error in validator.iter_errors(spec)] == []
    spec["spec"]["worker"]["spec"]["containers"][0]["env"][0]["value"] = 3
    assert {error.message for error in validator.iter_errors(spec)} == {"3 is not of type 'string'"}


def test_what_a_pod_waits_for() -> None:
    pulling = {"reason": "ImagePullBackOff", "message": "no such image"}
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    waiting = {"status": {"containerStatuses": [{"state": {"waiting": pulling}}]}}
    assert _state(waiting) == "ImagePullBackOff no such image"
    assert _state({"status": {"conditions": [unscheduled]}}) == (
        "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    )
    assert _state({"status": {"phase": "Pending"}}) == "Pending"


def kubeconfig(path: Path, server: str) -> str:
    named = {"cluster": "a", "user": "a", "namespace": "forecast"}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "a", "cluster": {"server": server}}],
                "users": [{"name": "a", "user": {"token": "t"}}],
                "contexts": [{"name": "a", "context": named}],
                "current-context": "a",
            }
        )
    )
    return str(path)


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []
        threading.Thread(target=lambda: _accept(server, kept), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for each in kept:
            each.close()


def _accept(server: socket.socket, kept: list[socket.socket]) -> None:
    try:
        while True:
            kept.append(server.accept()[0])
    except OSError:
        return


@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_kubernetes_that_does_not_answer_is_one_message(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("infra.kubernetes_cluster.ANSWER_S", 1)
    with silent_server() as silent:
        address = silent if server == "is silent" else "http://127.0.0.1:9"
        monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", address))
        began = time.monotonic()
        message = (
            r"^Kubernetes does not answer \(cluster\.kind='kubernetes'\): .+\. Run it in a pod "
            r"with a service account, or name a kubeconfig in KUBECONFIG\.$"
        )
        with pytest.raises(ClusterError, match=message), opened(tmp_path):
            pass
        assert time.monotonic() - began < 30


def opened(folder: Path) -> Any:
    return open_cluster(
        kind="kubernetes", local_directory=folder, start_timeout_s=2, asked=Asked(image="x:1")
    )


# kr8s closes its connections when the process ends
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_cluster_from_its_making_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The API server and the operator are stand-ins; scheduler and workers run as they ask."""
    with kubernetes(tmp_path) as (address, operator):
        monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", address))
        monkeypatch.setattr("infra.kubernetes_cluster.PORT", operator.port)
        known = socket.getaddrinfo

        def resolved(host: Any, *more: Any, **named: Any) -> Any:
            is_service = str(host).endswith("-scheduler.forecast")
            return known("127.0.0.1" if is_service else host, *more, **named)

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        with open_cluster(
            kind="kubernetes",
            workers=1,
            max_workers=2,
            threads=1,
            memory_limit="1GiB",
            local_directory=tmp_path / "dask",
            start_timeout_s=90,
            asked=Asked(image="boostline:cpu"),
        ) as client:
            assert client.submit(os.environ.get, "OMP_WAIT_POLICY").result() == "PASSIVE"
            (cluster,) = (path for path in operator.objects if "/daskclusters/" in path)
            assert operator.objects[cluster]["spec"]["idleTimeout"] == 1800
            first = autoscaler(operator)
            with at_full_size(client):
                assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
                assert not any("/daskautoscalers/" in path for path in operator.objects)
            # another name: the operator may not be done yet with taking the first away
            assert autoscaler(operator) != first
            running = [operator.scheduler, *operator.workers]
        assert operator.asked[-1] == f"DELETE {cluster}"
        assert not any("/daskautoscalers/" in path for path in operator.objects)
        assert all(process and process.poll() is not None for process in running)


def autoscaler(operator: Operator) -> str:
    (path,) = (path for path in operator.objects if "/daskautoscalers/" in path)
    found = operator.objects[path]["spec"]
    assert (found["minimum"], found["maximum"]) == (1, 2)
    assert any(each.endswith(f"/daskclusters/{found['cluster']}") for each in operator.objects)
    return path
