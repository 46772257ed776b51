"""A `Tap`: where a site's tensor lies in the running Hugging Face model, how to read it there and how to replace it.

Most sites are the input or output of a module as it stands. The others are parts of one:

- a head, or q, k, v of a fused projection: a slice of the last axis, `y -> y.view(...)[...]`;
- `ln*`: the norm's input x divided by its scale, before gain and bias. The written output is gain · x̂' + bias where the
  edit changed x̂, and stays the module's own output, bit for bit, where it did not;
- `resid_mid`: what the second norm reads. Writing it changes that input, and `rejoin` makes the block end with
  `resid_mid' + mlp_out`, exactly the sum the block would have formed.

`read` may return a view; `write(value, call, new)` never changes `value` in place.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.anatomy import Anatomy, ModelSpec, module_at
from interp.offload import here
from interp.sharded import gathered, group_of, sliced
from interp.sites import Point, Site
from interp.switchboard import Call, Side, Switchboard, Turn

Read = Callable[[Tensor, Call], Tensor]
Write = Callable[[Tensor, Call, Tensor], Tensor]


@dataclass(frozen=True)
class Tap:
    """A place (module and side) and how to read and write a site there."""

    module: nn.Module
    side: Side
    read: Read = lambda value, call: value
    write: Write = lambda value, call, new: new
    whole: bool = True
    """Whether the site is the tensor at this place itself."""


DERIVED = (Point.ROT_Q, Point.ROT_K, Point.ATTN_SCORES, Point.PATTERN)
"""Points that fused attention never shows; they are recomputed from q and k."""


def tap_of(anatomy: Anatomy, hf: nn.Module, site: Site) -> Tap:
    """The tap of a site that is not derived and that `anatomy.check` accepted."""
    tap = _tap_of_point(anatomy, hf, site)
    return tap if site.head is None else _one_head(tap, site.head)


def _tap_of_point(anatomy: Anatomy, hf: nn.Module, site: Site) -> Tap:
    point, layer = site.point, site.layer
    if point is Point.EMBED:
        return Tap(module_at(anatomy.body(hf), anatomy.embed), "out")
    if point is Point.LN_FINAL:
        return _norm_tap(anatomy.ln_final(hf), anatomy.spec)
    assert layer is not None
    blocks = anatomy.blocks(hf)
    if point is Point.RESID_PRE and not len(blocks):  # loaded without any layer: the stream goes straight to the norm
        return Tap(anatomy.ln_final(hf), "in")
    if point is Point.RESID_POST or (point is Point.RESID_PRE and layer == len(blocks)):
        return Tap(blocks[layer if point is Point.RESID_POST else layer - 1], "out")
    if point is Point.RESID_PRE:
        return Tap(blocks[layer], "in")
    if point in (Point.Q, Point.K, Point.V):
        return _qkv_tap(anatomy, hf, point, layer)
    if point in _HIDDEN:
        path, side = _HIDDEN[point]
        module = anatomy.at(hf, layer, getattr(anatomy, path))
        return Tap(module, side) if group_of(module) is None else _shaped_tap(module, side, (anatomy.spec.d_mlp,))
    path, side = _WHOLE.get(point, (None, None))
    if path is not None and side is not None:
        return Tap(anatomy.at(hf, layer, getattr(anatomy, path)), side)
    if point is Point.Z:
        heads, e = anatomy.spec.n_heads, anatomy.spec.d_head
        return _shaped_tap(anatomy.at(hf, layer, anatomy.o), "in", (heads, e))
    assert point in (Point.LN1, Point.LN2), point
    return _norm_tap(anatomy.at(hf, layer, anatomy.ln1 if point is Point.LN1 else anatomy.ln2), anatomy.spec)


_WHOLE: dict[Point, tuple[str, Side]] = {
    Point.ATTN_OUT: ("attn_out", "out"),
    Point.RESID_MID: ("ln2", "in"),
    Point.MLP_OUT: ("mlp_out", "out"),
}
_HIDDEN: dict[Point, tuple[str, Side]] = {
    Point.MLP_PRE: ("mlp_pre", "out"),
    Point.MLP_PRE_LINEAR: ("mlp_pre_linear", "out"),
    Point.MLP_POST: ("mlp_post", "in"),
}


def _shaped_tap(module: nn.Module, side: Side, shape: tuple[int, ...]) -> Tap:
    """A site whose last axes are the last one of the tensor at this place, cut across processes or not."""
    width = math.prod(shape)

    def read(value: Tensor, call: Call) -> Tensor:
        return gathered(value, width, module).unflatten(-1, shape)

    def write(value: Tensor, call: Call, new: Tensor) -> Tensor:
        return sliced(new.flatten(-len(shape)), value, module)

    return Tap(module, side, read, write, whole=False)


def _qkv_tap(anatomy: Anatomy, hf: nn.Module, point: Point, layer: int) -> Tap:
    spec, which = anatomy.spec, (Point.Q, Point.K, Point.V).index(point)
    heads = spec.n_heads if point is Point.Q else spec.n_kv_heads
    module = anatomy.at(hf, layer, (anatomy.q, anatomy.k, anatomy.v)[which])
    if anatomy.fused == "none":
        return _shaped_tap(module, "out", (heads, spec.d_head))
    shape = (3, heads, spec.d_head) if anatomy.fused == "blocks" else (heads, 3, spec.d_head)
    axis = -3 if anatomy.fused == "blocks" else -2

    whole = _shaped_tap(module, "out", shape)

    def read(value: Tensor, call: Call) -> Tensor:
        return whole.read(value, call).select(axis, which)

    def write(value: Tensor, call: Call, new: Tensor) -> Tensor:
        return whole.write(value, call, whole.read(value, call).select_scatter(new, axis, which))

    return Tap(module, "out", read, write, whole=False)


def _one_head(tap: Tap, head: int) -> Tap:
    def read(value: Tensor, call: Call) -> Tensor:
        return tap.read(value, call).select(2, head)

    def write(value: Tensor, call: Call, new: Tensor) -> Tensor:
        return tap.write(value, call, tap.read(value, call).select_scatter(new, 2, head))

    return Tap(tap.module, tap.side, read, write, whole=False)


def normalized(x: Tensor, spec: ModelSpec) -> Tensor:
    """x / √(mean x² + eps), of centred x for LayerNorm; computed in float32, returned in the dtype of x."""
    wide = x if x.dtype == torch.float64 else x.float()
    if spec.norm == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + spec.norm_eps)).to(x.dtype)


def gained(module: nn.Module, x: Tensor, spec: ModelSpec) -> Tensor:
    """Gain and bias of a norm, applied to normalised x."""
    weight, bias = here(module, "weight"), here(module, "bias")
    assert weight is not None
    if spec.norm == "rms_offset":
        return (x.float() * (1.0 + weight.float())).to(x.dtype)
    return x * weight if bias is None else x * weight + bias


def _norm_tap(module: nn.Module, spec: ModelSpec) -> Tap:
    def read(value: Tensor, call: Call) -> Tensor:
        # The norm's input may come from another device: it is moved inside the norm's own call.
        return normalized(call.source.to(value.device), spec) if call.normalized is None else call.normalized

    def write(value: Tensor, call: Call, new: Tensor) -> Tensor:
        rebuilt = gained(module, new, spec)
        kept = torch.where(new == read(value, call), value, rebuilt)
        call.normalized = new
        return _Carried.apply(kept.detach(), rebuilt) if rebuilt.requires_grad else kept

    return Tap(module, "out", read, write, whole=False)


class _Carried(torch.autograd.Function):
    """The first argument's value with the second's gradient (they differ by rounding only)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def rejoin(anatomy: Anatomy, hf: nn.Module, site: Site, board: Switchboard) -> list[Callable[[], None]]:
    """Make the block of a `resid_mid` site end with resid_mid + mlp_out as they stand when every handler has had them.

    Returns what undoes it. The block's own sum is the same one if nothing replaced resid_mid.
    """
    assert site.layer is not None
    mid, out, end = (
        _tap_of_point(anatomy, hf, Site(point, site.layer))
        for point in (Point.RESID_MID, Point.MLP_OUT, Point.RESID_POST)
    )
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[Tensor, Call], None]:
        def handler(value: Tensor, call: Call) -> None:
            seen[name] = value

        return handler

    def join(value: Tensor, call: Call) -> Tensor:
        return seen.pop("mid") + seen.pop("out")

    return [
        board.attach(mid.module, mid.side, Turn.NOTE, note("mid")),
        board.attach(out.module, out.side, Turn.NOTE, note("out")),
        board.attach(end.module, end.side, Turn.REPLACE, join),
    ]
