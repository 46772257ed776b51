"""Which tokens an edit acts on: the same ones with and without a key-value cache, in either padding, alone or batched.

    all           every real token (padding never)
    prompt        positions below the prompt's length
    last-prompt   the last position of the prompt, whose logits give the first new token
    generated     positions at or past the prompt's length: the second new token is the first whose logits see it
    mask          what a bool tensor `b t` over the caller's own columns says, of the prompt's positions

Positions are absolute (`interp.running.Where`), so a step of one column against a cache selects what the whole sequence
would. A pass outside generation has only a prompt: there `prompt` is `all`, `last-prompt` the last real token of each
row, and `generated` nothing (`interp.steering.steering.steered` warns). To have the first new token steered too, take
`last-prompt` or `all`: the hooks of MidSteer's code and of CAA's leave the prompt out, so that theirs comes from
unsteered logits.

A mask follows the padding of the tokens it was made for. It ends with the prompt: positions generated behind it are not
in it, whatever stands in its padding, unless `extend` adds all of them.

Where an edit does not act, the activations are bit-exactly what they were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InputError
from interp.running import Padding, Where

Scope = Literal["all", "prompt", "last-prompt", "generated", "mask"]
Edit = Callable[[Tensor, Where], Tensor]


@dataclass(frozen=True, eq=False)
class Scoped:
    """An edit that acts on some positions only; made by `scoped`, which checks what is given."""

    edit: Edit
    scope: Scope
    mask: Bool[Tensor, "b t"] | None = None
    padding: Padding = "right"
    extend: bool = False

    def selected(self, where: Where) -> Bool[Tensor, "b s"]:
        """Which positions of the running batch it acts on."""
        positions, prompt = where.positions, where.prompt[:, None]
        if self.scope == "prompt":
            return positions < prompt
        if self.scope == "last-prompt":
            return positions == prompt - 1
        real = positions < where.lengths[:, None]
        if self.scope == "all":
            return real
        generated = real & (positions >= prompt)
        if self.scope == "generated":
            return generated
        masked = self._masked(positions, prompt)
        return masked | generated if self.extend else masked

    def _masked(self, positions: Tensor, prompt: Tensor) -> Tensor:
        assert self.mask is not None
        b, t = self.mask.shape
        if len(positions) != b:
            raise InputError(
                f"the mask has {b} rows, the running batch {len(positions)}: a mask belongs to the batch it is of"
            )
        if positions.device.type == "cpu" and int(prompt.max()) > t:
            raise InputError(
                f"the mask has {t} columns, and a prompt of the running batch {int(prompt.max())} tokens: expected a "
                "mask of the shape of the tokens"
            )
        columns = positions + (t - prompt) if self.padding == "left" else positions
        mask = self.mask.to(positions.device)
        return mask.gather(1, columns.clamp(0, t - 1)) & (positions < prompt) & (columns < t)

    def __call__(self, x: Float[Tensor, "b s ..."], where: Where) -> Float[Tensor, "b s ..."]:
        """The edit's result at the selected positions, `x` itself elsewhere. The edit must not change `x` in place."""
        chosen = self.selected(where)
        on_cpu = x.device.type == "cpu"  # elsewhere looking at the values would wait for the device
        if on_cpu and not bool(chosen.any()):
            return x
        new = self.edit(x, where)
        if new is x or (on_cpu and bool(chosen.all())):
            return new
        return torch.where(chosen.view(*chosen.shape, *[1] * (x.ndim - 2)), new, x)


def scoped(
    edit: Edit,
    scope: Scope,
    mask: Bool[Tensor, "b t"] | None = None,
    *,
    padding: Padding = "right",
    extend: bool = False,
) -> Scoped:
    """`edit` on the tokens of `scope`. `mask`, the `padding` of the tokens it was made for, and `extend` (all generated
    positions too) are for the scope "mask" alone."""
    if scope not in get_args(Scope):
        raise InputError(f"unknown scope {scope!r}: expected one of {', '.join(get_args(Scope))}")
    if padding not in get_args(Padding):
        raise InputError(f"padding={padding!r}: expected 'right' or 'left'")
    if scope != "mask":
        if mask is not None or extend:
            raise InputError(f"a mask was given for the scope {scope!r}: it acts only with scope='mask'")
        return Scoped(edit, scope)
    if mask is None:
        raise InputError("scope='mask' needs the mask: a bool tensor of the shape of the tokens, True where to act")
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise InputError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}: expected bool, (sequences, positions)"
        )
    if not extend and not bool(mask.any()):
        raise InputError("the mask is False everywhere, so nothing would be steered; expected True where to act")
    return Scoped(edit, scope, mask, padding, extend)
