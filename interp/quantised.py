"""Rows in one byte a number: int8 or float8 with a float32 scale per row, and the error that this costs.

    s  = max|x| / top           one scale per row x (`n d`); per row and head where a site has heads (`n h e`)
    q  = round(x / s)           to the nearest int8 (top = 127) or float8 e4m3 (top = 448), ties to even
    x^ = s q                    what is read: float32

Bounds, for rows up to 2^127. float32 division and product are each off by a factor of 1 +- 2^-24 at most, the scale by
1 +- 2^-22; rounding is off by half a step, and float8 has three bits of mantissa down to 2^-6, then steps of 2^-9:

    int8            |x - x^| <= s (1/2 + 2^-16)                         1/254 of the row's largest entry
    float8_e4m3     |x - x^| <= max(|x| / 16, s (2^-10 + 2^-29))        nearest: |x| / 17; the rest is for the float32

A row of zeros has s = 0 and is exact. Where s would fall below the smallest normal float32 it is that number, 2^-126:
the bounds in s hold, with an s that is larger than the row's. A row that holds NaN or infinity has q = 0 and s = NaN:
all of it reads as NaN. (Extraction refuses such rows unless told otherwise.)

A massive row costs the others nothing. A massive coordinate coarsens int8 in the rest of its row; float8 keeps a
relative error per number and hardly minds. SmolLM2-135M, resid_post.15, 6,522 held-out rows, computed in float32
(a row's largest entry is 13 times its root mean square): the part of the rows' variance around their mean that is lost
is 1.1e-3 in float8_e4m3, 2.0e-3 in int8 and 6.0e-6 in bfloat16.

The error is measured while rows are converted, over vectors that share a scale:

    relative = |x - x^|^2 / |x|^2     its mean and maximum over vectors, and sum |x - x^|^2 / sum |x|^2

Everything runs where the rows are and nothing waits for the device. Absolute-maximum scaling with round to nearest is
textbook; the e4m3 numbers are those of Micikevicius et al. 2022, "FP8 formats for deep learning".
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

SCALE = ".scale"
FIGURES = ("vectors", "squared_error", "squared_norm", "relative", "worst")
_SMALLEST = 2.0**-126
_PIECE = {"cpu": 1 << 18}  # numbers at once: what stays in a core's cache; elsewhere enough to hide the launches
_LARGE_PIECE = 1 << 24


class Kind(NamedTuple):
    """A one-byte format: how it is stored, and its largest number."""

    dtype: torch.dtype
    top: float


KINDS = {"int8": Kind(torch.int8, 127.0), "float8_e4m3": Kind(torch.float8_e4m3fn, 448.0)}
_BY_DTYPE = {kind.dtype: kind for kind in KINDS.values()}


class Quantised(NamedTuple):
    """Rows in one byte a number, their scales, and the sums behind `FIGURES`."""

    q: Tensor
    """`n ... d`, int8 or float8_e4m3fn."""
    scale: Float32[Tensor, "n ..."]
    error: Float[Tensor, " 5"]


def is_quantised(dtype: torch.dtype) -> bool:
    """Whether rows of this dtype come with scales."""
    return dtype in _BY_DTYPE


def scale_name(site: str) -> str:
    """The tensor that holds the scales of `site`."""
    return site + SCALE


def quantise(x: Float[Tensor, "n ... d"], dtype: torch.dtype) -> Quantised:
    """Rows in `dtype` with a scale over the last axis each. Nothing is read back from the device."""
    kind = _BY_DTYPE[dtype]
    vectors = x.reshape(-1, x.shape[-1])
    q = torch.empty(vectors.shape, dtype=dtype, device=x.device)
    scale = torch.empty(vectors.shape[:1], dtype=torch.float32, device=x.device)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    error = torch.zeros(len(FIGURES), dtype=wide, device=x.device)
    piece = max(1, _PIECE.get(x.device.type, _LARGE_PIECE) // max(1, x.shape[-1]))
    for first in range(0, len(vectors), piece):
        at = slice(first, first + piece)
        _quantise(vectors[at].float(), kind, q[at], scale[at], error)
    return Quantised(q.reshape(x.shape), scale.reshape(x.shape[:-1]), error)


def _quantise(x: Tensor, kind: Kind, q: Tensor, scale: Tensor, error: Tensor) -> None:
    """One piece: fills q and scale, adds to error."""
    largest = x.abs().amax(1)
    step = (largest / kind.top).clamp_min(_SMALLEST)
    y = (x / step[:, None]).nan_to_num_(0.0, 0.0, 0.0)
    q.copy_(y.round() if kind.dtype is torch.int8 else y)
    counted = torch.isfinite(largest)
    scale.copy_(torch.where(largest == 0, largest, torch.where(counted, step, torch.nan)))
    wrong = torch.linalg.vector_norm(y - q.float(), dim=1).to(error.dtype).square()
    norm = torch.linalg.vector_norm(y, dim=1).to(error.dtype).square()
    relative = wrong / norm.clamp_min(2.0**-100)  # of a row that is neither zero nor left out it is at least 2^-46
    square = torch.where(counted, step, 0.0).to(error.dtype).square()
    sums = [counted.to(error.dtype).sum(), (wrong * square).sum(), (norm * square).sum(), relative.sum()]
    error[:4] += torch.stack(sums)
    error[4] = torch.maximum(error[4], relative.amax())


def dequantise(q: np.ndarray, scale: Float32[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n ... d"]:
    """x^ = s q. `q`: int8 as it is, float8 as the bytes it is stored in (uint8).

    numpy: it runs in threads that read ahead, which must not wake OpenMP threads beside the trainer's.
    """
    if q.dtype == np.int8:
        return np.multiply(q, scale[..., None], dtype=np.float32)
    found = np.take(_float8(), q, mode="clip")  # clip: no pass over the indices to check them
    found *= scale[..., None]
    return found


@cache
def _float8() -> Float32[np.ndarray, " 256"]:
    """The number behind each byte of float8_e4m3fn."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()


def as_bytes(x: Tensor) -> np.ndarray:
    """One-byte rows as `dequantise` takes them: numpy has no float8."""
    return (x.view(torch.uint8) if x.dtype is torch.float8_e4m3fn else x).numpy()


def read(q: Tensor, scale: Float32[Tensor, "n ..."]) -> Float32[Tensor, "n ... d"]:
    """`dequantise` for tensors on the host."""
    return torch.from_numpy(dequantise(as_bytes(q), scale.numpy()))


def add(sums: dict[str, dict[str, float]], more: Mapping[str, Mapping[str, float]]) -> None:
    """Add one set of error figures, by site, to another."""
    for site, found in more.items():
        own = sums.setdefault(site, dict.fromkeys(FIGURES, 0.0))
        for name in FIGURES:
            own[name] = max(own[name], found[name]) if name == "worst" else own[name] + found[name]


def figures(error: Tensor) -> dict[str, float]:
    """`Quantised.error`, by name."""
    return dict(zip(FIGURES, error.tolist(), strict=True))


def summary(shards: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The relative squared error of each site over all shards, from their entries in the manifest."""
    sums: dict[str, dict[str, float]] = {}
    for entry in shards:
        add(sums, entry.get("error", {}))
    return {
        site: {
            "mean": found["relative"] / max(found["vectors"], 1.0),
            "worst": found["worst"],
            "overall": found["squared_error"] / found["squared_norm"] if found["squared_norm"] else 0.0,
        }
        for site, found in sums.items()
    }
