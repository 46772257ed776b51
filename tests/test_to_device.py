"""The copy to a device. What pinned memory is for needs a GPU; here, that nothing else changes and who is pinned."""

import torch

from interp.to_device import to_device


class Elsewhere(torch.Tensor):
    """Notes what is done to it."""

    done: list[object]

    def pin_memory(self, device=None):
        self.done.append("pinned")
        return self

    def to(self, *args, **kwargs):
        self.done.append((args, kwargs))
        return self


def test_what_is_there_stays_and_only_the_way_to_a_gpu_is_pinned():
    x = torch.randn(3, 4, dtype=torch.bfloat16)
    assert to_device(x, torch.device("cpu")) is x
    assert to_device(x, torch.device("meta")).device.type == "meta"
    for device, pinned in (("cuda", True), ("cuda:1", True), ("mps", False)):
        y = torch.zeros(2).as_subclass(Elsewhere)
        y.done = []
        to_device(y, torch.device(device))
        copied = ((torch.device(device),), {"non_blocking": True})
        assert y.done == (["pinned", copied] if pinned else [copied])
