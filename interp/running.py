"""What a forward pass tells its edits: which absolute position every row and column of the batch is.

`HookedModel` keeps one `Where` per running pass, in `model.where`; edits are called with it. A plain pass sets it
itself; generation sets it before every step, `with model.running(Where(...)): model.hf(...)`, so that edits mean the
same with and without a key-value cache. Inside the model sequences are right-padded: position 0 is the first token.

`Frame` moves left-padded batches into right padding and the results back (a rotation of each row), which makes
left- and right-padded runs the same computation, without an attention mask.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from interp.errors import InputError

Padding = Literal["right", "left"]


class Where(NamedTuple):
    """Where in its sequence every position of a running batch stands.

    `positions` are absolute (they count what a key-value cache holds); positions at or past `lengths` are padding;
    positions below `prompt` were given, not generated (outside generation `prompt == lengths`).
    """

    positions: Int[Tensor, "b t"]
    lengths: Int[Tensor, " b"]
    prompt: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Where":
        """The same on another device (a sharded model's layers have their own)."""
        return self if self.positions.device == device else Where(*(x.to(device) for x in self))

    @classmethod
    def plain(cls, tokens: Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None) -> "Where":
        """Of a pass without cache over right-padded tokens."""
        b, t = tokens.shape
        positions = torch.arange(t, device=tokens.device).expand(b, t)
        if lengths is None:
            lengths = torch.full((b,), t, device=tokens.device)
        return cls(positions, lengths, lengths)


def checkpointing(hf: nn.Module) -> bool:
    """Whether gradient checkpointing is at work: such a model runs blocks twice and keeps no key-value cache."""
    return hf.training and any(getattr(module, "gradient_checkpointing", False) for module in hf.modules())


class Frame(NamedTuple):
    """How far each row is rotated to go from the caller's padding to the model's: `shift` columns to the left."""

    shift: Int[Tensor, " b"] | None

    @classmethod
    def of(cls, tokens: Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None, padding: Padding) -> "Frame":
        """The frame of a batch; refuses lengths that do not fit."""
        if padding not in ("right", "left"):
            raise InputError(f"padding={padding!r}: expected 'right' or 'left'")
        b, t = tokens.shape
        if lengths is None:
            if padding == "left":
                raise InputError("padding='left' needs `lengths`: the number of real tokens of each row")
            return cls(None)
        if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
            what = lengths.dtype if isinstance(lengths, Tensor) else f"of type {type(lengths).__name__}"
            raise InputError(f"lengths are {what}: expected a tensor of {b} whole numbers, int64 or int32")
        # On a GPU reading the values would wait for its queue.
        outside = lengths.device.type == "cpu" and bool(((lengths < 1) | (lengths > t)).any())
        if lengths.shape != (b,) or outside:
            raise InputError(
                f"lengths={lengths.tolist()}: expected {b} numbers from 1 to {t} for tokens of shape {b} x {t}"
            )
        return cls((t - lengths).to(tokens.device) if padding == "left" else None)

    def enter(self, x: Shaped[Tensor, "b ..."], *axes: int) -> Shaped[Tensor, "b ..."]:
        """Caller's padding to right padding, along `axes` (position axes; 1 if none is named)."""
        return self._rotate(x, 1, axes)

    def leave(self, x: Shaped[Tensor, "b ..."], *axes: int) -> Shaped[Tensor, "b ..."]:
        """Right padding to the caller's padding: undoes `enter`."""
        return self._rotate(x, -1, axes)

    def _rotate(self, x: Tensor, sign: int, axes: tuple[int, ...]) -> Tensor:
        if self.shift is None:
            return x
        shift = self.shift.to(x.device) * sign
        for axis in axes or (1,):
            t = x.shape[axis]
            index = (torch.arange(t, device=x.device) + shift[:, None]) % t
            shape = [1] * x.ndim
            shape[0], shape[axis] = x.shape[0], t
            x = x.gather(axis, index.view(shape).expand(x.shape))
        return x
