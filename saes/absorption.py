"""Feature absorption on the first-letter task: does a feature go silent where a more special one speaks for it?

For each letter, over the test words x that start with it and whose probe (p unit, logistic regression on x) says so:

    share_j = value_j (W_dec[j] · p) / (x · p)              what feature j puts along the probe, of all there is
    full      = no main feature fires, and the feature of largest share has cosine >= 0.025 with p and share >= 0.4
    fraction  = A / (A + M),  M = main features' part,  A = the part of the (at most 3) largest others with
                cosine >= 0.1, at most what M leaves of x · p;  0 where their share is below 0.4 or M >= x · p,
                1 where M <= 0

Main features: k-sparse probing of the letter on the SAE's codes. Features are ranked by the difference of their means
(training words), a logistic regression is fitted on the first k, and k grows from 1 while the test F1 grows by more
than 0.03 each time. Letters whose dense probe has a test F1 of 0.6 or less are left out, with the reason given.

Definition: Chanin et al. 2024, https://arxiv.org/abs/2409.14507; thresholds, the fraction and the words counted as in
SAEBench. Differences: SAEBench multiplies activations by cosines, as if decoder rows had norm 1; here the rows' own
norms count. It ranks features by an L1 probe, here by mean differences, as in `saes.sparse_probing`. Its prompts
are few-shot with random examples, here one fixed prefix is used: what follows the word cannot reach its activation.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from saes.codes import Codes
from saes.first_letter import Words, word_rows
from saes.sae import SAE
from saes.sparse_probing import fit_logistic, rank

FIRES = 1e-8  # activations at or below count as silent


@dataclass(frozen=True, kw_only=True)
class AbsorptionConfig:
    """Thresholds, as in SAEBench."""

    probe_f1: float = 0.6
    f1_jump: float = 0.03
    max_k: int = 10
    full_cosine: float = 0.025
    fraction_cosine: float = 0.1
    share: float = 0.4
    max_absorbing: int = 3
    test_share: float = 0.3
    """Of the words of each letter; the rest trains the probes."""
    seed: int = 0


class WordScores(NamedTuple):
    """Of each word."""

    full: Bool[Tensor, " n"]
    fraction: Float[Tensor, " n"]
    absorber: Int[Tensor, " n"]
    """The feature of largest share."""


@dataclass(frozen=True)
class LetterAbsorption:
    """One letter: its main features, and means over the words counted."""

    letter: str
    probe_f1: float
    main: tuple[int, ...]
    main_f1: float
    n_words: int
    """Test words of the letter that the probe recognises."""
    full: float
    fraction: float
    absorbers: dict[int, int]
    """Feature to number of words that it fully absorbs."""


@dataclass(frozen=True)
class Absorption:
    """All letters measured; means are over letters, each counting the same."""

    letters: tuple[LetterAbsorption, ...]
    left_out: dict[str, str]
    """Letter to the reason."""

    @property
    def full(self) -> float:
        """Mean full absorption."""
        return _mean([letter.full for letter in self.letters])

    @property
    def fraction(self) -> float:
        """Mean absorption fraction."""
        return _mean([letter.fraction for letter in self.letters])

    @property
    def split_features(self) -> float:
        """Mean number of main features beyond the first: the letter is split over so many more."""
        return _mean([len(letter.main) - 1 for letter in self.letters])

    def summary(self) -> dict[str, float]:
        """The means by name, and how many letters they are over."""
        named = {"full": self.full, "fraction": self.fraction, "split_features": self.split_features}
        return named | {"letters": len(self.letters), "words": sum(letter.n_words for letter in self.letters)}

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the summary."""
        return {"mean": self.summary(), **asdict(self)}


def absorption(
    sae: SAE,
    model: HookedModel,
    words: Words,
    site: Site | str | None = None,
    *,
    config: AbsorptionConfig | None = None,
    force: bool = False,
    show: bool | None = False,
) -> Absorption:
    """Run the words through the model and measure; see `saes.first_letter` for words and prompt."""
    check_absorbing(sae)
    x = word_rows(sae, model, words, site, force=force, show=show)
    return absorption_of_rows(sae, x, words.letters, config=config)


