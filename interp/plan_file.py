"""A plan as its file has it: the kinds of its fields, and what must hold between them before anything relies on it."""

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from interp.shards import DTYPES
from interp.sites import Site
from interp.store import StoreSpec

_MOST = 1 << 40


@dataclass(frozen=True)
class Written:
    """Field by field."""

    format: str
    version: int
    spec: dict[str, Any]
    row_shapes: dict[str, tuple[int, ...]]
    token_budget: int
    rows_per_shard: int
    multiple: int
    excluded: dict[str, int]
    padding_waste: float
    splits: tuple[dict[str, int], ...]
    shard_rows: tuple[int, ...]
    shard_windows: tuple[int, ...]
    batch_windows: tuple[int, ...]
    doc: tuple[int, ...]
    start: tuple[int, ...]
    length: tuple[int, ...]

    def wrong(self, spec: StoreSpec) -> str | None:
        """What does not go together in a plan, in words."""
        names = [str(Site.parse(name)) for name in self.row_shapes]
        if spec.dtype not in DTYPES or names != list(self.row_shapes) or names != list(spec.sites or ()):
            return f"rows of {names} in {spec.dtype!r}, where its spec has {spec.sites}"
        if any(not 0 < size < _MOST for size in (self.multiple, *chain(*self.row_shapes.values()))):
            return "a size of 0 or less, or one beyond any model's"
        if not len(self.doc) == len(self.start) == len(self.length) or len(self.shard_rows) != len(self.shard_windows):
            return "its lists are of different lengths"
        if not all(0 <= one < _MOST for one in chain(self.doc, self.length, self.shard_rows)):
            return "a negative or an absurd number of a document, of tokens or of rows"
        if not all(-1 <= one < _MOST for one in self.start) or 0 in self.length:
            return "a window that begins before its document, or one of no tokens"
        for name, ends in (("batches", self.batch_windows), ("shards", self.shard_windows)):
            if any(a >= b for a, b in pairwise((0, *ends))) or (ends or (0,))[-1] != len(self.doc):
                return f"its {name} do not cover its {len(self.doc)} windows one after the other"
        if not set(self.shard_windows) <= set(self.batch_windows):
            return "a shard that ends inside a batch"
        return None
