"""How long a command waits for its servers and its store to start: BOOSTLINE_START_TIMEOUT."""

import math
import os

VARIABLE = "BOOSTLINE_START_TIMEOUT"
# A first start takes seconds, but sixteen at once on two cores take minutes; what dies is noticed.
DEFAULT_S = 600.0


class StartSettingError(ValueError):
    """A variable that says how services start is wrong."""


def start_limit_s(default: float = DEFAULT_S) -> float:
    """Seconds, from the variable where it is set.

    Raises:
        StartSettingError: it is no finite number above 0.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise StartSettingError(
            f"{VARIABLE}={text!r} is no number of seconds above 0. Unset it, or write it as in 600."
        )
    return seconds
