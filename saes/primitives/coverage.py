"""Emotions covered: for each a searched recipe, confirmed on seeds that the search never saw, beside its controls.

    setup = Setup(writer, panel, template, density, search_prompts, prompts)
    cell = cover_emotion("joy", Candidates(naming=(417, 96)), setup)
    coverage = cover({"joy": Candidates(...), ...}, setup, on_cell=print)

Every text and every answer is kept by `Writer` and `PanelRun` in their folders, so a call after an interruption writes
and asks only what is missing, and gives the same cells.

    shuffled labels     the steered texts of the cells with emotions dealt out anew, none its own: by judges that know
                        nothing of the texts, and by texts that are of no particular emotion, no fewer hits are made

The emotions dealt out are those of the cells themselves, so that a judge's liking for one of them counts in both; a
lone cell is dealt any other emotion.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from saes.primitives.controls import Way, unsteered, ways
from saes.primitives.panel_runs import PanelRun, agreement
from saes.primitives.recipe_search import Candidates, SearchConfig, search_recipe
from saes.primitives.results import Cell, CellKind, Condition, Coverage, Sample, Shuffled, chances
from saes.primitives.specs import SteeringSpec
from saes.primitives.writing import Request, Writer

_DRAWS = 200


@dataclass(frozen=True)
class Setup:
    """What all emotions of a run share."""

    writer: Writer
    panel: PanelRun
    template: SteeringSpec
    """Mean norm, mode and scope; its terms are not used."""
    density: Float[Tensor, " f"]
    """Firing rate of each feature, for the matched one."""
    prompts: tuple[str, ...]
    """Neutral openings of the confirmation: as many texts for each seed."""
    search_prompts: tuple[str, ...] = ()
    """Of the search; by default the same."""
    seeds: tuple[int, ...] = (0, 1)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if not self.prompts or not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"coverage needs one prompt or more and different seeds; got {self.seeds}")
        if seen := set(self.seeds) & set(self.search.seeds):
            raise InputError(f"the seeds {sorted(seen)} are of the search: what it chose must be confirmed on others")


def cover_emotion(emotion: str, candidates: Candidates, setup: Setup) -> Cell:
    """Search, then the chosen recipe and its controls on fresh seeds."""
    found = search_recipe(emotion, candidates, setup.template, setup.writer, setup.panel,
                          setup.search_prompts or setup.prompts, setup.search)  # fmt: skip
    chosen = found.chosen
    used = unsteered(emotion) if chosen is None else ways(
        emotion, chosen, setup.writer.sae, setup.density, seed=setup.panel.emotions.index(emotion),
        without=candidates.all,
    )  # fmt: skip
    samples = _samples(emotion, used, setup)
    conditions = tuple(Condition.of(way.name, emotion, samples, way.spec, way.note) for way in used)
    return Cell(emotion, _kind(chosen, candidates), chosen, conditions, samples, found.trials)


def cover(
    emotions: Mapping[str, Candidates],
    setup: Setup,
    *,
    on_cell: Callable[[Cell], object] | None = None,
    enough: Callable[[], bool] | None = None,
) -> Coverage:
    """Every emotion in turn, then what they come to; `on_cell` is told of each that is finished. Once there is one,
    `enough` may end it."""
    for emotion in emotions:
        setup.panel.emotions.index(emotion)
    cells = []
    for emotion, candidates in emotions.items():
        if cells and enough is not None and enough():
            break
        cells.append(cover_emotion(emotion, candidates, setup))
        if on_cell is not None:
            on_cell(cells[-1])
    return summed(cells, setup)


def summed(cells: Sequence[Cell], setup: Setup) -> Coverage:
    """A coverage of cells that are there."""
    panel = setup.panel
    odds = chances(len(panel.judges), len(panel.emotions), len(setup.seeds), texts=len(setup.prompts))
    samples = [sample for cell in cells for sample in cell.samples]
    own = {
        "prompts": list(setup.prompts), "search_prompts": list(setup.search_prompts or setup.prompts),
        "seeds": list(setup.seeds), "search": _plain(dataclasses.asdict(setup.search)),
        "writing": setup.writer.settings.facts(), "site": str(setup.writer.site), "mean_norm": setup.template.mean_norm,
        "mode": setup.template.mode, "scope": setup.template.scope, "chance_any_seed": odds["any_seed"],
    }  # fmt: skip
    return Coverage(
        categories=panel.emotions.name, judges=panel.names, emotions=panel.emotions.names, cells=tuple(cells),
        n_seeds=len(setup.seeds), chance_strict=odds["strict"], chance_soft=odds["soft"],
        kappa=agreement([sample.votes for sample in samples], panel.emotions.names),
        shuffled=shuffled_labels(cells, panel.emotions.names), facts=own,
    )  # fmt: skip


def shuffled_labels(
    cells: Sequence[Cell], emotions: Sequence[str], *, draws: int = _DRAWS, seed: int = 0
) -> Shuffled | None:
    """The steered texts against emotions dealt out at random; None where nothing was steered."""
    steered = [cell for cell in cells if cell.chosen is not None]
    if not steered:
        return None
    rng, hits, strict, answers = np.random.default_rng(seed), 0, 0, 0
    for _ in range(draws):
        for cell, other in zip(steered, _dealt([cell.emotion for cell in steered], emotions, rng), strict=True):
            one = Condition.of("steered", other, cell.samples, cell.chosen)
            hits, strict, answers = hits + one.hits, strict + one.strict, answers + one.answers
    return Shuffled(hits / draws, answers // draws, strict / draws, len(steered), draws)


def _dealt(own: list[str], emotions: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A random permutation that leaves none in its place."""
    if len(own) == 1:
        return [str(rng.choice([emotion for emotion in emotions if emotion != own[0]]))]
    while True:  # a share of about 1/e of permutations will do
        order = rng.permutation(len(own))
        if (order != np.arange(len(own))).all():
            return [own[i] for i in order]


