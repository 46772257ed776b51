"""The methods an evaluation compares, fitted on the same activations, and strengths at which they compare.

    random direction    x + β v,   v uniform on the sphere of radius (η tr Σ)^½:  E|f(x) − x|² as the reference's
    β of method m       β_ref · (Σ_sites η_ref / Σ_sites η_m)^½                   equal mean disturbance over the sites

Activations of every prompt are captured once, whatever the number of methods. Without matched strengths a method looks
good or bad for the size of its vectors: at β = 1 the projection on a unit vector and MidSteer disturb neutral text by
amounts an order of magnitude apart.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from interp.steering.closed_forms import translation
from interp.steering.composition import SequenceEdit, SteeringEdit
from interp.steering.diagnostics import Rows
from interp.steering.fit import Fitted, Settings, fit_site, measured_disturbance
from interp.steering.fit_data import Prompts, SiteData, gather
from interp.steering.methods import Method, Recipe
from interp.steering.scopes import Scope
from interp.steering.steering import Steering

BASELINES: tuple[Method, ...] = ("vanilla", "add", "per-neuron")
RANDOM = "random"


def fit_methods(
    model: HookedModel,
    prompts: Prompts,
    sites: str | Site | Iterable[str | Site],
    methods: Sequence[Method] = ("midsteer", "flip", *BASELINES),
    *,
    settings: Settings | None = None,
    scope: Scope = "all",
    random: bool = True,
) -> dict[str, Steering]:
    """A steering for every method, and one of random directions that disturbs as the first method does.

    `settings` are the first method's but for its recipe's method; sites that show no concept are left out for all."""
    settings = settings or Settings(Recipe(methods[0]))
    data = gather(model, prompts, sorted(set(Site.parse_all(sites))))
    return fit_on(model, data, methods, settings=settings, scope=scope, random=random)


def fit_on(
    model: HookedModel,
    data: Mapping[Site, SiteData],
    methods: Sequence[Method],
    *,
    settings: Settings,
    scope: Scope = "all",
    random: bool = True,
) -> dict[str, Steering]:
    """The same from activations that were gathered before."""
    first = {site: fit_site(site, one, _of(settings, methods[0])) for site, one in data.items()}
    kept = [site for site, one in first.items() if one.edit is not None]
    if not kept:
        reasons = "; ".join(f"{site}: {one.facts['skipped']}" for site, one in first.items())
        raise InputError(f"no site shows the concept, so there is nothing to compare ({reasons})")
    fitted: dict[str, dict[Site, Fitted]] = {methods[0]: {site: first[site] for site in kept}}
    for method in methods[1:]:
        own = _of(settings, method, level=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the first method said of a site holds for all of them
            fitted[method] = {site: fit_site(site, data[site], own) for site in kept}
    if random:
        edits = {site: one.edit for site, one in first.items() if one.edit is not None}
        fitted[RANDOM] = random_like(edits, data, seed=settings.seed)
    return {name: _steering(model, name, sites, scope) for name, sites in fitted.items()}


def random_like(
    reference: Mapping[Site, SteeringEdit], data: Mapping[Site, SiteData], *, seed: int = 0
) -> dict[Site, Fitted]:
    """Translations along random directions that disturb neutral activations as much as the reference at β = 1."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for site, edit in reference.items():
        if isinstance(edit, SequenceEdit):
            raise InputError(
                f"the edit at {site} is a sequence: its disturbance is not measured, so no other matches it"
            )
        variance = float(data[site].moments.covariance().trace())
        eta = measured_disturbance(edit.at(1.0), _neutral(data[site]), variance)
        v = torch.randn(edit.d, generator=generator, dtype=torch.float64)
        random = translation(v * math.sqrt(eta * variance) / v.norm()).to(dtype=torch.float32)
        found[site] = Fitted(random, {"eta": eta, "beta": 1.0})
    return found


def random_steering(
    model: HookedModel, reference: Steering, data: Mapping[Site, SiteData], *, seed: int = 0
) -> Steering:
    """Random directions in the place of a steering's edits."""
    return _steering(model, RANDOM, random_like(reference.edits, data, seed=seed), reference.scope)


def matched_betas(
    steerings: Mapping[str, Steering], reference: str, betas: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """Strengths of every method at which it disturbs neutral activations as the reference does at `betas`."""
    if reference not in steerings:
        raise InputError(f"no steering {reference!r} to match; there are {', '.join(steerings)}")
    size = {name: math.sqrt(mean_eta(steering)) for name, steering in steerings.items()}
    return {
        name: tuple(round(beta * size[reference] / size[name], 4) for beta in betas) if size[name] > 0 else tuple(betas)
        for name in steerings
    }


def mean_eta(steering: Steering) -> float:
    """The disturbance at β = 1 over its sites, in shares of their variance."""
    sites = steering.provenance.get("sites", {})
    found = [sites.get(str(site), {}) for site in steering.edits]
    if any(one.get("eta") is None or not one.get("beta") for one in found):
        raise InputError(
            "this steering does not say what it disturbs (it was made by hand, or fitted at strength 0): give every "
            "method its strengths with betas=..."
        )
    return sum(float(one["eta"]) / float(one["beta"]) ** 2 for one in found) / len(found)


def _of(settings: Settings, method: Method, **changes: Any) -> Settings:
    return replace(settings, recipe=replace(settings.recipe, method=method), beta=1.0, eta=None, **changes)


def _neutral(data: SiteData) -> Rows:
    return data.neutral or data.reference


def _steering(model: HookedModel, name: str, fitted: Mapping[Site, Fitted], scope: Scope) -> Steering:
    edits = {site: one.edit for site, one in fitted.items() if one.edit is not None}
    facts = {str(site): one.facts for site, one in fitted.items()}
    return Steering.of(model, edits, scope=scope, method=name, sites=facts)
