"""What a token costs: the matrix products of a forward pass up to a site, in floating-point operations.

Per layer and token, with a width of d, h heads and g key heads of width e, and an MLP of width m:

    matrices     2 (d h e + 2 d g e + h e d + 3 d m)        (2 d m where the MLP is not gated)
    attention    4 e h r      r: the positions a query sees, itself included; scores and mixing are 2 e h r each

A causal query at position i (from 1) sees r = i positions, in a window of w at most w, so that over a sequence of S

    sum of r     S (S + 1) / 2      for S <= w,       w (w + 1) / 2 + (S - w) w      beyond

What lies above the diagonal is not counted: a fused kernel leaves it out, and one that does not has done needless work.
Nor are norms, activations and rotations, which no ceiling of products bounds.
"""

from collections.abc import Iterable
from typing import NamedTuple

from interp.anatomy import ModelSpec
from interp.sites import Point, Site


class Product(NamedTuple):
    """Rows of `inputs` numbers through a matrix to rows of `outputs`."""

    name: str
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """Per row."""
        return 2 * self.inputs * self.outputs


# The parts of a block that have run when a point is reached. Rotated queries and keys, scores and patterns are computed
# where the projections are hooked, before v; the model's own attention comes after. Scores without mixing are half.
_ATTENTION = ("q", "k", "v", "scores", "mixing", "o")
_PARTS: dict[Point, tuple[str, ...]] = {
    **dict.fromkeys((Point.Q, Point.ROT_Q), ("q",)),
    **dict.fromkeys((Point.K, Point.ROT_K), ("q", "k")),
    Point.V: ("q", "k", "v"),
    **dict.fromkeys((Point.ATTN_SCORES, Point.PATTERN), ("q", "k", "scores")),
    Point.Z: _ATTENTION[:-1],
    **dict.fromkeys((Point.ATTN_OUT, Point.RESID_MID, Point.LN2), _ATTENTION),
    Point.MLP_PRE: (*_ATTENTION, "gate"),
    **dict.fromkeys((Point.MLP_PRE_LINEAR, Point.MLP_POST), (*_ATTENTION, "gate", "up")),
    **dict.fromkeys((Point.MLP_OUT, Point.RESID_POST), (*_ATTENTION, "gate", "up", "down")),
}


def products(spec: ModelSpec) -> list[Product]:
    """The products with weights of one layer, in the order they run."""
    d, m, e = spec.d_model, spec.d_mlp, spec.d_head
    attention = [Product("q", d, spec.n_heads * e), Product("k", d, spec.n_kv_heads * e)]
    attention += [Product("v", d, spec.n_kv_heads * e), Product("o", spec.n_heads * e, d)]
    gates = [Product("gate", d, m), Product("up", d, m)] if spec.gated else [Product("gate", d, m)]
    return [*attention, *gates, Product("down", m, d)]


def sequence_flops(spec: ModelSpec, site: Site, length: int) -> int:
    """Of one sequence of `length` tokens, run up to `site`."""
    total = 0
    for layer, parts in _run(spec, site):
        seen = _seen(length, spec.window(layer))
        scores = 2 * spec.d_head * spec.n_heads * seen
        total += length * sum(product.flops for product in products(spec) if product.name in parts)
        total += scores * (("scores" in parts) + ("mixing" in parts))
    return total


def mean_flops(spec: ModelSpec, site: Site, lengths: Iterable[int]) -> float:
    """Per token, over sequences of these lengths."""
    sizes = [int(length) for length in lengths]
    each = {length: sequence_flops(spec, site, length) for length in set(sizes)}
    return sum(each[length] for length in sizes) / sum(sizes)


def _run(spec: ModelSpec, site: Site) -> Iterable[tuple[int, tuple[str, ...]]]:
    """The layers that run, each with its parts."""
    whole = _PARTS[Point.RESID_POST]
    if site.layer is None:
        return [(layer, whole) for layer in range(0 if site.point is Point.EMBED else spec.n_layers)]
    return [*((layer, whole) for layer in range(site.layer)), (site.layer, _PARTS.get(site.point, ()))]


def _seen(length: int, window: int | None) -> int:
    """Pairs of a query and a position it sees, in a causal sequence."""
    w = length if window is None else min(length, window)
    return w * (w + 1) // 2 + (length - w) * w
