"""Literary primitives in one call: from a model to a page of candidates, recipes and what judges say of their texts.

    out/config.json                the options of this run; another configuration is refused in the same folder
    out/stories.jsonl  out/tokens  out/store  out/sae  out/evaluation.json      where an SAE is trained here
    out/parts.json                 fingerprints of model and SAE; others are refused in the same folder
    out/site.safetensors           mean norm and firing rates
    out/catalogue.json             candidates       out/untrained.json    by the same rules, of an untrained SAE
    out/effort.json                speeds measured, the effort they allow, and what was cut
    out/search/                    texts and answers, each kept as it comes    out/answers/    of judges at an endpoint
    out/coverage.json              every emotion with its controls             out/report.html
    out/timings.json               seconds and processor seconds of every stage, interrupted calls included

Every stage can be killed anywhere and the same call goes on: nothing finished is made again, and no answer is asked for
twice. The budget bounds the run. What a search may cost is decided once, by measured speeds, and kept: a run that goes
on keeps it. Emotions for which no time is left, because the machine became slower, are named and left out.

In the manner of arXiv 2605.18808, of which only the abstract was at hand; stages, rules and controls are our own.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from interp.heap import trimmed
from interp.lens import Lens
from interp.loading import PRESETS
from interp.sealing import only_writer, read_json
from saes.primitives import groundwork, searching
from saes.primitives.catalogue import Catalogue
from saes.primitives.options import PrimitivesConfig, check_early, check_endpoint, emotion_set, emotions_of, paid
from saes.primitives.planning import outline
from saes.primitives.recipes import CATALOGUE_FILE, COVERAGE_FILE
from saes.primitives.results import Coverage
from saes.stages import Stages, claim_run

SHARES = {"model": 0.03, "text": 0.07, "sae": 0.25, "site": 0.04, "catalogue": 0.1, "search": 0.5, "report": 0.01}
"""Of the budget, by stage; the search gets what the others leave."""
_PROMOTED = 12


@trimmed()
def run_primitives(config: PrimitivesConfig, *, say: Callable[[str], None] | None = None) -> Path:
    """Run every stage that is not finished; returns the path of the page. `say` gets lines of text."""
    say, out = say or (lambda line: None), config.out
    _begun(config, say)
    known = emotion_set(config)
    emotions = emotions_of(config, known)
    claim_run(out, config.facts())
    with only_writer(out):
        stages = _Watched(out / "timings.json", say, budget={k: 60 * config.budget * v for k, v in SHARES.items()})
        with stages.stage("model", config.model):
            model = groundwork.load_model(config)
            groundwork.check_words(config, model, known)
        with stages.stage("text", _text_line(config)):
            groundwork.written_stories(config, model)
        with stages.stage(
            "sae", config.sae or f"{config.architecture}, {config.recipe.width(model.cfg.d_model):,} wide"
        ):
            found = groundwork.dictionary(config, model, known, say)
            groundwork.check_same_parts(config, found)
        with stages.stage("site", str(found.site)):
            facts = groundwork.facts_of_site(config, found, known, say)
        with stages.stage("catalogue", f"{found.sae.config.d_sae:,} features, and an untrained SAE of the same shape"):
            catalogue, untrained = groundwork.catalogues(config, found, known, facts, say)
        with stages.stage("search", f"{len(emotions)} of {len(known)} emotions"):
            task = searching.Task(config, found, known, emotions, facts, catalogue)
            coverage = searching.searched(task, spent=stages.total, say=say)
        with stages.stage("report", str(out / "report.html")):
            path = _page(config, found, catalogue, untrained, coverage, stages.seconds)
    stages.close()
    for line in summary(coverage):
        say(line)
    if took := paid(config):
        say(f"the endpoint's part: {', '.join(f'{n:,} {what}' for what, n in took.items())}")
    return path


def _begun(config: PrimitivesConfig, say: Callable[[str], None]) -> None:
    """Refuse what cannot be, and say what the run will take."""
    check_early(config)
    if (config.out / COVERAGE_FILE).exists():
        return
    for name, what in outline(config).items():
        say(f"{name:<13}{what}")
    check_endpoint(config)


def summary(coverage: Coverage) -> list[str]:
    """What came out, in words."""
    n = len(coverage.cells)
    lines = []
    for rule, (count, (low, high)), chance in (
        ("strictly", coverage.strict, coverage.chance_strict), ("softly", coverage.soft, coverage.chance_soft),
    ):  # fmt: skip
        control = coverage.passes("strict" if rule == "strictly" else "soft", "zero")
        lines.append(f"{count} of {n} emotions pass {rule} (95 % interval {low:.0%} to {high:.0%}); unsteered text: "
                     f"{control}; chance for an emotion: {chance:.2g}")  # fmt: skip
    if each := ", ".join(f"{judge} {bad:,} of {n:,}" for judge, (bad, n) in coverage.unusable.items() if bad):
        lines.append(f"unusable answers (not readable, or naming no option), each a miss: {each}")
    if names := coverage.facts.get("unconfirmed"):
        lines.append(f"no significant naming-gate, so the leading features by lens were tried: {', '.join(names)}")
    if cut := coverage.facts.get("cut"):
        lines.append(f"cut to the budget: {', '.join(cut)}")
    return lines


def figures(out: Path) -> dict[str, Any]:
    """Main figures of a finished run."""
    coverage = Coverage.from_json(read_json(out / COVERAGE_FILE, "run"))
    catalogue, untrained = (Catalogue.from_json(read_json(out / f, "run")) for f in (CATALOGUE_FILE, "untrained.json"))
    return {
        "emotions": len(coverage.cells), "strict": coverage.strict[0], "soft": coverage.soft[0],
        "chance_strict": coverage.chance_strict, "chance_soft": coverage.chance_soft,
        "candidates": len(catalogue.candidates), "untrained": len(untrained.candidates),
        "unusable": sum(bad for bad, _ in coverage.unusable.values()),
    }  # fmt: skip


class _Watched(Stages):
    """Stages with processor time beside wall time."""

    @property
    def total(self) -> float:
        """Seconds of wall time so far."""
        return sum(value for name, value in self.seconds.items() if not name.endswith(" processor"))

    def usual(self, seconds: float) -> str:
        """Its share of the budget."""
        return f"of the budget: {seconds:.0f} s"

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """As in `Stages`."""
        start, key = time.process_time(), f"{name} processor"
        with super().stage(name, what):
            try:
                yield
            finally:
                self.seconds[key] = round(self.seconds.get(key, 0.0) + time.process_time() - start, 2)

    def close(self) -> None:
        """Both sums."""
        used = sum(self.seconds.values()) - self.total
        self.say(
            f"{self.total:.0f} s in all, {used:.0f} s of processor time (budget {sum(self.budget.values()):.0f} s)"
        )


def _text_line(config: PrimitivesConfig) -> str:
    return "the project's own" if config.sae else f"the project's own, and {config.stories} stories by the model"


def _page(
    config: PrimitivesConfig,
    found: groundwork.Dictionary,
    catalogue: Catalogue,
    untrained: Catalogue,
    coverage: Coverage,
    seconds: dict[str, float],
) -> Path:
    from saes.primitives_report import write_primitives_report

    model, sae = found.model, found.sae
    features = sorted({c.feature for c in catalogue.candidates})
    rows = Lens.of(model).read(sae.W_dec.detach()[features].float(), model.tokenizer, k=_PROMOTED) if features else []
    promoted = {feature: row[0] for feature, row in zip(features, rows, strict=True)}
    preset = PRESETS.get(config.model)
    provenance = {
        "model": preset.hub_id.split("/")[-1] + (f", {preset.notes}" if preset.notes else "") if preset else model.name,
        "site": str(found.site),
        "SAE": dict(sae.config.metadata) | {"d_sae": sae.config.d_sae, "architecture": sae.config.architecture},
        "Options": config.facts() | {"emotions": [cell.emotion for cell in coverage.cells]},
        **({"Endpoint": paid(config)} if config.remote else {}),
        "Seconds": dict(seconds),
        "Versions": {"torch": torch.__version__},
    }
    return write_primitives_report(
        config.out / "report.html", catalogue=catalogue, untrained=untrained, coverage=coverage,
        provenance=provenance, promoted=promoted, known=searching.known_texts(config),
    )  # fmt: skip
