"""What steered texts are held against, and the ways of writing that result: one for each condition of a cell.

    zero                the recipe at strength 0: bit for bit the unsteered text (in "clamp" the features taken out)
    random direction    Δ = |Σ_i a_i d_i| · u,  u uniform on the sphere: is it the direction, or any push of that size?
    matched feature     each feature replaced by that of nearest firing rate outside the recipe: is it this feature?
    flipped             all signs turned
    prompt only         no steering, the emotion asked for in words: what steering competes with
    shuffled labels     the same texts and answers, other emotions expected: see `saes.primitives.coverage`

Any push of that length changes texts, and other features may do what the recipe does; the list is our own.
"""

import dataclasses
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.sites import Site
from interp.steering.closed_forms import translation
from interp.steering.scopes import Scope, Scoped, scoped
from saes.primitives.specs import SteeringSpec
from saes.sae import SAE


@dataclass(frozen=True)
class RandomDirection:
    """A direction drawn from the seed, of a given length."""

    norm: float
    seed: int
    scope: Scope = "generated"

    def vector(self, d: int) -> Float[Tensor, " d"]:
        """What is added, float64."""
        drawn = torch.randn(d, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return drawn * (self.norm / drawn.norm())

    def hooks(self, sae: SAE, site: Site | str) -> dict[Site, Scoped]:
        """As `SteeringSpec.hooks`."""
        shift = self.vector(sae.config.d_in).to(sae.W_dec.device)
        return {Site.parse(site): scoped(translation(shift), self.scope)}


@dataclass(frozen=True)
class Way:
    """A way of writing: at most one of a steering and an instruction."""

    name: str
    steering: SteeringSpec | RandomDirection | None = None
    instruction: str | None = None

    @property
    def spec(self) -> SteeringSpec | None:
        """The features steered, if any."""
        return self.steering if isinstance(self.steering, SteeringSpec) else None

    @property
    def note(self) -> str:
        """What a reader of the results should know besides the features."""
        if isinstance(self.steering, RandomDirection):
            return f"length {self.steering.norm:.4g}, drawn with seed {self.steering.seed}"
        return self.instruction or ""

    def facts(self, sae: SAE) -> dict[str, Any]:
        """All that a text written this way depends on, with a digest of the dictionary's rows that are used."""
        steering = self.steering
        if isinstance(steering, RandomDirection):
            return {"direction": dataclasses.asdict(steering) | {"d": sae.config.d_in}}
        if steering is None:
            return {"instruction": self.instruction}
        own = steering.to_json()
        own = {key: own[key] for key in ("terms", "mean_norm", "mode", "scope")}
        return {"spec": own, "rows": _rows_digest(sae, steering)}


def zero(spec: SteeringSpec) -> SteeringSpec:
    """The recipe at strength 0."""
    return spec.scaled(0.0)


def flipped(spec: SteeringSpec) -> SteeringSpec:
    """The recipe with its signs turned."""
    return spec.scaled(-1.0)


def random_direction(spec: SteeringSpec, sae: SAE, *, seed: int) -> RandomDirection:
    """A direction as long as what the recipe adds."""
    return RandomDirection(spec.norm(sae), seed, spec.scope)


def matched(
    spec: SteeringSpec, density: Float[Tensor, " f"], *, seed: int, without: Collection[int] = ()
) -> SteeringSpec:
    """Every feature replaced by the one of nearest firing rate that is in neither the recipe nor `without`.

    Among equals, which dead features are in large numbers, the seed decides. No feature is taken twice.
    """
    rates = np.asarray(density.detach().double().cpu())
    if max(spec.features) >= len(rates):
        raise InputError(f"firing rates of {len(rates)} features, but the recipe uses {list(spec.features)}")
    taken = set(spec.features) | set(without)
    if len(rates) - len(taken) < len(spec.features):
        raise InputError(f"{len(rates)} features, {len(taken)} of them ruled out: none is left to match")
    order = np.random.default_rng(seed).permutation(len(rates))
    found: dict[int, int] = {}
    for feature in spec.features:
        free = order[~np.isin(order, list(taken))]
        found[feature] = int(free[np.argmin(np.abs(rates[free] - rates[feature]))])
        taken.add(found[feature])
    return spec.replacing(found)


def instruction(emotion: str) -> str:
    """How the prompt-only condition asks for an emotion."""
    return f"Continue this story so that it expresses {emotion}. Give only the continuation."


def ways(
    emotion: str,
    spec: SteeringSpec,
    sae: SAE,
    density: Float[Tensor, " f"],
    *,
    seed: int,
    without: Collection[int] = (),
) -> tuple[Way, ...]:
    """The recipe and all its controls, in the order of `saes.primitives.results.CONDITIONS`.

    `without`: features that must not serve as matched ones, such as the other candidates of the emotion.
    """
    return (
        Way("steered", spec),
        Way("zero", zero(spec)),
        Way("random direction", random_direction(spec, sae, seed=seed)),
        Way("matched feature", matched(spec, density, seed=seed, without=without)),
        Way("flipped", flipped(spec)),
        Way("prompt only", instruction=instruction(emotion)),
    )


def unsteered(emotion: str) -> tuple[Way, ...]:
    """What is left where there is no recipe: unsteered text, and the prompt."""
    return Way("zero"), Way("prompt only", instruction=instruction(emotion))


def _rows_digest(sae: SAE, spec: SteeringSpec) -> str:
    """Of decoder rows, and for clamps of the encoder's: everything of the SAE that the edit depends on."""
    at = list(spec.features)
    parts = [sae.W_dec[at]]
    if spec.mode == "clamp":
        parts += [sae.encoder[at], sae.b_enc[at], sae.b_dec]
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.detach().float().cpu().numpy().tobytes())
    return sha.hexdigest()
