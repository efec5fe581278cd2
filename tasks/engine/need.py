"""What boosting a share of the rows takes of a worker, in bytes: estimated before it begins."""

from dataclasses import dataclass
from typing import Literal

from tasks.engine.workers import megabytes

ExternalMemory = Literal["auto", "always", "never"]

# Measured with XGBoost 3.2.0, peaks of resident memory. Per row: label, margin, gradient, hessian
# and place in the tree; an objective of our own also has positions, weights and 64 bits.
ROW_BYTES = 64
OWN_ROW_BYTES = 128
# Per value of a batch: as it is decoded, as float32, the same of the one read ahead, and its page.
BATCH_BYTES = 24
# A page is larger than its bins: measured with 1,000 features.
PAGE_OVERHEAD = 1.25
# XGBoost parts the rows of each page by blocks, one for each node at the least.
BLOCK_BYTES = 32_832
BLOCKS = 256
# A node's histogram, per bin: sums of gradients and hessians as float64. XGBoost keeps those of a
# whole tree, so that of two siblings it adds up one; beyond so many nodes, or such a share of the
# limit, adding up both takes less time and memory. It grows so many nodes at once, at most.
HISTOGRAM_BYTES = 16
CACHED_NODES = 2_048
HISTOGRAM_SHARE = 1 / 8
NODES_AT_ONCE = 512
# Of its rows, that a node must have to have children, if trees are deep: measured.
NODE_ROWS = 4


@dataclass(frozen=True)
class Need:
    """Bytes that a share of the rows takes. `largest` is the number of rows of its largest batch,
    `bins` that of bins of a feature at most, `all_bins` of all features together; `tree` are the
    nodes of a tree that have a histogram, at most, and `nodes` those that are kept at once.
    """

    rows: int
    largest: int
    features: int
    bins: int
    missing: bool
    own_objective: bool
    all_bins: int
    tree: int
    nodes: int

    @property
    def value(self) -> int:
        """Of one value: its bin by row and by column. With missing values in any of the features
        XGBoost keeps all bins by row as 4 bytes.
        """
        column = 1 if self.bins <= 256 else 2 if self.bins <= 65_536 else 4
        return (4 if self.missing else column) + column

    @property
    def matrix(self) -> int:
        return self.rows * (self.features * self.value + 8 * self.missing)

    @property
    def histograms(self) -> int:
        return self.nodes * self.all_bins * HISTOGRAM_BYTES

    @property
    def state(self) -> int:
        """What is kept in memory in either case."""
        row = OWN_ROW_BYTES if self.own_objective else ROW_BYTES
        return self.rows * row + self.histograms

    @property
    def batch(self) -> int:
        return self.largest * self.features * BATCH_BYTES

    @property
    def in_memory(self) -> int:
        """At the peak: batches are read before there are gradients."""
        return self.matrix + max(self.state, self.batch)

    @property
    def pages(self) -> int:
        return int(self.matrix * PAGE_OVERHEAD)

    @property
    def page_row(self) -> float:
        """Bytes of a row in a page."""
        return PAGE_OVERHEAD * (self.features * self.value + 8)

    @property
    def page_blocks(self) -> int:
        """What a page takes in memory while it is on disk."""
        return BLOCK_BYTES * min(BLOCKS, (self.tree + 1) // 2)

    def too_large(self, mode: ExternalMemory) -> str:
        """What the share takes, and the way out, for workers that died of it."""
        if mode == "never":
            kept = f"{megabytes(self.matrix + self.state)} as bins, gradients and histograms"
            disk = "let bins go to disk (cluster.external_memory='auto'), "
        else:
            kept = (
                f"{megabytes(self.state)} as labels, margins, gradients and histograms, with bins "
                "on disk"
            )
            disk = ""
        return (
            f"A share of {self.rows:,} rows × {self.features:,} features takes about {kept}, "
            f"beside some 400 MB for the libraries and batches of {self.largest:,} rows as they "
            f"are read. Give workers more memory (cluster.memory_limit), {disk}spread the rows "
            "over more of them (cluster.workers), or use smaller row groups "
            "(data.row_group_rows)."
        )


def tree_nodes(depth: int, leaves: int, rows: int) -> int:
    """How many nodes of a tree have a histogram, at most; 0 for no limit of depth or leaves."""
    of_depth = 2**depth - 1 if depth else rows
    of_leaves = 2 * leaves - 1 if leaves else rows
    return max(1, min(of_depth, of_leaves, rows // NODE_ROWS))
