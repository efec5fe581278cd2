"""A Slurm of one machine: munge, slurmctld and slurmd, started by hand in a folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "sinfo")
CONF = """
ClusterName=boostline
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=night Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Variables by which Slurm's commands find it. Skips where it is absent or can't be started."""
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        pytest.skip(f"a Slurm of one's own needs {', '.join(missing)} (Debian: slurm-wlm)")
    if os.getuid():
        pytest.skip("only root starts a Slurm of its own")
    host, (controller, node) = socket.gethostname(), _free_ports()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, controller=controller, node=node))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    environment = {"SLURM_CONF": str(conf)}
    files = {"key-file": "munge.key", "socket": "munge.sock", "seed-file": "seed"}
    munge = [f"--{name}={folder / file}" for name, file in files.items()]
    servers = [
        ["munged", "--foreground", "--force", *munge, f"--pid-file={folder}/munged.pid"],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in servers:
            with (folder / f"{command[0]}.out").open("wb") as out:
                started.append(
                    subprocess.Popen(
                        command, env={**os.environ, **environment}, stdout=out, stderr=out
                    )
                )
            time.sleep(0.5)
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def squeue(environment: dict[str, str]) -> list[str]:
    """The states of the jobs that have not ended."""
    asked = subprocess.run(
        ["squeue", "--noheader", "--format", "%T"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=80,
    )
    return [state for state in asked.stdout.split() if state != "COMPLETING"]


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format", "%T"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=80,
        )
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.3)
    pytest.skip(f"Slurm did not start here: {(folder / 'slurmctld.log').read_text()[-500:]}")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
