"""How a dictionary's directions lie: to one another, encoder to decoder, and to the directions of a wider dictionary.

    nearest(A)        max over j != i of cos(A_i, A_j)            features that nearly repeat another
    nearest(A, B)     max over j of cos(A_i, B_j)
    alignment         cos(W_enc[:, i], W_dec[i])                  1 where a feature is read as it is written
    children of i     { j : cos(narrow_i, wide_j) >= threshold }  feature splitting

Cosines are signed (opposite directions are not alike) and those of a zero row are 0. Products are taken a chunk of
rows at a time: f x f is never formed. Chance: `expected_maximum` is what random directions would give.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from saes.sae import SAE

_CELLS = 2**24  # cosines at once: 64 MB of float32
_QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99}


class Nearest(NamedTuple):
    """For each row: the largest cosine, and which row it is with."""

    cosine: Float[Tensor, " f"]
    row: Int[Tensor, " f"]


class Splitting(NamedTuple):
    """For each feature of the narrow dictionary its children in the wide one, as compressed rows."""

    children: Int[Tensor, " m"]
    cosines: Float[Tensor, " m"]
    offsets: Int[Tensor, " f_plus_1"]

    @property
    def counts(self) -> Int[Tensor, " f"]:
        """Children of each feature."""
        return self.offsets.diff()

    def of(self, feature: int) -> list[int]:
        """The children of one feature, by index."""
        return self.children[int(self.offsets[feature]) : int(self.offsets[feature + 1])].tolist()

    def summary(self) -> dict[str, float]:
        """Shares of narrow features with no child, one, and several; and the mean number."""
        counts = self.counts.double()
        return {
            "no_child": float((counts == 0).double().mean()),
            "one_child": float((counts == 1).double().mean()),
            "several_children": float((counts > 1).double().mean()),
            "mean_children": float(counts.mean()),
            "most_children": int(counts.max()),
        }


@dataclass(frozen=True)
class Spread:
    """A distribution over features, and the shares above some limits."""

    mean: float
    p05: float
    median: float
    p95: float
    p99: float
    most: float
    over_05: float
    """Share above 0.5."""
    over_07: float
    over_09: float

    @classmethod
    def of(cls, values: Float[Tensor, " f"]) -> "Spread":
        """Summarise."""
        x = np.asarray(values.detach().cpu().double())
        marks = {name: float(np.quantile(x, q)) for name, q in _QUANTILES.items()}
        over = {f"over_{str(t).replace('.', '')}": float((x > t).mean()) for t in (0.5, 0.7, 0.9)}
        return cls(mean=float(x.mean()), most=float(x.max()), **marks, **over)


@dataclass(frozen=True)
class Geometry:
    """Spreads over the features counted."""

    features: int
    """How many were."""
    decoder: Spread
    """Largest cosine of a decoder row with another."""
    encoder: Spread
    alignment: Spread | None
    """Of each feature's encoder and decoder; None for a transcoder, which reads one space and writes another."""
    chance: float
    """What random directions of the same number and width would give for `decoder.mean`."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@torch.no_grad()
def geometry(sae: SAE, *, alive: Bool[Tensor, " f"] | None = None) -> Geometry:
    """The directions of one SAE; with `alive`, of those features alone: dead ones lie about where they started."""
    W_enc, W_dec = sae.encoder, sae.W_dec
    if alive is not None:
        if (n := int(alive.sum())) < 2:
            raise InputError(f"{n} of the SAE's {len(alive)} features fire on these rows, and directions are compared")
        W_enc, W_dec = W_enc[alive.to(W_enc.device)], W_dec[alive.to(W_dec.device)]
    same = not sae.config.is_transcoder
    return Geometry(
        features=len(W_dec),
        decoder=Spread.of(nearest(W_dec).cosine),
        encoder=Spread.of(nearest(W_enc).cosine),
        alignment=Spread.of((unit(W_enc) * unit(W_dec)).sum(1)) if same else None,
        chance=expected_maximum(W_dec.shape[1], len(W_dec) - 1),
    )


@torch.no_grad()
def nearest(A: Float[Tensor, "f d"], B: Float[Tensor, "g _"] | None = None) -> Nearest:
    """For each row of `A` the row of `B` of largest cosine; without `B`, the other row of `A`."""
    if B is None and len(A) < 2:
        raise InputError(f"nearest: expected two rows or more to compare with one another, got {len(A)}")
    if B is not None and A.shape[1] != B.shape[1]:
        raise InputError(f"rows of width {A.shape[1]} and of width {B.shape[1]} cannot be compared")
    a = unit(A)
    b = a if B is None else unit(B).to(a)
    size = max(1, _CELLS // len(b))
    cosines, indices = [], []
    for start in range(0, len(a), size):
        block = a[start : start + size] @ b.T
        if B is None:
            block.diagonal(start).fill_(-torch.inf)
        best = block.max(1)
        cosines.append(best.values)
        indices.append(best.indices)
    return Nearest(torch.cat(cosines), torch.cat(indices))


@torch.no_grad()
def splitting(narrow: Float[Tensor, "f d"], wide: Float[Tensor, "g _"], *, threshold: float = 0.7) -> Splitting:
    """The children of every row of `narrow` among the rows of `wide`; a row of `wide` may have several parents."""
    if narrow.shape[1] != wide.shape[1]:
        raise InputError(f"rows of width {narrow.shape[1]} and of width {wide.shape[1]} cannot be compared")
    if not 0 < threshold <= 1:
        raise InputError(f"threshold={threshold}: expected a cosine above 0 and at most 1")
    a, b = unit(narrow), unit(wide).to(narrow.device)
    size = max(1, _CELLS // len(b))
    children, cosines, counts = [], [], []
    for start in range(0, len(a), size):
        block = a[start : start + size] @ b.T
        alike = block >= threshold
        children.append(torch.nonzero(alike)[:, 1])
        cosines.append(block[alike])
        counts.append(alike.sum(1))
    below = torch.cat([torch.zeros(1, dtype=torch.int64, device=a.device), torch.cat(counts).cumsum(0)])
    return Splitting(torch.cat(children), torch.cat(cosines), below)


def expected_maximum(d: int, g: int) -> float:
    """The mean of the largest of `g` cosines with independent random directions of width `d`.

    One cosine c has (c + 1) / 2 ~ Beta(a, a), a = (d - 1) / 2, of distribution function F; E max = 1 - ∫ F(c)^g dc.
    """
    from scipy.integrate import trapezoid
    from scipy.special import betainc

    if d < 2 or g < 1:
        raise InputError(f"expected_maximum: expected d >= 2 and g >= 1, got d={d}, g={g}")
    c = np.linspace(-1, 1, 200_001)
    return float(1 - trapezoid(betainc((d - 1) / 2, (d - 1) / 2, (c + 1) / 2) ** g, c))


def unit(rows: Float[Tensor, "f d"]) -> Float[Tensor, "f d"]:
    """Rows at norm 1, float32; zero rows stay."""
    rows = rows.detach().float()
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
