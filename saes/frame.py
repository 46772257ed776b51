"""The frame a run works in: every site scaled, massive rows out, several sites side by side.

    x = [s_1 x_1 | s_2 x_2 | ...]     what is read;    y likewise, what is written (x itself in an autoencoder)
    kept = 1 where no site's row is massive, else 0 (rows become zero)

Training sees scaled activations, so that one learning rate fits every model and every source of a crosscoder weighs
alike. `raw` brings a trained SAE back: with code unit c, W_enc s_x / c, biases and thresholds of the encoder / c,
W_dec c / s_y, b_dec / s_y, W_skip s_x / s_y. Every architecture here is positively homogeneous in (activations,
biases, thresholds), hence this is exact: the codes are those of training divided by c.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from saes.config import listed
from saes.recipe import InputNorm


@dataclass(frozen=True)
class Scaling:
    """What a sample says about the activations of one site."""

    scale: float
    """Factor that brings them to the norm wanted."""
    threshold: float
    """Norm, before scaling, above which a row is massive."""
    variance: float
    """Mean squared distance of the scaled sample from its mean."""
    rows: int
    """Rows of the sample."""
    massive: int
    """Those of them that are massive."""
    unit: float = 1.0
    """Mean norm of the scaled sample over sqrt(d): the size of a typical coordinate."""


def measure(sample: Float[Tensor, "n d"], *, massive: float, norm: InputNorm | str = "sqrt_d") -> Scaling:
    """Scale, threshold and variance of the sample's ordinary rows; float64 throughout."""
    x = sample.double()
    norms = x.norm(dim=1)
    if bad := int((~norms.isfinite()).sum()):
        raise InputError(
            f"{bad} of {len(x)} sampled activations hold NaN or infinite values; extract them again in a wider dtype "
            "(float16 overflows above 65,504), and look at the model's own outputs if that does not help"
        )
    if not bool((norms > 0).any()):
        raise InputError(f"all {len(x)} sampled activations are zero; there is nothing to train on")
    threshold = massive * norms[norms > 0].median()  # zero rows, of a silent MLP say, are not what is usual
    kept = norms <= threshold
    mean, root = norms[kept].mean(), math.sqrt(x.shape[1])
    match norm:
        case "sqrt_d":
            scale = root / mean
        case "unit_ms":
            scale = 1 / norms[kept].square().mean().sqrt()
        case "none":
            scale = torch.ones(())
        case _:
            raise InputError(f"input_norm is one of {listed(InputNorm)}, got {norm!r}")
    variance = scale**2 * (x[kept] - x[kept].mean(0)).square().sum(1).mean()
    if not variance > 0:
        raise InputError(f"all {len(x)} sampled activations are equal; there is nothing to train on")
    return Scaling(
        scale.item(), threshold.item(), variance.item(), len(x), len(x) - int(kept.sum()), (scale * mean / root).item()
    )


class Framed(NamedTuple):
    """A batch as training sees it."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "n out"]
    kept: Float[Tensor, " n"]


@dataclass(frozen=True)
class Frame:
    """Scalings and widths of the sites read and, for a transcoder, of the site written."""

    read: tuple[Scaling, ...]
    widths: tuple[int, ...]
    written: Scaling | None = None

    @property
    def variance(self) -> float:
        """Of what is written: the measure of every loss."""
        return self.written.variance if self.written else sum(scaling.variance for scaling in self.read)

    @property
    def unit(self) -> float:
        """Typical size of a coordinate read; lengths stated for mean norm sqrt(d) are multiplied by it."""
        return self.read[0].unit

    @property
    def unit_written(self) -> float:
        """The same of what is written, for the lengths of what a feature adds to it."""
        return (self.written or self.read[0]).unit

    @property
    def code_unit(self) -> float:
        """What codes are divided by in the end."""
        if self.written:
            return self.written.scale
        return math.exp(sum(math.log(scaling.scale) for scaling in self.read) / len(self.read))

    def scaled(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n out"] | None = None) -> Framed:
        """Activations as they come from the model, brought into this frame."""
        blocks, kept = self._blocks(x.float().split(list(self.widths), dim=1), self.read)
        if self.written is None:
            x = torch.cat(blocks, dim=1) * kept[:, None]
            return Framed(x, x, kept)
        assert y is not None, "a transcoder's step needs the activations of the site it writes"
        (target,), kept_too = self._blocks([y.float()], (self.written,))
        kept = kept * kept_too
        return Framed(torch.cat(blocks, dim=1) * kept[:, None], target * kept[:, None], kept)

    @staticmethod
    def _blocks(sites: Sequence[Tensor], scalings: Sequence[Scaling]) -> tuple[list[Tensor], Tensor]:
        kept, blocks = torch.ones_like(sites[0][:, 0]), []
        for site, scaling in zip(sites, scalings, strict=True):
            usual = (site.norm(dim=1) <= scaling.threshold).to(site.dtype)
            kept = kept * usual
            # A product, so that NaN and infinity stay visible instead of counting as massive.
            blocks.append(site * (scaling.scale * usual)[:, None])
        return blocks, kept

    def raw(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights for raw activations, from weights for scaled ones."""
        c = self.code_unit
        per_site = torch.tensor([s.scale / c for s in self.read], dtype=torch.float64)  # rounded once, in the weights
        s_in = per_site.repeat_interleave(torch.tensor(self.widths))
        s_out = per_site.new_full((1,), self.written.scale / c) if self.written else s_in
        factors = {
            "W_enc": s_in[:, None],
            "W_dec": 1 / s_out,
            "b_dec": 1 / (s_out * c),
            "W_skip": s_in / s_out[:, None],
        }
        over_c = ("b_enc", "b_gate", "b_mag", "threshold")
        return {
            name: tensor / c if name in over_c else tensor * factors[name].to(tensor) if name in factors else tensor
            for name, tensor in weights.items()
        }
