"""Whether services answer, and whom else they let in."""

import json
import socket
import urllib.error
from typing import Any
from urllib.parse import urlsplit

import psutil

from infra.asking import NO_ANSWER, ask

ANSWER_SECONDS = 5


def status(url: str) -> int | None:
    """The HTTP status without any credentials; None where nobody answers in HTTP."""
    try:
        with ask(url, timeout=ANSWER_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except NO_ANSWER:
        return None


def read(url: str) -> Any:
    """What a URL answers, as JSON where it is that and as text where not; None for no answer."""
    try:
        with ask(url, timeout=ANSWER_SECONDS) as answer:
            text = answer.read().decode(errors="replace")
    except NO_ANSWER:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def reached_from_outside(host: str, port: int) -> str:
    """The address at which others reach the service, or nothing where they can't."""
    try:
        resolved = socket.gethostbyname(host)
    except OSError:
        return ""
    if not resolved.startswith("127."):
        return f"{host}:{port}"
    for address in own_addresses():
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            continue
        return f"{address}:{port}"
    return ""


def own_addresses() -> list[str]:
    """This host's addresses that are not loopback."""
    return [
        found.address
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family == socket.AF_INET and not found.address.startswith("127.")
    ]
