"""One hooked model per tiny variant, shared between tests, which leave it as it was."""

import functools

from torch import nn

from interp.model import HookedModel
from tests.tiny_models import tiny

T = 11
"""Longer than the tiny models' sliding windows."""


@functools.cache
def wrapped(name: str) -> HookedModel:
    """The hooked tiny model of a family or variant."""
    return HookedModel.wrap(tiny(name))


def hooks_of(model: nn.Module) -> int:
    """How many forward hooks the modules of a model carry."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
