"""`interp.plain`'s forward pass with sites written on the way: what patches are compared with.

The record is handed every tensor before the pass reads it again; writing into it there is surgery.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from interp.plain import forward
from interp.plain.settings import read_settings
from interp.plain.weights import Weights
from interp.sites import Point, Site


class _Surgery(forward._Record):
    def __init__(self, writes: Mapping[Site, Callable[[Tensor], Tensor]]) -> None:
        super().__init__(None)
        self.writes = writes

    def __call__(self, point: Point, layer: int | None, value: Tensor) -> None:
        for site, write in self.writes.items():
            if (site.point, site.layer) == (point, layer):
                part = value if site.head is None else value[:, :, site.head]
                part.copy_(write(part.clone()))
        super().__call__(point, layer, value.clone())


def operate(
    hf: nn.Module, tokens: Tensor, writes: Mapping[Site, Callable[[Tensor], Tensor]] | None = None
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits and sites, float64, of one pass over unpadded rows."""
    config = hf.config.to_dict()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    settings = read_settings(config)
    parameters = Weights(hf.state_dict(), settings, dtype=torch.float64)
    keep = _Surgery(writes or {})
    with torch.no_grad():
        x = forward._embed(parameters, settings, tokens, keep)
        for index in range(settings.n_layers):
            x = forward._block(x, parameters.layer(index), settings, index, keep)
        logits = forward._logits(x, parameters, settings, keep, tied=bool(config.get("tie_word_embeddings")))
    assert logits is not None
    return logits, keep.kept
