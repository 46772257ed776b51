"""ActivationStore: activations on disk, with the token, document and position of every row.

A folder:

    shard-00000.safetensors ...   see `interp.shards`
    plan.json (plan-00001.json ...)   what was fed to the model, in which batches and shards; one file per part
    manifest.json                 written last: what the rows are and from what, sizes and sha256 of every shard

A store grows by parts: `interp.extract.extract` makes the first, `append=True` and `merge` add more. `doc` counts
through the token files of all parts: part p's document i has the number `first_doc[p] + i` (for the usual store of one
part: i).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from interp.display import Shown
from interp.errors import InputError
from interp.manifest import known_format
from interp.quantised import KINDS, as_bytes, dequantise, scale_name
from interp.remote import as_local, as_url
from interp.sealing import differences, read_json
from interp.shards import KEYS, Layout, Shard, damage, read_dtype
from interp.shuffle import HORIZON_BYTES, Order, prefetched
from interp.sites import Site
from interp.typed import built


@dataclass(frozen=True)
class StoreSpec:
    """What the rows of a part are. As `expect=` of `ActivationStore.open`, fields left at None are not compared."""

    model: str | None = None
    revision: str | None = None
    sites: tuple[str, ...] | None = None
    dtype: str | None = None
    """Of the rows on disk; int8 and float8_e4m3 are read as float32."""
    compute_dtype: str | None = None
    """Of the model that computed them."""
    corpus: str | None = None
    """Digest of the documents."""
    tokens: str | None = None
    """Digest of the token file."""
    tokenizer: str | None = None
    bos: int | None = None
    max_length: int | None = None
    excluded: tuple[str, ...] | None = None
    """Kinds of tokens left out: first_position, special_tokens, template."""
    docs: str | None = None
    """Digest of the documents chosen from the token file; `all` where none were left out."""
    seed: int | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StoreSpec":
        """Read what `asdict` wrote; unknown fields are refused."""
        if unknown := sorted(value.keys() - {f.name for f in fields(cls)}):
            raise InputError(f"the store's description has unknown fields {unknown}; it was made by another version")
        return built(cls, value, "the store's description", defaults=True)


class Damaged(InputError):
    """A shard is missing, or its bytes are not the ones that were written."""


class ActivationBatch(NamedTuple):
    """Rows of a store: per site `n d` (`n h e` for sites with heads), in `store.dtype`."""

    acts: dict[Site, Float[Tensor, "n ..."]]
    token: Int[Tensor, " n"]
    doc: Int[Tensor, " n"]
    position: Int[Tensor, " n"]


class ActivationStore(Shown):
    """A finished store: `len(store)` rows, `store.rows(site, start, stop)`, `store.batches(sites, size, seed=…)`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.checked = False
        self.manifest = manifest
        self.specs = [StoreSpec.from_json(part["spec"]) for part in manifest["parts"]]
        self.sites = [Site.parse(name) for name in manifest["row_shapes"]]
        self.quantised = manifest["dtype"] in KINDS
        self.dtype = read_dtype(manifest["dtype"])
        self.layout = Layout({name: tuple(shape) for name, shape in manifest["row_shapes"].items()}, manifest["dtype"])
        self.ends: Int[np.ndarray, " shards"] = np.cumsum([entry["rows"] for entry in manifest["shards"]])

    @classmethod
    def open(cls, path: str | Path, *, expect: StoreSpec | None = None, checked: bool = False) -> "ActivationStore":
        """Open a finished store. Shard sizes are checked, contents by `verify`; `expect` refuses other settings.

        `checked` compares every shard with its sha256 before the first of its rows is read.
        """
        if (url := as_url(path)) is not None:
            from interp.remote_store import open_remote  # which imports this module

            store = open_remote(url)
        else:
            path = as_local(path)
            store = cls(path, known_format(read_json(path / "manifest.json", "activation store"), str(path)))
        store._refuse(store.wrong_sizes())
        store.checked = checked
        for spec in store.specs if expect else ():
            asked = {name: value for name, value in asdict(expect).items() if value is not None}  # pyright: ignore[reportArgumentType]
            found = {name: value for name, value in asdict(spec).items() if name in asked}
            if difference := differences(found, asked):
                raise InputError(f"{path} was made with other settings: {difference}")
        return store

    def wrong_sizes(self) -> list[str]:
        """Shards that are missing or have another size than was written."""
        return [found for entry in self.manifest["shards"] if (found := damage(self.path, entry, contents=False))]

    def verify(self) -> None:
        """Compare every shard with its sha256; the error names each damaged one."""
        self._refuse([found for entry in self.manifest["shards"] if (found := damage(self.path, entry))])

    def _refuse(self, damages: Sequence[str]) -> None:
        if damages:
            raise Damaged(
                f"{self.path}: {'; '.join(damages)}. The other {len(self.manifest['shards']) - len(damages)} shards "
                "are untouched: run the same extraction again, it recomputes only what is damaged"
            )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _facts(self) -> dict[str, Any]:
        size = f"{len(self) * self.row_bytes / 1e6:,.1f} MB in {len(self.ends):,} shard{'s' * (len(self.ends) != 1)}"
        return {
            "rows": len(self),
            "sites": self.sites,
            "dtype": self.manifest["dtype"],
            "size": size,
            "path": self.path,
        }

    def site(self, site: str | Site) -> Site:
        """`site`, after making sure that it is stored."""
        wanted = Site.parse(site)
        if wanted not in self.sites:
            raise InputError(f"{self.path} holds {', '.join(map(str, self.sites))}, not {wanted}")
        return wanted

    def rows(self, site: str | Site, start: int, stop: int) -> Float[Tensor, "n ..."]:
        """Rows start..stop of one site.

        Within one shard they share the file's pages, across shards they are a copy; so are those of one-byte formats.
        """
        name = str(self.site(site))
        found = self._range(name, start, stop)
        if not self.quantised:
            return found
        scale = self._range(scale_name(name), start, stop)
        return torch.from_numpy(dequantise(as_bytes(found), scale.numpy()))

    def keys(self, start: int, stop: int) -> ActivationBatch:
        """Token, document and position of rows start..stop (`acts` is empty)."""
        token, doc, position = (self._range(name, start, stop) for name in KEYS)
        doc = doc + torch.from_numpy(self.first_docs[self._shard_of(np.arange(start, stop))])
        return ActivationBatch({}, token, doc.to(torch.int32), position)

    def batches(
        self,
        sites: Sequence[str | Site],
        size: int,
        *,
        seed: int,
        first: int = 0,
        epoch: int = 0,
        workers: int = 1,
        horizon_bytes: int = HORIZON_BYTES,
    ) -> Iterator[ActivationBatch]:
        """Shuffled batches of `size` rows (the last may be smaller): each row once per epoch.

        The order is a function of (seed, epoch) and the store alone: not of `workers`, which only read ahead, and
        `first=k` gives what is left after k batches without reading them. Stores of up to `horizon_bytes` (2 GiB) are
        permuted as a whole; in larger ones blocks of 256 rows are permuted over the whole store, and rows within each
        run of `horizon_bytes` of such blocks, so that a batch mixes thousands of places of the store and reads stay
        long.
        """
        if size < 1 or first < 0 or workers < 1:
            raise InputError(
                f"batches: size and workers must be positive, got size={size}, first={first}, workers={workers}"
            )
        names = [str(self.site(site)) for site in sites]
        order = self.order(seed=seed, epoch=epoch, horizon_bytes=horizon_bytes)
        spans = range(first * size, len(self), size)

        def read(start: int) -> ActivationBatch:
            return self.gather(names, order.rows(start, min(start + size, len(self))))

        return prefetched(read, spans, workers)

    def order(self, *, seed: int, epoch: int = 0, horizon_bytes: int = HORIZON_BYTES) -> Order:
        """The order in which `batches` reads the rows."""
        return Order(len(self), seed=seed, epoch=epoch, window=max(1, horizon_bytes // self.row_bytes))

    def trace(self, start: int, stop: int, *, seed: int, epoch: int = 0) -> tuple[Integer[np.ndarray, " n"], ...]:
        """Of rows start..stop of that order: where they stand in the store, and their documents."""
        rows = self.order(seed=seed, epoch=epoch).rows(start, stop)
        return rows, self.gather([], rows).doc.numpy()

    def document_rows(self) -> Int[np.ndarray, " docs"]:
        """How many rows each document has that has any."""
        return np.unique(self.keys(0, len(self)).doc.numpy(), return_counts=True)[1]

    def gather(self, sites: Sequence[str | Site], rows: Int[np.ndarray, " n"]) -> ActivationBatch:
        """The given rows, in the given order."""
        wanted = [self.site(site) for site in sites]
        ranked = np.argsort(rows, kind="stable")
        back = np.empty_like(ranked)
        back[ranked] = np.arange(len(ranked))
        ordered = rows[ranked]
        shard_of = self._shard_of(ordered)
        cuts = np.flatnonzero(np.diff(shard_of)) + 1
        starts = np.concatenate([[0], self.ends[:-1]])
        pieces = [(int(shard_of[part[0]]), ordered[part]) for part in np.split(np.arange(len(rows)), cuts) if len(part)]

        def column(name: str) -> np.ndarray:
            # Ascending reads (the file is walked once), then one permutation in memory. numpy, not torch: indexing in
            # a reading thread must not wake a second pool of OpenMP threads beside the trainer's.
            taken = [self.shard(s).array(name)[index - starts[s]] for s, index in pieces]
            return (taken[0] if len(taken) == 1 else np.concatenate(taken))[back]

        def values(name: str) -> Tensor:
            if self.quantised:
                return torch.from_numpy(dequantise(column(name), column(scale_name(name))))
            found = torch.from_numpy(column(name))
            return found.view(torch.bfloat16) if self.dtype is torch.bfloat16 else found

        acts = {site: values(str(site)) for site in wanted}
        token, doc, position = (column(name) for name in KEYS)
        doc = (doc + self.first_docs[shard_of][back]).astype(np.int32)
        return ActivationBatch(acts, *(torch.from_numpy(key) for key in (token, doc, position)))

    @cached_property
    def first_docs(self) -> Int[np.ndarray, " shards"]:
        """What to add to the documents of each shard."""
        return np.repeat(
            np.array([part["first_doc"] for part in self.manifest["parts"]], np.int64),
            [part["shards"] for part in self.manifest["parts"]],
        )

    @property
    def error(self) -> dict[str, dict[str, float]]:
        """Of one-byte formats, by site: |x - x^|^2 / |x|^2 of a row (and head), `mean` and `worst`, and `overall`."""
        return self.manifest.get("error", {})

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk, over all sites and keys."""
        return max(1, sum(entry["bytes"] for entry in self.manifest["shards"]) // max(1, len(self)))

    def shard(self, index: int) -> Shard:
        """Shard `index`, memory-mapped."""
        if index not in self._open:
            entry = self.manifest["shards"][index]
            if self.checked and (found := damage(self.path, entry)):
                self._refuse([found])
            self._open[index] = Shard(self.path / entry["name"], rows=entry["rows"], layout=self.layout)
        return self._open[index]

    @cached_property
    def _open(self) -> dict[int, Shard]:
        return {}

    def _shard_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return np.searchsorted(self.ends, rows, side="right")

    def _range(self, name: str, start: int, stop: int) -> Tensor:
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"rows {start}..{stop} were asked for; the store has 0..{len(self)}")
        ends = np.minimum([start, max(start, stop - 1)], len(self) - 1)
        first, last = (int(s) for s in self._shard_of(ends))
        offset = int(self.ends[first - 1]) if first else 0
        if first == last:
            return self.shard(first)[name][start - offset : stop - offset]
        pieces = []
        for index in range(first, last + 1):
            end = int(self.ends[index])
            pieces.append(self.shard(index)[name][max(start, offset) - offset : min(stop, end) - offset])
            offset = end
        return torch.cat(pieces)

    @staticmethod
    def merge(paths: Sequence[str | Path], out: str | Path) -> "ActivationStore":
        """Copy stores of the same model, sites and dtype into one, as parts in the order given."""
        from interp import merging  # which imports this module

        return merging.merge([ActivationStore.open(path) for path in paths], Path(out))
