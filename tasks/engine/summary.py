"""What a training run says of itself in one JSON object: a contract that other programs rely on."""

from tasks.engine.dataset import Frozen
from tasks.engine.report import Side


class Seconds(Frozen):
    """Wall time of each step and of the whole flow, in seconds."""

    ingest: float
    normalize: float
    train: float
    evaluate: float
    record: float
    total: float


class Summary(Frozen):
    """`r2`, `rmse`, `mae` are of the test rows; `model_sha256` is of the booster's bytes.

    `rounds` are those of the final model (after early stopping), `resumed_from_round` is that of
    the checkpoint found at the start (0 if none), `recoveries` counts the groups of workers that
    were lost and replaced.
    """

    r2: float
    rmse: float
    mae: float
    rows: dict[Side, int]
    rounds: int
    model_sha256: str
    dataset_digest: str
    mlflow_run_id: str
    model_uri: str
    flow_run_id: str
    device: str
    workers: int
    resumed_from_round: int
    recoveries: int
    seconds: Seconds
