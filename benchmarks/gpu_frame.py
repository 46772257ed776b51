"""How `gpu.py` runs a part: items one after the other under a deadline, an error of one of them no error of another.

An item is a name, a shape, a dtype, a variant and a call that returns the figures of one or more rows. A device that an
item has left unusable (an illegal address, say) ends the process with `LOST`; whoever started it starts another one,
which goes on behind that item.
"""

import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_record import Deadline, Record

LOST = 75  # exit status: the device is unusable, start again behind this item
PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "jaxtyping", "tqdm", "midlens")


class Refused(Exception):
    """An item that cannot be had: the row's status says why, and it is no failure."""

    def __init__(self, status: str, note: str) -> None:
        super().__init__(note)
        self.status, self.note = status, note


class Item(NamedTuple):
    """Something to measure or check. `kind` groups items that take about as long."""

    name: str
    shape: str
    dtype: str
    variant: str
    call: Callable[[], Mapping[str, Any] | Sequence[Mapping[str, Any]]]

    @property
    def key(self) -> str:
        """Unique within a part."""
        return ", ".join(word for word in (self.name, self.shape, self.dtype, self.variant) if word)

    @property
    def kind(self) -> str:
        return f"{self.name}, {self.shape}"

    @property
    def fields(self) -> dict[str, str]:
        return {"name": self.name, "shape": self.shape, "dtype": self.dtype, "variant": self.variant}


@dataclass
class Bench:
    """What a part has to work with."""

    part: str
    record: Record
    deadline: Deadline
    device: torch.device
    scratch: Path
    small: bool
    """Tiny shapes, for machines without a GPU."""
    only: tuple[str, ...] = ()
    """Beginnings of items' keys; empty: all."""
    device_name: str = field(init=False)

    def __post_init__(self) -> None:
        gpu = self.device.type == "cuda"
        self.device_name = torch.cuda.get_device_properties(self.device).name if gpu else "cpu"

    def run(self, items: Iterable[Item]) -> None:
        """All items for which there is time, each with its rows; what died before is named, not repeated."""
        chosen = [item for item in items if not self.only or item.key.startswith(self.only)]
        state = self.record.part(self.part)
        state["planned"] += [item.key for item in chosen if item.key not in state["planned"]]
        self.record.save()
        done = {row["item"] for row in self.record.rows(self.part)}
        for item in chosen:
            if item.key in done:
                continue
            if item.key in state["begun"]:
                self.add(item, status="failed", note="the process died while it ran", kind="died")
            elif self.deadline.room(item.kind):
                state["begun"].append(item.key)
                self.record.save()
                self._attempt(item)

    def _attempt(self, item: Item) -> None:
        begun = time.monotonic()
        try:
            found = item.call()
            self.settle()
        except Refused as refused:
            self.add(item, status=refused.status, note=refused.note)
        except Exception as error:  # a kernel may fail in any way: the row says how, the others are not touched
            self.add(item, status="failed", note=said(error), kind="raised", traceback=traceback.format_exc()[-4000:])
            del error
            self._still_usable()
        else:
            for fields in [found] if isinstance(found, Mapping) else found:
                self.add(item, **fields)
        self.deadline.took(item.kind, time.monotonic() - begun)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def add(self, item: Item, **fields: Any) -> None:
        """A row of this item, on disk and on the screen."""
        self.record.add(self.part, item.key, **{**item.fields, "device": self.device_name, **fields})
        row = self.record.content["rows"][-1]
        value = "" if row["value"] is None else f"{row['value']:,.4g} {row['unit'] or ''}"
        print(f"{self.part}: {item.key}: {row['status']} {value} {row['note']}".rstrip(), flush=True)

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _still_usable(self) -> None:
        try:
            self.settle()
            torch.zeros(1, device=self.device).add_(1)
            self.settle()
        except Exception as error:
            print(f"{self.part}: the device is unusable after this: {said(error)}", flush=True)
            raise SystemExit(LOST) from None


def said(error: BaseException) -> str:
    """An error in one line of bounded length."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:500]}"


def quantiles(
    call: Callable[[], Any], device: torch.device, *, seconds: float = 0.5, repeats: int = 7, warm: int = 2
) -> dict[str, Any]:
    """Milliseconds of `call`: median, 20 and 80 per cent quantiles, and the most memory it took beyond what was there.

    At least `repeats` calls, and as many as fill `seconds`. On a GPU by events, each call with a cold L2 cache.
    """
    gpu = device.type == "cuda"
    for _ in range(warm):
        call()
    flush = torch.empty(256 << 20 if gpu else 0, dtype=torch.int8, device=device)
    before = 0
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    taken: list[float] = []
    end = time.monotonic() + seconds
    while len(taken) < repeats or (time.monotonic() < end and len(taken) < 1000):
        flush.zero_()
        taken.append(_by_events(call, device) if gpu else _by_clock(call))
    peak = torch.cuda.max_memory_allocated(device) - before if gpu else None
    low, high = spread(taken)
    return {"value": statistics.median(taken), "low": low, "high": high, "unit": "ms", "peak_bytes": peak}


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The 20 and 80 per cent quantiles."""
    if len(values) < 2:
        return values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def _by_events(call: Callable[[], Any], device: torch.device) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def _by_clock(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)
