"""Random directions beside a dictionary: how many features would pass a rule of the lens if none meant anything.

    decoys:  unit vectors along C^(1/2) g,  g ~ N(0, I),  C = mean_j u_j u_j^T of the unit decoder rows u
    q(t) = (1 + #{decoys: s >= t}) / #{features: s >= t} * f / N       s: score, where a rule's conditions hold;
                                                                       N decoys, f features

A vocabulary has an order: the spellings and relatives of a word lie together, and a random direction that promotes one
of them promotes others. P-values of a vocabulary without order are then too small, by an amount that depends on the
model. Decoys go through the same unembedding and the same rule, and have the dictionary's covariance, so they share
whatever all of its features owe to the model; what only single features do, such as naming, they lack. Compared are
scores: p-values of hits end where all words are hit, which related words reach by chance. q estimates the share of
false discoveries at threshold t, with one decoy more than counted, so that "no decoy passed" is not read as "no error".
It is the estimate of target-decoy search (Elias and Gygi 2007) with the correction of Barber and Candès (2015); its
rate holds as far as features without a meaning are like decoys.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.lens import Lens
from saes.primitives.lens_scores import CHUNK_BYTES, SetReadings, read_sets
from saes.primitives.word_tokens import TokenSets

_AT_ONCE = 4096  # decoys: 64 MB at width 4096


@torch.no_grad()
def decoy_readings(
    decoder: Float[Tensor, "f d"],
    lens: Lens,
    sets: TokenSets,
    count: int,
    *,
    seed: int = 0,
    top_k: int = 100,
    chunk_bytes: int = CHUNK_BYTES,
    show: bool | None = False,
) -> SetReadings:
    """The readings of `count` decoys of a decoder."""
    root = _root(decoder)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, count, _AT_ONCE):
        g = torch.randn(min(_AT_ONCE, count - start), decoder.shape[1], generator=generator)
        parts.append(
            read_sets(g.to(root) @ root, lens, sets, top_k=top_k, chunk_bytes=chunk_bytes, show=show and not start)
        )
    means, hits, p = (np.concatenate([getattr(part, name) for part in parts]) for name in ("means", "hits", "p"))
    return parts[0]._replace(means=means, hits=hits, p=p)


def decoy_q(score: Float[np.ndarray, " f"], decoys: Float[np.ndarray, " n"]) -> Float[np.ndarray, " f"]:
    """q of every feature: the smallest of any threshold that lets it pass, at most 1; -inf passes none."""
    order = np.argsort(-score)
    ranked = -score[order]
    features = np.searchsorted(ranked, ranked, side="right")
    passed = 1 + np.searchsorted(np.sort(-decoys), ranked, side="right")
    estimate = np.where(ranked < np.inf, passed / features * len(score) / len(decoys), 1.0)
    q = np.empty(len(score))
    q[order] = np.minimum.accumulate(np.minimum(estimate, 1.0)[::-1])[::-1]
    return q


def _root(decoder: Float[Tensor, "f d"], rows: int = 8192) -> Float[Tensor, "d d"]:
    """The symmetric root of the unit rows' second moment, a chunk of rows at a time."""
    d = decoder.shape[1]
    moment = torch.zeros(d, d, dtype=torch.float64, device=decoder.device)
    for part in decoder.split(rows):
        unit = torch.nn.functional.normalize(part.float(), dim=1)
        moment += (unit.T @ unit).double()
    values, vectors = torch.linalg.eigh(moment)
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).float()
