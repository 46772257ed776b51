"""Made-up evaluations of steering in the shape of the real ones, drawn from a seed."""

from typing import Any

import numpy as np

from interp.steering.evaluation import PROMPTED, UNSTEERED, Point, SetResult, SteeringEvaluation, accuracy, kl_and_ce
from interp.steering.generation import Generated
from interp.steering.neutral import NeutralEffect

HOSTILE = "</script><img src=x onerror=alert(1)> & <b>bold</b> \u202e"
KINDS = ("source", "target", "unrelated")
GAIN = {"midsteer": (0.5, 0.05), "flip": (0.5, -0.5), "vanilla": (0.2, -0.2), "random": (0.0, 0.0)}


def evaluation(*, n: int = 20, methods: tuple[str, ...] = tuple(GAIN), seed: int = 0) -> SteeringEvaluation:
    """An unsteered point, a prompted one, and three strengths of each method."""
    rng = np.random.default_rng(seed)
    base = {judge: {kind: rng.uniform(-0.9, -0.3, n) for kind in KINDS} for judge in ("lexicon", "embedding")}
    runs: list[tuple[str, float, float, float]] = [(UNSTEERED, 0.0, 0.0, 0.0), (PROMPTED, 1.0, 0.3, 0.1)]
    runs += [(name, beta, GAIN[name][0] * beta, GAIN[name][1] * beta) for name in methods for beta in (0.5, 1.0, 2.0)]
    points = tuple(_point(rng, base, *run, n) for run in runs)
    texts = {point.name: f"{point.name}: once upon a time {HOSTILE}" for point in points}
    samples = tuple({"set": kind, "prompt": f"Tell me about {HOSTILE}", "texts": texts} for kind in KINDS)
    rated = {
        name: {"factor": 1.0, "score": 1.1, "interval": [0.9, 1.3], "n": n // 2, "chosen_by": 1.2} for name in methods
    }
    return SteeringEvaluation(_facts(methods, n), points, samples, rated)


def _point(
    rng: np.random.Generator, base: dict[str, Any], method: str, beta: float, gain: float, other: float, n: int
) -> Point:
    sets = {}
    for kind, move in zip(KINDS, (gain, other, 0.0), strict=True):
        noise = rng.normal(0, 0.0 if method == UNSTEERED else 0.1, n)
        judged = {j: {"scores": (base[j][kind] + move + noise).tolist(), "silent": 1} for j in base}
        clean = {j: {"scores": base[j][kind].tolist(), "silent": 1} for j in base}
        counts = rng.integers(20, 48, n)
        losses = tuple((counts * rng.uniform(1.5, 2.5, n)).tolist())
        shares = tuple(rng.uniform(0, 0.2 + 0.2 * beta, n).tolist())
        generated = Generated(("a text",) * n, losses, tuple(counts.tolist()), shares, shares)
        sets[kind] = SetResult.of(generated, judged, clean, level=0.95)
    size = 0.0 if method == UNSTEERED else 0.02 * (1 + beta) ** 2
    ce = rng.uniform(150, 200, 12)
    kl = tuple((60 * size * rng.uniform(0.5, 1.5, 12)).tolist())
    effect = NeutralEffect(kl, tuple((ce + np.array(kl)).tolist()), tuple(ce.tolist()), (60,) * 12)
    costs = kl_and_ce(None if method == UNSTEERED else effect, level=0.95)
    clean_answers = rng.random(50) < 0.5
    answers = clean_answers & (rng.random(50) < 1 - size)
    asked = None if method == PROMPTED else accuracy(answers.tolist(), clean_answers.tolist(), level=0.95)
    return Point(method, beta, sets, *costs, asked)


def _facts(methods: tuple[str, ...], n: int) -> dict[str, Any]:
    sites = {
        f"blocks.{layer}.{point}": {"alpha_debiased": 1.0 + layer, "rho": 0.1 * layer - 0.5, "eta": 0.01 * (layer + 1)}
        for layer in range(4)
        for point in ("hook_attn_out", "hook_resid_post")
    }
    provenance = {"model": "SmolLM2", "weights": "a" * 64, "sites": sites}
    described = {"method": "x", "scope": "all", "sites": list(sites), "provenance": provenance}
    return {
        "model": "SmolLM2-135M-Instruct",
        "revision": None,
        "contrast": "horse-motorcycle",
        "source": "horses",
        "target": f"motorcycles {HOSTILE}",
        "judges": ["lexicon", "embedding"],
        "rater": "log-prob",
        "question": {"text": "Which?", "options": ["horses", "motorcycles", "neither"], "descriptions": []},
        "instruction": "Write about motorcycles.",
        "prompts": dict.fromkeys(KINDS, n),
        "config": {"level": 0.95, "betas": [0.5, 1.0, 2.0], "seed": 0},
        "methods": {name: {**described, "method": name} for name in methods},
    }
