"""Catalogues and coverages of nothing real, with texts that try to break out of the page."""

import math
import random
from collections.abc import Sequence

from saes.primitives.catalogue import Candidate, Catalogue
from saes.primitives.categories import categories
from saes.primitives.results import CONDITIONS, Cell, Condition, Coverage, Sample, Shuffled, Trial
from saes.primitives.specs import SteeringSpec, Term

JUDGES = ("lexicon", "embedding", "small <model>", "large model", "probe")
EVIL = (
    '<script>document.title = "taken"</script>',
    "<img src=x onerror=\"document.title='taken'\">",
    "</td></table><h1>Broken</h1>",
    '"><svg onload=alert(1)>',
    "</script><script>alert(1)</script>",
)
PROMPTS = ("The door opened and", "That evening <b>she</b> wrote:")
FEATURES = 4096


def catalogue(*, empty: bool = False, strong: bool = True) -> Catalogue:
    """Several candidates of every class, or none; few of them as of an untrained SAE."""
    registers = ("show-dont-tell", "deep-pov", "defamiliarization")
    facts = {
        "model": "tiny",
        "site": "blocks.3.hook_resid_post",
        "features": FEATURES,
        "categories": "cowen-keltner-2017",
        "contrasts": {name: {"pairs": 60} for name in ("first person", *registers)},
    }
    rng, found = random.Random(int(strong)), []
    if not empty:
        for number, name in enumerate(categories().names[: 20 if strong else 2]):
            scores = {"score": 9 - 0.1 * number, "second": 0.4, "margin": 5.0, "hits": 5.0, "p": 1e-6, "q": 0.001}
            found += [Candidate(100 + 7 * number + i, "naming", name, scores) for i in range(1 + number % 6)]
        contrast = {"effect": 0.25, "marked": 0.5, "plain": 0.25, "p": 1e-5, "q": 0.01}
        found += [Candidate(2000 + i, "self", "first person", contrast | {"score": 3.0, "hits": 4.0}) for i in range(6)]
        for name in registers[: 3 if strong else 1]:
            found += [Candidate(3000 + rng.randrange(999), "register", name, contrast) for _ in range(60)]
    return Catalogue(tuple(found), facts)


def spec(*terms: tuple[int, float]) -> SteeringSpec:
    """A specification at a mean norm of 10."""
    return SteeringSpec(tuple(Term(feature, strength) for feature, strength in terms), 10.0)


def cell(emotion: str, names: Sequence[str], rng: random.Random, *, strength: float = 0.6) -> Cell:
    """An emotion that is hit with a probability of about `strength` when steered."""
    chosen = spec((rng.randrange(FEATURES), 0.5), (rng.randrange(FEATURES), -0.25))
    chance = {"steered": strength, "prompt only": 0.5, "flipped": 0.02}
    samples, conditions = [], []
    for name in CONDITIONS:
        own = []
        for seed in (0, 1):
            for prompt in PROMPTS:
                votes = {
                    judge: emotion if rng.random() < chance.get(name, 0.06) else rng.choice([*names, None])
                    for judge in JUDGES
                }
                text = f"{rng.choice(EVIL)} and so it was, {emotion} of {name}, seed {seed}, all over the valley."
                yes = {judge: vote and vote == emotion for judge, vote in votes.items()}
                own.append(Sample(name, seed, prompt, text, votes, yes, -2.0 - rng.random(), 0.1 * rng.random()))
        given = None if name in ("random direction", "prompt only") else chosen
        conditions.append(Condition.of(name, emotion, own, given))
        samples += own
    tried = [spec((chosen.terms[0].feature, s)) for s in (0.25, 0.5, 0.75)] + [chosen]
    trials = tuple(Trial(one, score) for one, score in zip(tried, (0.1, 0.3, -0.2, 0.4), strict=True))
    return Cell(emotion, "recipe", chosen, tuple(conditions), tuple(samples), trials)


def coverage(n: int = 27, *, strength: float = 0.6, seed: int = 0) -> Coverage:
    """Of the first `n` emotions."""
    names, rng = categories().names, random.Random(seed)
    cells = tuple(cell(name, names, rng, strength=strength) for name in names[:n])
    mixed = Shuffled(3.5, 120, 0.25, n, 50) if n else None
    kappa = 0.41 if cells else math.nan
    return Coverage(
        "cowen-keltner-2017", JUDGES, names, cells, 2, 2.3e-7, 0.25, kappa, mixed, {"prompts": list(PROMPTS)}
    )


def promoted(found: Catalogue) -> dict[int, list[tuple[str, float]]]:
    """Tokens of every candidate, markup among them."""
    tokens = [(" joy", 3.0), ("<b>", 2.0), ("\n", 1.0), ("</script>", 0.5)]
    return {c.feature: tokens for c in found.candidates}
