"""Imported last by the process that workers are forks of."""

import gc
import os

# Of that process alone; a worker gets the environment of its nanny.
os.environ.pop("PYTHONSAFEPATH", None)
# Python's collector writes to each object that it looks through, and would copy all that is shared.
gc.collect()
gc.freeze()
