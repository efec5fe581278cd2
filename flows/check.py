"""Everything up to training, without training: what a run of this configuration would do."""

from contextlib import ExitStack
from dataclasses import dataclass

from flows.places import aside, chosen, cluster_of, device_of
from tasks.engine.boosting import checkpoints_of, spec_of, training_key
from tasks.engine.checkpoints import Checkpoint
from tasks.engine.config import Config
from tasks.engine.early import SMALL_BYTES
from tasks.engine.fold import BATCH_ROWS
from tasks.engine.frames import Device
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.planning import plan_of
from tasks.engine.profile import Profile, take_profile
from tasks.engine.progress import Progress, reporter
from tasks.engine.report import Side
from tasks.engine.sources import resolve
from tasks.engine.spec import BoostSpec


@dataclass(frozen=True)
class CheckResult:
    """What a run would do. `binned_bytes` is the size of the binned matrix over all workers."""

    rows: int
    sides: dict[Side, int]
    profile: Profile
    notes: tuple[str, ...]
    rounds: int
    rounds_left: int
    resumes_from_round: int
    binned_bytes: int


def check(config: Config, home: Home) -> CheckResult:
    """Ingests and profiles, on the cluster where the table is large, and counts what is to come.

    Raises:
        UserError: whatever a run would refuse before it trains.
    """
    tell = reporter()
    cluster, notes = chosen(config.cluster)
    # small tables are read here, but for clusters that may have GPUs, whose profiles differ in the
    # last digits, or may not be there at all; nobody is asked for workers for a look
    device: Device = "cpu"
    with ExitStack() as stack:
        client = None
        source = resolve(config.data)
        if source.size > SMALL_BYTES or cluster.kind in ("cuda", "address"):
            client = stack.enter_context(cluster_of(cluster, home, config.data.source))
        dataset = ingest(config.data, home, client)
        if client is None and dataset.rows > 4 * BATCH_ROWS:
            client = stack.enter_context(cluster_of(cluster, home, config.data.source))
        if client is not None:
            device = device_of(client, cluster)
        plan = plan_of(config, dataset, client)
        dataset, profile = take_profile(
            client,
            dataset,
            plan,
            config,
            home,
            lambda done, total: tell(Progress("normalize", done, total)),
            device,
        )
    spec = spec_of(config, plan, profile, "cuda" if cluster.kind == "cuda" else device)
    store = checkpoints_of(home, training_key(spec, dataset, plan, profile))
    start = spec.latest(store)
    return CheckResult(
        rows=dataset.rows,
        sides=profile.rows,
        profile=profile,
        notes=(*notes, *dataset.notes, *profile.notes, *aside(profile, home)),
        rounds=config.boost.n_estimators,
        rounds_left=_rounds_left(spec, start),
        resumes_from_round=start.rounds if start else 0,
        binned_bytes=profile.rows["train"]
        * len(plan.features)
        * (1 if config.boost.max_bin <= 256 else 2),
    )


def _rounds_left(spec: BoostSpec, start: Checkpoint | None) -> int:
    """None after an early stop, whatever number of rounds was asked for."""
    if start is None:
        return spec.n_estimators
    return 0 if spec.is_complete(start.history) else spec.n_estimators - start.rounds
