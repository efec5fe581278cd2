"""What only one worker sees, told as if one process had read it all."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.engine.boosting import boost, spec_of
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.planning import plan_of
from tasks.engine.profile import take_profile
from tests.bad_inputs.early import changed, columns, configured, parquet, seen

pytestmark = pytest.mark.slow


def test_a_bad_label_that_only_one_worker_sees(
    tmp_path: Path, home: Home, dask_client: Any
) -> None:
    folder = tmp_path / "data"
    for number in range(8):
        table = changed("y", 41, np.inf) if number == 3 else columns()
        parquet(folder, table, f"{number}.parquet", row_group_size=20)
    config = configured(folder)
    dataset = ingest(config.data, home, dask_client)
    with pytest.raises(UserError) as refused:
        take_profile(dask_client, dataset, plan_of(config, dataset), config, home)
    assert re.sub(r"[0-9a-f]{32}", "#", str(refused.value)) == (
        "1 of 480 rows can't be used (the target 'y' is infinite), more than data.max_rejected=0 "
        "allows.\n- row 41 of 3.parquet: the target 'y' is infinite (y=inf, a=-3.769, c=y)\n"
        f"All of them are in {home.root}/rejected/#. Mend the data, or set data.max_rejected to "
        "the share that may be left out."
    )


def test_fewer_rows_than_workers(tmp_path: Path, home: Home, dask_client: Any) -> None:
    table = {"a": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], "s": ["train", "train", "test"]}
    source = parquet(tmp_path / "data", table, row_group_size=1)
    found = seen(source, home, {"split.kind": "column", "split.column": "s"})
    spec = spec_of(found.config, found.plan, found.profile)
    result = boost(
        dask_client,
        spec.model_copy(update={"n_estimators": 3}),
        found.dataset,
        found.plan,
        found.profile,
        home,
        found.config.cluster,
        lambda event: None,
    )
    assert result.rounds == 3 and result.workers == 3
