"""The plan of an extraction: every batch and every shard boundary, fixed and on disk before the first row is computed.

A plan is a function of the token file, the settings and the seed. Its rows are known in advance: what is excluded
(padding always; the first position of every fed window, special tokens and chat-template tokens unless asked for)
depends on tokens alone. Batches may be cut in two later, when memory runs out, which is recorded here; rows, their
order and the shards never change.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from interp.batching import Buckets, Windows, grouped, places, windows_of
from interp.errors import InputError
from interp.plan_file import Written
from interp.sealing import write_sealed
from interp.shards import Layout
from interp.store import StoreSpec
from interp.tokenfile import TokenFile
from interp.typed import built, check_fields, read_object

_FORMAT = "midlens-plan"
_VERSION = 1
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Exclusions:
    """Which rows stay out of a store. Padding always does."""

    first_position: bool = True
    """Position 0 of every fed window: its norm is massive in most models (SmolLM2 too), with or without a BOS."""
    special_tokens: bool = True
    """What the tokenizer declares special, BOS included."""
    template: bool = True
    """Tokens written by the chat template."""

    def names(self) -> tuple[str, ...]:
        """The kinds left out."""
        return tuple(name for name, out in asdict(self).items() if out)


class Selector:
    """Which positions of a fed window become rows."""

    def __init__(self, tokens: TokenFile, exclude: Exclusions) -> None:
        self.tokens, self.exclude = tokens, exclude
        self._special = np.zeros(max(tokens.manifest["tokenizer"]["vocabulary"], 1), bool)
        self._special[tokens.special_ids] = True

    def kept(self, windows: Windows, counts: dict[str, int] | None = None) -> Bool[np.ndarray, " n"]:
        """For every position of `windows`, one window behind the other: True where a row is kept.

        `counts` adds up what is left out, under the first reason that applies.
        """
        tokens, own = self.tokens, 0 if self.tokens.bos is None else 1
        place = places(windows)
        at = np.repeat(tokens.offsets[windows.doc] + windows.start, windows.length) + place
        bos = place < own  # in front of the window's own tokens, and not in the token file
        at[bos] = 0
        reasons: dict[str, Bool[np.ndarray, " n"]] = {}
        if self.exclude.first_position:
            reasons["first_position"] = place == 0
        if self.exclude.special_tokens:
            out = self._special[np.asarray(tokens.tokens)[at]]
            if own:
                out[bos] = self._special[tokens.bos]
            reasons["special_tokens"] = out
        if self.exclude.template and tokens.template is not None:
            reasons["template"] = (np.asarray(tokens.template)[at] != 0) & ~bos
        kept = np.ones(len(place), bool)
        for name, out in reasons.items():
            if counts is not None:
                counts[name] = counts.get(name, 0) + int((out & kept).sum())
            kept &= ~out
        return kept

    def rows(self, windows: Windows, excluded: dict[str, int]) -> Int[np.ndarray, " w"]:
        """How many rows each window gives; `excluded` adds up what is left out. Not one row is an error."""
        rows = np.zeros(len(windows), np.int64)
        ends = np.cumsum(windows.length)
        first = 0
        while first < len(windows):
            # Some million positions at a time: memory does not grow with the corpus.
            stop = max(
                first + 1, int(np.searchsorted(ends, (ends[first - 1] if first else 0) + _AT_ONCE, side="right"))
            )
            some = windows.take(slice(first, stop))
            begins = np.cumsum(some.length) - some.length
            rows[first:stop] = np.add.reduceat(self.kept(some, excluded), begins, dtype=np.int64)
            first = stop
        if not rows.sum():
            raise InputError(
                f"nothing is left of {int(windows.length.sum())} tokens without {', '.join(self.exclude.names())}: "
                "give longer documents, or exclude less"
            )
        return rows


@dataclass(frozen=True)
class Plan:
    """Batches, shards and what they are of."""

    spec: StoreSpec
    row_shapes: dict[str, tuple[int, ...]]
    buckets: Buckets
    token_budget: int
    rows_per_shard: int
    shard_windows: Int[np.ndarray, " shards"]
    """Where each shard ends, in windows."""
    shard_rows: Int[np.ndarray, " shards"]
    excluded: dict[str, int]
    splits: tuple[dict[str, int], ...] = ()
    """Batches cut in two for want of memory: from which batch on, from how many padded tokens on, how many batches."""

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return int(self.shard_rows.sum())

    @property
    def n_tokens(self) -> int:
        """Tokens fed, padding not counted."""
        return int(self.buckets.windows.length.sum())

    @property
    def layout(self) -> Layout:
        """The tensors of a shard."""
        assert self.spec.dtype is not None
        return Layout(self.row_shapes, self.spec.dtype)

    def batches_of(self, shard: int) -> range:
        """The batches whose rows make up shard `shard`."""
        edges = (self.shard_windows[shard - 1] if shard else 0, self.shard_windows[shard])
        first, stop = np.searchsorted(self.buckets.ends, edges, side="right")
        return range(int(first), int(stop))

    def halved(self, batch: int) -> "Plan":
        """The plan after batch `batch` did not fit into memory: it and all later ones as large are cut in two."""
        size = int(self.buckets.padded[batch])
        buckets = self.buckets.halve(batch, tokens=size)
        split = {"batch": batch, "padded_tokens": size, "batches": len(buckets) - len(self.buckets)}
        return replace(self, buckets=buckets, splits=(*self.splits, split))

    def save(self, path: Path) -> None:
        """Write the plan, one field a line."""
        windows = self.buckets.windows
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "spec": asdict(self.spec),
            "row_shapes": self.row_shapes,
            "token_budget": self.token_budget,
            "rows_per_shard": self.rows_per_shard,
            "multiple": self.buckets.multiple,
            "excluded": self.excluded,
            "padding_waste": round(self.buckets.waste, 6),
            "splits": self.splits,
            "shard_rows": self.shard_rows.tolist(),
            "shard_windows": self.shard_windows.tolist(),
            "batch_windows": self.buckets.ends.tolist(),
            "doc": windows.doc.tolist(),
            "start": windows.start.tolist(),
            "length": windows.length.tolist(),
        }
        lines = (f" {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in content.items())
        write_sealed(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan."""
        content = read_object(path, "plan")
        if content.get("format") != _FORMAT or content.get("version") != _VERSION:
            raise InputError(f"{path} is no plan of version {_VERSION} (found {content.get('format')!r:.80})")
        found = built(Written, content, str(path))
        spec = StoreSpec.from_json(found.spec)
        check_fields(spec)
        if wrong := found.wrong(spec):
            raise InputError(f"{path} is damaged: {wrong}; delete the folder and extract again")
        columns = [np.asarray(one, np.int64) for one in (found.doc, found.start, found.length, found.batch_windows)]
        return cls(
            spec=spec,
            row_shapes=found.row_shapes,
            buckets=Buckets(Windows(*columns[:3]), columns[3], found.multiple),
            token_budget=found.token_budget,
            rows_per_shard=found.rows_per_shard,
            shard_windows=np.asarray(found.shard_windows, np.int64),
            shard_rows=np.asarray(found.shard_rows, np.int64),
            excluded=found.excluded,
            splits=found.splits,
        )


