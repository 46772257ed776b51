"""What features promote, by logit lens: naming-gates (the words of one emotion) and selves (the first person).

    z_j = W u_j / rms_v(W u_j)                        u_j unit decoder row; W: `interp.lens.Lens`, centred over v
    m_jc = mean over words w of set c of (mean over tokens of w of z_j)
    score_jc = (m_jc - mean_{c' != c} m_jc') / sqrt(1/n_c + sum_{c' != c} 1/n_c' / (C - 1)^2)         n_c words of c
    self_j   = (m_j1 - (m_j2 + m_j3) / 2)    / sqrt(1/n_1 + (1/n_2 + 1/n_3) / 4)      persons 1, 2, 3
    hits_jc = words of c with a token among the k that j promotes most
    p_jc = P(hits >= hits_jc) if the k promoted tokens were drawn from the vocabulary without replacement    (exact)

The score is the mean promoted logit of a set against the same of the other sets, as a z-score: the unit is the
feature's own spread over the *vocabulary*. Over the other categories instead it would rest on some 26 numbers, grow
when they happen to agree, and shrink where a second category is promoted as well, which is for the margin to say. The
other categories are what is subtracted, not the vocabulary's mean: a feature that promotes feeling words of all kinds
names none. Words are the units, since the spellings of one word have nearly the same row.

A z-score of few words can come from a single enormous logit. The p-value of hits cannot: a word counts once, however
strongly promoted. It is the enrichment test of gene sets (hypergeometric, with words of several tokens as one case).
Enrichment in turn is blind to what else is promoted, which the score sees. So the p-value of a feature is the larger of
p_jc and the score's P(N(0, 1) >= score_jc), small only if both are, times C for the choice among C categories
(Bonferroni), and then corrected over all features (Benjamini and Hochberg). Its null, a vocabulary without order, is
not that of a trained model, in which related words lie together: a small p says that the words are promoted together,
not that the feature is about them, which is for judges to say.

No f x v array exists: rows go through in chunks of `chunk_bytes` of logits. Naming-gates and selves are of arXiv
2605.18808, of which only the abstract was at hand; scores, tests and rules are our own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import gammaln, ndtr
from torch import Tensor

from interp.errors import InputError
from interp.lens import Lens
from interp.progress import bar
from interp.stats import benjamini_hochberg
from saes.primitives.word_tokens import TokenSets

CHUNK_BYTES = 2**28
PERSONS = ("first person", "second person", "third person")
ENGLISH_PERSONS: dict[str, tuple[str, ...]] = {
    "first person": ("I", "me", "my", "mine", "myself"),
    "second person": ("you", "your", "yours", "yourself"),
    "third person": ("he", "him", "his", "himself", "she", "her", "hers", "herself", "they", "them", "their", "theirs"),
}
"""Singular throughout but for they, whose singular has the same words. English; other languages give their own."""


class SetReadings(NamedTuple):
    """How strongly each feature promotes each set of words."""

    names: tuple[str, ...]
    n_words: Int[np.ndarray, " c"]
    means: Float[np.ndarray, "f c"]
    """m, in units of the feature's spread over the vocabulary; float32."""
    hits: Int[np.ndarray, "f c"]
    p: Float[np.ndarray, "f c"]
    """Of that many hits or more by chance."""
    smallest_p: Float[np.ndarray, " c"]
    """Of all words hit: what a set of few words can reach at best."""

    def of(self, names: Sequence[str]) -> "SetReadings":
        """Some of the sets."""
        place = [self.names.index(name) for name in names]
        columns = self.means[:, place], self.hits[:, place], self.p[:, place]
        return SetReadings(tuple(names), self.n_words[place], *columns, self.smallest_p[place])


class NamingScores(NamedTuple):
    """Features as names of a category; `second` and `margin` are of the scores."""

    names: tuple[str, ...]
    score: Float[np.ndarray, "f c"]
    best: Int[np.ndarray, " f"]
    """The category with the highest score."""
    second: Float[np.ndarray, " f"]
    """The highest score of another category."""
    hits: Int[np.ndarray, " f"]
    """Of the best category."""
    p: Float[np.ndarray, " f"]
    q: Float[np.ndarray, " f"]

    @property
    def margin(self) -> Float[np.ndarray, " f"]:
        """How far the best category is above the second."""
        return self.score[np.arange(len(self.best)), self.best] - self.second


