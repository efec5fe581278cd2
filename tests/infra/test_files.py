"""Containerfile, compose file, manifests and scripts, by their schemas and linters."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((INFRA / "compose.yaml").read_text()))


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / "kubernetes.yaml").read_text()))


def test_the_compose_file_is_one() -> None:
    from jsonschema import Draft202012Validator

    schema = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    validator = Draft202012Validator(json.loads(schema.read_text()))
    assert [error.message for error in validator.iter_errors(compose())] == []
    broken = compose()
    broken["services"]["worker"]["comand"] = ["x"]
    assert list(validator.iter_errors(broken))


def test_every_service_is_healthy_or_ends_and_none_is_root() -> None:
    services = compose()["services"]
    assert {"postgres", "storage", "prefect", "mlflow", "scheduler", "worker", "runner"} <= {
        *services
    }
    for name, service in services.items():
        assert "healthcheck" in service or service["restart"] == "no", name
        if service["image"].startswith("${BOOSTLINE_IMAGE"):
            assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
    for name in ("scheduler", "worker", "worker-2"):
        assert "--protocol=tls" in services[name]["command"]


def test_the_manifests_are_valid() -> None:
    found = manifests()
    for each in found:
        kubernetes_validate.validate(each, "1.34", strict=True)
    found[-1]["spec"]["ingres"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found[-1], "1.34", strict=True)


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for each in manifests():
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield pod, container


def test_no_pod_is_root_or_without_limits() -> None:
    found = list(containers())
    assert len(found) == 3
    for pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {"cpu", "memory"} == {*container["resources"]["requests"]}
        assert "memory" in container["resources"]["limits"]
        assert "livenessProbe" in container


def test_the_runner_may_do_what_the_code_does() -> None:
    """The verbs of kr8s' calls in infra/kubernetes_cluster.py, by the resource they are made on."""
    (role,) = (each for each in manifests() if each["kind"] == "Role")
    allowed = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    code = (INFRA / "kubernetes_cluster.py").read_text()
    for name in ("DaskCluster", "DaskWorkerGroup", "DaskAutoscaler"):
        assert f'new_class("{name}", API' in code
        assert (f"{name.lower()}s", "get") in allowed
    assert {("daskclusters", "create"), ("daskclusters", "delete")} <= allowed
    assert {("daskworkergroups", "patch"), ("daskautoscalers", "delete")} <= allowed
    assert ("pods", "list") in allowed and 'api.get("pods"' in code.replace("\n", "")
    assert not any(resource == "secrets" for resource, _ in allowed)


def test_secrets_are_named_and_never_written_out() -> None:
    for name in ("compose.yaml", "kubernetes.yaml", "Containerfile"):
        text = (INFRA / name).read_text()
        assert not re.search(
            r"(?i)(password|secret_access_key|auth_string): *[\"']?[a-z0-9]{4}", text
        )


def linter(name: str) -> str:
    """Of this environment, which need not be on the PATH."""
    return str(Path(sys.executable).with_name(name))


def test_the_linters_have_nothing_to_say() -> None:
    scripts = [str(path) for path in INFRA.glob("*.sh")]
    assert len(scripts) == 2
    subprocess.run([linter("shellcheck"), *scripts], check=True, timeout=240)


def test_the_containerfile() -> None:
    subprocess.run([linter("hadolint"), str(INFRA / "Containerfile")], check=True, timeout=240)


def test_certificates_that_dask_takes(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    make = [str(INFRA / "certificates.sh"), str(tmp_path / "tls"), "2"]
    subprocess.run(make, check=True, capture_output=True, timeout=240)
    folder = tmp_path / "tls"
    assert {path.name for path in folder.iterdir()} == {"ca.crt", "tls.crt", "tls.key"}
    assert (folder / "tls.key").stat().st_mode & 0o077 == 0
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt", "tls.crt"]
    subprocess.run(verify, cwd=folder, check=True, capture_output=True, timeout=240)
    again = subprocess.run(make, capture_output=True, text=True, check=False, timeout=240)
    assert again.returncode == 1 and "is there already" in again.stderr
