"""`Shape`: how wide the activations are that an SAE reads and writes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saes.config import SAEConfig
from saes.recipe import TrainConfig


@dataclass(frozen=True)
class Shape:
    """Widths of what is read and, for transcoders, of what is written."""

    read: tuple[int, ...]
    written: int | None = None

    @classmethod
    def stated(cls, manifest: Mapping[str, Any], read: Sequence[Any], written: Any | None) -> "Shape | None":
        """What the manifest of rows says of these sites; None if it says nothing of one of them."""
        known = manifest.get("row_shapes", {})
        if not all(str(site) in known for site in [*read, *([] if written is None else [written])]):
            return None
        widths = tuple(math.prod(known[str(site)]) for site in read)
        return cls(widths, None if written is None else math.prod(known[str(written)]))

    def of(self, config: TrainConfig) -> SAEConfig:
        """The SAE that a recipe makes of them."""
        return config.shape(sum(self.read), d_out=self.written, sources=self.read if len(self.read) > 1 else ())
