"""Where in a model: `Site`, one name for one tensor of the forward pass, under TransformerLens's names and meanings.

    Site.parse("blocks.15.hook_resid_post") == Site.parse("resid_post.15") == Site(Point.RESID_POST, 15)

Sites order by execution: `sorted(sites)[-1]` is the last one a run has to reach. Shapes, with the letters of
`interp.axes`: residual stream, attn_out, mlp_out, normalized, embed: `b t d`; q, z, rot_q: `b t h e`; k, v, rot_k:
`b t g e`; attn_scores, pattern: `b h t s`; mlp pre, pre_linear and post: `b t m`.

Gemma 2 and 3 normalise what attention and MLP add to the stream: `attn_out` and `mlp_out` are taken *after* those
post-norms, so that always resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out.
"""

import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from interp.display import Shown
from interp.errors import InputError


class Point(Enum):
    """A place in the forward pass, in execution order; the value is TransformerLens's name inside its scope."""

    EMBED = "hook_embed"
    RESID_PRE = "hook_resid_pre"
    LN1 = "ln1.hook_normalized"
    Q = "attn.hook_q"
    K = "attn.hook_k"
    V = "attn.hook_v"
    ROT_Q = "attn.hook_rot_q"
    ROT_K = "attn.hook_rot_k"
    ATTN_SCORES = "attn.hook_attn_scores"
    PATTERN = "attn.hook_pattern"
    Z = "attn.hook_z"
    ATTN_OUT = "hook_attn_out"
    RESID_MID = "hook_resid_mid"
    LN2 = "ln2.hook_normalized"
    MLP_PRE = "mlp.hook_pre"
    MLP_PRE_LINEAR = "mlp.hook_pre_linear"
    MLP_POST = "mlp.hook_post"
    MLP_OUT = "hook_mlp_out"
    RESID_POST = "hook_resid_post"
    LN_FINAL = "ln_final.hook_normalized"

    @property
    def place(self) -> int:
        """Rank of this point inside a block, in execution order."""
        return _PLACES[self]

    @property
    def in_block(self) -> bool:
        """Whether the point exists once per layer."""
        return self not in (Point.EMBED, Point.LN_FINAL)

    @property
    def per_head(self) -> bool:
        """Whether the tensor has a head axis, so that a `Site` may name one head."""
        return self in _PER_HEAD

    @property
    def short(self) -> str:
        """The short name: `resid_post`, `q`, `ln1`, `mlp_pre`, `ln_final`."""
        return _SHORT[self]


_PLACES = {point: place for place, point in enumerate(Point)}
_PER_HEAD = {Point.Q, Point.K, Point.V, Point.ROT_Q, Point.ROT_K, Point.ATTN_SCORES, Point.PATTERN, Point.Z}
_SHORT = {point: point.name.lower() for point in Point}
_BY_SHORT = {name: point for point, name in _SHORT.items()}
_BY_VALUE = {point.value: point for point in Point}
_LONG = re.compile(r"blocks\.(\d{1,9})\.([a-z0-9_.]+?)(?:\[(\d{1,9})\])?")
_SHORT_FORM = re.compile(r"([a-z0-9_]+)\.(\d{1,9})(?:\[(\d{1,9})\])?")


@functools.total_ordering
@dataclass(frozen=True, repr=False)
class Site(Shown):
    """One tensor of the forward pass: a point, its layer (none for embed and ln_final), and optionally one head.

    `str(site)` is TransformerLens's name, with `[head]` appended where one head is meant.
    """

    point: Point
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.point.in_block != (self.layer is not None):
            wants = "a layer" if self.point.in_block else "no layer"
            raise InputError(f"site {self.point.value!r} takes {wants}, got layer={self.layer!r}")
        if (self.layer is not None and self.layer < 0) or (self.head is not None and self.head < 0):
            raise InputError(f"layer and head count from 0, got layer={self.layer!r}, head={self.head!r}")
        if self.head is not None and not self.point.per_head:
            raise InputError(f"site {self.point.value!r} has no head axis, got head={self.head}")

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """Read `blocks.15.hook_resid_post`, `resid_post.15`, `blocks.3.attn.hook_z[5]`, `z.3[5]`, `embed`."""
        if isinstance(text, Site):
            return text
        if match := _LONG.fullmatch(text):
            layer, name, head = match.groups()
            if (point := _BY_VALUE.get(name)) and point.in_block:
                return cls(point, int(layer), None if head is None else int(head))
        elif match := _SHORT_FORM.fullmatch(text):
            name, layer, head = match.groups()
            if (point := _BY_SHORT.get(name)) and point.in_block:
                return cls(point, int(layer), None if head is None else int(head))
        elif (point := _BY_VALUE.get(text) or _BY_SHORT.get(text)) and not point.in_block:
            return cls(point)
        known = ", ".join(f"{p.short}.N" if p.in_block else p.short for p in Point)
        raise InputError(
            f"{text!r:.200} names no site. Expected a TransformerLens name such as 'blocks.15.hook_resid_post', "
            f"or a short one: {known} (N = the layer, counted from 0; '[5]' behind it picks head 5)"
        )

    @classmethod
    def parse_all(cls, sites: "str | Site | Iterable[str | Site]") -> "list[Site]":
        """Read one site or several."""
        return [cls.parse(site) for site in ([sites] if isinstance(sites, str | Site) else sites)]

    @property
    def rank(self) -> tuple[int, int, int]:
        """Execution order: layer first, then the place inside the block; heads of one tensor in their order."""
        layer = self.layer if self.layer is not None else (-1 if self.point is Point.EMBED else sys.maxsize)
        return (layer, self.point.place, -1 if self.head is None else self.head)

    def __lt__(self, other: "Site") -> bool:
        return self.rank < other.rank

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"

    def _facts(self) -> dict[str, Any]:
        layer = "" if self.layer is None else f".{self.layer}"
        return {
            "name": str(self),
            "short": f"{self.point.short}{layer}{self._head}",
            "layer": self.layer,
            "head": self.head,
        }

    def __str__(self) -> str:
        scope = "" if self.layer is None else f"blocks.{self.layer}."
        return f"{scope}{self.point.value}{self._head}"

    @property
    def _head(self) -> str:
        return "" if self.head is None else f"[{self.head}]"
