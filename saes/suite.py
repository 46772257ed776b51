"""What can be asked of an SAE beyond reconstruction and loss, as one set of JSON values: probing, absorption, geometry,
and a comparison with another SAE.

    parts = run_suite(sae, model, SuiteConfig(probing=("topic",), geometry=True), site=site)
    {"probing": {"topic": {...}}, "geometry": {...}}          what was not asked for is absent

`as_text` has the summaries as lines of name and value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InputError
from interp.heap import trimmed
from interp.model import HookedModel
from interp.sites import Site
from saes.absorption import AbsorptionConfig, absorption, check_absorbing
from saes.belongs import check_comparable, places_of
from saes.evaluation import as_lines
from saes.first_letter import vocabulary_words
from saes.geometry import geometry, splitting
from saes.interop.load import load_sae
from saes.labelled import TASKS, LabelledTexts, bundled, from_corpus, read_labelled
from saes.row_quality import Stored, check_stored, measure_rows, thresholds_of
from saes.sae import SAE
from saes.sparse_probing import sparse_probing
from saes.stability import match


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which evaluations to run."""

    probing: tuple[str, ...] = ()
    """Tasks: bundled ones, `all` of them, `package`, or .jsonl files."""
    absorption: bool = False
    words_per_letter: int = 100
    """Words of each letter in the absorption task."""
    geometry: bool = False
    against: str | None = None
    """Another SAE of the same model and site, by folder or name, to match and to find splits in."""
    trust_pickle: bool = False
    """Open it even if it is a pickle (for tensors only)."""
    seed: int = 0


class Asked(NamedTuple):
    """A `SuiteConfig` and what it needs, loaded."""

    config: SuiteConfig
    tasks: list[LabelledTexts]
    other: SAE | None


def ask(
    sae: SAE, config: SuiteConfig, site: Site | str | Sequence[Site | str] | None = None, *, force: bool = False
) -> Asked:
    """Load what the evaluations need, and refuse what cannot be run, before anything runs."""
    tasks = [data for name in config.probing for data in tasks_of(name)]
    if config.absorption:
        check_absorbing(sae)
        if not isinstance(site, Site | str | None):
            raise InputError("absorption needs one site, and a crosscoder reads several")
    other = None
    if config.against is not None:
        other = load_sae(config.against, trust_pickle=config.trust_pickle)
        check_comparable(sae, other, name=config.against, force=force)
    return Asked(config, tasks, other)


@trimmed()
def run_suite(
    sae: SAE,
    model: HookedModel,
    asked: SuiteConfig | Asked,
    site: Site | str | Sequence[Site | str] | None = None,
    *,
    alive: Callable[[SAE], Bool[Tensor, " f"]] | None = None,
    force: bool = False,
    show: bool | None = False,
) -> dict[str, Any]:
    """Run what is asked for.

    `alive` tells which features of an SAE count in geometry and comparison, as `fires_in` does; without it, all do.
    """
    config, tasks, other = asked if isinstance(asked, Asked) else ask(sae, asked, site, force=force)
    parts: dict[str, Any] = {}
    own = alive(sae) if alive is not None and (config.geometry or other is not None) else None
    if config.geometry:
        parts["geometry"] = geometry(sae, alive=own).to_json()
    if other is not None:
        other = other.to(sae.W_dec.device)
        parts["against"] = compare(sae, other, own, None if alive is None else alive(other)) | {"sae": config.against}
    if tasks:
        found = [sparse_probing(sae, model, data, site, seed=config.seed, force=force, show=show) for data in tasks]
        parts["probing"] = {probing.task: probing.to_json() for probing in found}
    if config.absorption:
        assert isinstance(site, Site | str | None)
        words = vocabulary_words(model.tokenizer, per_letter=config.words_per_letter, seed=config.seed)
        thresholds = AbsorptionConfig(seed=config.seed)
        parts["absorption"] = absorption(sae, model, words, site, config=thresholds, force=force, show=show).to_json()
    return parts


def fires_in(
    store: Stored,
    site: Any,
    *,
    site_out: Site | str | None = None,
    known: Mapping[SAE, Bool[Tensor, " f"]] | None = None,
    force: bool = False,
) -> Any:
    """For `run_suite`: the features that fire at least once in the rows of a store, massive ones not counted.

    `known`: those of SAEs for which this was counted already."""

    def alive(sae: SAE) -> Bool[Tensor, " f"]:
        if known is not None and sae in known:
            return known[sae]
        places = places_of(sae, site=site, site_out=site_out)
        check_stored(sae, store, places, force=force)
        limits = thresholds_of(sae, store, places.sites)
        rows = measure_rows(sae, store, site, site_out=site_out, threshold=limits, force=force)
        return rows.firing.fires > 0

    return alive


def compare(
    sae: SAE,
    other: SAE,
    alive: Bool[Tensor, " f"] | None = None,
    other_alive: Bool[Tensor, " g"] | None = None,
) -> dict[str, Any]:
    """Matching of two dictionaries, and the splits of the narrower in the wider; of the features alive, if told."""
    own, its = _counted(sae, alive, "the SAE's"), _counted(other, other_alive, "the other SAE's")
    narrow, wide = sorted((own, its), key=len)
    return {
        "matching": match(own, its).summary() | {"features": len(own), "other_features": len(its)},
        "splitting": splitting(narrow, wide).summary() | {"narrow": len(narrow), "wide": len(wide)},
    }


def _counted(sae: SAE, alive: Bool[Tensor, " f"] | None, whose: str) -> Float[Tensor, "g d"]:
    if alive is None:
        return sae.W_dec
    if not alive.any():
        raise InputError(f"none of {whose} {len(alive)} features fires on these rows, so none can be matched")
    return sae.W_dec[alive.to(sae.W_dec.device)]


def tasks_of(name: str) -> list[LabelledTexts]:
    """The labelled texts that a name stands for."""
    if name == "all":
        return [bundled(task) for task in TASKS]
    if name == "package":
        from interp.corpus import read_corpus

        return [from_corpus(read_corpus("builtin"))]
    if name in TASKS:
        return [bundled(name)]
    if name.endswith(".jsonl"):
        return [read_labelled(name)]
    raise InputError(f"{name!r} is no probing task: expected {', '.join(TASKS)}, all, package, or a .jsonl file")


def as_text(parts: Mapping[str, Any]) -> str:
    """Summaries: the numbers of every part, lists left out."""
    rows: dict[str, Any] = {}
    for task, found in parts.get("probing", {}).items():
        rows |= {f"probing.{task}.{name}": value for name, value in found["mean_accuracy"].items()}
    if "absorption" in parts:
        rows |= {f"absorption.{name}": value for name, value in parts["absorption"]["mean"].items()}
    for name in ("geometry", "against"):
        rows |= {key: value for key, value in _flat(name, parts.get(name, {}))}
    return as_lines(rows)


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(f"{name}.{key}", inner)]
    return [(name, value)]
