"""Contracts with the pinned RAPIDS release, which hold on a machine without a GPU.

By command alone, in an environment that has the extra `gpu`: pytest tests/contract -m contract
"""

import importlib.util

import pytest

NEEDED = ("cudf", "cupy", "dask_cuda", "dask_cudf", "cuml", "nvforest", "pynvml", "rmm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    reason = f"RAPIDS is not installed here (the extra 'gpu'): no {', '.join(missing)}"
    for item in items:
        if item.get_closest_marker("contract"):
            item.add_marker(pytest.mark.skip(reason=reason))
