"""The search within what the budget leaves: speeds measured, effort decided once and kept, emotions one by one.

    coverage = searched(Task(config, found, known, emotions, facts, catalogue), spent=seconds, say=print)

Speeds are of one batch of the run's own texts, unsteered and steered by a candidate, and of the panel's answers about
them; both are kept and used. The panel is also tried on hand-written scenes of known emotion (`known_texts`).
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from interp.judges import Judge
from interp.sealing import read_json, write_json
from saes.primitives.catalogue import Catalogue
from saes.primitives.categories import Categories
from saes.primitives.controls import Way
from saes.primitives.coverage import Setup, cover, judge_validity
from saes.primitives.data import story_openings
from saes.primitives.dictionary import SiteFacts
from saes.primitives.groundwork import Dictionary, Say
from saes.primitives.lens_scores import PERSONS
from saes.primitives.options import PrimitivesConfig, remote_judges
from saes.primitives.panel_runs import PanelRun
from saes.primitives.planning import TRIAL_TEXTS, Effort, Speeds, fitted, known_scenes
from saes.primitives.recipe_search import Candidates, SearchConfig, most_trials
from saes.primitives.recipes import COVERAGE_FILE
from saes.primitives.results import Cell, Coverage, Term
from saes.primitives.specs import SteeringSpec
from saes.primitives.writing import Request, Settings, Writer

MOST = 4
"""Candidates of a class that are tried alone."""
_TRIAL_TOKENS = 16


@dataclass(frozen=True)
class Task:
    """What there is before the search."""

    config: PrimitivesConfig
    found: Dictionary
    known: Categories
    emotions: tuple[str, ...]
    facts: SiteFacts
    catalogue: Catalogue

    def candidates(self, emotion: str) -> Candidates:
        """Of one emotion: its naming-gates, the selves, and the other selves as partners. In place of a class without
        a significant feature, its leading ones: a recipe stands on what judges say of fresh texts, not on the lens."""
        lead = {name: tuple(row) for name, row in self.catalogue.facts.get("leading", {}).items()}
        naming = tuple(c.feature for c in self.catalogue.of("naming", emotion))[:MOST] or lead.get(emotion, ())
        selves = tuple(c.feature for c in self.catalogue.of("self")) or lead.get(PERSONS[0], ())
        return Candidates(naming, selves[:MOST], selves[MOST : 2 * MOST])

    def unconfirmed(self, emotions: Sequence[str]) -> list[str]:
        """Emotions without a significant naming-gate."""
        return [emotion for emotion in emotions if not self.catalogue.of("naming", emotion)]

    def template(self) -> SteeringSpec:
        """Mean norm and site; its term is not used."""
        return SteeringSpec((Term(0, 0.5),), self.facts.mean_norm, site=str(self.found.site),
                            n_features=self.found.sae.config.d_sae)  # fmt: skip


def searched(task: Task, *, spent: float, say: Say, clock: Callable[[], float] = time.perf_counter) -> Coverage:
    """Every emotion that the budget allows, each kept in the ledgers as it comes."""
    path, start = task.config.out / COVERAGE_FILE, clock()
    if path.exists():
        return Coverage.from_json(read_json(path, "a coverage of emotions"))
    panel = PanelRun(_judges(task), task.known, task.config.out / "search")
    validity = _validity(task, panel, say)
    left = 60 * task.config.budget - spent
    effort, cut = _effort(task, panel, left - (clock() - start), say)

    def told(cell: Cell) -> None:
        steered = cell.condition("steered")
        outcome = "no recipe" if steered is None else f"{steered.hits} of {steered.answers} answers hit"
        say(f"      {cell.emotion}: {outcome}")

    candidates = {emotion: task.candidates(emotion) for emotion in task.emotions}
    coverage = cover(candidates, _setup(task, panel, effort), on_cell=told, enough=lambda: clock() - start > left)
    missing = task.emotions[len(coverage.cells) :]
    lines = [*cut, *([f"emotions, for want of time: {', '.join(missing)}"] if missing else [])]
    facts = {"cut": lines, "effort": dataclasses.asdict(effort), "validity": validity}
    facts["unconfirmed"] = task.unconfirmed([cell.emotion for cell in coverage.cells])
    coverage = dataclasses.replace(coverage, facts=dict(coverage.facts) | facts)
    write_json(path, coverage.to_json())
    return coverage


def known_texts(config: PrimitivesConfig) -> dict[str, tuple[int, int]]:
    """How often each judge was right about scenes of known emotion, and of how many."""
    coverage = read_json(config.out / COVERAGE_FILE, "a coverage of emotions")
    return {judge: (row[0], row[1]) for judge, row in coverage["facts"].get("validity", {}).items()}


def _judges(task: Task) -> tuple[Judge, ...]:
    from saes.primitives.local_judges import local_panel

    local = local_panel(task.found.model, task.known) if "local" in task.config.judges else ()
    return (*local, *remote_judges(task.config))


def _validity(task: Task, panel: PanelRun, say: Say) -> dict[str, list[int]]:
    """By judge: right, tried, unreadable; empty where there is no scene of the set's emotions."""
    if not (texts := known_scenes(task.config, task.known)):
        return {}
    found = judge_validity(panel, texts)
    say("      right about scenes of known emotion: "
        + ", ".join(f"{name} {right}/{n}" for name, (right, n, _) in found.items()))  # fmt: skip
    for name, (_, n, unread) in found.items():
        if unread:
            say(f"      {name}: {unread} of {n} answers about them were unusable (not readable, or naming no option); "
                "each is a miss")  # fmt: skip
    return {name: list(row) for name, row in found.items()}