def check_absorbing(sae: SAE) -> None:
    """Refuse what reads one space and writes another: a probe of the one has no place among directions of the other."""
    if sae.config.is_transcoder:
        raise InputError(
            "absorption compares what features write with a probe of what they read; this is a transcoder, which reads "
            f"{sae.config.metadata.get('hook_name')} and writes {sae.config.metadata.get('hook_name_out')}: give an SAE"
        )


@torch.no_grad()
def absorption_of_rows(
    sae: SAE, x: Float[Tensor, "n d"], letters: Sequence[str], *, config: AbsorptionConfig | None = None
) -> Absorption:
    """Measure on activations that are there already: row i is of a word that starts with `letters[i]`."""
    import scipy.sparse as sparse

    config = config or AbsorptionConfig()
    check_absorbing(sae)
    if len(x) != len(letters):
        raise InputError(f"absorption: {len(x)} rows, but {len(letters)} letters")
    labels, test = np.array(letters), _split(letters, config)
    codes = sae.encode(x.to(sae.W_dec.device))
    values, columns, starts = (part.cpu().numpy() for part in codes[:3])
    features = sparse.csr_array((values.astype(np.float64), columns, starts), shape=(len(x), codes.n_features))
    found, left_out = [], {}
    for letter in sorted(set(letters)):
        positive = labels == letter
        if positive[test].sum() == 0 or positive[~test].sum() < 2:
            left_out[letter] = f"{positive.sum()} words are too few to train and test a probe"
            continue
        p, says, f1 = _probe(x.float().cpu().numpy(), positive, test)
        if f1 <= config.probe_f1:
            left_out[letter] = f"the probe's F1 is {f1:.2f}, not above {config.probe_f1}"
            continue
        main, main_f1 = _main_features(features, positive, test, config)
        chosen = torch.from_numpy(np.flatnonzero(positive & test & says))
        scores = score_words(sae, x[chosen], _take(codes, chosen), p, main, config=config)
        whole, times = scores.absorber[scores.full].unique(return_counts=True)
        found.append(
            LetterAbsorption(
                letter=letter,
                probe_f1=f1,
                main=main,
                main_f1=main_f1,
                n_words=len(chosen),
                full=float(scores.full.double().mean()),
                fraction=float(scores.fraction.mean()),
                absorbers=dict(zip(whole.tolist(), times.tolist(), strict=True)),
            )
        )
    return Absorption(tuple(found), left_out)


def score_words(
    sae: SAE,
    x: Float[Tensor, "n d"],
    codes: Codes,
    probe: Float[Tensor, " d"],
    main: Sequence[int],
    *,
    config: AbsorptionConfig | None = None,
) -> WordScores:
    """Both scores of words given by activation and codes, for one probe direction and its main features."""
    config = config or AbsorptionConfig()
    device = codes.values.device
    p = (probe / probe.norm()).to(device).double()
    along = sae.W_dec.detach().double() @ p
    cosines = along / sae.W_dec.detach().double().norm(dim=1).clamp(min=1e-30)
    total = x.to(device).double() @ p
    parts = codes.values.double() * along[codes.indices]
    is_main = torch.isin(codes.indices, torch.tensor(list(main), device=device))
    n, rows = codes.n_tokens, codes.rows

    fired = torch.zeros(n, dtype=torch.bool, device=device)
    fired[rows[is_main & (codes.values > FIRES)]] = True
    best, absorber = _largest(parts, codes, torch.ones_like(is_main))
    aligned = cosines[absorber.clamp(min=0)] >= config.full_cosine
    full = ~fired & (absorber >= 0) & aligned & (total > 0) & (best >= config.share * total)

    M = torch.zeros(n, dtype=torch.float64, device=device).index_add_(0, rows[is_main], parts[is_main])
    candidate = ~is_main & (cosines[codes.indices] >= config.fraction_cosine) & (parts > 0)
    A = _sum_of_largest(parts, codes, candidate, config.max_absorbing)
    absorbed = torch.minimum(A, total - M)
    fraction = torch.where(M <= 0, torch.ones_like(M), absorbed / (absorbed + M))
    none = (total <= 0) | (M >= total) | (A < config.share * total)
    return WordScores(full.cpu(), fraction.masked_fill(none, 0.0).cpu(), absorber.cpu())


