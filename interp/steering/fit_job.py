"""A steering from a contrast set or from files of texts, for those who give names instead of objects.

    fit_job("smollm2-135m", FitConfig(contrast="horse-motorcycle", sites=("resid_post.8",)), "runs/horses")

Texts come from a contrast set (its training split) or from files: one text a line in a .txt, {"text": ...} a line in a
.jsonl. The folder is that of `Steering.save`.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from interp.errors import InputError
from interp.heap import trimmed
from interp.jsonlines import json_objects
from interp.model import HookedModel
from interp.moments import Positions, Whitening
from interp.placement import PlacingConfig
from interp.steering.contrast import SETS, read_contrast
from interp.steering.edits import GateKind
from interp.steering.fit import fit_steering
from interp.steering.fit_data import Prompts
from interp.steering.methods import Method
from interp.steering.prompts import fitting_prompts, has_chat
from interp.steering.scopes import Scope
from interp.steering.steering import Steering

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitConfig(PlacingConfig):
    """What to fit, on what."""

    contrast: str | None = None
    """A bundled contrast set (sentiment, formality, person, tense, horse-motorcycle, dog-cat, refusal) or a .jsonl file
    in their format."""
    reverse: bool = False
    """Exchange source and target of the contrast set."""
    source: Path | None = None
    """Texts that have the concept to be moved away from: .txt, one a line, or .jsonl of {"text"}."""
    target: Path | None = None
    """Texts that have the concept to be moved to; erase and vanilla do without."""
    neutral: Path | None = None
    """Texts that have to do with neither; by default the bundled unrelated ones."""
    chat: bool = False
    """The texts of the files are instructions: put them to the model as the user's turn."""
    sites: tuple[str, ...] = ()
    """Where to edit, such as resid_post.8 attn_out.10; by default the site of the preset."""
    method: Method = "midsteer"
    """midsteer, flip, swap, erase, set, ace, add, vanilla, ot, per-neuron or free."""
    whiten: Whitening = "shrink"
    """The metric that is read with: shrink, ridge, full (unshrunk), diag or none."""
    positions: Positions | None = None
    """Tokens the statistics are of: last, all or content; by default the words of an instruction, all of a text."""
    preserve_target: bool = False
    """Of midsteer: target prompts stay put, also where they differ from neutral ones as source prompts do."""
    gate: GateKind | None = None
    """Act only where a probe sees the source: hard or soft."""
    beta: float = 1.0
    """Strength."""
    eta: float | None = None
    """Instead of a strength: the disturbance of neutral activations, as a share of their variance, at every site."""
    scope: Scope = "all"
    """Tokens the edit acts on: all, prompt, last-prompt or generated."""
    max_prompts: int | None = None
    """At most so many of each kind."""
    level: float | None = 0.01
    """Sites whose concept is not significant at this level are left out; None: keep every site."""
    sequential: bool = False
    """Fit every site on the model steered before it."""
    seed: int = 0
    """Of the permutation tests."""

    def __post_init__(self) -> None:
        if (self.contrast is None) == (self.source is None):
            raise InputError(
                f"give either a contrast set ({', '.join(SETS)}, or a .jsonl file) or a file of source texts"
            )
        if self.contrast is not None and (self.target or self.neutral or self.chat):
            raise InputError("target, neutral and chat belong to files of texts; the contrast set has its own")
        if self.scope == "mask" or self.scope not in get_args(Scope):
            raise InputError(f"scope {self.scope!r}: expected all, prompt, last-prompt or generated")


@trimmed()
def fit_job(
    model: HookedModel | str, config: FitConfig, out: str | Path, *, announce: Callable[[str], object] | None = None
) -> Steering:
    """Fit, save, and say what was found at every site."""
    if isinstance(model, str):
        model = HookedModel.load(model, **config.placing())
    prompts = _from_contrast(model, config) if config.contrast is not None else _from_files(config)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        steering = _fitted(model, prompts, config)
    told = {"contrast": config.contrast, "reverse": config.reverse, "source": _name(config.source)}
    told |= {"target": _name(config.target), "neutral": _name(config.neutral)}
    steering = replace(steering, provenance={**steering.provenance, "prompts": told})
    steering.save(out)
    for site, facts in steering.provenance["sites"].items():
        (announce or _log.info)(_line(site, facts))
    for one in warned:
        if "is left out" not in str(one.message):  # said above, site by site
            (announce or _log.warning)(f"note: {one.message}")
    return steering


def _fitted(model: HookedModel, prompts: Prompts, config: FitConfig) -> Steering:
    return fit_steering(
        model,
        prompts.source,
        prompts.target,
        sites=config.sites or _default_sites(model),
        neutral=prompts.neutral,
        method=config.method,
        whiten=config.whiten,
        preserve="target" if config.preserve_target else None,
        gate=config.gate,
        beta=config.beta,
        eta=config.eta,
        positions=prompts.positions,
        scope=config.scope,
        level=config.level,
        sequential=config.sequential,
        seed=config.seed,
    )


def read_texts(path: Path) -> list[str]:
    """Texts of a .txt (one a line) or a .jsonl ({"text"} a line); empty lines are left out."""
    if path.suffix == ".jsonl":
        texts = [_text(row, f"{path}, line {number}") for number, row in json_objects(path, "texts")]
    else:
        try:
            texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read texts from {path}: {error}") from error
    if not texts:
        raise InputError(f"{path} holds no texts; expected one a line")
    return texts


def _text(row: dict[str, Any], place: str) -> str:
    if not isinstance(text := row.get("text"), str) or not text.strip():
        raise InputError(f'{place}: expected {{"text": ...}}, not empty, got {row!r:.200}')
    return text


def _from_contrast(model: HookedModel, config: FitConfig) -> Prompts:
    assert config.contrast is not None
    contrast = read_contrast(config.contrast)
    contrast = contrast.reversed() if config.reverse else contrast
    return fitting_prompts(contrast, chat=has_chat(model), n=config.max_prompts, positions=config.positions)


def _from_files(config: FitConfig) -> Prompts:
    assert config.source is not None
    neutral = read_contrast("sentiment").train.unrelated if config.neutral is None else read_texts(config.neutral)

    def given(texts: Any) -> list[Any]:
        texts = list(texts)[: config.max_prompts]
        return [[{"role": "user", "content": text}] for text in texts] if config.chat else texts

    target = None if config.target is None else given(read_texts(config.target))
    where: Positions = config.positions or ("content" if config.chat else "all")
    source, target = given(read_texts(config.source)), target
    if config.reverse:
        if target is None:
            raise InputError("reverse exchanges source and target, but there is no file of target texts")
        source, target = target, source
    return Prompts(source, target, given(neutral), positions=where)


def _default_sites(model: HookedModel) -> tuple[str, ...]:
    if model.preset is None:
        raise InputError(f"{model.name} has no preset to take the site from: give sites, such as resid_post.8")
    return (str(model.preset.site),)


def _line(site: str, facts: dict[str, Any]) -> str:
    if facts.get("skipped"):
        return f"{site}: left out, {facts['skipped']}"
    named = {"alpha": "alpha_debiased", "rho": "rho", "eta": "eta", "beta": "beta"}
    said = [f"{name} {facts[key]:.3g}" for name, key in named.items() if facts.get(key) is not None]
    return f"{site}: {', '.join(said)}"


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name
