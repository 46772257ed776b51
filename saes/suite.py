"""What can be asked of an SAE beyond reconstruction and loss, as one set of JSON values: probing, absorption, geometry,
and a comparison with another SAE.

    parts = run_suite(sae, model, SuiteConfig(probing=("topic",), geometry=True), site=site)
    {"probing": {"topic": {...}}, "geometry": {...}}          what was not asked for is absent

`as_text` has the summaries as lines of name and value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import InputError
from interp.heap import trimmed
from interp.model import HookedModel
from interp.sites import Site
from saes.absorption import AbsorptionConfig, absorption
from saes.belongs import check_comparable
from saes.evaluation import as_lines
from saes.first_letter import vocabulary_words
from saes.geometry import geometry, splitting
from saes.interop.load import load_sae
from saes.labelled import TASKS, LabelledTexts, bundled, from_corpus, read_labelled
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


@trimmed()
def run_suite(
    sae: SAE,
    model: HookedModel,
    config: SuiteConfig,
    site: Site | str | Sequence[Site | str] | None = None,
    *,
    force: bool = False,
    show: bool | None = False,
) -> dict[str, Any]:
    """Run what is asked for."""
    tasks = [data for name in config.probing for data in tasks_of(name)]  # a wrong name is found before anything runs
    other = None
    if config.against is not None:
        other = load_sae(config.against, trust_pickle=config.trust_pickle)
        check_comparable(sae, other, name=config.against, force=force)
    parts: dict[str, Any] = {}
    if config.geometry:
        parts["geometry"] = geometry(sae).to_json()
    if other is not None:
        parts["against"] = compare(sae, other.to(sae.W_dec.device)) | {"sae": config.against}
    if tasks:
        found = [sparse_probing(sae, model, data, site, seed=config.seed, force=force, show=show) for data in tasks]
        parts["probing"] = {probing.task: probing.to_json() for probing in found}
    if config.absorption:
        if not isinstance(site, Site | str | None):
            raise InputError("absorption needs one site, and a crosscoder reads several")
        words = vocabulary_words(model.tokenizer, per_letter=config.words_per_letter, seed=config.seed)
        thresholds = AbsorptionConfig(seed=config.seed)
        parts["absorption"] = absorption(sae, model, words, site, config=thresholds, force=force, show=show).to_json()
    return parts


def compare(sae: SAE, other: SAE) -> dict[str, Any]:
    """Matching of two dictionaries, and the splits of the narrower in the wider."""
    narrow, wide = sorted((sae, other), key=lambda one: one.config.d_sae)
    return {
        "matching": match(sae.W_dec, other.W_dec).summary(),
        "splitting": splitting(narrow.W_dec, wide.W_dec).summary()
        | {"narrow": narrow.config.d_sae, "wide": wide.config.d_sae},
    }


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
