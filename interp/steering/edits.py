"""Edits as frozen values: what a fitted intervention does to activations `x [... d]`, at strength β.

    AffineEdit     x ↦ x + β (U (Vᵀx − c) + δ)                       U, V [d r], c [r], δ [d]
    DiagonalEdit   x ↦ x + β ((a − 1) ⊙ x + h)                       a, h [d]: at β = 1 the map a ⊙ x + h
    ClampEdit      x ↦ x + β (Σ_i u_i (clip(z_i, lo_i, hi_i) − z_i) + δ)     z = Vᵀx − c,  u_i rows of `directions`
    GatedEdit      hard   x ↦ x + 1[max_i (wᵀx + b)_i > 0] (g(x) − x)
                   soft   x ↦ x + max_i σ(wᵀx + b)_i (g(x) − x)
                   free   x ↦ x + β (U (σ(wᵀx + b) − c) + δ)         g affine: the probe is its read-out

The factors are those of Belrose et al. 2023 (LEACE keeps its projection the same way); the rank r is the number of
concepts, so an edit costs 4 d r operations for a token where the dense map costs 2 d². `clip` is how CASteer acts
only where a concept is present; the gate is CAST's (Lee et al. 2024), the free form is derived in
`interp.steering.gating`.

β = 0 returns the very tensor that came in. Every read-out is computed in the precision of the edit's own tensors, at
least float32 (massive activations times small weights cancel badly in bfloat16); the change is cast to the model's
dtype and then added. Edits of several strengths share their tensors.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.display import ShownEdit
from interp.errors import InputError
from interp.running import Where

GateKind = Literal["hard", "soft", "free"]
EditKind = Literal["affine", "diagonal", "gated", "clamp"]
_E = TypeVar("_E", bound="_Edit")


class _Edit(ShownEdit):
    """What all kinds share."""

    beta: float

    @property
    def d(self) -> int:
        """Width of the activations it acts on."""
        raise NotImplementedError

    def change(self, x: Tensor) -> Tensor:
        """What is added to `x` at the edit's β, in the precision of the read-out."""
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "*n d"], where: Where | None = None) -> Float[Tensor, "*n d"]:
        """The edited activations, of the same shape and dtype; `where` is not needed here (scopes use it)."""
        if x.shape[-1] != self.d:
            raise InputError(
                f"activations of width {x.shape[-1]} came to an edit of width {self.d}: it was fitted at another site "
                "or on another model"
            )
        if self.beta == 0:
            return x
        return x + self.to(x.device).change(x).to(x.dtype)

    def to(self: _E, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> _E:
        """The same edit on another device, or in another precision (float32 is what is saved)."""
        moved = {name: x.to(device=device, dtype=dtype) for name, x in self._own().items()}
        return self if all(moved[name] is x for name, x in self._own().items()) else self._with(**moved)

    def at(self: _E, beta: float) -> _E:
        """The same edit at strength `beta`."""
        return self._with(beta=float(beta))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, to be saved; `edit_from` puts them together again."""
        return dict(self._own())

    def facts(self) -> dict[str, Any]:
        """What is not a tensor, as JSON."""
        return {"kind": kind_of(self), "beta": self.beta}

    def _own(self) -> dict[str, Tensor]:
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        return {name: x for name, x in found.items() if isinstance(x, Tensor)}

    def _with(self: _E, **values: Any) -> _E:
        return dataclasses.replace(self, **values)  # pyright: ignore[reportType, reportArgumentType]

    def _check(self, **shapes: tuple[int, ...]) -> None:
        """Refuse tensors of other shapes, and a β that is no number."""
        for name, shape in shapes.items():
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise InputError(
                    f"{type(self).__name__}: {name} has the shape {found}, expected {shape} to fit the others"
                )
        if not math.isfinite(self.beta):
            raise InputError(f"{type(self).__name__}: beta={self.beta}, expected a finite number")


def _wide(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the precision of the read-out `like`, and in float32 at least."""
    return x.to(torch.promote_types(like.dtype, torch.float32))


def _coordinates(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """Vᵀx − c."""
    return _wide(x, v) @ _wide(v, v) - _wide(c, v)


@dataclass(frozen=True, eq=False, repr=False)
class AffineEdit(_Edit):
    """x ↦ x + β (U (Vᵀx − c) + δ); see the module's docstring."""

    U: Float[Tensor, "d r"]
    V: Float[Tensor, "d r"]
    c: Float[Tensor, " r"]
    delta: Float[Tensor, " d"] | None = None
    beta: float = 1.0

    def __post_init__(self) -> None:
        d, r = self.U.shape
        self._check(V=(d, r), c=(r,), **({} if self.delta is None else {"delta": (d,)}))

    @property
    def d(self) -> int:
        """Width of the activations it acts on."""
        return self.U.shape[0]

    @property
    def rank(self) -> int:
        """Number of coordinates it reads."""
        return self.U.shape[1]

    def readout(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n r"]:
        """The coordinates z = Vᵀx − c that it acts on."""
        return _coordinates(x, self.V, self.c)

    def change(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """β (U z + δ)."""
        return self.write(self.readout(x))

    def write(self, z: Float[Tensor, "*n r"]) -> Float[Tensor, "*n d"]:
        """β (U z + δ) for given coordinates."""
        out = z @ self.U.to(z.dtype).T
        return self.beta * (out if self.delta is None else out + self.delta.to(z.dtype))

    def dense(self) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
        """(A, b) of x ↦ A x + b at its β, float64: A = I + β U Vᵀ, b = β (δ − U c)."""
        u, v, c = self.U.double(), self.V.double(), self.c.double()
        shift = -u @ c if self.delta is None else self.delta.double() - u @ c
        return torch.eye(self.d, dtype=torch.float64, device=u.device) + self.beta * u @ v.T, self.beta * shift


@dataclass(frozen=True, eq=False, repr=False)
class DiagonalEdit(_Edit):
    """Coordinate by coordinate: at β = 1 the map scale ⊙ x + shift, in between the displacement interpolation."""

    scale: Float[Tensor, " d"]
    shift: Float[Tensor, " d"]
    beta: float = 1.0

    def __post_init__(self) -> None:
        self._check(shift=tuple(self.scale.shape))

    @property
    def d(self) -> int:
        """Width of the activations it acts on."""
        return len(self.scale)

    def change(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """β ((scale − 1) ⊙ x + shift)."""
        scale = _wide(self.scale, self.scale)
        return self.beta * ((scale - 1) * _wide(x, self.scale) + _wide(self.shift, self.scale))


@dataclass(frozen=True, eq=False, repr=False)
class ClampEdit(_Edit):
    """Holds coordinates z = Vᵀx − c between `lo` and `hi` (±inf for no bound) by moving along `directions`."""

    directions: Float[Tensor, "k d"]
    V: Float[Tensor, "d k"]
    c: Float[Tensor, " k"]
    lo: Float[Tensor, " k"]
    hi: Float[Tensor, " k"]
    beta: float = 1.0
    delta: Float[Tensor, " d"] | None = None

    def __post_init__(self) -> None:
        k, d = self.directions.shape
        self._check(V=(d, k), c=(k,), lo=(k,), hi=(k,), **({} if self.delta is None else {"delta": (d,)}))
        if not bool((self.lo <= self.hi).all()):
            raise InputError(f"ClampEdit: lo={self.lo.tolist()} is above hi={self.hi.tolist()}, or one is NaN")

    @property
    def d(self) -> int:
        """Width of the activations it acts on."""
        return self.directions.shape[1]

    def readout(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """The coordinates z = Vᵀx − c that it holds."""
        return _coordinates(x, self.V, self.c)

    def change(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """β (Σ_i u_i (clip(z_i) − z_i) + δ)."""
        z = self.readout(x)
        held = torch.minimum(torch.maximum(z, self.lo.to(z.dtype)), self.hi.to(z.dtype))
        out = (held - z) @ self.directions.to(z.dtype)
        return self.beta * (out if self.delta is None else out + self.delta.to(z.dtype))


@dataclass(frozen=True, eq=False, repr=False)
class GatedEdit(_Edit):
    """An edit that acts where the concept is present, by the logits wᵀx + b of a probe; kinds: see the docstring."""

    edit: AffineEdit | DiagonalEdit | ClampEdit
    w: Float[Tensor, "d k"]
    b: Float[Tensor, " k"]
    kind: GateKind = "hard"

    def __post_init__(self) -> None:
        if self.kind not in get_args(GateKind):
            raise InputError(f"GatedEdit: kind={self.kind!r}, expected one of {', '.join(get_args(GateKind))}")
        k = self.w.shape[1]
        self._check(w=(self.edit.d, k), b=(k,))
        if self.kind == "free" and not (isinstance(self.edit, AffineEdit) and self.edit.rank == k):
            raise InputError(f"GatedEdit: kind='free' needs an affine edit that reads {k} coordinates, one per gate")

    @property
    def beta(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Strength of the gated edit."""
        return self.edit.beta

    @property
    def d(self) -> int:
        """Width of the activations it acts on."""
        return self.edit.d

    def probabilities(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """σ(wᵀx + b): what the probe says of each concept."""
        return torch.sigmoid(_wide(x, self.w) @ _wide(self.w, self.w) + _wide(self.b, self.w))

    def change(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The inner edit's change, weighed by the gate (or, in the free form, read from it)."""
        p = self.probabilities(x)
        if self.kind == "free" and isinstance(self.edit, AffineEdit):
            return self.edit.write(p - self.edit.c.to(p.dtype))
        gate = p.amax(-1, keepdim=True)
        gate = (gate > 0.5).to(p.dtype) if self.kind == "hard" else gate
        return gate * self.edit.change(x)

    def at(self, beta: float) -> "GatedEdit":
        """The same gate around the edit at strength `beta`."""
        return self._with(edit=self.edit.at(beta))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "GatedEdit":
        """The same on another device, or in another precision."""
        inner, outer = self.edit.to(device, dtype), super().to(device, dtype)
        return outer if inner is self.edit else outer._with(edit=inner)

    def tensors(self) -> dict[str, Tensor]:
        """The probe's tensors, and the inner edit's under `edit.`."""
        return {**self._own(), **{f"edit.{name}": x for name, x in self.edit.tensors().items()}}

    def facts(self) -> dict[str, Any]:
        """What is not a tensor, as JSON."""
        return {"kind": "gated", "gate": self.kind, "edit": self.edit.facts()}


AnyEdit = AffineEdit | DiagonalEdit | GatedEdit | ClampEdit
_CLASSES: dict[str, Callable[..., Any]] = {"affine": AffineEdit, "diagonal": DiagonalEdit, "clamp": ClampEdit}


def kind_of(edit: object) -> EditKind:
    """The name under which `edit_from` knows the kind of an edit."""
    kinds: dict[type, EditKind] = {
        AffineEdit: "affine",
        DiagonalEdit: "diagonal",
        ClampEdit: "clamp",
        GatedEdit: "gated",
    }
    if (found := kinds.get(type(edit))) is None:
        raise InputError(f"{type(edit).__name__} is no edit of this module: expected {', '.join(get_args(EditKind))}")
    return found


def edit_from(kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> AnyEdit:
    """The edit of which these are `tensors()` and `facts()`."""
    if kind not in get_args(EditKind):
        raise InputError(f"unknown kind of edit {kind!r}: expected one of {', '.join(get_args(EditKind))}")
    try:
        if kind == "gated":
            inner = {name.removeprefix("edit."): x for name, x in tensors.items() if name.startswith("edit.")}
            if facts["edit"]["kind"] == "gated":
                raise InputError("a saved gated edit has another gated edit inside, which none has")
            edit = edit_from(facts["edit"]["kind"], inner, facts["edit"])
            return GatedEdit(edit, tensors["w"], tensors["b"], facts["gate"])  # pyright: ignore[reportArgumentType]
        return _CLASSES[kind](**tensors, beta=float(facts["beta"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a saved {kind} edit lacks or has too much of something: {error}") from None
