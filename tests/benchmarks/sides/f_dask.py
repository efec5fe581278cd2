"""XGBoost's own Dask interface on two worker processes.

Features and target are taken from frames that were computed before: from a lazy frame Dask's
optimiser makes two readings with other partitions, which XGBoost refuses.
"""

import json
import os
import sys

import dask.dataframe as dd
from distributed import Client, LocalCluster, wait
from sklearn.metrics import r2_score
from xgboost import dask as dxgb


def main(folder: str, seed: int) -> None:
    threads = max(1, (os.cpu_count() or 2) // 2)
    with (
        LocalCluster(n_workers=2, threads_per_worker=threads, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        frame = dd.read_parquet(folder, split_row_groups=True)
        texts = list(frame.select_dtypes(exclude="number").columns)
        if texts:
            frame = frame.categorize(texts)
        train, test = client.persist(frame.random_split([0.8, 0.2], random_state=seed))
        wait([train, test])
        features = [name for name in frame.columns if name != "y"]
        matrix = dxgb.DaskQuantileDMatrix(
            client, train[features], train["y"], max_bin=256, enable_categorical=True
        )
        del train
        booster = dxgb.train(
            client,
            {"max_depth": 6, "learning_rate": 0.1, "max_bin": 256, "tree_method": "hist"},
            matrix,
            num_boost_round=100,
        )["booster"]
        predicted = dxgb.inplace_predict(client, booster, test[features])
        r2 = r2_score(test["y"].compute(), predicted.compute())
    print(json.dumps({"r2": r2}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