def _effort(task: Task, panel: PanelRun, left: float, say: Say) -> tuple[Effort, tuple[str, ...]]:
    """Decided once, by measured speeds, and kept."""
    path = task.config.out / "effort.json"
    if not path.exists():
        speeds = _speeds(task, panel)
        possible = [most_trials(task.candidates(emotion)) for emotion in task.emotions]
        fit = fitted(left, possible, seeds=task.config.seeds, judges=len(panel.judges), speeds=speeds)
        write_json(path, dataclasses.asdict(fit) | {"speeds": dataclasses.asdict(speeds)})
    kept = read_json(path, "run")
    effort, cut = Effort(**kept["effort"]), tuple(kept["cut"])
    speeds = Speeds(**kept["speeds"])
    say(f"      {speeds.tokens_per_second:.0f} tokens/s, {1e3 * speeds.seconds_per_call:.0f} ms an answer: "
        f"{effort.trials} trials, {effort.prompts} prompts, {effort.tokens} tokens a text")  # fmt: skip
    if cut:
        say(f"      cut to the budget: {', '.join(cut)}")
    return effort, cut


def _speeds(task: Task, panel: PanelRun) -> Speeds:
    writer = Writer(task.found.model, task.found.sae, task.found.site, None, Settings(_TRIAL_TOKENS))
    openings = story_openings(task.config.openings)
    way = Way("steered", task.template())
    requests = [Request(way, openings[i % len(openings)], 10_000 + i) for i in range(TRIAL_TEXTS)]
    start = time.perf_counter()
    texts = [one.text for one in writer.write(requests)]
    wrote = time.perf_counter()
    panel.votes(texts, seed=10_000)
    asked = time.perf_counter()
    each = (asked - wrote) / (len(texts) * len(panel.judges))
    return Speeds(TRIAL_TEXTS * _TRIAL_TOKENS / (wrote - start), each)


def _setup(task: Task, panel: PanelRun, effort: Effort) -> Setup:
    config, found = task.config, task.found
    openings, n = story_openings(config.openings), effort.prompts
    settings = Settings(max_new_tokens=effort.tokens)
    writer = Writer(found.model, found.sae, found.site, config.out / "search", settings)
    return Setup(
        writer, panel, task.template(), task.facts.density, openings[:n], openings[n : 2 * n] or openings[:n],
        tuple(range(config.seeds)), SearchConfig(trials=effort.trials),
    )  # fmt: skip
