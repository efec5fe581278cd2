"""The pass over a table: files that are new are read, those of an earlier run are remembered.

Batches are merged to files and files to the table, always in this order: what is remembered and
what is read come to the same profile, to the last bit.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from fsspec.core import url_to_fs

from tasks.engine.config import DataConfig
from tasks.engine.dataset import Dataset, File, by_file
from tasks.engine.digests import remember
from tasks.engine.fold import batches, mapped, rows_of_batch
from tasks.engine.frames import Device
from tasks.engine.home import Home, digest_of
from tasks.engine.kept import KeptFile, keep_files, kept_files, kept_of, place_of, summary_of
from tasks.engine.rows import Plan
from tasks.engine.summarise import Pass, PassSummary, check_categories, merged

Told = Callable[[int, int], None]


def take_pass(
    client: Any,
    dataset: Dataset,
    plan: Plan,
    data: DataConfig,
    home: Home,
    share: float,
    on_progress: Told,
    device: Device = "cpu",
) -> tuple[Dataset, PassSummary, str]:
    """The dataset with its digests, the table's summary, and the folder of rows set aside.

    Files are read on the workers' `device`.

    Raises:
        UserError: a value can't be used, or a column has too many categories.
    """
    listed = digest_of([file.uri + file.modified for file in dataset.files], plan)
    rejected_folder = home.path("rejected", listed)
    kept = kept_files(home, dataset, plan, share, device)
    fresh = [file for file in dataset.files if file.rows and file.path not in kept]
    this_pass = Pass(
        plan=plan,
        max_categories=data.max_categories,
        sample_share=share,
        sample_folder=home.path("profiles", place_of(dataset.source, plan, device)),
        rejected_folder=rejected_folder,
        device=device,
    )
    read = _read(client, fresh, this_pass, dataset.rows, on_progress)
    dataset = dataset.with_digests(_file_digests(dataset, read))
    remember(home, dataset)
    kept = {path: _with_aside(entry, rejected_folder) for path, entry in kept.items()}
    new = {
        file.path: kept_of(file, read[file.path], share)
        for file in dataset.files
        if file.path in read
    }
    files = [file for file in dataset.files if file.rows]
    if new:
        known = {**kept, **new}
        keep_files(home, dataset.source, plan, device, [known[file.path] for file in files])
    summary = merged([read.get(file.path) or summary_of(kept[file.path], plan) for file in files])
    categories = [feature for feature in plan.features if feature.kind == "category"]
    for feature, counts in zip(categories, summary.categories, strict=True):
        check_categories(feature.name, counts, data.max_categories)
    return dataset, summary, rejected_folder


def _read(
    client: Any, files: Sequence[File], this_pass: Pass, rows: int, on_progress: Told
) -> dict[str, PassSummary]:
    """Summaries of files by path; `rows` are those of the whole table."""
    if not files:
        return {}
    known = rows - sum(file.rows for file in files)
    undigested = {file.uri for file in files if file.digest is None}
    groups = [group for file in files for group in file.groups()]
    cut = batches(groups, rows_of_batch(len(this_pass.plan.columns), this_pass.device))
    calls = [
        # each call hears of its own files only: there may be many
        (batch, frozenset(group.uri for group in batch) & undigested)
        for batch in cut
    ]
    results = mapped(client, this_pass, calls, lambda done, total: on_progress(known + done, rows))
    by_path: dict[str, list[PassSummary]] = {}
    for batch, summaries in zip(cut, results, strict=True):
        for file, summary in zip(by_file(batch), summaries, strict=True):
            by_path.setdefault(file[0].path, []).append(summary)
    return {path: merged(summaries) for path, summaries in by_path.items()}


def _file_digests(dataset: Dataset, read: Mapping[str, PassSummary]) -> dict[str, str]:
    """One digest for a file from its own columns and those of its row groups, in their order."""

    def digest(file: File, parts: Sequence[str]) -> str:
        return blake2b(repr((file.layout, list(parts))).encode(), digest_size=16).hexdigest()

    return {
        file.uri: digest(file, read[file.path].digests if file.path in read else ())
        for file in dataset.files
        if file.digest is None
    }


def _with_aside(kept: KeptFile, folder: str) -> KeptFile:
    """The same with its rejected rows in `folder` too, which then holds those of all files."""
    moved = []
    for uri in kept.aside:
        here = f"{folder}/{uri.rpartition('/')[2]}"
        if here != uri:
            filesystem, source = url_to_fs(uri)
            target = url_to_fs(here)[1]
            filesystem.makedirs(filesystem._parent(target), exist_ok=True)
            filesystem.cp_file(source, target)
        moved.append(here)
    return kept.model_copy(update={"aside": tuple(moved)}) if moved else kept