class SelfScores(NamedTuple):
    """Features as promoters of the first person singular against the other persons."""

    score: Float[np.ndarray, " f"]
    hits: Int[np.ndarray, " f"]
    p: Float[np.ndarray, " f"]
    """The larger of the p-values of hits and of the score (normal): both must be small."""
    q: Float[np.ndarray, " f"]


@torch.no_grad()
def read_sets(
    decoder: Float[Tensor, "f d"],
    lens: Lens,
    sets: TokenSets,
    *,
    top_k: int = 100,
    chunk_bytes: int = CHUNK_BYTES,
    show: bool | None = False,
) -> SetReadings:
    """One pass of all decoder rows (`f d`, of any length) through the lens. A row of zeros promotes nothing."""
    v = len(lens.W)
    if not 1 <= top_k <= v:
        raise InputError(f"top_k={top_k}: expected 1 to {v}, the size of the vocabulary")
    words = [word.ids for of_set in sets.words for word in of_set]
    if (highest := max(map(max, words))) >= v:
        raise InputError(f"token {highest} of a vocabulary of {v}: the words were looked up for another model")
    n_words = np.array([len(of_set) for of_set in sets.words])
    f, c, size = len(decoder), len(n_words), max(1, chunk_bytes // (4 * v))
    means, hits = np.zeros((f, c), np.float32), np.zeros((f, c), np.int16)
    token, to_word, to_set = _averages(words, n_words, lens.W.device)
    with bar(f, "lens", unit="feature", show=show) as progress:
        for start in range(0, f, size):
            rows = _units(decoder[start : start + size].to(lens.W), start)
            stop = start + len(rows)
            means[start:stop], hits[start:stop] = _chunk(rows, lens, token, to_word, to_set, top_k)
            progress.update(len(rows))
    tails = [hit_tail([len(w.ids) for w in of_set], top_k, v) for of_set in sets.words]
    p = np.stack([tail[hits[:, i]] for i, tail in enumerate(tails)], axis=1)
    smallest = np.array([tail[-1] for tail in tails])
    return SetReadings(sets.names, n_words, means, hits.astype(np.int64), p, smallest)


def _chunk(
    rows: Float[Tensor, "a d"], lens: Lens, token: Int[Tensor, " i"], to_word: Float[Tensor, "i w"],
    to_set: Float[Tensor, "w c"], top_k: int,
) -> tuple[Float[np.ndarray, "a c"], Float[np.ndarray, "a c"]]:  # fmt: skip
    """Means and hits of some unit rows."""
    logits = lens.logits(rows)
    z = logits[:, token]
    spread = torch.linalg.vector_norm(logits, dim=1, keepdim=True) / math.sqrt(logits.shape[1])
    bound = logits.topk(top_k, dim=1, sorted=False).values.amin(1, keepdim=True)
    del logits
    hit = ((z >= bound) & (spread > 0)).float() @ to_word > 0
    means = z @ to_word @ to_set / torch.where(spread > 0, spread, 1)
    return means.cpu().numpy(), (hit.float() @ (to_set > 0).float()).cpu().numpy()


def naming_scores(
    decoder: Float[Tensor, "f d"],
    lens: Lens,
    sets: TokenSets,
    *,
    top_k: int = 100,
    chunk_bytes: int = CHUNK_BYTES,
    show: bool | None = False,
) -> NamingScores:
    """Every feature against every category; `sets` are the categories' words."""
    return naming_of(read_sets(decoder, lens, sets, top_k=top_k, chunk_bytes=chunk_bytes, show=show))


def self_scores(
    decoder: Float[Tensor, "f d"],
    lens: Lens,
    sets: TokenSets,
    *,
    top_k: int = 100,
    chunk_bytes: int = CHUNK_BYTES,
    show: bool | None = False,
) -> SelfScores:
    """Every feature as a self; `sets` are the words of `PERSONS`."""
    return self_of(read_sets(decoder, lens, sets, top_k=top_k, chunk_bytes=chunk_bytes, show=show))


def naming_of(readings: SetReadings) -> NamingScores:
    """Scores, margin and p-values of categories from their readings."""
    c = len(readings.names)
    if c < 2:
        raise InputError(f"a naming-gate names one category and no other: expected two or more, got {readings.names}")
    m, n = readings.means.astype(np.float64), readings.n_words
    others = (m.sum(1, keepdims=True) - m) / (c - 1)
    score = (m - others) / np.sqrt(1 / n + ((1 / n).sum() - 1 / n) / (c - 1) ** 2)
    best, row = score.argmax(1), np.arange(len(score))
    second = np.partition(score, -2, axis=1)[:, -2] if len(score) else np.zeros(0)
    p = np.minimum(1.0, np.maximum(readings.p[row, best], ndtr(-score[row, best])) * c)
    return NamingScores(readings.names, score, best, second, readings.hits[row, best], p, benjamini_hochberg(p))


def self_of(readings: SetReadings) -> SelfScores:
    """Scores and p-values of the first person from readings that include the three `PERSONS`."""
    if missing := [name for name in PERSONS if name not in readings.names]:
        raise InputError(f"a self needs the words of {', '.join(PERSONS)}; there are none of {', '.join(missing)}")
    of = readings.of(PERSONS)
    m, n = of.means.astype(np.float64), of.n_words
    error = math.sqrt(1 / n[0] + (1 / n[1] + 1 / n[2]) / 4)
    score = (m[:, 0] - (m[:, 1] + m[:, 2]) / 2) / error
    p = np.maximum(of.p[:, 0], ndtr(-score))
    return SelfScores(score, of.hits[:, 0], p, benjamini_hochberg(p))


def hit_tail(sizes: Sequence[int], k: int, v: int) -> Float[np.ndarray, " n_plus_1"]:
    """P(h or more words are hit), h = 0 … n, when k of v tokens are drawn and word i has `sizes[i]` of them.

    Draws with exactly h words hit and j of the words' tokens: the coefficient of y^h x^j in Π_i (1 + y ((1+x)^s_i-1)),
    times the binomial coefficient (v - Σ s, k - j) for the rest.
    """
    total = sum(sizes)
    most = min(total, k)
    ways = np.zeros((len(sizes) + 1, most + 1))
    ways[0, 0] = 1
    for size in sizes:
        new = ways.copy()
        for j in range(1, min(size, most) + 1):
            new[1:, j:] += math.comb(size, j) * ways[:-1, : most + 1 - j]
        ways = new
    j = np.arange(most + 1)
    possible = k - j <= v - total
    drawn = np.where(possible, k - j, 0)
    log = _log_comb(v - total, drawn) - _log_comb(v, np.array([k]))
    chance = (ways * np.where(possible, np.exp(log), 0)).sum(1)
    return np.minimum(1.0, np.cumsum(chance[::-1])[::-1])


def _log_comb(n: int, k: Int[np.ndarray, " j"]) -> Float[np.ndarray, " j"]:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _units(rows: Float[Tensor, "a d"], start: int) -> Float[Tensor, "a d"]:
    norm = rows.norm(dim=1, keepdim=True)
    if bad := (~norm[:, 0].isfinite()).nonzero()[:, 0].tolist():
        raise InputError(f"the decoder row of feature {start + bad[0]} holds NaN or infinite values: a damaged SAE")
    return rows / torch.where(norm > 0, norm, 1)


def _averages(
    words: Sequence[Sequence[int]], n_words: Int[np.ndarray, " c"], device: torch.device
) -> tuple[Int[Tensor, " i"], Float[Tensor, "i w"], Float[Tensor, "w c"]]:
    """The words' tokens laid end to end, the matrix that averages tokens into words, the one of words into sets."""
    token = torch.tensor([i for ids in words for i in ids], device=device)
    sizes = ([len(ids) for ids in words], n_words.tolist())
    to_word, to_set = (torch.block_diag(*(torch.full((n, 1), 1 / n) for n in group)).to(device) for group in sizes)
    return token, to_word, to_set
