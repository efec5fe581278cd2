"""Boostline's engine on a cluster of its own, step by step: python -m tests.gpu.engine FOLDER KIND

Options after that are settings, as `cluster.workers=2`, and `kill` ends a worker halfway.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xgboost as xgb

from flows.places import chosen, cluster_of, device_of
from tasks.engine.boosting import boost, spec_of
from tasks.engine.config import Config
from tasks.engine.evaluate import evaluate
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.members import Event
from tasks.engine.planning import plan_of
from tasks.engine.predictions import predict_usable, store_scorer
from tasks.engine.profile import take_profile
from tasks.engine.scoring import Encoder, Scorer
from tasks.engine.settings import load_config

SETTINGS = (
    "boost.max_depth=6",
    "boost.learning_rate=0.1",
    "boost.n_estimators=100",
    "split.valid=0",  # as the bare script
)
seconds: dict[str, float] = {}


@contextmanager
def step(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began


class Killer:
    """Ends a worker's process once a quarter of the rounds are done: the driver hears of them late,
    and all of them take about a second.
    """

    def __init__(self, client: Any, rounds: int) -> None:
        self.round = rounds // 4
        self.pid = next(iter(client.run(os.getpid).values()))
        self.killed = False

    def __call__(self, event: Event) -> None:
        if event.kind == "round" and event.round >= self.round and not self.killed:
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)


def run(config: Config, home: Home, kill: bool) -> dict[str, Any]:
    notes: list[str] = []
    cluster, _ = chosen(config.cluster)
    with step("start"):
        opened = cluster_of(cluster, home)
        client = opened.__enter__()
    try:
        device = device_of(client, cluster)
        began = time.monotonic()
        with step("ingest"):
            dataset = ingest(config.data, home, client)
            plan = plan_of(config, dataset, client)
        with step("profile"):
            dataset, profile = take_profile(client, dataset, plan, config, home, device=device)
        spec = spec_of(config, plan, profile, device)
        killer = Killer(client, spec.n_estimators)

        def on_event(event: Event) -> None:
            if event.note:
                notes.append(event.note)
            if event.kind == "round":
                seconds.setdefault("first round", time.monotonic() - began)
            if kill:
                killer(event)

        with step("train"):
            result = boost(client, spec, dataset, plan, profile, home, config.cluster, on_event)
        with step("score"):
            booster = xgb.Booster(model_file=bytearray(result.raw))
            scorer = Scorer(Encoder.from_json(profile.encoder), booster, profile.mean)
            reference = store_scorer(scorer, home)
            reference = type(reference)(**{**vars(reference), "device": result.device})
            parts = predict_usable(client, dataset.row_groups(), plan, reference, home, "scored")
        with step("evaluate"):
            report = evaluate(
                client,
                parts.row_groups(),
                by=(),
                train_mean=profile.target["train"].mean,
                features=plan.width,
                bootstrap=400,
                confidence=0.95,
                seed=0,
            )
        seconds["total"] = time.monotonic() - began
    finally:
        opened.__exit__(None, None, None)
    return {
        "seconds": seconds,
        "r2": report.metrics["test"].r2,
        "device": result.device,
        "sha256": result.model_sha256,
        "recoveries": result.recoveries,
        "external": result.external,
        "workers": result.workers,
        "notes": notes,
    }


def main() -> None:
    folder, kind, *more = sys.argv[1:]
    kill = "kill" in more
    settings = [f"cluster.kind={kind}", *SETTINGS, *(each for each in more if each != "kill")]
    config = load_config(overrides=settings, data=folder, target="y")
    with TemporaryDirectory(prefix="boostline-gpu-", dir=Path(folder).parent) as home:
        print(json.dumps(run(config, Home(home), kill)))


if __name__ == "__main__":
    main()
