"""From the data of one site to an edit, by the name of the method; the equations are in `interp.steering.closed_forms`.

With μ_s, μ_t, μ_0 the means of source, target and neutral prompts:

    midsteer    s = μ_s − μ_0 becomes t = μ_t − μ_0            swap    and t becomes s
    erase       s = μ_s − μ_t (μ_s − μ_0 without a target) becomes 0
    flip        source and target change places, about their midpoint
    set         the coordinate along μ_t − μ_s, counted from μ_s, becomes `value` (1: the target's); ace: unwhitened
    add         x + μ_t − μ_s                                  vanilla   the unit vector of erase, projected out
    ot          Gaussian transport of source onto target       per-neuron   coordinate by coordinate
    free        s becomes t as far as a calibrated probe of source against neutral says so
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.moments import Moments, Whitener
from interp.steering import closed_forms as forms
from interp.steering.edits import AffineEdit, AnyEdit, DiagonalEdit, GatedEdit, GateKind
from interp.steering.fit_data import SiteData
from interp.steering.gating import free_form, gated, probe_of
from interp.steering.transport import gaussian_ot, per_neuron

Method = Literal["midsteer", "erase", "flip", "swap", "set", "ace", "add", "vanilla", "ot", "per-neuron", "free"]
PAIRS = frozenset(get_args(Method)) - {"erase", "vanilla"}
"""Methods that need a target."""
AGAINST_NEUTRAL = frozenset({"midsteer", "swap", "free"})
"""Methods that count concepts from the neutral mean."""
_READERS = frozenset({"midsteer", "erase", "flip", "swap", "set"})


@dataclass(frozen=True)
class Recipe:
    """How to fit; see `interp.steering.fit.fit_steering`."""

    method: Method
    calibrate: bool = True
    value: float = 1.0
    keep_strength: float = math.inf
    gate: GateKind | None = None
    rank: int | None = None

    def check(self, *, target: bool, neutral: bool, keep: bool | Literal["target"]) -> None:
        """Refuse what does not go together."""
        if self.method not in get_args(Method):
            raise InputError(f"unknown method {self.method!r}: expected one of {', '.join(get_args(Method))}")
        if self.method in PAIRS and not target:
            raise InputError(f"method={self.method!r} needs target prompts; without them use 'erase' or 'vanilla'")
        if not neutral and (self.method in AGAINST_NEUTRAL or not target):
            raise InputError(
                f"method={self.method!r} {'' if target else 'without a target '}counts from neutral prompts: "
                "give neutral=..., prompts that have to do with neither side but the same form (the `unrelated` ones "
                "of a contrast set)" + ("; 'flip', 'add' and 'set' do without" if target else "")
            )
        if keep == "target" and self.method != "midsteer":
            raise InputError(
                f"preserve='target' is for method='midsteer', the others move the target; got {self.method!r}"
            )
        if keep and self.method not in _READERS:
            raise InputError(f"preserve is for methods that read ({', '.join(sorted(_READERS))}), not {self.method!r}")
        if self.gate == "free" or (self.gate is not None and self.method == "free"):
            raise InputError(
                "gate: expected 'hard' or 'soft' around a method other than 'free', which is a gate itself"
            )


class Kept(NamedTuple):
    """Directions that the edit must leave alone, and the noise of each (0 where it is not an estimate)."""

    directions: Float[Tensor, "d m"]
    noise: tuple[float, ...]


def build(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AnyEdit:
    """The edit of one site at strength 1."""
    edit = _BUILDERS[recipe.method](data, q, recipe, keep)
    if recipe.gate is None:
        return edit
    assert not isinstance(edit, GatedEdit)
    return gated(edit, probe_of(data.source.x, data.reference.x, q), recipe.gate)


def _options(recipe: Recipe, keep: Kept | None, *noise: float) -> dict[str, Any]:
    """For `constrained`: what is kept, and what is taken off the diagonal of SᵀQS (`noise` of each column of S).

    Kept means are estimates too, and hard-kept ones stand in the same Gram matrix. Single prompts give no noise.
    """
    options: dict[str, Any] = {}
    if keep is not None:
        options = {"keep": keep.directions, "keep_strength": recipe.keep_strength}
        noise = (*noise, *keep.noise) if math.isinf(recipe.keep_strength) else noise
    if recipe.calibrate and all(map(math.isfinite, noise)):
        options["noise"] = torch.diag(torch.tensor(noise, dtype=torch.float64))
    return options


def source_vector(data: SiteData, method: Method) -> Float[Tensor, "d 1"]:
    """The vector the method reads with."""
    against = data.moments.mean if data.target is None or method in AGAINST_NEUTRAL else data.target.mean
    return (data.source.mean - against)[:, None]


def target_vector(data: SiteData) -> Float[Tensor, "d 1"]:
    """μ_t − μ_0."""
    return (_target(data) - data.moments.mean)[:, None]


def _target(data: SiteData) -> Tensor:
    assert data.target is not None
    return data.target.mean


def _midsteer(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    options = _options(recipe, keep, data.source.noise(q))
    return forms.midsteer(source_vector(data, "midsteer"), target_vector(data), q, data.moments.mean, **options)


def _swap(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    assert data.target is not None
    options = _options(recipe, keep, data.source.noise(q), data.target.noise(q))
    return forms.swap(source_vector(data, "swap"), target_vector(data), q, data.moments.mean, **options)


def _erase(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    noise = data.source.noise(q) + (0.0 if data.target is None else data.target.noise(q))
    return forms.erase(source_vector(data, "erase"), q, data.moments.mean, **_options(recipe, keep, noise))


def _flip(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    assert data.target is not None
    options = _options(recipe, keep, data.source.noise(q) + data.target.noise(q))
    return forms.flip(data.source.mean, _target(data), q, **options)


def _set(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    assert data.target is not None
    options = _options(recipe, keep, data.target.noise(q))
    r = (_target(data) - data.source.mean)[:, None]
    return forms.set_value(r, recipe.value, q, data.source.mean, **options)


def _ace(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    return forms.ace(_target(data), data.source.mean, recipe.value)


def _add(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    return forms.add(_target(data), data.source.mean)


def _vanilla(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    return forms.vanilla(source_vector(data, "vanilla")[:, 0])


def _ot(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> AffineEdit:
    assert data.target is not None
    return gaussian_ot(Moments.from_rows(data.source.x), Moments.from_rows(data.target.x), rank=recipe.rank)


def _per_neuron(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> DiagonalEdit:
    assert data.target is not None
    return per_neuron(data.source.x, data.target.x)


def _free(data: SiteData, q: Whitener, recipe: Recipe, keep: Kept | None) -> GatedEdit:
    """Both populations count the same: p = ½, so Cov(X, Z) = ¼ (μ_s − μ_0). Neutral prompts stay put on average."""
    assert data.neutral is not None
    probe = probe_of(data.source.x, data.neutral.x, q)
    even = min(len(data.source), len(data.neutral))
    rows = torch.cat([data.source.x[:even], data.neutral.x[:even]])
    r = (target_vector(data) - source_vector(data, "free")) / 4
    return free_form(r, probe, rows, center=probe(data.neutral.x).mean(0))


_BUILDERS: Mapping[str, Callable[[SiteData, Whitener, Recipe, Kept | None], AnyEdit]] = {
    "midsteer": _midsteer,
    "swap": _swap,
    "erase": _erase,
    "flip": _flip,
    "set": _set,
    "ace": _ace,
    "add": _add,
    "vanilla": _vanilla,
    "ot": _ot,
    "per-neuron": _per_neuron,
    "free": _free,
}
