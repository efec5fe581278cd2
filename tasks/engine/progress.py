"""How far a step is: told by the engine, shown by whoever listens (terminal, Prefect, MLflow)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` in `unit`s of a step ("rows", "rounds"); `note` is worth showing beside."""

    step: str
    done: int
    total: int
    unit: str = "rows"
    note: str = ""


Listener = Callable[[Progress], None]

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block `listener` hears of every step of this context."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def reporter() -> Listener:
    """Tells all who listen here and now; may be called from another thread afterwards."""
    listeners = _listeners.get()

    def tell(progress: Progress) -> None:
        for listener in listeners:
            listener(progress)

    return tell
