"""A model that writes noise, and an SAE with features that make it write words of an emotion: alone, or in a pair.

    feature 0       v, which promotes the words of emotion0
    features 1, 2   w + 2u and w - 2u: w promotes the words of emotion1, u one set of fillers and -u another, so that
                    each alone writes fillers, and both together the words
    features 3 ...  random directions

The directions v, w, u are embeddings of tokens that no text here holds, to which all other embeddings are orthogonal:
without steering nothing is written along them. No feature promotes emotion2.
"""

from pathlib import Path
from typing import Any

import torch

from interp.judges import Judge, LexiconJudge
from interp.model import HookedModel
from saes.primitives.categories import Categories
from saes.primitives.coverage import Setup
from saes.primitives.panel_runs import PanelRun
from saes.primitives.recipe_search import Candidates, SearchConfig
from saes.primitives.specs import SteeringSpec, Term
from saes.primitives.writing import Settings, Writer
from saes.sae import SAE, SAEConfig
from tests.primitives.planted_primitives import FILLERS, SITE, Planter

PROMPTS = ("f1 f2 f3 f4", "f9 f8 f7")
SINGLE = Candidates(naming=(0, 5, 6))
PAIR = Candidates(naming=(1, 5), selves=(2, 6))
NOISE = Candidates(naming=(5, 6, 7))
FEATURES = 16


def plant(seed: int = 0) -> tuple[HookedModel, SAE, Categories]:
    """The model, the SAE with decoder rows of length 0.17, and the emotions with their words."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        p = Planter(seed)
    words = [p.tokens(some) for some in p.emotions.values()]
    v, w, u = (p.embedding[p.ids[f"topic{i}"]] for i in range(3))
    with torch.no_grad():
        hf: Any = p.model.hf
        head = hf.lm_head.weight
        head.mul_(0.15)  # noise among 1,700 tokens, in place of one likeliest token
        head -= sum(torch.outer(head @ x, x) for x in (v, w, u))
        for some in words:
            head[some] -= 0.8 * p.along  # rare without steering
        for some, x in ((words[0], 3 * v), (words[1], 3 * w), (fillers(p, 0), 4 * u), (fillers(p, 1), -4 * u)):
            head[some] += x
    rows = [v, w + 2 * u, w - 2 * u, *(p.random() for _ in range(FEATURES - 3))]
    decoder = 0.17 * torch.nn.functional.normalize(torch.stack(rows), dim=1)
    sae = SAE.of_weights(
        SAEConfig(d_in=decoder.shape[1], d_sae=FEATURES, architecture="standard",
                  metadata={"hook_name": SITE, "model_name": p.model.name}),
        W_enc=decoder.T.contiguous(), b_enc=torch.zeros(FEATURES), W_dec=decoder, b_dec=torch.zeros(decoder.shape[1]),
    )  # fmt: skip
    return p.model, sae, Categories("planted", tuple(p.emotions), p.emotions)


def fillers(p: Planter, number: int) -> list[int]:
    """Twenty tokens that mean nothing."""
    return [p.ids[f"f{FILLERS - 1 - 20 * number - i}"] for i in range(20)]


def judges() -> tuple[Judge, ...]:
    """Three that agree, as far as they can read."""
    return tuple(LexiconJudge(name=f"lexicon{i}") for i in range(3))


def setup(
    folder: Path | None = None, panel: tuple[Judge, ...] | None = None, *, trials: int = 40, batch_size: int = 16
) -> Setup:
    """Everything a search needs."""
    model, sae, emotions = plant()
    settings = Settings(max_new_tokens=8, batch_size=batch_size)
    return Setup(
        Writer(model, sae, SITE, folder, settings), PanelRun(panel or judges(), emotions, folder),
        SteeringSpec((Term(0, 1.0),), 1.0, scope="all"), torch.linspace(0, 1, FEATURES), PROMPTS[:1], PROMPTS,
        search=SearchConfig(strengths=(0.5, 1.0), trials=trials, seeds=(1000, 1001), least_gain=0.2, fluency_cost=0.02),
    )  # fmt: skip
