"""From a planned batch to rows ready to be written: assemble, run, select, convert, bring to the host.

    assemble (prefetch thread)  ->  compute (main thread, accelerator)  ->  send  ->  rows on the host (writer thread)

Nothing here waits for the device. On a GPU rows leave through pinned memory on a stream of their own (`interp.pinned`);
whoever writes them waits for their arrival, while the next batches are already running.
"""

import platform
import resource
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batching import Batch, Buckets, places
from interp.errors import InputError
from interp.pinned import Arrival, Cuda, Mark, PinnedRing, Transfers
from interp.plan import Plan, Selector
from interp.quantised import as_bytes, figures, is_quantised, quantise, scale_name
from interp.shards import KEYS
from interp.sites import Point, Site
from interp.stages import Stages


@runtime_checkable
class Capturing(Protocol):
    """What extraction asks of a model; `interp.model.HookedModel` does."""

    def capture(
        self, tokens: Int[Tensor, "b t"], sites: Sequence[Site], *, lengths: Int[Tensor, " b"] | None = None
    ) -> Mapping[Site, Tensor]: ...


class Ready(NamedTuple):
    """A batch to run, and which of its positions become rows: `flat` indexes its `b * t` positions."""

    number: int
    batch: Batch
    flat: Int[Tensor, " n"]
    keys: dict[str, Int[np.ndarray, " n"]]


class Rows(NamedTuple):
    """Rows of one batch, on the device or the host, or on their way there until `wait` has returned.

    One-byte formats have scales among `acts`, and an entry in `error`.
    """

    number: int
    keys: dict[str, Int[np.ndarray, " n"]]
    acts: dict[str, Tensor]
    finite: dict[str, Bool[Tensor, ""]]
    error: dict[str, Float[Tensor, " 5"]]
    launched: float
    """Seconds in which the caller's thread computed them, or gave the device its work."""
    begun: Mark | None = None
    arrival: Arrival | None = None

    def wait(self) -> None:
        """Wait until the rows have arrived."""
        if self.arrival is not None:
            self.arrival.wait()

    def release(self) -> None:
        """Their memory may be used for other rows."""
        if self.arrival is not None:
            self.arrival.release()

    def time(self, stages: Stages) -> None:
        """Add what they took, once they have arrived."""
        forward, copy = (0.0, 0.0) if self.arrival is None else self.arrival.seconds()
        stages.add("forward", max(self.launched, forward))
        stages.add("copy", copy)

    def columns(self) -> dict[str, np.ndarray]:
        """All tensors, as numpy can write them (bfloat16 as int16, float8 as uint8)."""
        acts = {n: x.view(torch.int16) if x.dtype is torch.bfloat16 else x for n, x in self.acts.items()}
        return self.keys | {name: as_bytes(x) for name, x in acts.items()}

    def errors(self) -> dict[str, dict[str, float]]:
        """What one-byte rows lost, by site."""
        return {name: figures(error) for name, error in self.error.items()}


def assemble(plan: Plan, selector: Selector, index: int) -> Ready:
    """Batch `index` of the plan with the rows to keep, in the order of its windows."""
    return batch_of(plan.buckets, selector, index)


def batch_of(buckets: Buckets, selector: Selector, index: int) -> Ready:
    """`assemble`, without a plan."""
    windows, batch = buckets.windows.take(slice(*buckets.span(index))), buckets.batch(index, selector.tokens)
    kept = np.flatnonzero(selector.kept(windows))
    owner, place = np.repeat(np.arange(len(windows)), windows.length)[kept], places(windows)[kept]
    flat = owner * batch.tokens.shape[1] + place
    columns = batch.tokens.numpy().reshape(-1)[flat], windows.doc[owner], windows.start[owner] + place
    keys = {name: column.astype(np.int32) for name, column in zip(KEYS, columns, strict=True)}
    return Ready(index, batch, torch.from_numpy(flat), keys)


