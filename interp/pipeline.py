"""From a planned batch to rows ready to be written: assemble, run, select, convert, bring to the host.

    assemble (prefetch thread)  ->  capture (main thread, accelerator)  ->  rows on the host  ->  writer thread

Nothing here waits for the device. On a GPU rows leave through pinned memory on a stream of their own; whoever writes
them waits for their event, while the next batch is already running.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batching import Batch
from interp.errors import InputError
from interp.plan import Plan, Selector
from interp.quantised import as_bytes, figures, is_quantised, quantise, scale_name
from interp.shards import KEYS
from interp.sites import Point, Site


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
    """Rows of one batch on the host, or on their way there until `event` has passed.

    One-byte formats have scales among `acts`, and an entry in `error`.
    """

    number: int
    keys: dict[str, Int[np.ndarray, " n"]]
    acts: dict[str, Tensor]
    finite: dict[str, Bool[Tensor, ""]]
    error: dict[str, Float[Tensor, " 5"]]
    event: Any

    def wait(self) -> None:
        """Wait until the rows have arrived."""
        if self.event is not None:
            self.event.synchronize()

    def columns(self) -> dict[str, np.ndarray]:
        """All tensors, as numpy can write them (bfloat16 as int16, float8 as uint8)."""
        acts = {n: x.view(torch.int16) if x.dtype is torch.bfloat16 else x for n, x in self.acts.items()}
        return self.keys | {name: as_bytes(x) for name, x in acts.items()}

    def errors(self) -> dict[str, dict[str, float]]:
        """What one-byte rows lost, by site."""
        return {name: figures(error) for name, error in self.error.items()}


def assemble(plan: Plan, selector: Selector, index: int) -> Ready:
    """Batch `index` of the plan with the rows to keep, in the order of its windows."""
    batch = plan.buckets.batch(index, selector.tokens)
    width = batch.tokens.shape[1]
    starts = batch.start.numpy()
    spans = [
        np.flatnonzero(selector.kept(int(d), int(s), int(n)))
        for d, s, n in zip(batch.doc, batch.start, batch.lengths, strict=True)
    ]
    flat = np.concatenate([row * width + span for row, span in enumerate(spans)])
    owner = np.repeat(np.arange(len(spans)), [len(span) for span in spans])
    columns = (
        batch.tokens.numpy().reshape(-1)[flat],
        batch.doc.numpy()[owner],
        starts[owner] + flat % width,
    )
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
        self._stream: Any = None

    def shapes(self, token: int) -> tuple[dict[str, tuple[int, ...]], str]:
        """The shape of one row of each site, and the dtype of the computation, from a run over one token."""
        with torch.inference_mode():
            acts = self.model.capture(torch.tensor([[token]]), self.sites, lengths=torch.tensor([1]))
        names = {str(acts[site].dtype).removeprefix("torch.") for site in self.sites}
        return {str(site): tuple(acts[site].shape[2:]) for site in self.sites}, "+".join(sorted(names))

    def run(self, ready: Ready) -> Rows:
        """Capture one batch."""
        acts: dict[str, Tensor] = {}
        finite: dict[str, Tensor] = {}
        error: dict[str, Tensor] = {}
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
        if all(rows.device.type == "cpu" for rows in acts.values()):
            return Rows(ready.number, ready.keys, acts, finite, error, None)
        return self._to_host(Rows(ready.number, ready.keys, acts, finite, error, None))

    def _to_host(self, rows: Rows) -> Rows:
        # Untested without a GPU. The caching host allocator hands the same few pinned buffers round.
        device = next(iter(rows.acts.values())).device
        if device.type != "cuda":
            acts, finite, error = ({n: x.cpu() for n, x in g.items()} for g in (rows.acts, rows.finite, rows.error))
            return rows._replace(acts=acts, finite=finite, error=error)
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream), torch.inference_mode():
            moved: list[dict[str, Tensor]] = []
            for group in (rows.acts, rows.finite, rows.error):
                pinned = {n: torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for n, x in group.items()}
                for name, x in group.items():
                    pinned[name].copy_(x, non_blocking=True)
                    x.record_stream(self._stream)
                moved.append(pinned)
            event = torch.cuda.Event()
            event.record(self._stream)
        return rows._replace(acts=moved[0], finite=moved[1], error=moved[2], event=event)


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
