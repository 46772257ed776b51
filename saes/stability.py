"""Two dictionaries side by side: which feature of the one is which of the other, as for runs that differ in the seed.

    matching    pairs (i, j), each feature at most once, that make Σ cos(A_i, B_j) largest      (Hungarian method)
                beyond `largest` features: pairs that are each other's nearest                 (mutual neighbours)
    figures     mean over i of max_j cos(A_i, B_j), and the same from B; share of A's features in a pair of cosine > 0.7

Mutual neighbours leave features unpaired where several share a neighbour; the share above 0.7 counts those as
unmatched, and is at most what the Hungarian method finds. `chance` is the mean maximum of unrelated directions.
Different seeds recover different parts of a dictionary: Paulo and Belrose 2025, https://arxiv.org/abs/2501.16615.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from saes.geometry import expected_maximum, nearest, unit

Method = Literal["hungarian", "mutual"]
LARGEST = 5_000
"""Features beyond which `match` takes mutual neighbours: the assignment needs f x g numbers and cubic time."""


@dataclass(frozen=True)
class Matching:
    """Pairs of features, in the order of A's."""

    method: Method
    a: Int[Tensor, " m"]
    b: Int[Tensor, " m"]
    cosine: Float[Tensor, " m"]
    sizes: tuple[int, int]
    mean_max_cosine: float
    """Mean over A's features of the largest cosine with a feature of B."""
    mean_max_cosine_back: float
    """Mean over B's features."""
    chance: float
    """`mean_max_cosine` of unrelated random directions."""

    def share(self, threshold: float = 0.7) -> float:
        """Share of A's features that are paired at a cosine above `threshold`."""
        return float((self.cosine > threshold).sum()) / self.sizes[0]

    def summary(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "method": self.method,
            "mean_max_cosine": self.mean_max_cosine,
            "mean_max_cosine_back": self.mean_max_cosine_back,
            "chance": self.chance,
            "pairs": len(self.a),
            "mean_paired_cosine": float(self.cosine.double().mean()) if len(self.a) else float("nan"),
            "share_over_07": self.share(0.7),
            "share_over_09": self.share(0.9),
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the pairs."""
        return self.summary() | {name: getattr(self, name).tolist() for name in ("a", "b", "cosine")}


@torch.no_grad()
def match(
    A: Float[Tensor, "f d"], B: Float[Tensor, "g _"], *, method: Method | None = None, largest: int = LARGEST
) -> Matching:
    """Match the rows (decoder directions) of two dictionaries of the same site."""
    if method is not None and method not in get_args(Method):
        raise InputError(f"method={method!r}: expected one of {', '.join(get_args(Method))}")
    there, back = nearest(A, B), nearest(B, A)
    method = method or ("hungarian" if max(len(A), len(B)) <= largest else "mutual")
    a, b, cosine = _assigned(A, B) if method == "hungarian" else _mutual(there.row, back.row, there.cosine)
    return Matching(
        method=method,
        a=a.cpu(),
        b=b.cpu(),
        cosine=cosine.cpu(),
        sizes=(len(A), len(B)),
        mean_max_cosine=float(there.cosine.double().mean()),
        mean_max_cosine_back=float(back.cosine.double().mean()),
        chance=expected_maximum(A.shape[1], len(B)),
    )


def _assigned(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from scipy.optimize import linear_sum_assignment

    cosines = (unit(A) @ unit(B).to(A.device).T).cpu()
    a, b = (torch.from_numpy(np.asarray(side)) for side in linear_sum_assignment(cosines.numpy(), maximize=True))
    return a, b, cosines[a, b]


def _mutual(there: Tensor, back: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = torch.arange(len(there), device=there.device)
    kept = back[there] == a
    return a[kept], there[kept], cosine[kept]