def _largest(parts: Tensor, codes: Codes, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Per token the largest of the chosen entries and its feature (-1 where there is none)."""
    best = torch.full((codes.n_tokens,), -torch.inf, dtype=parts.dtype, device=parts.device)
    best.scatter_reduce_(0, codes.rows[chosen], parts[chosen], "amax")
    feature = torch.full((codes.n_tokens,), -1, dtype=torch.int64, device=parts.device)
    top = chosen & (parts == best[codes.rows])
    feature[codes.rows[top]] = codes.indices[top].long()
    return best, feature


def _sum_of_largest(parts: Tensor, codes: Codes, chosen: Tensor, count: int) -> Tensor:
    """Per token the sum of the `count` largest of the chosen entries."""
    rows, parts = codes.rows[chosen], parts[chosen]
    order = torch.argsort(parts, descending=True)
    order = order[torch.argsort(rows[order], stable=True)]
    rows, parts = rows[order], parts[order]
    sizes = torch.bincount(rows, minlength=codes.n_tokens)
    place = torch.arange(len(rows), device=rows.device) - (sizes.cumsum(0) - sizes)[rows]
    first = place < count
    return torch.zeros(codes.n_tokens, dtype=parts.dtype, device=parts.device).index_add_(0, rows[first], parts[first])


def _probe(
    x: Float[np.ndarray, "n d"], positive: Bool[np.ndarray, " n"], test: Bool[np.ndarray, " n"]
) -> tuple[Float[Tensor, " d"], Bool[np.ndarray, " n"], float]:
    """The letter's direction in the units of x, which words it recognises, and its F1 on test words."""
    fitted = fit_logistic(x[~test], positive[~test])
    scaler, logistic = fitted[0], fitted[1]
    says = fitted.predict(x)
    return torch.from_numpy(logistic.coef_[0] / scaler.scale_), says, _f1(positive[test], says[test])


def _main_features(
    features: Any, positive: Bool[np.ndarray, " n"], test: Bool[np.ndarray, " n"], config: AbsorptionConfig
) -> tuple[tuple[int, ...], float]:
    """The first k features by difference of means, k growing while the F1 on test words jumps; and that F1."""
    ranked = rank(features[~test], positive[~test], signed=True)
    k, best = 0, -np.inf
    while k < min(config.max_k, len(ranked)):
        rows = features[:, ranked[: k + 1]].toarray()
        f1 = _f1(positive[test], fit_logistic(rows[~test], positive[~test]).predict(rows[test]))
        if f1 <= best + config.f1_jump:
            break
        k, best = k + 1, f1
    return tuple(ranked[:k].tolist()), float(best)


def _split(letters: Sequence[str], config: AbsorptionConfig) -> Bool[np.ndarray, " n"]:
    rng, labels = np.random.default_rng(config.seed), np.array(letters)
    test = np.zeros(len(labels), bool)
    for letter in sorted(set(letters)):
        own = rng.permutation(np.flatnonzero(labels == letter))
        test[own[: round(config.test_share * len(own))]] = True
    return test


def _take(codes: Codes, rows: Int[Tensor, " i"]) -> Codes:
    """The codes of some tokens."""
    counts = codes.counts[rows.to(codes.offsets.device)]
    entries = [torch.arange(int(codes.offsets[i]), int(codes.offsets[i + 1])) for i in rows.tolist()]
    index = torch.cat(entries) if entries else torch.empty(0, dtype=torch.int64)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Codes(codes.values[index], codes.indices[index], offsets, codes.n_features)


def _f1(truth: Bool[np.ndarray, " n"], guess: Bool[np.ndarray, " n"]) -> float:
    hit, wrong = int((truth & guess).sum()), int((truth ^ guess).sum())
    return 2 * hit / (2 * hit + wrong) if hit else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
