"""What this machine can do at most, measured on it: the ceilings that a run is held against.

    matmul            the model's own products, at the batch's number of tokens, in the model's dtype (FLOP/s)
    memory_copy       within the device's memory; bytes read and bytes written both count (byte/s)
    host_to_device    from pinned memory, and device_to_host into it; only where there is a device (byte/s)
    disk_write        a file in the chosen folder, fsync included (byte/s)

The rate of products is that of one layer: all its operations over the seconds of all its products, so that each counts
by its share of the work. No library's peak figure is used: what a processor could do if its clock stayed up is no
ceiling of this machine.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp.anatomy import ModelSpec
from interp.bench.flops import Product, products
from interp.bench.measure import settle, spread
from interp.bench.report import Row, make_row
from interp.errors import InputError

_BLOCK = 8 << 20  # bytes per write


@dataclass(frozen=True)
class Rate:
    """One ceiling: what repeated measurements gave."""

    name: str
    unit: str
    values: tuple[float, ...]
    detail: str = ""

    @property
    def median(self) -> float:
        """The figure that shares are taken of."""
        return spread(self.values)["median"]

    def row(self) -> Row:
        """For the report."""
        return make_row("ceiling", self.name, self.unit, self.values, detail=self.detail)


@dataclass(frozen=True)
class Ceilings:
    """The ceilings of one machine, by name; see the module's docstring."""

    rates: dict[str, Rate]

    def __getitem__(self, name: str) -> Rate:
        return self.rates[name]

    def get(self, name: str) -> float | None:
        """The median rate, or None where it was not measured here."""
        return self.rates[name].median if name in self.rates else None


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how large to measure."""

    repeats: int = 3
    seconds: float = 0.3
    """Of each product and copy, at least, in one repeat."""
    copy_bytes: int = 256 << 20
    disk_bytes: int = 512 << 20


def measure_ceilings(
    spec: ModelSpec,
    *,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device | str,
    folder: str | Path | None = None,
    effort: Effort = Effort(),
    done: Callable[[Rate], None] | None = None,
) -> Ceilings:
    """Measure them: products at `tokens` rows, the disk under `folder` if one is given. `done` gets each in turn."""
    where, rates = torch.device(device), dict[str, Rate]()
    for rate in each_rate(spec, tokens, dtype, where, folder, effort):
        rates[rate.name] = rate
        if done is not None:
            done(rate)
    return Ceilings(rates)


def each_rate(
    spec: ModelSpec, tokens: int, dtype: torch.dtype, device: torch.device, folder: str | Path | None, effort: Effort
) -> Iterator[Rate]:
    """The ceilings, one after the other as they are measured."""
    matrices = products(spec)
    values = [matmul_rate(matrices, tokens, dtype, device, effort.seconds) for _ in range(effort.repeats)]
    kind = str(dtype).removeprefix("torch.")
    detail = f"{tokens:,} tokens, {kind}: " + ", ".join(f"{p.name} {p.inputs}x{p.outputs}" for p in matrices)
    yield Rate("matmul", "FLOP/s", tuple(values), detail)
    size = f"{effort.copy_bytes >> 20:,} MiB"
    yield _copies("memory_copy", device, device, effort, 2, f"{size} on {device.type}, read and written")
    if device.type == "cuda":
        yield _copies("host_to_device", torch.device("cpu"), device, effort, 1, f"{size}, pinned")
        yield _copies("device_to_host", device, torch.device("cpu"), effort, 1, f"{size}, pinned")
    if folder is not None:
        written = [disk_rate(Path(folder), effort.disk_bytes) for _ in range(effort.repeats)]
        yield Rate("disk_write", "byte/s", tuple(written), f"{effort.disk_bytes >> 20:,} MiB and fsync in {folder}")


@torch.inference_mode()
def matmul_rate(
    matrices: Sequence[Product], tokens: int, dtype: torch.dtype, device: torch.device | str, seconds: float
) -> float:
    """Operations per second of these products over `tokens` rows, each run for `seconds` or once."""
    where, taken = torch.device(device), 0.0
    for product in matrices:
        x: Float[Tensor, "n i"] = torch.randn(tokens, product.inputs, device=where, dtype=dtype)
        W: Float[Tensor, "o i"] = torch.randn(product.outputs, product.inputs, device=where, dtype=dtype)
        out = torch.empty(tokens, product.outputs, device=where, dtype=dtype)
        taken += seconds_of(lambda x=x, W=W, out=out: torch.mm(x, W.T, out=out), where, seconds)
    return tokens * sum(product.flops for product in matrices) / taken


def seconds_of(call: Callable[[], object], device: torch.device, least: float) -> float:
    """Seconds per call, over as many calls as fill `least` seconds; warmed up with one call."""
    call()
    settle(device)
    calls, taken = 1, 0.0
    while True:
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        settle(device)
        taken = time.perf_counter() - begun
        if taken >= least:
            return taken / calls
        calls = max(calls + 1, min(100 * calls, int(1.2 * calls * least / max(taken, 1e-9))))


@torch.inference_mode()
def _copies(name: str, source: torch.device, target: torch.device, effort: Effort, times: int, detail: str) -> Rate:
    across = source.type != target.type
    device = target if target.type != "cpu" else source

    def buffer(place: torch.device) -> Tensor:
        pinned = across and place.type == "cpu"
        return torch.ones(effort.copy_bytes, dtype=torch.uint8, device=place, pin_memory=pinned)

    x, y = buffer(source), buffer(target)
    values = [
        times * effort.copy_bytes / seconds_of(lambda: y.copy_(x, non_blocking=True), device, effort.seconds)
        for _ in range(effort.repeats)
    ]
    return Rate(name, "byte/s", tuple(values), detail)


def disk_rate(folder: Path, size: int) -> float:
    """Bytes per second of writing a file of `size` bytes that nothing can compress, fsync included; it is deleted."""
    blocks = max(1, size // _BLOCK)
    content = os.urandom(min(size, _BLOCK))
    with _scratch(folder, blocks * len(content)) as place, (place / "written").open("wb", buffering=0) as file:
        begun = time.perf_counter()
        for _ in range(blocks):
            file.write(content)
        os.fsync(file.fileno())
        return blocks * len(content) / (time.perf_counter() - begun)


@contextmanager
def _scratch(folder: Path, size: int) -> Iterator[Path]:
    """An empty folder below `folder` for as long as it is needed; refused where it cannot be or has no room."""
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{folder} is no folder that can be written to; give an existing one on the disk to measure")
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(
            f"{folder} has {free / 2**20:,.0f} MiB free and the measurement writes {size / 2**20:,.0f} MiB: give a "
            "folder on another disk, or make room"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as place:
        yield Path(place)
