"""What is added to the residual stream: features of one SAE with strengths that mean the same in every model.

    spec = SteeringSpec((Term(417, 0.5), Term(96, -0.3)), mean_norm=10.8, site="blocks.15.hook_resid_post")
    add      x <- x + Σ_i a_i d_i / |d_i|,    a_i = strength_i · mean norm of x at the site         (`spec.raw`)
    clamp    the feature's own activation, in units of unit rows, goes out and a_i comes in
    with model.edited(spec.hooks(sae, "blocks.15.hook_resid_post")): ...

Decoder rows count by their direction alone: rows of length 0.17, as folding an input scale into the weights leaves
them, give the same edit as unit rows. Presa and de Oliveira (arXiv 2605.18808) write alpha / decoder norm for it, as
far as its public descriptions say; strengths as a fraction of the mean norm, and clamping, are our own. About half the
norm is where the field's experience puts the best single strength.

A specification belongs to one SAE at one site: `site` and `n_features`, where given, are held against those it is used
with. In "clamp" a strength of 0 takes the feature out; in "add" it does nothing, bit for bit.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from interp.errors import InputError
from interp.sites import Site
from interp.steering.edits import AffineEdit, ClampEdit
from interp.steering.sae_features import add_features, clamp_features
from interp.steering.scopes import Scope, Scoped, scoped
from interp.typed import built
from saes.belongs import check_belongs
from saes.sae import SAE

Mode = Literal["add", "clamp"]


@dataclass(frozen=True)
class Term:
    """One feature and how strongly: a fraction of the mean norm of the residual stream at the site, with its sign."""

    feature: int
    strength: float

    def __post_init__(self) -> None:
        if self.feature < 0 or not math.isfinite(self.strength):
            raise InputError(
                f"feature {self.feature} with strength {self.strength}: expected a number of a feature, 0 or more, and "
                "a finite strength"
            )


@dataclass(frozen=True)
class SteeringSpec:
    """Features with strengths, and the mean norm that gives strengths their size; see the module's docstring."""

    terms: tuple[Term, ...]
    mean_norm: float
    mode: Mode = "add"
    scope: Scope = "generated"
    """Which positions are steered, see `interp.steering.scopes`."""
    site: str | None = None
    """Where the norm was measured; None accepts any site that the SAE itself accepts."""
    n_features: int | None = None
    """Of the SAE that the numbers count in; None accepts any that has the features."""

    def __post_init__(self) -> None:
        features = [term.feature for term in self.terms]
        if not features or len(set(features)) != len(features):
            raise InputError(f"a specification needs one feature or more, each once; got {features}")
        if not 0 < self.mean_norm < math.inf:
            raise InputError(f"mean_norm={self.mean_norm}: expected the mean norm at the site, a positive number")
        if self.mode not in get_args(Mode):
            raise InputError(f"unknown mode {self.mode!r}; known: {', '.join(get_args(Mode))}")
        if self.scope not in get_args(Scope) or self.scope == "mask":
            known = ", ".join(scope for scope in get_args(Scope) if scope != "mask")
            raise InputError(f"unknown scope {self.scope!r} of a specification; known: {known}")
        if self.site is not None:
            Site.parse(self.site)

    @property
    def raw(self) -> dict[int, float]:
        """Coefficients along unit decoder rows."""
        return {term.feature: term.strength * self.mean_norm for term in self.terms}

    @property
    def features(self) -> tuple[int, ...]:
        """Their numbers, in order."""
        return tuple(term.feature for term in self.terms)

    def edit(self, sae: SAE) -> AffineEdit | ClampEdit:
        """The edit that `sae`'s decoder rows make of it, on every position."""
        f = sae.config.d_sae
        if self.n_features not in (None, f) or max(self.features) >= f:
            raise InputError(
                f"the specification is of features {list(self.features)} among {self.n_features or 'more'}, the SAE "
                f"has {f}: feature numbers mean nothing in another SAE"
            )
        decoder = sae.W_dec.detach()
        if self.mode == "add":
            return add_features(decoder, self.raw)
        encoder = sae.W_enc.detach()
        bias = sae.b_enc.detach()
        if sae.config.apply_b_dec_to_input:
            bias = bias - sae.b_dec.detach() @ encoder
        return clamp_features(decoder, self.raw, encoder=encoder, bias=bias)

    def hooks(self, sae: SAE, site: Site | str) -> dict[Site, Scoped]:
        """What `model.edited` and `model.generate` take."""
        place = Site.parse(site)
        if self.site is not None and Site.parse(self.site) != place:
            raise InputError(
                f"the specification is of {self.site}, not of {place}: its strengths have no meaning there"
            )
        check_belongs(sae, site=place)
        return {place: scoped(self.edit(sae), self.scope)}

    def norm(self, sae: SAE) -> float:
        """The length of what is added; of clamps, of the values that come in."""
        rows = sae.W_dec.detach()[list(self.features)].double()
        amounts = torch.tensor(list(self.raw.values()), dtype=torch.float64, device=rows.device)
        return float((amounts @ (rows / rows.norm(dim=1, keepdim=True))).norm())

    def scaled(self, factor: float) -> "SteeringSpec":
        """All strengths times `factor`."""
        terms = tuple(Term(term.feature, term.strength * factor) for term in self.terms)
        return dataclasses.replace(self, terms=terms)

    def replacing(self, features: Mapping[int, int]) -> "SteeringSpec":
        """Other features with the same strengths."""
        terms = tuple(Term(features.get(term.feature, term.feature), term.strength) for term in self.terms)
        return dataclasses.replace(self, terms=terms)

    def describe(self) -> str:
        """In words, such as `feature 417 at +0.50, feature 96 at -0.30 of the mean norm 10.8`."""
        terms = ", ".join(f"feature {term.feature} at {term.strength:+.2f}" for term in self.terms)
        return f"{'held: ' if self.mode == 'clamp' else ''}{terms} of the mean norm {self.mean_norm:.4g}"

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`, with the raw coefficients beside the strengths."""
        terms = [dataclasses.asdict(term) | {"raw": self.raw[term.feature]} for term in self.terms]
        return dataclasses.asdict(self) | {"terms": terms}

    @classmethod
    def from_json(cls, value: Any) -> "SteeringSpec":
        """What `to_json` gave; refuses anything else, and raw coefficients that contradict the strengths."""
        what, rows = "a steering specification", value.get("terms") if isinstance(value, Mapping) else None
        if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
            raise InputError(f"{what} has terms, a list of objects; got {value!r:.80}")
        terms = [{name: one for name, one in row.items() if name != "raw"} for row in rows]
        spec = built(cls, {**value, "terms": terms}, what)
        for row, term in zip(rows, spec.terms, strict=True):
            raw, expected = row.get("raw"), term.strength * spec.mean_norm
            known = isinstance(raw, int | float) and not isinstance(raw, bool)
            if not known or not math.isclose(raw, expected, rel_tol=1e-9, abs_tol=1e-12):
                told = f"raw={raw!r:.40}, expected strength times mean norm, {expected}"
                raise InputError(f"feature {term.feature}: {told}; change both")
        return spec
