"""What every reader returns: a schema and a stream of record batches of that schema."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tasks.engine.config import DataConfig
from tasks.engine.infer import Evidence
from tasks.engine.inputs import Input


@dataclass(frozen=True)
class Reading:
    """`batches` can be taken once; `evidence` tells why columns of a text format are text."""

    schema: Any
    batches: Iterator[Any]
    evidence: tuple[Evidence, ...] = ()


Reader = Callable[[Input, DataConfig], Reading]
