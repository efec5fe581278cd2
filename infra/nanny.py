"""A nanny that does not give up a worker which dies or hangs while it starts."""

import asyncio
from typing import Any

from distributed import Nanny
from distributed.core import Status

from infra import forking


class PatientNanny(Nanny):
    """Starts a worker anew until `death_timeout`, each attempt for `start_limit` seconds at most.

    Dask's own fails, and the cluster with it, where a process dies before it is a worker, and it
    waits 1.8 times `death_timeout` for one that hangs.
    """

    def __init__(self, *args: Any, start_limit: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start_limit = start_limit

    async def instantiate(self) -> Status:
        while True:
            forking.ensure()
            watch = asyncio.create_task(self._end_if_it_hangs())
            try:
                status: Status = await super().instantiate()
            except EOFError:  # the process died that this one was to be a fork of
                self.process = None
                continue
            finally:
                watch.cancel()
            # once the nanny is up, Dask calls this again whenever a process has ended
            if status == Status.running or self.status != Status.init:
                return status

    async def _end_if_it_hangs(self) -> None:
        await asyncio.sleep(self._start_limit)
        starting = self.process
        if starting is not None and starting.status == Status.starting and starting.process:
            await starting.process.kill()
