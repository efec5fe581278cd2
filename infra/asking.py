"""HTTP to services: what listens on this host's loopback is never asked by way of a proxy."""

from __future__ import annotations

import http.client
import ipaddress
import re
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

LOOPBACK = "127.0.0.1"
# What `ask` raises where nobody answers, or what answers speaks no HTTP. A port of another service
# may say anything.
NO_ANSWER = (OSError, ValueError, http.client.HTTPException)


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this one's loopback, by its name or number."""
    host = (urlsplit(url).hostname or "") if is_url(url) else ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_url(url: str) -> bool:
    """Whether there is a host in it, a number where its port stands, and no user after a /."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and "@" not in parts.path
    except ValueError:
        return False


def without_user(url: str) -> str:
    """The URL without user and password: urllib would look for a host of that name."""
    if not is_url(url):  # for a / in its password perhaps: nobody is asked, but it is shown
        return re.sub("://.*@", "://", url)
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def ask(request: str | urllib.request.Request, timeout: float) -> Any:
    """As `urllib.request.urlopen`, whose errors it raises; without the user that a URL names."""
    if isinstance(request, str):
        request = urllib.request.Request(request)
    if not is_url(request.full_url):
        raise ValueError(f"{without_user(request.full_url)!r} is not a URL")
    request.full_url = url = without_user(request.full_url)
    # `urlopen` itself would keep the proxies of its first call as long as the process lives
    past = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    return urllib.request.build_opener(*past).open(request, timeout=timeout)


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `no_proxy` variables that keep loopback off a proxy, where one is configured."""
    names = {name.lower() for name in environment}
    if not names & {"http_proxy", "all_proxy", "https_proxy"}:
        return {}
    known = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    value = ",".join(filter(None, [known, LOOPBACK, "localhost"]))
    return {"no_proxy": value, "NO_PROXY": value}