class Runner:
    """Runs batches through a model and takes the rows to keep, in the store's dtype."""

    def __init__(self, model: Capturing, sites: Sequence[Site], dtype: torch.dtype) -> None:
        for site in sites:
            if site.point in (Point.ATTN_SCORES, Point.PATTERN):
                raise InputError(
                    f"{site} has no row per token (it is query by key); capture it with model.capture instead"
                )
        self.model, self.sites, self.dtype = model, list(sites), dtype
        self.transfers: Transfers | None = None
        """How rows leave the device; set up for CUDA by the first batch."""
        self._ring: PinnedRing | None = None
        self._capacity = 0

    def shapes(self, token: int) -> tuple[dict[str, tuple[int, ...]], str]:
        """The shape of one row of each site, and the dtype of the computation, from a run over one token."""
        with torch.inference_mode():
            acts = self.model.capture(torch.tensor([[token]]), self.sites, lengths=torch.tensor([1]))
        names = {str(acts[site].dtype).removeprefix("torch.") for site in self.sites}
        return {str(site): tuple(acts[site].shape[2:]) for site in self.sites}, "+".join(sorted(names))

    def begin(self, capacity: int) -> None:
        """Before a run whose batches have at most `capacity` rows: rows of earlier runs are given up."""
        self._ring, self._capacity = None, capacity

    def near(self, ready: Ready) -> Ready:
        """The same batch in memory that the model's device reads without a wait."""
        if torch.device(getattr(self.model, "device", "cpu")).type != "cuda":
            return ready
        tokens, lengths = ready.batch.tokens.pin_memory(), ready.batch.lengths.pin_memory()
        return ready._replace(batch=ready.batch._replace(tokens=tokens, lengths=lengths), flat=ready.flat.pin_memory())

    def compute(self, ready: Ready) -> Rows:
        """Capture one batch; on a GPU this launches the work."""
        acts: dict[str, Tensor] = {}
        finite: dict[str, Tensor] = {}
        error: dict[str, Tensor] = {}
        clock = time.perf_counter()
        device = torch.device(getattr(self.model, "device", "cpu"))
        if self.transfers is None and device.type == "cuda":
            self.transfers = Cuda()
        begun = None if self.transfers is None else self.transfers.mark(device)
        with torch.inference_mode():
            found = self.model.capture(ready.batch.tokens, self.sites, lengths=ready.batch.lengths)
            b, t = ready.batch.tokens.shape
            for site in self.sites:
                whole = found[site]
                assert whole.shape[:2] == (b, t), f"{site} came as {tuple(whole.shape)} for a batch of {b} x {t}"
                flat = ready.flat.to(whole.device, non_blocking=True)
                rows = whole.reshape(b * t, *whole.shape[2:]).index_select(0, flat)
                name = telling = str(site)
                if is_quantised(self.dtype):
                    telling = scale_name(name)  # NaN where a row is not finite
                    acts[name], acts[telling], error[name] = quantise(rows, self.dtype)
                else:
                    acts[name] = rows.to(self.dtype)
                finite[name] = torch.isfinite(acts[telling]).all()
        return Rows(ready.number, ready.keys, acts, finite, error, time.perf_counter() - clock, begun)

    def send(self, rows: Rows) -> Rows:
        """Rows of `compute` on their way to the host. At most `interp.pinned.SLOTS` may be there, unreleased."""
        if rows.arrival is not None:
            return rows
        groups = {"acts": rows.acts, "finite": rows.finite, "error": rows.error}
        if self.transfers is None:
            hosts = {group: {name: x.cpu() for name, x in tensors.items()} for group, tensors in groups.items()}
            return rows._replace(**hosts)
        assert rows.begun is not None
        self._ring = self._ring or PinnedRing(self.transfers, max(self._capacity, len(rows.keys[KEYS[0]])))
        hosts, arrival = self._ring.send(groups, rows.begun)
        return rows._replace(**hosts, arrival=arrival)

    def run(self, ready: Ready) -> Rows:
        """Compute one batch and send its rows."""
        return self.send(self.compute(ready))


STORING = (
    "The shards written so far are kept. float16 overflows at 65,504: compute and store in bfloat16 or float32; or "
    "leave these documents out; or pass allow_nonfinite=True to store the rows as they are"
)


def refuse_nonfinite(rows: Rows, ids: Sequence[str], *, advice: str = STORING) -> None:
    """An error naming batch, documents and site if a row that has arrived holds NaN or infinity."""
    for name, finite in rows.finite.items():
        if bool(finite):
            continue
        telling = rows.acts.get(scale_name(name), rows.acts[name])
        bad = ~torch.isfinite(telling).reshape(len(telling), -1).all(1)
        documents = sorted({str(ids[int(d)]) for d in rows.keys["doc"][bad.numpy()]})
        some = ", ".join(repr(d) for d in documents[:3]) + (f" and {len(documents) - 3} more" if documents[3:] else "")
        raise InputError(
            f"batch {rows.number}, site {name}: {int(bad.sum())} of {len(bad)} rows hold NaN or infinity (documents "
            f"{some}). {advice}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a run failed for want of memory, on the host or on an accelerator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        phrase in text for phrase in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    )


def peak_memory() -> int:
    """The most this process has held so far, on the GPU if it computes there: model and first batch included."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