def make_plan(
    tokens: TokenFile,
    spec: StoreSpec,
    selector: Selector,
    row_shapes: dict[str, tuple[int, ...]],
    *,
    docs: Sequence[int] | None,
    token_budget: int,
    rows_per_shard: int,
    multiple: int,
) -> Plan:
    """Fix batches and shards. Windows without a single row to keep are not fed at all."""
    assert spec.max_length is not None and spec.seed is not None
    windows = windows_of(tokens.lengths, max_length=spec.max_length, bos=tokens.bos is not None, docs=docs)
    excluded: dict[str, int] = {}
    rows = selector.rows(windows, excluded)
    fed = np.flatnonzero(rows)
    buckets, order = grouped(windows.take(fed), token_budget=token_budget, multiple=multiple, seed=spec.seed)
    shard_windows, shard_rows = _shards(buckets, rows[fed][order], rows_per_shard)
    return Plan(spec, row_shapes, buckets, token_budget, rows_per_shard, shard_windows, shard_rows, excluded)


def _shards(
    buckets: Buckets, rows: Int[np.ndarray, " w"], rows_per_shard: int
) -> tuple[Int[np.ndarray, " shards"], Int[np.ndarray, " shards"]]:
    """Shards of whole batches: as many as stay within `rows_per_shard`, at least one."""
    before = np.concatenate([[0], np.cumsum(rows)])[np.concatenate([[0], buckets.ends])]
    ends = [0]
    while ends[-1] < len(buckets):
        fit = int(np.searchsorted(before, before[ends[-1]] + rows_per_shard, side="right")) - 1
        ends.append(max(fit, ends[-1] + 1))
    return buckets.ends[np.asarray(ends[1:]) - 1], np.diff(before[ends])


def describe(plan: Plan, folder: Path, *, bytes_left: int, seconds: float | None, memory: int) -> str:
    """The plan in words: what will be computed, what it takes, and whether it fits."""
    spec, windows = plan.spec, plan.buckets.windows
    out = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in plan.excluded.items() if count) or "none"
    lines = [
        f"model       {spec.model}, computing in {spec.compute_dtype}",
        f"sites       {', '.join(plan.row_shapes)}",
        f"tokens      {plan.n_tokens:,} from {len(np.unique(windows.doc)):,} documents, in {len(windows):,} windows",
        f"batches     {len(plan.buckets):,} of up to {plan.token_budget:,} tokens; {plan.buckets.waste:.2%} padding",
        f"rows        {plan.rows:,} kept; left out: {out}",
        f"disk        {_size(bytes_left)} to write as {spec.dtype} in {len(plan.shard_rows):,} shards; "
        f"{_size(shutil.disk_usage(folder).free)} free under {folder}",
        f"memory      about {_size(memory)}",
        f"time        {'nothing left to compute' if seconds is None else 'about ' + _duration(seconds)}",
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
