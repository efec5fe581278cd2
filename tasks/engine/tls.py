"""Which cluster addresses are safe: loopback, or TLS in both directions, or knowingly neither."""

from collections.abc import Mapping
from ipaddress import ip_address


def check_tls(
    kind: str,
    address: str,
    files: Mapping[str, str | None],
    allow_insecure: bool,
    secret: str | None = None,
) -> None:
    """`files` are the paths of tls_ca, tls_cert and tls_key by name, `secret` is of Kubernetes.

    Raises:
        ValueError: they don't fit the kind or the address, or another host is reached without.
    """
    missing = [f"cluster.{name}" for name, file in files.items() if not file]
    any_given, all_given = len(missing) < len(files), not missing
    if kind == "kubernetes":
        _check_kubernetes([*missing, *([] if secret else ["cluster.tls_secret"])], allow_insecure)
        return
    if kind != "address":
        if any_given:
            if kind == "slurm":
                why = "with Slurm each run makes its own, for itself and its jobs"
            else:
                why = "a local cluster is reached from this host alone"
            raise ValueError(
                "cluster.tls_ca, tls_cert and tls_key are for cluster.kind=address or kubernetes: "
                f"{why}"
            )
        return
    scheme, _, place = address.rpartition("://")
    if "@" in place:
        raise ValueError(
            "cluster.address names a user, and Dask knows none: it should read tls://HOST:PORT"
        )
    if any_given and not all_given:
        raise ValueError(f"TLS needs {' and '.join(missing)}, too")
    if all_given and scheme != "tls":
        raise ValueError(f"with TLS cluster.address should read 'tls://{place}'")
    if not all_given and scheme == "tls":
        raise ValueError(
            f"cluster.address={address!r} needs cluster.tls_ca, cluster.tls_cert and "
            "cluster.tls_key, the paths of their files"
        )
    if not all_given and not allow_insecure and not is_loopback(place):
        raise ValueError(
            f"cluster.address={address!r} is another host without TLS: whoever reaches that port "
            "can run code on the workers. Start scheduler and workers with --tls-ca-file, "
            "--tls-cert and --tls-key, write tls:// and set cluster.tls_ca, cluster.tls_cert and "
            "cluster.tls_key; or set cluster.allow_insecure=true where only trusted hosts reach it"
        )


def _check_kubernetes(missing: list[str], allow_insecure: bool) -> None:
    if missing and len(missing) < 4:
        raise ValueError(f"TLS needs {' and '.join(missing)}, too")
    if missing and not allow_insecure:
        raise ValueError(
            "cluster.kind=kubernetes needs TLS: whoever reaches the scheduler can run code on the "
            "workers. Name the Secret with ca.crt, tls.crt and tls.key in cluster.tls_secret, and "
            "their files in this pod in cluster.tls_ca, tls_cert and tls_key; or set "
            "cluster.allow_insecure=true where a network policy keeps all others away"
        )


def is_loopback(place: str) -> bool:
    """Whether HOST:PORT is of this host, by its name alone."""
    host = (place.rpartition(":")[0] or place).strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