def _samples(emotion: str, used: Sequence[Way], setup: Setup) -> tuple[Sample, ...]:
    """Texts of every way, prompt and seed, with what the judges say of them."""
    samples = []
    requests = [Request(way, p, seed) for way in used for seed in setup.seeds for p in setup.prompts]
    written = setup.writer.write(requests)
    for seed in setup.seeds:
        rows = [(r, w) for r, w in zip(requests, written, strict=True) if r.seed == seed]
        texts = [w.text for _, w in rows]
        votes, yes = setup.panel.votes(texts, seed=seed), setup.panel.says(texts, emotion, seed=seed)
        samples += [
            Sample(request.way.name, seed, request.prompt, one.text, vote, answer, one.fluency, one.repetition)
            for (request, one), vote, answer in zip(rows, votes, yes, strict=True)
        ]
    order = {way.name: i for i, way in enumerate(used)}
    return tuple(sorted(samples, key=lambda sample: order[sample.condition]))


def _kind(chosen: SteeringSpec | None, candidates: Candidates) -> CellKind:
    if chosen is None or len(chosen.terms) != 1:
        return "recipe"
    (feature,) = chosen.features
    return "naming" if feature in candidates.naming else "self" if feature in candidates.selves else "recipe"


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in value.items()}


def judge_validity(
    panel: PanelRun, texts: Sequence[tuple[str, str]], *, seed: int = 0
) -> dict[str, tuple[int, int, int]]:
    """Of texts of known emotion (emotion, text): how many each judge gets right, of how many, and how many unread.

    The panel's own majority stands under "majority".
    """
    votes = panel.votes([text for _, text in texts], seed=seed)
    found = {
        judge: (
            sum(vote[judge] == emotion for vote, (emotion, _) in zip(votes, texts, strict=True)),
            len(texts),
            sum(vote[judge] is None for vote in votes),
        )
        for judge in panel.names
    }
    right = sum(
        2 * sum(v == emotion for v in vote.values()) > len(vote)
        for vote, (emotion, _) in zip(votes, texts, strict=True)
    )
    return found | {"majority": (right, len(texts), 0)}
