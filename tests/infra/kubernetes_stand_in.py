"""Kubernetes' API server and the Dask operator as far as a run speaks to them.

Objects are kept by their path. What the operator would make of a `DaskCluster` are real processes
here: the manifest's own commands, with its own variables, on ports of loopback.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.conftest import clean_environment


def _resources(version: str, **kinds: str) -> dict[str, Any]:
    resources = [
        {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": []}
        for name, kind in kinds.items()
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


OPERATOR = {"groupVersion": "kubernetes.dask.org/v1", "version": "v1"}
# what the server says of itself
KNOWN: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": _resources("v1", pods="Pod"),
    "/apis": {
        "kind": "APIGroupList",
        "groups": [
            {"name": "kubernetes.dask.org", "versions": [OPERATOR], "preferredVersion": OPERATOR}
        ],
    },
    "/apis/kubernetes.dask.org/v1": _resources(
        "kubernetes.dask.org/v1",
        daskclusters="DaskCluster",
        daskworkergroups="DaskWorkerGroup",
        daskautoscalers="DaskAutoscaler",
    ),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Operator:
    """What there is in the cluster: `objects` by path, `asked` every request as "VERB path"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def make(self, path: str, made: dict[str, Any]) -> dict[str, Any]:
        name, namespace = made["metadata"]["name"], path.split("/")[-2]
        made["metadata"] |= {"namespace": namespace, "uid": name, "resourceVersion": "1"}
        with self._lock:
            self.objects[f"{path}/{name}"] = made
        if made["kind"] == "DaskCluster":
            spec = made["spec"]
            self.scheduler = self._run(spec["scheduler"]["spec"])
            group = f"{path.rpartition('/')[0]}/daskworkergroups/{name}-default"
            with self._lock:
                self.objects[group] = {
                    "apiVersion": made["apiVersion"],
                    "kind": "DaskWorkerGroup",
                    "metadata": {"name": f"{name}-default", "namespace": namespace},
                    "spec": {"worker": spec["worker"]},
                }
            self._scale(spec["worker"], spec["worker"]["replicas"])
        return made

    def change(self, path: str, change: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            group = self.objects[path]
        group["spec"]["worker"] |= change["spec"]["worker"]
        self._scale(group["spec"]["worker"], group["spec"]["worker"]["replicas"])
        return group

    def delete(self, path: str) -> dict[str, Any]:
        with self._lock:
            gone = self.objects.pop(path)
        if gone["kind"] == "DaskCluster":
            self.end()
        return gone

    def end(self) -> None:
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def pods(self) -> list[dict[str, Any]]:
        """The scheduler's alone is looked at; it is ready when it listens, as its probe asks."""
        if self.scheduler is None:
            return []
        with socket.socket() as probe:
            listens = probe.connect_ex(("127.0.0.1", self.port)) == 0
        labels = {"dask.org/component": "scheduler"}
        return [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "scheduler", "namespace": "forecast", "labels": labels},
                "status": {"conditions": [{"type": "Ready", "status": str(listens)}]},
            }
        ]

    def _scale(self, worker: dict[str, Any], count: int) -> None:
        while len(self.workers) < count:
            self.workers.append(self._run(worker["spec"], len(self.workers)))

    def _run(self, pod: dict[str, Any], number: int = 0) -> "subprocess.Popen[bytes]":
        (container,) = pod["containers"]
        env = {each["name"]: each["value"] for each in container["env"]}
        env |= {
            "DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{self.port}",
            "DASK_WORKER_NAME": f"worker-{number}",
        }
        places = {"8786": str(self.port), ":8787": ":0", "/scratch": str(self.folder / "scratch")}
        words = [places.get(word, word) for word in container["args"]]
        words = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in words]
        assert words[0] == "dask"
        with (self.folder / "pods.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + words[1], *words[2:]],
                env={**clean_environment(), **env},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@contextmanager
def kubernetes(folder: Path) -> Iterator[tuple[str, Operator]]:
    """The address of the API server while it runs, and what stands behind it."""
    operator = Operator(folder)

    class Api(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self._path()
            if path in KNOWN:
                self._answer(KNOWN[path])
            elif path.endswith("/pods"):
                self._answer({"kind": "PodList", "apiVersion": "v1", "items": operator.pods()})
            elif path.endswith(("/daskclusters", "/daskworkergroups", "/daskautoscalers")):
                # a client looks for one by a list of those of its name
                query = parse_qs(self.path.partition("?")[2])
                name = query["fieldSelector"][0].split(",")[0].removeprefix("metadata.name=")
                found = operator.objects.get(f"{path}/{name}")
                items = [found] if found else []
                self._answer({"kind": "List", "apiVersion": "v1", "items": items})
            elif path in operator.objects:
                self._answer(operator.objects[path])
            else:
                self._answer({"kind": "Status", "code": 404, "message": f"no {path}"}, 404)

        def do_POST(self) -> None:
            path, made = self._path(), self._sent()
            if f"{path}/{made['metadata']['name']}" in operator.objects:
                self._answer({"kind": "Status", "code": 409, "message": "exists"}, 409)
            else:
                self._answer(operator.make(path, made), 201)

        def do_PATCH(self) -> None:
            self._answer(operator.change(self._path(), self._sent()))

        def do_DELETE(self) -> None:
            path = self._path()
            self._sent()
            if path in operator.objects:
                self._answer(operator.delete(path))
            else:
                self._answer({"kind": "Status", "code": 404, "message": f"no {path}"}, 404)

        def _path(self) -> str:
            path = self.path.partition("?")[0].rstrip("/")
            operator.asked.append(f"{self.command} {path}")
            return path

        def _sent(self) -> Any:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return json.loads(body) if body else {}

        def _answer(self, body: dict[str, Any], code: int = 200) -> None:
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", operator
        finally:
            operator.end()
            server.shutdown()
            shutil.rmtree(folder / "scratch", ignore_errors=True)
