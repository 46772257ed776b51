"""From the device to the host without waiting: a fixed ring of pinned buffers, filled on a stream of its own.

    send(rows of batch i)  ->  views of a free slot, being filled  ->  wait, use, release  ->  a later batch

A slot is allocated once, for the largest batch there will be, and used again. Whoever sends makes sure that one is free
(at most SLOTS batches under way): the ring never grows, and a host that cannot keep up holds up the device.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

SLOTS = 4
"""Two batches on the device's side (one running, one queued behind it), two on the writers' (being hashed, written)."""


@runtime_checkable
class Transfers(Protocol):
    """What a ring needs of an accelerator; `Cuda` is one."""

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...
    def mark(self, device: torch.device) -> "Mark": ...
    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> "Sequence[Landing]": ...


class Mark(NamedTuple):
    """A point in a device's work."""

    device: torch.device
    event: Any


class Landing(NamedTuple):
    """What one device sends: events behind its computation and behind its copies."""

    device: torch.device
    computed: Any
    landed: Any


class Arrival:
    """Tensors on their way into a slot: `wait` for them, `release` the slot when they are used."""

    def __init__(self, slot: "_Slot", landings: Sequence[Landing], begun: Mark) -> None:
        self._slot, self._landings, self._begun = slot, landings, begun

    def wait(self) -> None:
        """Wait until they are there. The only place of an extraction that waits for the device."""
        for landing in self._landings:
            landing.landed.synchronize()

    def seconds(self) -> tuple[float, float]:
        """How long the device that tokens went into computed, and how long it copied, once they are there."""
        for landing in self._landings:
            if landing.device == self._begun.device:
                forward = self._begun.event.elapsed_time(landing.computed)
                return forward / 1e3, landing.computed.elapsed_time(landing.landed) / 1e3
        return 0.0, 0.0

    def release(self) -> None:
        """Let the next batch have the slot."""
        self._slot.free = True


class _Slot:
    def __init__(self) -> None:
        self.free = True
        self.buffers: dict[tuple[str, str], Tensor] = {}


class PinnedRing:
    """`SLOTS` sets of host buffers for batches of up to `capacity` rows."""

    def __init__(self, transfers: Transfers, capacity: int) -> None:
        self.transfers, self.capacity = transfers, capacity
        self._slots = [_Slot() for _ in range(SLOTS)]

    def send(
        self, groups: Mapping[str, Mapping[str, Tensor]], begun: Mark
    ) -> tuple[dict[str, dict[str, Tensor]], Arrival]:
        """Start copying; the same groups of tensors on the host, filled when the arrival has been waited for.

        `begun` is the device's mark from before these were computed. Those in the group `acts` have one row
        per row of the batch, others are as large in every batch.
        """
        slot = next((slot for slot in self._slots if slot.free), None)
        assert slot is not None, f"all {SLOTS} buffers are on their way: release the rows of an earlier batch first"
        slot.free = False
        hosts: dict[str, dict[str, Tensor]] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        for group, tensors in groups.items():
            hosts[group] = {name: self._room(slot, group, name, x) for name, x in tensors.items()}
            pairs += [(x, hosts[group][name]) for name, x in tensors.items()]
        return hosts, Arrival(slot, self.transfers.send(pairs), begun)

    def _room(self, slot: _Slot, group: str, name: str, x: Tensor) -> Tensor:
        by_row = group == "acts"
        if (group, name) not in slot.buffers:
            shape = (self.capacity, *x.shape[1:]) if by_row else x.shape
            slot.buffers[group, name] = self.transfers.buffer(shape, x.dtype)
        buffer = slot.buffers[group, name]
        if not by_row:
            return buffer
        assert len(x) <= self.capacity, f"{len(x)} rows where {self.capacity} were announced"
        return buffer[: len(x)]


class Cuda:
    """Copies on a stream per device, beside those that compute."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def mark(self, device: torch.device) -> Mark:
        """The end of everything launched so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return Mark(device, event)

    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Landing]:
        """Copy each source to its host buffer when it is computed."""
        events: list[Landing] = []
        for device in {source.device: None for source, _ in pairs}:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            stream = self._streams[device]
            computed = self.mark(device).event
            stream.wait_event(computed)
            with torch.cuda.stream(stream), torch.inference_mode():
                for source, target in pairs:
                    if source.device == device:
                        target.copy_(source, non_blocking=True)
                        source.record_stream(stream)  # its memory is not given to others before the copy has passed
            landed = torch.cuda.Event(enable_timing=True, blocking=True)
            landed.record(stream)
            events.append(Landing(device, computed, landed))
        return events
