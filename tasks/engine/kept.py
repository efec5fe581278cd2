"""What the pass found in each file, kept for the next run: only what is new is read.

One file for all files of a source and what their summaries depend on, beside the sample's parts.
Numbers are kept bit by bit, so that a profile is the same whether files were read or remembered.
"""

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from tasks.engine.dataset import Dataset, File, Frozen
from tasks.engine.frames import Device
from tasks.engine.home import Home, digest_of
from tasks.engine.moments import Float64, Moments
from tasks.engine.parts import Slice, present
from tasks.engine.report import SIDES
from tasks.engine.rows import Plan
from tasks.engine.summarise import PassSummary

FORMAT = 2
_INDEX = "files.json"


class KeptFile(Frozen):
    """A file's summary. `numbers` are all its 64-bit floats, little-endian, in base64.

    `sample` holds the training rows whose number drawn is below `share`.
    """

    path: str
    digest: str
    share: float
    seen: int
    numbers: str
    categories: tuple[dict[str, int], ...]
    sample: tuple[Slice, ...]
    reasons: dict[str, int]
    examples: tuple[str, ...]
    aside: tuple[str, ...]


class _Index(Frozen):
    files: tuple[KeptFile, ...]


def place_of(source: str, plan: Plan, device: Device) -> str:
    """The name under `profiles` of what is kept of a source's files.

    A summary depends on a file's path, content, the plan and the device alone; neither on the
    scaler's kind nor on limits, which are looked at once files are together.
    """
    return f"files-{digest_of(FORMAT, source, plan, device)}"


def kept_files(
    home: Home, dataset: Dataset, plan: Plan, share: float, device: Device
) -> dict[str, KeptFile]:
    """What is known of the dataset's files, by path: of the same content, with all parts there."""
    index = home.load(_Index, "profiles", place_of(dataset.source, plan, device), _INDEX)
    if index is None:
        return {}
    digests = {file.path: file.digest for file in dataset.files if file.digest is not None}
    found = {
        kept.path: kept
        for kept in index.files
        if digests.get(kept.path) == kept.digest and kept.share >= share
    }
    needed = {path: _parts(kept) for path, kept in found.items()}
    there = present(uri for uris in needed.values() for uri in uris)
    return {path: kept for path, kept in found.items() if needed[path] <= there}


def keep_files(
    home: Home, source: str, plan: Plan, device: Device, files: Iterable[KeptFile]
) -> None:
    """Keeps what is known of a source's files in place of what was known before."""
    home.save(_Index(files=tuple(files)), "profiles", place_of(source, plan, device), _INDEX)


def kept_of(file: File, summary: PassSummary, share: float) -> KeptFile:
    """The summary of a whole file whose digest is known."""
    assert file.digest is not None
    moments = [summary.numbers, summary.beside, summary.target]
    numbers = [
        summary.missing,
        summary.with_target,
        *(vector for each in moments for vector in vars(each).values()),
        np.array([*summary.weighted, summary.max_weight]),
    ]
    return KeptFile(
        path=file.path,
        digest=file.digest,
        share=share,
        seen=summary.seen,
        numbers=b64encode(np.concatenate(numbers).astype("<f8").tobytes()).decode(),
        categories=tuple(dict(counts) for counts in summary.categories),
        sample=summary.sample,
        reasons=dict(summary.reasons),
        examples=summary.examples,
        aside=summary.aside,
    )


def summary_of(kept: KeptFile, plan: Plan) -> PassSummary:
    """The summary that `kept_of` was given, to the last bit; without digests of row groups."""
    numbers = np.frombuffer(b64decode(kept.numbers), dtype="<f8")
    numeric = plan.width - len(kept.categories)
    taken = 0

    def take(count: int) -> Float64:
        nonlocal taken
        taken += count
        return numbers[taken - count : taken]

    def moments(count: int) -> Moments:
        return Moments(take(count), take(count), take(count), take(count), take(count))

    missing, with_target = take(plan.width), take(numeric)
    of_numbers, beside, target = moments(numeric), moments(numeric), moments(len(SIDES))
    weight, mean, max_weight = take(3).tolist()
    return PassSummary(
        seen=kept.seen,
        missing=missing,
        numbers=of_numbers,
        beside=beside,
        with_target=with_target,
        categories=tuple(_counter(counts) for counts in kept.categories),
        target=target,
        weighted=(weight, mean),
        max_weight=max_weight,
        sample=kept.sample,
        reasons=_counter(kept.reasons),
        examples=kept.examples,
        aside=kept.aside,
        digests=(),
    )


def _counter(counts: Mapping[str, int]) -> Counter[str]:
    return Counter(dict(counts))


def _parts(kept: KeptFile) -> set[str]:
    return {*(part.uri for part in kept.sample), *kept.aside}
