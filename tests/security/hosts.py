"""Hosts for tests, made of network namespaces, and certificates for them."""

import datetime as dt
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = str(Path(__file__).resolve().parents[2])


@dataclass
class Host:
    """A network namespace with an address of its own; what was started in it ends with it."""

    name: str
    address: str
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def command(self, arguments: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *arguments]

    def start(self, log: Path, *arguments: str, **environment: str) -> None:
        """A Python module with its arguments, as a server."""
        self.start_program(log, sys.executable, "-m", *arguments, **environment)

    def start_program(self, log: Path, *arguments: str, **environment: str) -> None:
        with log.open("ab") as file:
            self.processes.append(
                subprocess.Popen(
                    self.command(arguments),
                    env={**clean_environment(), **environment},
                    cwd=log.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def run(
        self, *arguments: str, cwd: Path, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """The `boostline` command on this host."""
        script = cwd / "boostline"
        script.write_text(
            "import sys\nfrom flows.command import main\n"
            'if __name__ == "__main__":\n    sys.exit(main())\n'
        )
        return subprocess.run(
            self.command([sys.executable, str(script), *arguments]),
            env={**clean_environment(), **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def status_of(self, url: str, credentials: str = "", *words: str) -> int:
        """The status of a GET from this host, 0 where nobody answers; `words` are curl's own."""
        asking = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url, *words]
        if credentials:
            asking += ["-u", credentials]
        done = subprocess.run(self.command(asking), capture_output=True, text=True, check=False)
        return int(done.stdout or 0)

    def wait_for(self, url: str, log: Path) -> None:
        deadline = time.monotonic() + 360
        while not self.status_of(url):
            assert time.monotonic() < deadline, log.read_text()
            assert all(process.poll() is None for process in self.processes), log.read_text()
            time.sleep(0.2)


def clean_environment() -> dict[str, str]:
    prefixes = ("PREFECT_", "MLFLOW_", "BOOSTLINE_", "DASK_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return {**kept, "PYTHONPATH": ROOT, "COLUMNS": "100"}


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips the test where this user may not make namespaces."""
    with hosts(2) as (a, b):
        yield a, b


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Hosts on one wire. Skips the test where this user may not make namespaces."""
    number = os.getpid() % 250
    switch = f"boostline-switch{os.getpid()}"
    made = [Host(f"boostline-{i}-{os.getpid()}", f"10.213.{number}.{i + 1}") for i in range(count)]
    if not shutil.which("ip") or not shutil.which("curl"):
        pytest.skip("hosts need the commands ip (iproute2) and curl")
    try:
        for name in (switch, *(host.name for host in made)):
            added = _ip("netns", "add", name)
            if added.returncode:
                pytest.skip(f"this user may make no network namespaces: {added.stderr.strip()}")
        bridge = _ip("-n", switch, "link", "add", "wire", "type", "bridge")
        if bridge.returncode:
            pytest.skip(f"this user may make no network devices: {bridge.stderr.strip()}")
        _ip("-n", switch, "link", "set", "wire", "up")
        for i, host in enumerate(made):
            inside = ("-n", host.name)
            end = ("peer", "name", f"port{i}", "netns", switch)
            _ip(*inside, "link", "add", "eth0", "type", "veth", *end)
            _ip("-n", switch, "link", "set", f"port{i}", "master", "wire", "up")
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield made
    finally:
        for host in made:
            host.stop()
        for name in (switch, *(host.name for host in made)):
            _ip("netns", "del", name)


def _ip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Certificates:
    """Paths of a CA's certificate and of a certificate and key that it signed."""

    ca: str
    cert: str
    key: str

    @property
    def dask_options(self) -> list[str]:
        return ["--tls-ca-file", self.ca, "--tls-cert", self.cert, "--tls-key", self.key]

    @property
    def settings(self) -> list[str]:
        values = {"tls_ca": self.ca, "tls_cert": self.cert, "tls_key": self.key}
        return [word for k, v in values.items() for word in ("--set", f"cluster.{k}={v}")]


def make_certificates(folder: Path, address: str) -> Certificates:
    """A new CA in `folder` and a certificate of its own for `address`."""
    folder.mkdir()
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = _name(f"CA of {folder.name}")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_signs_certificates(), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    cert = (
        _builder(_name("dask"), ca_name, key.public_key())
        .add_extension(names, critical=False)
        # from Python 3.13 on a chain without these is refused
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "cert.pem").write_bytes(cert.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "key.pem").chmod(0o600)
    return Certificates(*(str(folder / f"{name}.pem") for name in ("ca", "cert", "key")))


def _signs_certificates() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
    )
