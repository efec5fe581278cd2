"""Early refusal: what can be found wrong within a second or two, before any service is started."""

from tasks.engine.config import Config
from tasks.engine.formats import FORMATS
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.inputs import Input
from tasks.engine.planning import plan_of
from tasks.engine.profile import take_profile
from tasks.engine.roles import check_columns
from tasks.engine.sources import resolve

SMALL_BYTES = 10_000_000


def check_early(config: Config, home: Home) -> None:
    """Runs ingestion and the profile of a small source here; later steps find their results.

    Files beyond 10 MB are only listed; but Parquet's footers are read, and the line of a single
    text that names its columns. A database or a loader of the user's own is left to the flow, since
    it would be asked twice.

    Raises:
        UserError: whatever those steps would refuse, or the home can't be written.
    """
    source = resolve(config.data)
    home.prepare()
    if source.format in ("sql", "loader"):
        return
    small = source.size <= SMALL_BYTES
    if not small and source.format != "parquet":
        header = FORMATS[source.format].header
        # of several files no one says which columns the table has
        if header and len(source.files) == 1:
            check_columns(config, header(Input(source.files[0], config.data), config.data))
        return
    dataset = ingest(config.data, home)
    if small or config.split.kind != "time":
        plan = plan_of(config, dataset)
        if small:
            take_profile(None, dataset, plan, config, home)
