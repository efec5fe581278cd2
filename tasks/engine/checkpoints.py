"""Checkpoints of a training: XGBoost's bytes beside a manifest that is written last.

A checkpoint counts once its manifest verifies and the bytes have the digest that it names. Bytes
that don't verify never reach XGBoost: a damaged model can crash the process or predict wrongly.
"""

import re
from dataclasses import dataclass
from hashlib import sha256

import fsspec
import numpy as np
import xgboost
from pydantic import ValidationError

from tasks.engine.dataset import Frozen
from tasks.engine.home import Home, write_atomically

_MANIFEST = re.compile(r"round-(\d{6,})\.json$")


class History(Frozen):
    """RMSE after each round, in units of the target; `valid_rmse` is empty without valid rows."""

    train_rmse: tuple[float, ...] = ()
    valid_rmse: tuple[float, ...] = ()

    @property
    def rounds(self) -> int:
        return len(self.train_rmse)

    def with_round(self, train_rmse: float, valid_rmse: float | None) -> "History":
        valid = self.valid_rmse if valid_rmse is None else (*self.valid_rmse, valid_rmse)
        return History(train_rmse=(*self.train_rmse, train_rmse), valid_rmse=valid)

    def best_rounds(self) -> int:
        """The first number of rounds with the least valid RMSE; all where there are none."""
        if not self.valid_rmse:
            return self.rounds
        return self.valid_rmse.index(min(self.valid_rmse)) + 1

    def first(self, rounds: int) -> "History":
        return History(train_rmse=self.train_rmse[:rounds], valid_rmse=self.valid_rmse[:rounds])

    def stops_at(self, patience: int | None) -> int | None:
        """The first number of rounds whose last `patience` brought no better valid RMSE."""
        if patience is None or not self.valid_rmse:
            return None
        rmse = np.array(self.valid_rmse)
        numbers = np.arange(1, len(rmse) + 1)
        is_better = np.append(True, rmse[1:] < np.minimum.accumulate(rmse)[:-1])
        best = np.maximum.accumulate(np.where(is_better, numbers, 0))
        stops = np.flatnonzero(numbers - best >= patience)
        return int(numbers[stops[0]]) if len(stops) else None


class Manifest(Frozen):
    """What is known of a checkpoint's bytes."""

    rounds: int
    sha256: str
    size: int
    stopped: bool
    history: History
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A booster after `rounds` rounds as UBJSON; `stopped` says that early stopping ended it.

    Of one that went on with more patience than asked for now, `raw` holds more rounds.
    """

    rounds: int
    raw: bytes
    history: History
    stopped: bool = False


@dataclass(frozen=True)
class CheckpointStore:
    """Checkpoints of one training in the folder `uri` (a path, or a URI that all hosts reach).

    Of those up to the one that was saved last, the newest `keep` stay. Nothing is created before
    the first is saved.
    """

    uri: str
    keep: int = 3

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes the bytes, then the manifest, each whole or not at all; removes older ones."""
        manifest = Manifest(
            rounds=checkpoint.rounds,
            sha256=sha256(checkpoint.raw).hexdigest(),
            size=len(checkpoint.raw),
            stopped=checkpoint.stopped,
            history=checkpoint.history,
            versions={"xgboost": xgboost.__version__, "numpy": np.__version__},
        )
        write_atomically(self._path(checkpoint.rounds, "ubj"), checkpoint.raw)
        Home(self.uri).save(manifest, _name(checkpoint.rounds, "json"))
        older = [rounds for rounds in self.saved() if rounds <= checkpoint.rounds]
        for rounds in older[self.keep :]:
            self._remove(rounds)

    def saved(self) -> list[int]:
        """Rounds of the checkpoints that have a manifest, verified or not, newest first."""
        filesystem, path = fsspec.core.url_to_fs(self.uri)
        try:
            names = [str(name) for name in filesystem.ls(path, detail=False, refresh=True)]
        except FileNotFoundError:
            return []
        found = [match for match in map(_MANIFEST.search, names) if match]
        return sorted((int(match.group(1)) for match in found), reverse=True)

    def load(self, rounds: int) -> Checkpoint | None:
        """The checkpoint, or None where it is missing, cut short or altered."""
        try:
            manifest = Home(self.uri).load(Manifest, _name(rounds, "json"))
            if manifest is None or manifest.rounds != rounds:
                return None
            filesystem, path = fsspec.core.url_to_fs(self._path(rounds, "ubj"))
            raw = bytes(filesystem.cat_file(path))
        except (OSError, ValidationError):
            return None
        if sha256(raw).hexdigest() != manifest.sha256:
            return None
        return Checkpoint(rounds, raw, manifest.history, manifest.stopped)

    def latest(self, max_rounds: int, multiple_of: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies and that a training to `max_rounds` can go on from.

        With `multiple_of` (rounds that share a seed of column sampling) only one at the end of
        such a chunk can be gone on from; one that is complete already will do too.
        """
        for rounds in self.saved():
            if rounds > max_rounds:
                continue
            checkpoint = self.load(rounds)
            if checkpoint is None:
                continue
            complete = rounds == max_rounds or checkpoint.stopped
            if multiple_of is None or rounds % multiple_of == 0 or complete:
                return checkpoint
        return None

    def _path(self, rounds: int, suffix: str) -> str:
        return f"{self.uri.rstrip('/')}/{_name(rounds, suffix)}"

    def _remove(self, rounds: int) -> None:
        """The manifest goes first, so that what is left behind by a crash never counts."""
        for suffix in ("json", "ubj"):
            filesystem, path = fsspec.core.url_to_fs(self._path(rounds, suffix))
            try:
                filesystem.rm_file(path)
            except FileNotFoundError:
                continue


def _name(rounds: int, suffix: str) -> str:
    return f"round-{rounds:06d}.{suffix}"
