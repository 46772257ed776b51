"""ActivationStream: training rows straight from the model, without a store.

    documents, in another order each epoch -> model -> in-memory shuffle buffer -> batches       (see `interp.schedule`)

The buffer holds two generations of W rows: one is being used up while a thread computes the next, so

    W = buffer_bytes / (2 * bytes of a row)              int8 and float8_e4m3: half of bfloat16's bytes, twice the rows

and no third one ever exists, however slow either side is. W is the mixing horizon: a batch is a sample of W rows that
were computed one behind the other, from documents chosen all over the token file (at a seam, of two such runs). What a
batch holds is a function of (seed, epoch, number of the batch): after a kill, batch k is had by computing the one or
two generations it lies in, and not those before. Before the first batch a whole generation has to be computed. A buffer
that is half read and filled up again has a third of the pairs of one document in a batch at the same memory
(`benchmarks/mixing.py`), and needs its whole past to be continued.

It has what `saes.train.fit` needs of an `interp.store.ActivationStore` and gives the same rows, each once per epoch; in
low precision they differ in the last bit, as other batch shapes do. The model runs in the thread: leave it alone while
an iterator of batches is open.
"""

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.batching import windows_of
from interp.errors import InputError
from interp.extract import StoreDtype, described, suited
from interp.pipeline import Capturing, Ready, Rows, assemble, is_out_of_memory, refuse_nonfinite
from interp.plan import Exclusions, Plan
from interp.quantised import read, scale_name
from interp.schedule import Material, Schedule
from interp.shards import DTYPES, KEYS, Layout, read_dtype
from interp.shuffle import Stopped, one_ahead, prefetched
from interp.sites import Site
from interp.store import ActivationBatch
from interp.tokenfile import TokenFile

BUFFER_BYTES = 2 << 30
_FEWEST = 4  # windows a generation must hold


class Generation:
    """Consecutive rows in memory, in the order of production."""

    def __init__(self, identity: tuple[int, int, int], layout: Layout, size: int) -> None:
        self.identity, self.size, self.filled = identity, size, 0
        self.acts = {name: torch.empty((size, *s), dtype=DTYPES[dtype]) for name, (dtype, s) in layout.rows.items()}
        self.keys = {name: torch.empty(size, dtype=torch.int32) for name in KEYS}

    def append(self, rows: Rows) -> None:
        """Take over the rows of one batch, which have arrived."""
        stop = self.filled + len(rows.keys[KEYS[0]])
        for name, x in rows.acts.items():
            self.acts[name][self.filled : stop] = x
        for name, column in rows.keys.items():
            self.keys[name][self.filled : stop] = torch.from_numpy(column)
        self.filled = stop

    def take(self, sites: Sequence[Site], index: Int[np.ndarray, " n"]) -> ActivationBatch:
        """A copy of the rows at `index`, in float32 if they are held in one byte a number."""
        at = torch.from_numpy(index)

        def values(name: str) -> Tensor:
            found, scale = self.acts[name].index_select(0, at), self.acts.get(scale_name(name))
            return found if scale is None else read(found, scale.index_select(0, at))

        acts = {site: values(str(site)) for site in sites}
        return ActivationBatch(acts, *(self.keys[name].index_select(0, at) for name in KEYS))


