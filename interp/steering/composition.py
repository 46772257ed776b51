"""One edit after another at one site, as one edit.

Two affine edits make an affine edit, exactly. With β in U and δ (U_i = β_i U, δ_i = β_i δ):

    U = [U_1  U_2]     V = [V_1   V_2 + V_1 U_1ᵀ V_2]     c = [c_1;  c_2 + V_2ᵀ (U_1 c_1 − δ_1)]     δ = δ_1 + δ_2

They do not commute: concepts of one site are better fitted together. Anything else becomes a `SequenceEdit`. The
strength of a composition, 1 when it is made, scales the change as a whole: x + β (f_2(f_1(x)) − x).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.running import Where
from interp.steering.edits import AffineEdit, AnyEdit, edit_from, kind_of
from interp.typed import fits


@dataclass(frozen=True, eq=False)
class SequenceEdit:
    """Edits in turn, each on what the one before made of the activations."""

    parts: tuple[AnyEdit, ...]
    beta: float = 1.0

    def __post_init__(self) -> None:
        if len(widths := {part.d for part in self.parts}) != 1:
            raise InputError(f"a sequence of edits of the widths {sorted(widths)}: expected one width")

    @property
    def d(self) -> int:
        """Width of the activations it acts on."""
        return self.parts[0].d

    def __call__(self, x: Float[Tensor, "*n d"], where: Where | None = None) -> Float[Tensor, "*n d"]:
        """The edited activations, of the same shape and dtype."""
        if self.beta == 0:
            return x
        out = x
        for part in self.parts:
            out = part(out, where)
        if self.beta == 1:
            return out
        wide = torch.promote_types(x.dtype, torch.float32)
        return x + (self.beta * (out.to(wide) - x.to(wide))).to(x.dtype)

    def at(self, beta: float) -> "SequenceEdit":
        """The same at strength `beta` of the whole change."""
        return replace(self, beta=float(beta))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SequenceEdit":
        """The same on another device, or in another precision."""
        return replace(self, parts=tuple(part.to(device, dtype) for part in self.parts))

    def tensors(self) -> dict[str, Tensor]:
        """The parts' tensors, under `0.`, `1.` and so on."""
        return {f"{i}.{name}": x for i, part in enumerate(self.parts) for name, x in part.tensors().items()}

    def facts(self) -> dict[str, Any]:
        """What is not a tensor, as JSON."""
        return {"kind": "sequence", "beta": self.beta, "parts": [part.facts() for part in self.parts]}


SteeringEdit = AnyEdit | SequenceEdit


def compose(first: SteeringEdit, second: SteeringEdit) -> SteeringEdit:
    """`second` after `first`."""
    if first.d != second.d:
        raise InputError(f"edits of widths {first.d} and {second.d} cannot follow each other: they are of other sites")
    if isinstance(first, AffineEdit) and isinstance(second, AffineEdit):
        return _affine(first, second)
    return SequenceEdit((*_parts(first), *_parts(second)))


def _parts(edit: SteeringEdit) -> tuple[AnyEdit, ...]:
    if not isinstance(edit, SequenceEdit):
        return (edit,)
    if edit.beta != 1:
        raise InputError(
            f"a sequence of edits at strength {edit.beta:g} cannot go on: its strength scales it as a whole. Compose "
            "it at strength 1, and set the strength of the result"
        )
    return edit.parts


def _affine(first: AffineEdit, second: AffineEdit) -> AffineEdit:
    (u1, v1, c1, d1), (u2, v2, c2, d2) = _scaled(first), _scaled(second)
    mixed = v2.T @ u1  # [r2 r1]: what the second reads of what the first writes
    whole = AffineEdit(
        torch.cat([u1, u2], 1),
        torch.cat([v1, v2 + v1 @ mixed.T], 1),
        torch.cat([c1, c2 + mixed @ c1 - v2.T @ d1]),
        None if first.delta is None and second.delta is None else d1 + d2,
    )
    return whole.to(dtype=torch.promote_types(first.U.dtype, second.U.dtype))


def _scaled(edit: AffineEdit) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Float64 factors with β inside U and δ."""
    u, v, c = edit.beta * edit.U.double(), edit.V.double(), edit.c.double()
    return u, v, c, u.new_zeros(len(u)) if edit.delta is None else edit.beta * edit.delta.double()


def edit_of_facts(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SteeringEdit:
    """The edit, or sequence, of which these are `facts()` and `tensors()`."""
    try:
        kind = facts["kind"]
        if kind != "sequence":
            return edit_from(kind, tensors, facts)
        parts = [edit_of_facts(one, _below(f"{i}.", tensors)) for i, one in enumerate(facts["parts"])]
        known = {f"{i}.{name}" for i, part in enumerate(parts) for name in part.tensors()}
        if extra := sorted(set(tensors) - known):
            raise InputError(f"a saved sequence has tensors that belong to none of its parts: {', '.join(extra)}")
        if not fits(facts["beta"], float):
            raise InputError(f"a saved sequence has the strength beta={facts['beta']!r:.40}, expected a number")
        return SequenceEdit(tuple(parts), float(facts["beta"]))  # pyright: ignore[reportArgumentType]
    except (KeyError, TypeError, RecursionError) as error:
        raise InputError(f"a saved edit lacks or has too much of something: {error}") from None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def kind(edit: SteeringEdit) -> str:
    """The name of its kind; refuses what is no edit of this package."""
    return "sequence" if isinstance(edit, SequenceEdit) else kind_of(edit)
