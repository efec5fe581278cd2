"""The images' requirements are those of constraints.txt, every one with its hash."""

import re
from pathlib import Path

import pytest
from packaging.markers import Marker

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {"python_version": "3.12", "python_full_version": "3.12.0"}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_image_installs_what_the_constraints_say(device: str) -> None:
    pinned: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement, _, marker = line.partition(";")
        if "==" in requirement and (not marker or Marker(marker).evaluate(dict(IMAGE))):
            name, _, version = requirement.strip().partition("==")
            pinned[name.lower().replace("_", "-")] = version
    lines = (ROOT / "infra" / f"requirements-{device}.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert len(lines) > 100
    for line in lines:
        found = re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert found, line
        assert pinned[found[1]] == found[2], line