class ActivationStream:
    """Rows of a model over a token file: `len(stream)` of them, `stream.batches(sites, size, seed=...)`."""

    def __init__(
        self,
        model: Capturing,
        tokens: TokenFile,
        sites: Sequence[str | Site],
        *,
        docs: Sequence[int] | None = None,
        max_length: int = 512,
        token_budget: int | None = None,
        dtype: StoreDtype = "bfloat16",
        exclude: Exclusions | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Settings as in `interp.extract.Settings`; `dtype` is that of the rows in the buffer."""
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.runner, self.selector, row_shapes, self.spec = described(
            model, tokens, sites, docs=docs, dtype=dtype, max_length=max_length, exclude=exclude, seed=None
        )
        self.layout = Layout(row_shapes, dtype)
        self.sites, self.dtype, self.buffer_bytes = self.runner.sites, read_dtype(dtype), buffer_bytes
        sizes = suited(model, self.layout, max_length)
        windows = windows_of(tokens.lengths, max_length=max_length, bos=tokens.bos is not None, docs=docs)
        self._excluded: dict[str, int] = {}
        rows = self.selector.rows(windows, self._excluded)
        self.material = Material(
            windows.take(rows > 0),
            rows[rows > 0],
            capacity=buffer_bytes // (2 * self.layout.row_bytes),
            token_budget=sizes["token_budget"] if token_budget is None else token_budget,
            multiple=sizes["multiple"],
        )
        self._check_sizes()
        self.manifest = self._manifest()
        self._model_lock, self._held_lock = threading.Lock(), threading.Lock()
        self._held: Generation | None = None

    def _check_sizes(self) -> None:
        material = self.material
        needed = _FEWEST * material.longest
        if material.generations > 1 and material.capacity < needed:
            raise InputError(
                f"buffer_bytes={self.buffer_bytes:,} holds two generations of {material.capacity:,} rows of "
                f"{self.layout.row_bytes:,} bytes; at least {needed:,} are needed ({_FEWEST} windows of up to "
                f"{material.longest:,}): give {2 * needed * self.layout.row_bytes:,} or more, or lower max_length"
            )
        longest = -(-int(material.windows.length.max()) // material.multiple) * material.multiple
        if longest > material.token_budget:
            raise InputError(
                f"token_budget={material.token_budget} cannot hold one window of {longest} tokens; raise token_budget, "
                "or lower max_length"
            )

    def _manifest(self) -> dict[str, Any]:
        """What a store's manifest says of its rows, and what decides their order; JSON values only."""
        windows = self.material.windows
        part = {
            "spec": asdict(self.spec),
            "rows": len(self),
            "first_doc": 0,
            "file_documents": len(self.selector.tokens),
            "documents": len(np.unique(windows.doc)),
            "tokens": int(windows.length.sum()),
            "excluded": self._excluded,
        }
        content = {
            "format": "midlens-stream",
            "version": 1,
            "dtype": self.spec.dtype,
            "row_shapes": self.layout.sites,
            "rows": len(self),
            "parts": [part],
            "generation_rows": self.material.capacity,
            "token_budget": self.material.token_budget,
            "multiple": self.material.multiple,
        }
        return json.loads(json.dumps(content))

    def __len__(self) -> int:
        return len(self.material)

    def describe(self) -> str:
        """What will happen, in a line."""
        material = self.material
        count = material.generations
        size = min(len(self), material.capacity)
        return (
            f"stream of {len(self):,} rows in {count:,} generation{'s' * (count > 1)}: mixing horizon {size:,} rows, "
            f"{min(count, 2) * size * self.layout.row_bytes / 2**30:.2f} GiB of memory"
        )

    def site(self, site: str | Site) -> Site:
        """`site`, after making sure that it is streamed."""
        if (wanted := Site.parse(site)) not in self.sites:
            raise InputError(f"the stream holds {', '.join(map(str, self.sites))}, not {wanted}")
        return wanted

    def batches(
        self, sites: Sequence[str | Site], size: int, *, seed: int, first: int = 0, epoch: int = 0
    ) -> Iterator[ActivationBatch]:
        """One epoch of shuffled batches of `size` rows (the last may be smaller), from batch `first` on.

        Left early, the iterator stops its thread after at most one pass of the model; the generation in use is kept in
        memory for the next iterator, until `release`.
        """
        if size < 1 or first < 0:
            raise InputError(f"batches: size must be positive and first not negative, got size={size}, first={first}")
        wanted = [self.site(site) for site in sites]
        return self._batches(wanted, size, Schedule(self.material, seed=seed, epoch=epoch), first)

    def trace(
        self, start: int, stop: int, *, seed: int, epoch: int = 0
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Of rows start..stop of an epoch: their places in the order of production, and their documents. No model."""
        return Schedule(self.material, seed=seed, epoch=epoch).trace(start, stop)

    def document_rows(self) -> Int[np.ndarray, " docs"]:
        """How many rows each document has that has any."""
        counts = np.bincount(self.material.windows.doc, self.material.rows).astype(np.int64)
        return counts[counts > 0]

    def release(self) -> None:
        """Give back the memory of a generation kept for the next iterator."""
        self._swap(None)

    def _swap(self, generation: Generation | None) -> Generation | None:
        with self._held_lock:
            held, self._held = self._held, generation
        return held

    def _batches(
        self, sites: list[Site], size: int, schedule: Schedule, first: int
    ) -> Generator[ActivationBatch, None, None]:
        start = first * size
        pieces: list[ActivationBatch] = []
        missing = size
        generation: Generation | None = None
        numbers = range(schedule.generation_of(start), schedule.generations)
        try:
            with closing(one_ahead(partial(self._generation, schedule), numbers)) as generations:
                for number in numbers:  # no zip: it would hold on to a generation
                    generation = next(generations)
                    assert generation is not None, "it stopped, though nobody has left"
                    order = schedule.permutation(number)[max(0, start - schedule.span(number)[0]) :]
                    while len(order):
                        pieces.append(generation.take(sites, order[:missing]))
                        order, missing = order[missing:], missing - len(pieces[-1].doc)
                        if not missing:
                            yield _joined(pieces)
                            pieces, missing = [], size
                    if schedule.generations > 1:
                        generation = None  # used up; let go of before the next but one is begun
            if pieces:
                yield _joined(pieces)
        finally:
            self._swap(generation)

    def _generation(self, schedule: Schedule, number: int, stopped: Stopped) -> Generation | None:
        """Compute one generation, or take the one kept; None when asked to stop."""
        held = self._swap(None)
        if held is not None and held.identity == schedule.identity(number):
            return held
        del held
        first, stop = schedule.span(number)
        buckets, _ = schedule.buckets(number)
        shard = np.asarray([len(buckets.windows)]), np.asarray([stop - first])
        plan = Plan(
            self.spec, self.layout.sites, buckets, self.material.token_budget, stop - first, *shard, excluded={}
        )
        made = Generation(schedule.identity(number), self.layout, stop - first)
        on_its_way: list[Rows] = []
        self.runner.begin(int(buckets.padded.max()))
        with closing(
            prefetched(lambda i: self.runner.near(assemble(plan, self.selector, i)), range(len(buckets)), 1)
        ) as batches:
            for ready in batches:
                if stopped():
                    return None
                on_its_way.append(self._run(ready))
                if len(on_its_way) > 1:
                    self._arrive(made, on_its_way.pop(0))
        self._arrive(made, on_its_way.pop())
        assert made.filled == made.size, f"{made.filled} rows came where {made.size} were planned"
        return made

    def _run(self, ready: Ready) -> Rows:
        try:
            with self._model_lock:
                return self.runner.run(ready)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            b, t = ready.batch.tokens.shape
            raise InputError(
                f"out of memory on a batch of {b} windows of {t} tokens ({error}): lower token_budget (now "
                f"{self.material.token_budget:,}), max_length or buffer_bytes"
            ) from error

    def _arrive(self, made: Generation, rows: Rows) -> None:
        rows.wait()
        advice = "Compute in bfloat16 or float32 (float16 overflows at 65,504), or leave these documents out"
        refuse_nonfinite(rows, self.selector.tokens.ids, advice=advice)
        made.append(rows)
        rows.release()


def _joined(pieces: list[ActivationBatch]) -> ActivationBatch:
    """Pieces of one batch from different generations."""
    if len(pieces) == 1:
        return pieces[0]

    def column(of: list[Tensor]) -> Tensor:
        return torch.cat(of)

    acts = {site: column([piece.acts[site] for piece in pieces]) for site in pieces[0].acts}
    return ActivationBatch(acts, *(column([getattr(piece, name) for piece in pieces]) for name in KEYS))
