"""From a configuration and a profile to a training: parameters, key, batches, sample of cuts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xgboost
from dask.utils import parse_bytes

from tasks.engine.batches import Batch, BatchSource, Counts, Float32, Sides
from tasks.engine.checkpoints import CheckpointStore
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.config import BoostConfig, Config
from tasks.engine.dataset import Batch as RowGroups
from tasks.engine.dataset import Dataset, RowGroup
from tasks.engine.fold import batches, rows_of_batch
from tasks.engine.frames import Device
from tasks.engine.group import TrainResult, train
from tasks.engine.home import Home, digest_of
from tasks.engine.members import GroupOptions, OnEvent
from tasks.engine.memory import MatrixOptions
from tasks.engine.parts import Slice, read_slices
from tasks.engine.profile import Profile
from tasks.engine.rows import Plan, load, scoring
from tasks.engine.scoring import Encoder
from tasks.engine.spec import BoostSpec
from tasks.engine.split import TRAIN, VALID

FORMAT = 2

# what is passed on to XGBoost under the same name
_PASSED_ON = (
    "max_depth",
    "learning_rate",
    "min_child_weight",
    "gamma",
    "reg_alpha",
    "reg_lambda",
    "max_delta_step",
    "max_leaves",
    "max_bin",
    "grow_policy",
    "colsample_bytree",
    "colsample_bylevel",
    "colsample_bynode",
    "num_parallel_tree",
    "max_cat_to_onehot",
    "max_cat_threshold",
)


def spec_of(config: Config, plan: Plan, profile: Profile, device: Device = "cpu") -> BoostSpec:
    """The training of `config` on the target and features that the profile found."""
    boost = config.boost
    sides = [profile.target[side] for side in ("train", "valid") if side in profile.target]
    valid = profile.target.get("valid")
    encoder = Encoder.from_json(profile.encoder)
    return BoostSpec(
        n_estimators=boost.n_estimators,
        params=_params(boost, plan.names),
        feature_names=tuple(f"f{i}" for i in range(len(plan.features))),
        feature_types=tuple(encoder.feature_types),
        mean=profile.mean,
        max_deviation=max(max(side.high - profile.mean, profile.mean - side.low) for side in sides),
        train_variance=profile.target["train"].deviation ** 2,
        valid_variance=valid.deviation**2 if valid else None,
        max_weight=profile.max_weight,
        subsample=boost.subsample,
        early_stopping_rounds=boost.early_stopping_rounds,
        checkpoint_every=boost.checkpoint_every,
        column_chunk=boost.chunk or _chunk_of(device, boost),
        seed=boost.seed,
        device=device,
    )


def _chunk_of(device: Device, boost: BoostConfig) -> int | None:
    """On a GPU XGBoost sums a tree's leaves in another order when it predicts than while it boosts,
    so margins that a resume predicts differ in their last bits. Where every training predicts them
    anew at each checkpoint, one that is resumed there has the same.
    """
    return boost.checkpoint_every if device == "cuda" else None


def _params(boost: BoostConfig, names: Sequence[str]) -> dict[str, Any]:
    params = {name: getattr(boost, name) for name in _PASSED_ON}
    if boost.monotone_constraints:
        signs = [str(boost.monotone_constraints.get(name, 0)) for name in names]
        params["monotone_constraints"] = f"({','.join(signs)})"
    if boost.interaction_constraints:
        place = {name: i for i, name in enumerate(names)}
        sets = [[place[name] for name in group] for group in boost.interaction_constraints]
        params["interaction_constraints"] = str(sets)
    return params


def training_key(spec: BoostSpec, dataset: Dataset, plan: Plan, profile: Profile) -> str:
    """What a checkpoint depends on: all but the number of rounds and what leaves bytes alone."""
    # a training that stopped early inside a chunk can't go on from there with more patience
    patience = spec.early_stopping_rounds if spec.column_chunk else None
    free = {"n_estimators", "checkpoint_every", "early_stopping_rounds", "threads"}
    return digest_of(
        FORMAT,
        dataset.digest,
        plan,
        profile.encoder,
        profile.sample_share,
        spec.model_dump(mode="json", exclude=free),
        patience,
        xgboost.__version__,
    )


def checkpoints_of(home: Home, key: str) -> CheckpointStore:
    return CheckpointStore(home.path("checkpoints", key))


@dataclass(frozen=True)
class _Batches:
    """Makes the batch sources of a worker's row groups; picklable."""

    plan: Plan
    encoder: str
    device: Device = "cpu"

    def __call__(self, row_groups: Sequence[RowGroup]) -> Sequence[BatchSource]:
        encoder = Encoder.from_json(self.encoder)
        cut = batches(row_groups, rows_of_batch(len(self.plan.features), self.device))
        return [
            BatchSource(
                partial(_read, batch, self.plan, encoder, self.device),
                partial(_count, batch, self.plan),
            )
            for batch in cut
        ]


