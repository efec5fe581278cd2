"""XGBoost without its wrappers for scikit-learn, for processes of our own: import this first.

XGBoost looks whether scikit-learn is there by importing it, which takes six times as long as the
rest of it and 60 MB, and nothing here uses it. In such a process `xgboost.XGBRegressor` says that
scikit-learn is missing, so none may be one that runs a user's code. scikit-learn itself can be
imported afterwards.
"""

import sys

_ABSENT = "sklearn"

if _ABSENT in sys.modules:  # what there was to save is spent
    import xgboost
else:
    sys.modules[_ABSENT] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import xgboost  # noqa: F401
    finally:
        del sys.modules[_ABSENT]
