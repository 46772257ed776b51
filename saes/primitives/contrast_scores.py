"""Which features tell the two sides of contrast pairs apart: showing from telling, first person from third, ...

    a_ij = mean over tokens of text i of the activation of feature j         (`saes.pooling`: no special tokens, no
    x_ij = a_ij(marked) - a_ij(plain)                                         position 0)
    effect_j = mean_i x_ij / sqrt(mean_i x_ij^2)   in [-1, 1];  d / sqrt(1 + d^2) of Cohen's d = mean / sd of x_.j
    p_j: sign-flip test of x_.j, q_j: Benjamini and Hochberg over the features tested

Tested is a feature that differs in enough pairs to reach alpha at all (2^(1-n) <= alpha). This looks at sizes, never
at signs, and given the sizes the signs are what the test is about: leaving features out by it costs no validity and
spares the others a correction for tests that could not have succeeded. The numbers fired and tested are part of the
result, and so is the smallest p-value that so many pairs can reach: with few pairs and many features a discovery may
be out of reach however clear the contrast, see `needed`.

One side of such pairs is often longer, as a scene is longer than the sentence that names its feeling. A feature that
merely follows position would then differ in every pair. So each pair is cut, in tokens, to the length of its shorter
text (`lengths="matched"`): both sides then have the same positions. `"full"` reads whole texts.

What is significant is a consistent difference, whatever its cause: directions drawn at random differ between the sides
too where the model's stream does. That a feature is *about* the contrast is for steering and judges to show.

Contrast pairs for registers: arXiv 2605.18808 (its test is unknown here); this test is our own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from interp.stats import benjamini_hochberg
from saes.pooling import pool
from saes.primitives.sign_tests import fewest_pairs, needed, sign_flip_tests
from saes.sae import SAE

Lengths = Literal["matched", "full"]
TextPair = tuple[str, str]
# Differences this small beside a feature's largest activation are none: the batches in which texts run move sums of
# float32 by some 1e-6, and a test of signs would take a consistent last bit for an effect.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class ContrastScores:
    """The features tested on one set of pairs, by ascending feature."""

    n_pairs: int
    n_features: int
    n_fired: int
    """Features that fire in any text; those of them in `features` were tested."""
    features: Int[np.ndarray, " m"]
    marked: Float[np.ndarray, " m"]
    """Mean activation in the marked texts."""
    plain: Float[np.ndarray, " m"]
    effect: Float[np.ndarray, " m"]
    """Above 0: fires more in the marked texts; 1 where it does so alike in every pair."""
    p: Float[np.ndarray, " m"]
    q: Float[np.ndarray, " m"]

    @property
    def floor(self) -> float:
        """The smallest p-value that so many pairs can reach."""
        return 2.0 ** (1 - self.n_pairs)

    def needed(self, alpha: float = 0.05) -> int:
        """How many features have to reach the floor together before any can be a discovery at FDR `alpha`."""
        return needed(self.floor, len(self.features), alpha)

    def everywhere(self) -> Float[np.ndarray, " f"]:
        """The p-values of all features of the dictionary, 1 where none was tested."""
        p = np.ones(self.n_features)
        p[self.features] = self.p
        return p


def contrast_scores(
    model: HookedModel,
    sae: SAE,
    pairs: Sequence[TextPair],
    *,
    site: Site | str | None = None,
    lengths: Lengths = "matched",
    alpha: float = 0.05,
    draws: int = 2_000,
    seed: int = 0,
    max_length: int = 256,
    prepend_bos: bool | None = None,
    force: bool = False,
    show: bool | None = False,
) -> ContrastScores:
    """Run (marked, plain) texts through model and SAE and test every feature that fires."""
    if lengths not in get_args(Lengths):
        raise InputError(f"lengths={lengths!r}: expected one of {', '.join(get_args(Lengths))}")
    _check(len(pairs), alpha)
    if lengths == "matched":
        pairs = [_cut_alike(model.tokenizer, pair) for pair in pairs]
    texts = [marked for marked, _ in pairs] + [plain for _, plain in pairs]
    features = pool(
        sae, model, texts, site, max_length=max_length, prepend_bos=prepend_bos, force=force, show=show
    ).features
    return paired_scores(features[: len(pairs)], features[len(pairs) :], alpha=alpha, draws=draws, seed=seed)


def paired_scores(marked: Any, plain: Any, *, alpha: float = 0.05, draws: int = 2_000, seed: int = 0) -> ContrastScores:
    """The test alone, of two sparse matrices (scipy, pairs x features) whose rows i belong together."""
    if marked.shape != plain.shape:
        raise InputError(f"marked has shape {marked.shape}, plain {plain.shape}: a row of each makes a pair")
    n, f = marked.shape
    _check(n, alpha)
    marked, plain = marked.tocsc().astype(np.float64), plain.tocsc().astype(np.float64)
    if not (np.isfinite(marked.data).all() and np.isfinite(plain.data).all()):
        raise InputError("the activations hold NaN or infinite values: damaged weights, or a dtype that overflows")
    difference = (marked - plain).tocsc()
    largest = np.maximum(*(side.max(axis=0).toarray().reshape(-1) for side in (marked, plain)))
    column = np.repeat(np.arange(f), np.diff(difference.indptr))
    difference.data[np.abs(difference.data) <= _ROUNDING * largest[column]] = 0
    difference.eliminate_zeros()
    fired = (np.diff(marked.indptr) > 0) | (np.diff(plain.indptr) > 0)
    chosen = np.nonzero(np.diff(difference.indptr) >= fewest_pairs(alpha))[0]
    x = difference[:, chosen].toarray()
    effect = x.mean(0) / np.sqrt((x**2).mean(0))
    p = sign_flip_tests(x, draws=draws, seed=seed) if len(chosen) else np.zeros(0)
    more, less = (np.asarray(side[:, chosen].mean(0)).reshape(-1) for side in (marked, plain))
    return ContrastScores(n, f, int(fired.sum()), chosen, more, less, effect, p, benjamini_hochberg(p))


def _check(n_pairs: int, alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha}: expected a share of false discoveries between 0 and 1")
    if n_pairs < (fewest := fewest_pairs(alpha)):
        raise InputError(
            f"{n_pairs} pairs cannot reach a p-value of {alpha}, whatever they show (2^(1-n) at best): "
            f"give at least {fewest}"
        )


def _cut_alike(tokenizer: Any, pair: TextPair) -> TextPair:
    """Both texts, cut behind as many tokens as the shorter one has."""
    if tokenizer is None:
        raise InputError("this model came without a tokenizer; give one to `wrap`")
    ends = []
    for text in pair:
        if not text.strip():
            raise InputError(f"a text of the pair {pair!r} is empty")
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends.append([end for _, end in coded["offset_mapping"]])
    n = min(map(len, ends))
    first, second = (text[: end[n - 1]] for text, end in zip(pair, ends, strict=True))
    return first, second
