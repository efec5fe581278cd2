"""The section `cluster`: where a run takes place."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tasks.engine.section import Section
from tasks.engine.tls import check_tls


def _a_size(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"(?i)auto|\d+(\.\d+)? *([kmgtp]i?)?b?", text.strip()):
        raise ValueError(f'{text!r} is no size of memory: write it as in "4GiB"')
    return text


class ClusterConfig(Section):
    """Where it runs: never changes the model's bytes."""

    kind: Literal["local", "address"] = Field(
        "local", description="A Dask cluster of this host's, or a running one by its address."
    )
    workers: int = Field(2, description="Worker processes (local).", ge=1, le=1024)
    threads: int | None = Field(
        None, description="Threads of a worker; this host's cores dealt out if unset.", ge=1
    )
    memory_limit: Annotated[str | None, AfterValidator(_a_size)] = Field(
        None, description='Memory of a worker, as in "4GiB"; a share of this host\'s if unset.'
    )
    external_memory: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether binned features are read from the workers' scratch folders in every "
        "round: where they don't fit memory_limit, in any case, or never.",
    )
    address: str | None = Field(None, description="Scheduler, as in `tls://10.0.0.1:8786`.")
    tls_ca: str | None = Field(
        None,
        description="File of the CA that signed the certificates of scheduler, workers and this "
        "host (address). XGBoost's own traffic between workers is not encrypted all the same: sums "
        "of gradients, over plain TCP. Keep workers in a network of their own.",
    )
    tls_cert: str | None = Field(None, description="File of this host's certificate (address).")
    tls_key: str | None = Field(None, description="File of that certificate's key (address).")
    allow_insecure: bool = Field(
        False,
        description="Use a scheduler on another host without TLS: who reaches it can run code on "
        "the workers and read along, the source's password included.",
    )
    dashboard: bool = Field(False, description="Serve Dask's dashboard on loopback (local).")
    start_timeout: float = Field(60, description="Seconds to wait for workers.", gt=0)
    replace_timeout: float = Field(
        20, description="Seconds to wait for a lost worker's replacement.", ge=0
    )
    worker_ttl: float = Field(
        25, description="Seconds until a frozen worker or scheduler counts as lost.", gt=0
    )
    form_timeout: float = Field(
        300, description="Seconds for workers to come together for a training.", ge=1
    )
    lock_timeout: float = Field(
        86_400, description="Seconds to wait for another training on the same cluster.", gt=0
    )
    collective_timeout: float = Field(
        1800, description="Seconds that workers wait for each other in a round.", ge=1
    )
    tracker_host: str | None = Field(
        None, description="Address of this process that workers reach; found out if unset."
    )
    tracker_port: int = Field(0, description="Its port; a free one if 0.", ge=0, le=65_535)
    recoveries: int = Field(10, description="Lost groups of workers that a run puts up with.", ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "ClusterConfig":
        if self.kind == "address" and not self.address:
            raise ValueError("cluster.kind=address needs cluster.address")
        if self.kind == "local" and self.address:
            raise ValueError("cluster.address is for cluster.kind=address")
        check_tls(
            self.kind,
            self.address or "",
            {name: getattr(self, name) for name in ("tls_ca", "tls_cert", "tls_key")},
            self.allow_insecure,
        )
        return self
