"""When a step is tried again: an outage may pass, wrong input stays wrong."""

from typing import Any

from tasks.engine.errors import RunError, UserError

RETRIES = 2
RETRY_DELAYS = [1.0, 10.0]


async def may_help(task: Any, run: Any, state: Any) -> bool:
    """True for I/O errors and lost connections; Prefect asks this after a step has failed."""
    try:
        await state.aresult()
    except (UserError, RunError):
        return False
    except OSError:
        return True
    except Exception:  # noqa: BLE001
        # only whether it may pass is asked here; the step itself has failed with it already
        return False
    return False
