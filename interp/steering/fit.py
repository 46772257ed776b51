"""`fit_steering`: prompts in, a `Steering` out, with what is known of it before it runs.

    steering = fit_steering(model, source, target, neutral=neutral, sites=["resid_post.12"], method="midsteer")
    with model.edited(steering.hooks()): ...

For every site: activations of all prompts at the same positions, whitening of the neutral covariance, a test of whether
source and target differ at all, the closed form, calibration of its read-out, β (given, or from a disturbance budget η
that is the same for all sites). A site without a significant signal is left out with a warning: there the map would
not vanish but blow up, like |t − s|²/α.

`sequential=False` fits every site on the model as it is and applies all edits at once (as MidSteer does);
`sequential=True` fits them in execution order, each on the model steered before it (concept scrubbing, Belrose et al.
2023): later sites then remove only what is left.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.model import Edit, HookedModel
from interp.moments import Positions, Whitener, Whitening, whitener
from interp.sites import Site
from interp.steering.closed_forms import protect as protected
from interp.steering.diagnostics import Rows, Signal, calibrated, leak, neutral_noise, read_out, signal, strength_for
from interp.steering.edits import AffineEdit, AnyEdit, GateKind
from interp.steering.fit_data import Prompts, SiteData, gather
from interp.steering.methods import AGAINST_NEUTRAL, Kept, Method, Recipe, build, source_vector, target_vector
from interp.steering.scopes import Scope, scoped
from interp.steering.steering import Steering

Directions = Mapping[Site, Float[Tensor, "d m"]] | Mapping[str, Float[Tensor, "d m"]]
_READS_SOURCE_AS = {"midsteer": 1.0, "erase": 1.0, "flip": 0.5}
"""What source prompts read from the centre of the method; measured on held-out ones."""
LEAK = 0.5
"""ρ above which a fit of MidSteer warns."""


def fit_steering(
    model: HookedModel,
    source: Sequence[Any],
    target: Sequence[Any] | None = None,
    *,
    sites: str | Site | Iterable[str | Site],
    neutral: Sequence[Any] | None = None,
    method: Method = "midsteer",
    whiten: Whitening = "shrink",
    preserve: Sequence[Sequence[Any]] | Directions | Literal["target"] | None = None,
    keep_strength: float = math.inf,
    protect: Directions | None = None,
    held_out: Sequence[Any] | None = None,
    calibrate: bool = True,
    value: float = 1.0,
    gate: GateKind | None = None,
    rank: int | None = None,
    beta: float = 1.0,
    eta: float | None = None,
    positions: Positions = "last",
    scope: Scope = "all",
    level: float | None = 0.01,
    sequential: bool = False,
    prepend_bos: bool | None = None,
    generation_prompt: bool = False,
    seed: int = 0,
) -> Steering:
    """Fit an edit at every site that shows the concept, from texts or chats.

    method              see `interp.steering.methods`; midsteer, swap and free need `neutral` prompts
    preserve            concepts that must not trigger or feel the edit: sets of prompts, directions by site, or
                        "target" (target prompts stay put, so what both sides share against neutral prompts, such as
                        their form, is no part of the concept); softly for a finite `keep_strength`
    protect             read-outs by site that the edit never moves
    held_out            other source prompts: the read-out is measured on them, and calibrated there where it can be
    calibrate           make the read-out unbiased on new prompts
    value               of "set" and "ace"; `gate`: act only where a probe sees the source; `rank`: of "ot"
    beta, eta           strength; or a disturbance budget, in shares of the neutral variance, that sets it by site
    level               of the permutation test below which a site counts; None: take every site
    """
    recipe = Recipe(method, calibrate, value, keep_strength, gate, rank)
    recipe.check(target=target is not None, neutral=neutral is not None, keep=_given(preserve))
    wanted = sorted(set(Site.parse_all(sites)))
    kept = () if preserve is None or isinstance(preserve, Mapping | str) else preserve
    prompts = Prompts(source, target, neutral, held_out, kept, positions, prepend_bos, generation_prompt)
    keep = "target" if preserve == "target" else _sites_of(preserve if isinstance(preserve, Mapping) else None, wanted)
    settings = Settings(recipe, whiten, keep, _sites_of(protect, wanted), beta, eta, level, seed)
    fitted: dict[Site, Fitted] = {}
    for group in [[site] for site in wanted] if sequential else [wanted]:
        before = {site: _acting(one.edit, scope) for site, one in fitted.items() if one.edit is not None}
        for site, data in gather(model, prompts, group, edits=before or None).items():
            fitted[site] = fit_site(site, data, settings)
    if method == "midsteer" and preserve is None:
        _warn_of_leak(fitted)
    how = {"positions": positions, "calibrate": calibrate, "level": level, "eta": eta, "sequential": sequential}
    return _steering(model, fitted, scope, method, {**how, "seed": seed})


def _acting(edit: AnyEdit, scope: Scope) -> Edit:
    """What a sequential fit runs with: the edit in its scope, or everywhere where prompts alone have no such place."""
    return edit if scope in ("generated", "mask") else scoped(edit, scope)


@dataclass(frozen=True, eq=False)
class Settings:
    """What does not depend on the data."""

    recipe: Recipe
    whiten: Whitening = "shrink"
    preserve: Mapping[Site, Tensor] | Literal["target"] | None = None
    protect: Mapping[Site, Tensor] | None = None
    beta: float = 1.0
    eta: float | None = None
    level: float | None = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """The edit of one site, or why there is none, and what was measured."""

    edit: AnyEdit | None
    facts: dict[str, Any]


def fit_site(site: Site, data: SiteData, settings: Settings) -> Fitted:
    """Test, fit, calibrate and scale at one site."""
    recipe = settings.recipe
    if settings.level is not None and not bool((data.moments.covariance() != 0).any()):
        return _left_out(site, "all prompts have the same activations there", {})
    q = whitener(data.moments, settings.whiten)
    facts: dict[str, Any] = {
        "n_source": len(data.source),
        "n_target": None if data.target is None else len(data.target),
        "n_neutral": None if data.neutral is None else data.moments.n_groups,
        "whiten": q.how,
        "shrinkage": q.shrinkage,
    }
    found = None if settings.level is None else signal(data.source, data.reference, q, seed=settings.seed)
    facts |= _alpha_facts(data, q, recipe.method, found)
    if found is not None and settings.level is not None and (why := _too_weak(found, facts, settings.level)):
        return _left_out(site, why, facts)
    held = data.held_out is not None and recipe.method in _READS_SOURCE_AS and recipe.calibrate
    edit = build(data, q, replace(recipe, calibrate=recipe.calibrate and not held), _kept(site, data, q, settings))
    edit, told = _on_held_out(edit, data.held_out, recipe)
    if settings.protect is not None:
        if not isinstance(edit, AffineEdit):
            raise InputError(f"protect is for affine edits without a gate, not for method={recipe.method!r} as asked")
        edit, told["protect_lost"] = protected(edit, settings.protect[site])
    rows = data.neutral or data.reference
    share = measured_disturbance(edit.at(1.0), rows, float(data.moments.covariance().trace()))
    strength = settings.beta if settings.eta is None else strength_for(settings.eta, share)
    edit = edit.at(strength).to(dtype=torch.float32)
    return Fitted(edit, {**facts, **told, "beta": strength, "eta": share * strength**2})


def _left_out(site: Site, why: str, facts: dict[str, Any]) -> Fitted:
    warnings.warn(f"{site} is left out: {why}", stacklevel=4)
    return Fitted(None, {**facts, "skipped": why})


def measured_disturbance(edit: AnyEdit, rows: Rows, variance: float) -> float:
    """η of any edit, on rows: mean of |f(x) − x|² over positions, as a share of the total variance."""
    moved = edit.to(dtype=torch.float64).change(rows.x).square().sum(1)
    return float(rows.weight @ moved / rows.weight.sum()) / variance


def _alpha_facts(data: SiteData, q: Whitener, method: Method, found: Signal | None) -> dict[str, Any]:
    """α of the vector the method reads with, and of source against reference; ρ."""
    s = source_vector(data, method)
    alpha = float(q.gram(s))
    neutral = method in AGAINST_NEUTRAL or data.target is None
    noise = data.source.noise(q) + (neutral_noise(q, data.moments) if neutral else data.reference.noise(q))
    facts: dict[str, Any] = {
        "alpha": alpha,
        "alpha_debiased": alpha - noise if math.isfinite(noise) else None,
        "p": None if found is None else found.p,
        "contrast_alpha": None if found is None else found.alpha,
        "contrast_alpha_debiased": None if found is None else found.debiased,
        "rho": None,
    }
    if data.target is not None and data.neutral is not None and alpha > 0:
        facts["rho"] = float(leak(source_vector(data, "midsteer"), target_vector(data), q))
    return facts


def _too_weak(found: Signal, facts: Mapping[str, Any], level: float) -> str:
    """Why there is nothing to steer by; empty if there is."""
    if found.p > level:
        return (
            f"source and reference do not differ significantly (permutation test p = {found.p:.3g} > {level:g} with "
            f"{found.n_source} and {found.n_reference} prompts)"
        )
    if found.debiased <= 0 or (facts["alpha_debiased"] or 0) <= 0:
        return (
            f"the concept is no larger than the error of its estimate (alpha {facts['alpha']:.3g}, debiased "
            f"{facts['alpha_debiased']:.3g}, with {found.n_source} prompts)"
        )
    return ""


def _kept(site: Site, data: SiteData, q: Whitener, settings: Settings) -> Kept | None:
    if isinstance(settings.preserve, Mapping):
        directions = settings.preserve[site].double()
        return Kept(directions, (0.0,) * directions.shape[1])
    rows = data.kept if settings.preserve is None or data.target is None else (data.target,)
    if not rows:
        return None
    return Kept(torch.stack([one.mean - data.moments.mean for one in rows], 1), tuple(one.noise(q) for one in rows))


def _on_held_out(edit: AnyEdit, rows: Rows | None, recipe: Recipe) -> tuple[AnyEdit, dict[str, Any]]:
    """What held-out source prompts read, as a share of what they should; and the edit calibrated to it."""
    expected = _READS_SOURCE_AS.get(recipe.method)
    if rows is None or expected is None or not isinstance(edit, AffineEdit):
        return edit, {"held_out_read_out": None}
    found = float(read_out(edit, rows)) / expected
    return calibrated(edit, rows, expected) if recipe.calibrate else edit, {"held_out_read_out": found}


def _given(preserve: Any) -> bool | Literal["target"]:
    if isinstance(preserve, str) and preserve != "target":
        raise InputError(f"preserve={preserve!r}: expected 'target', a list of sets of prompts, or directions by site")
    return "target" if isinstance(preserve, str) else preserve is not None


def _warn_of_leak(fitted: Mapping[Site, Fitted]) -> None:
    """MidSteer is safe on target prompts only where ρ is small."""
    leaks = {site: one.facts["rho"] for site, one in fitted.items() if one.edit is not None and one.facts["rho"]}
    if leaks and abs(worst := max(leaks.values(), key=abs)) > LEAK:
        warnings.warn(
            f"target prompts get up to {worst:.0%} of the edit (rho): source and target differ from the neutral "
            "prompts in the same way. Give neutral prompts of the same form, or preserve='target'",
            stacklevel=3,
        )


def _sites_of(given: Any, wanted: list[Site]) -> Mapping[Site, Tensor] | None:
    """Directions by site, every wanted site among them."""
    if given is None:
        return None
    found = {Site.parse(site): directions for site, directions in given.items()}
    if missing := [str(site) for site in wanted if site not in found]:
        raise InputError(f"directions are given for {', '.join(map(str, found))}, but not for {', '.join(missing)}")
    return found


def _steering(
    model: HookedModel, fitted: Mapping[Site, Fitted], scope: Scope, method: Method, how: dict[str, Any]
) -> Steering:
    edits = {site: one.edit for site, one in fitted.items() if one.edit is not None}
    if not edits:
        reasons = "; ".join(f"{site}: {one.facts['skipped']}" for site, one in fitted.items())
        raise InputError(
            f"no site shows the concept, so there is nothing to steer with ({reasons}). Give more or clearer prompts, "
            "other sites, or level=None"
        )
    facts = {str(site): one.facts for site, one in fitted.items()}
    return Steering.of(model, edits, scope=scope, method=method, fit=how, sites=facts)
