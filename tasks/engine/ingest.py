"""The one entry to a table: what `data.source` names, as row groups of Parquet."""

from collections.abc import Collection
from typing import Any

from tasks.engine.config import DataConfig
from tasks.engine.convert import convert
from tasks.engine.dataset import Dataset
from tasks.engine.digests import remember_footers, remembered, remembered_footers
from tasks.engine.home import Home
from tasks.engine.parquet import footers_of, inspect
from tasks.engine.sources import resolve


def ingest(
    config: DataConfig, home: Home, client: Any = None, texts: Collection[str] = ()
) -> Dataset:
    """Parquet is inspected in place, everything else is converted under the home.

    `client` is a Dask client whose workers convert, or None to do it here. Footers and content
    digests of Parquet files that were read before are remembered, unless `config.verify` asks for
    them anew. The columns `texts` are not guessed to be numbers or times where the format leaves
    that open.

    Raises:
        UserError: there is no such source, or it can't be read as one table; the home can't be
            written.
    """
    source = resolve(config)
    home.prepare()
    if source.format != "parquet":
        return convert(source, config, home, client, texts)
    if config.verify:
        return inspect(source, max_gigabytes=config.max_gigabytes)
    known = remembered_footers(home, source.shown, source.files)
    footers = footers_of(source, known)
    dataset = inspect(source, remembered(home, source.shown), config.max_gigabytes, footers)
    if len(known) < len(source.files):
        remember_footers(home, source.shown, source.files, footers)
    return dataset
