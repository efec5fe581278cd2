"""TLS for a running Dask cluster: what is refused, and in which words."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.cluster import ClusterError, open_cluster
from infra.cluster_plan import ClusterSettingError, TlsFiles
from tasks.engine.config import Config
from tasks.engine.errors import UserError
from tasks.engine.settings import load_config
from tests.security.hosts import Certificates, make_certificates

FILES = ["cluster.tls_ca=/ca.pem", "cluster.tls_cert=/cert.pem", "cluster.tls_key=/key.pem"]
INSECURE = (
    "is another host without TLS: whoever reaches that port can run code on the workers. Start "
    "scheduler and workers with --tls-ca-file, --tls-cert and --tls-key, write tls:// and set "
    "cluster.tls_ca, cluster.tls_cert and cluster.tls_key; or set cluster.allow_insecure=true "
    "where only trusted hosts reach it."
)


def settings(address: str, *more: str) -> Config:
    return load_config(overrides=["cluster.kind=address", f"cluster.address={address}", *more])


@pytest.mark.parametrize(
    ("address", "more"),
    [
        pytest.param("tcp://127.0.0.1:8786", [], id="loopback"),
        pytest.param("localhost:8786", [], id="localhost"),
        pytest.param("tcp://[::1]:8786", [], id="IPv6 loopback"),
        pytest.param("tls://10.0.0.1:8786", FILES, id="TLS"),
        pytest.param("tcp://10.0.0.1:8786", ["cluster.allow_insecure=true"], id="knowingly"),
    ],
)
def test_what_is_safe_is_taken(address: str, more: list[str]) -> None:
    assert settings(address, *more).cluster.address == address


@pytest.mark.parametrize(
    ("address", "more", "message"),
    [
        pytest.param(
            "tcp://10.0.0.1:8786",
            [],
            f"cluster.address='tcp://10.0.0.1:8786' {INSECURE}",
            id="another host",
        ),
        pytest.param(
            "tcp://localhost.evil.example:8786",
            [],
            f"cluster.address='tcp://localhost.evil.example:8786' {INSECURE}",
            id="a name like loopback",
        ),
        pytest.param(
            "tls://10.0.0.1:8786",
            [],
            "cluster.address='tls://10.0.0.1:8786' needs cluster.tls_ca, cluster.tls_cert and "
            "cluster.tls_key, the paths of their files.",
            id="tls without files",
        ),
        pytest.param(
            "tls://10.0.0.1:8786",
            FILES[:1],
            "TLS needs cluster.tls_cert and cluster.tls_key, too.",
            id="one file",
        ),
        pytest.param(
            "tcp://10.0.0.1:8786",
            FILES,
            "with TLS cluster.address should read 'tls://10.0.0.1:8786'.",
            id="files and tcp",
        ),
        pytest.param(
            "tcp://me:hunter2@10.0.0.1:8786",
            [],
            "cluster.address names a user, and Dask knows none: it should read tls://HOST:PORT.",
            id="a password",
        ),
    ],
)
def test_what_is_not_safe_is_refused(address: str, more: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        settings(address, *more)
    assert str(refused.value) == f"The configuration is wrong: {message}"


def test_a_local_cluster_takes_no_certificates() -> None:
    with pytest.raises(UserError, match="a local cluster is reached from this host alone"):
        load_config(overrides=FILES)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "ours", "127.0.0.1")


@pytest.fixture
def listener(certificates: Certificates) -> Iterator[str]:
    """A server that wants certificates, as Dask's scheduler does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(certificates.cert, certificates.key)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with suppress(OSError), context.wrap_socket(connection, True) as wrapped:
                        wrapped.send(b"!")

        threading.Thread(target=answer, daemon=True).start()
        yield f"tls://127.0.0.1:{server.getsockname()[1]}"


def opened(address: str, files: TlsFiles) -> None:
    with open_cluster(kind="address", address=address, start_timeout_s=0.5, tls=files):
        pass


def test_strangers_are_told_apart(listener: str, certificates: Certificates, tmp_path) -> None:
    ours = TlsFiles(certificates.ca, certificates.cert, certificates.key)
    # ours are trusted: what fails is that this server speaks no Dask
    with pytest.raises(ClusterError, match="No Dask scheduler answers at tls://127"):
        opened(listener, ours)
    other = make_certificates(tmp_path / "other", "127.0.0.1")
    for files in (
        TlsFiles(certificates.ca, other.cert, other.key),
        TlsFiles(other.ca, certificates.cert, certificates.key),
    ):
        with pytest.raises(ClusterSettingError, match=r"don't trust each other: .*signed by the"):
            opened(listener, files)


def test_files_that_are_no_certificates(certificates: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", "127.0.0.1")
    ca, cert, key = certificates.ca, certificates.cert, certificates.key
    for files, cause in (
        (TlsFiles(str(tmp_path / "none.pem"), cert, key), "No such file or directory"),
        (TlsFiles(ca, cert, other.key), "KEY_VALUES_MISMATCH"),
        (TlsFiles(ca, key, key), "PEM"),
    ):
        with pytest.raises(ClusterSettingError) as refused:
            opened("tls://127.0.0.1:1", files)
        assert cause in str(refused.value)
        assert "(cluster.tls_ca, cluster.tls_cert, cluster.tls_key)" in str(refused.value)