def _count(groups: RowGroups, plan: Plan) -> Counts:
    """What `_read` gives, without a look at the features: none sets a row aside."""
    fewer = plan.model_copy(update={"features": (), "by": ()})
    side = load(groups, fewer).side
    return {"train": int((side == TRAIN).sum()), "valid": int((side == VALID).sum())}


def _read(groups: RowGroups, plan: Plan, encoder: Encoder, device: Device) -> Sides:
    rows = load(groups, plan, device)
    with scoring(groups, rows.places):
        features = encoder.encode(rows.frame)

    def side(which: int) -> Batch:
        mask = rows.side == which
        weight = None if rows.weight is None else rows.weight[mask]
        # column by column, as they lie in memory, takes a quarter of the time
        chosen = np.compress(mask, features.T, axis=1).T
        return Batch(chosen, rows.target[mask], rows.position[mask], weight)

    return Sides(train=side(TRAIN), valid=side(VALID))


@dataclass(frozen=True)
class _Sample:
    """Reads the sampled training rows as features float32 (n, p), the same on every worker.

    A row more has the last category of every feature: a code beyond the sampled ones would be
    trained as if it were the largest of these.
    """

    parts: tuple[Slice, ...]
    share: float
    encoder: str

    def __call__(self) -> Float32:
        encoder = Encoder.from_json(self.encoder)
        most = sum(part.rows for part in self.parts)
        # into its place part by part: of a wide table it is some 100 MB, and once is enough
        features = np.empty((len(encoder.columns), most + 1), np.float32)
        rows = 0
        for frame in read_slices(self.parts, self.share):
            features[:, rows : rows + len(frame)] = encoder.encode(frame).T
            rows += len(frame)
        last = [len(column.categories or ()) - 1 for column in encoder.columns]
        features[:, rows] = [code if code >= 0 else np.nan for code in last]
        return features[:, : rows + 1].T


def _matrix_options(plan: Plan, profile: Profile, cluster: ClusterConfig) -> MatrixOptions:
    """By chance every worker has about the same share of train and valid rows; a split by time or
    column may give one worker nothing else.
    """
    used = profile.rows["train"] + profile.rows["valid"]
    return MatrixOptions(
        external=cluster.external_memory,
        used=used / sum(profile.rows.values()) if plan.split.kind in ("hash", "group") else 1.0,
        missing=any(column.missing for column in profile.columns),
        gpu_memory=parse_bytes(cluster.gpu_memory_limit) if cluster.gpu_memory_limit else None,
    )


def boost(
    client: Any,
    spec: BoostSpec,
    dataset: Dataset,
    plan: Plan,
    profile: Profile,
    home: Home,
    cluster: ClusterConfig,
    on_event: OnEvent,
) -> TrainResult:
    """Trains to `spec.n_estimators` rounds, from the newest checkpoint of the same training.

    Raises: as `group.train`.
    """
    return train(
        client,
        spec,
        dataset.row_groups(),
        _Batches(plan, profile.encoder, spec.device),
        _Sample(profile.sample, profile.sample_share, profile.encoder),
        checkpoints_of(home, training_key(spec, dataset, plan, profile)),
        on_event,
        GroupOptions(
            tracker_host=cluster.tracker_host,
            tracker_port=cluster.tracker_port,
            form_timeout=cluster.form_timeout,
            lock_timeout=cluster.lock_timeout,
            collective_timeout=cluster.collective_timeout,
            worker_ttl=cluster.worker_ttl,
            replace_timeout=cluster.replace_timeout,
            start_timeout=cluster.start_timeout,
            recoveries=cluster.recoveries,
            matrix=_matrix_options(plan, profile, cluster),
            one_host=cluster.kind in ("local", "auto") and spec.device == "cpu",
        ),
    )
