"""Capture: what handlers take out of one forward pass, and when they end it.

A whole tensor is kept as it is, without a copy, if the anatomy says that the model changes nothing in place (edits get
copies). A part of a tensor (a head, q of a fused projection) is copied, so that the whole can be freed. `rot_q`,
`rot_k`, `attn_scores` and `pattern` are computed after the run from q, k and the cos and sin that the layer was given.

With gradients on, a captured tensor lies on the path to everything after it: a captured part is put back in place of
the part it was read from, and a tensor that needs no gradient (all weights frozen) becomes a leaf that does. Derived
points are functions of the path and not on it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.anatomy import Anatomy, module_at
from interp.attention_scores import attention_pattern, attention_scores, rotate
from interp.errors import InputError
from interp.running import Frame
from interp.sites import Point, Site
from interp.switchboard import Call, Switchboard, Turn
from interp.taps import DERIVED, Tap, rejoin, tap_of

PAIRS = (Point.ATTN_SCORES, Point.PATTERN)


class Reached(Exception):
    """Everything asked for is there: raised out of a hook, so that no later layer runs."""


class Recording:
    """The captures of one forward pass."""

    def __init__(self, anatomy: Anatomy, hf: nn.Module, sites: Sequence[Site], *, frame: Frame, stop: bool) -> None:
        self.anatomy, self.hf, self.sites, self.frame, self.stop = anatomy, hf, sites, frame, stop
        # Sites to read in the pass; a derived one needs q, k or both of its layer.
        self.direct = [site for site in sites if site.point not in DERIVED]
        self.raw = [need for site in sites if site.point in DERIVED for need in _needs(site)]
        self.values: dict[Site, Tensor] = {}
        self.raw_values: dict[Site, Tensor] = {}
        self.rope: dict[int, tuple[Tensor, Tensor]] = {}
        self.pending = {*((site, False) for site in self.direct), *((site, True) for site in self.raw)}

    @contextmanager
    def attached(self, board: Switchboard) -> Iterator[None]:
        """Handlers in place for the duration of the pass."""
        detach: list[Callable[[], Any]] = []
        try:
            for site in dict.fromkeys(self.raw):
                tap = tap_of(self.anatomy, self.hf, site)
                detach.append(board.attach(tap.module, tap.side, Turn.NOTE, self._keep_raw(site, tap)))
            for site in self.direct:
                tap = tap_of(self.anatomy, self.hf, site)
                detach.append(board.attach(tap.module, tap.side, Turn.CAPTURE, self._keep(site, tap)))
                if site.point is Point.RESID_MID and torch.is_grad_enabled():
                    detach += rejoin(self.anatomy, self.hf, site, board)
            if self.anatomy.spec.rotary:
                for layer in {site.layer for site in self.raw if site.layer is not None}:
                    attn = self.anatomy.at(self.hf, layer, self.anatomy.attn)
                    detach.append(attn.register_forward_pre_hook(self._keep_rope(layer), with_kwargs=True).remove)
            yield
        finally:
            for undo in detach:
                undo()

    def _keep(self, site: Site, tap: Tap) -> Callable[[Tensor, Call], Tensor | None]:
        def handler(value: Tensor, call: Call) -> Tensor | None:
            part = tap.read(value, call)
            if torch.is_grad_enabled():
                shown = self.frame.leave(part)
                if not shown.requires_grad:
                    shown = shown.detach().clone().requires_grad_()
                part = self.frame.enter(shown)
                if self.anatomy.in_place and tap.whole:
                    part = part.clone()
                value = part if tap.whole else tap.write(value, call, part)
                self.values[site] = shown
            else:
                keep = part.clone() if self.anatomy.in_place or (not tap.whole and _is_part(part)) else part
                self.values[site] = self.frame.leave(keep)
            self._done(site, raw=False)
            return value

        return handler

    def _keep_raw(self, site: Site, tap: Tap) -> Callable[[Tensor, Call], None]:
        def handler(value: Tensor, call: Call) -> None:
            part = tap.read(value, call)
            self.raw_values[site] = part.clone() if self.anatomy.in_place else part
            self._done(site, raw=True)

        return handler

    def _keep_rope(self, layer: int) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.rope[layer] = kwargs["position_embeddings"]

        return hook

    def _done(self, site: Site, *, raw: bool) -> None:
        self.pending.discard((site, raw))
        if self.stop and not self.pending:
            raise Reached

    def result(self) -> dict[Site, Tensor]:
        """Every site asked for, in the order asked; refuses what never came by."""
        if self.pending:
            missing = ", ".join(sorted(str(site) for site, _ in self.pending))
            raise InputError(
                f"the forward pass did not come by {missing}. Expected every module that the anatomy names to be "
                f"called once per pass; was one replaced, bypassed or compiled after wrapping?"
            )
        return {site: self._derived(site) if site.point in DERIVED else self.values[site] for site in self.sites}

    def _derived(self, site: Site) -> Tensor:
        assert site.layer is not None
        turned = [self._turned(need) for need in _needs(site)]
        if site.point not in PAIRS:
            x = self.frame.leave(turned[0])
            return x if site.head is None else x[:, :, site.head].clone()
        spec, (q, k) = self.anatomy.spec, turned
        if site.head is not None:
            group = site.head // (spec.n_heads // spec.n_kv_heads)
            q, k = q[:, :, site.head : site.head + 1], k[:, :, group : group + 1]
        x = attention_scores(q, k, scale=spec.scale(site.layer), cap=spec.attn_cap, window=spec.window(site.layer))
        x = self.frame.leave(attention_pattern(x) if site.point is Point.PATTERN else x, 2, 3)
        return x if site.head is None else x[:, 0]

    def _turned(self, site: Site) -> Tensor:
        """q or k as attention compares them: per-head norm and RoPE applied where the family has them."""
        assert site.layer is not None
        x, norm = self.raw_values[site], self.anatomy.q_norm if site.point is Point.Q else self.anatomy.k_norm
        if norm is not None:
            x = module_at(self.anatomy.blocks(self.hf)[site.layer], norm)(x)
        return rotate(x, *self.rope[site.layer]) if self.anatomy.spec.rotary else x


def _needs(site: Site) -> list[Site]:
    q, k = Site(Point.Q, site.layer), Site(Point.K, site.layer)
    return {Point.ROT_Q: [q], Point.ROT_K: [k]}.get(site.point, [q, k])


def _is_part(x: Tensor) -> bool:
    """Whether a view keeps alive more storage than it shows."""
    return x.untyped_storage().nbytes() > x.numel() * x.element_size()
