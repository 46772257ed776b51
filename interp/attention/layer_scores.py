"""Symmetry and directionality of whole layers, as Saponati et al. 2025 (arXiv 2502.10927) measure them.

Their object is the sum of a layer's kernels, M = Σ_h W_Q^h (W_K^g(h))^T, of raw weights: no norm folded in, no biases.

    symmetry          tr M² / ||M||²
    directionality    (rows - columns) / (rows + columns), of what exceeds mean + 2 std: see `interp.attention.metrics`

Both follow from he x he Gram matrices; M is never formed. `PUBLISHED` has medians over layers of models in which every
head has keys of its own, to compare with (for other models their code tiles the groups, which is another product):

    from interp.attention.layer_scores import PUBLISHED, layer_scores
    layer_scores(HookedModel.load("openai-community/gpt2")).median(), PUBLISHED["gpt2"]
    layer_scores(AutoModel.from_pretrained("google-bert/bert-base-uncased")).median(), PUBLISHED["bert-base"]

These weights were not at hand where this was written: the comparison has yet to be run.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.attention.bilinear import Bilinear
from interp.attention.heads import kernel, n_kernel_layers
from interp.attention.metrics import directionality
from interp.model import HookedModel


class LayerScores(NamedTuple):
    """Of every layer, float64."""

    symmetry: Float[Tensor, " l"]
    directionality: Float[Tensor, " l"]

    def median(self) -> tuple[float, float]:
        """Over layers; of an even number, the mean of the middle two."""
        symmetry, direction = (float(scores.quantile(0.5)) for scores in self)
        return symmetry, direction


PUBLISHED: dict[str, tuple[float, float]] = {
    "bert-base": (0.51, -0.08),
    "bert-large": (0.44, -0.03),
    "gpt2": (0.15, -0.58),
    "gpt2-medium": (0.17, -0.42),
    "gpt2-large": (0.17, -0.32),
    "gpt2-xl": (0.12, -0.23),
    "gpt-j-6b": (0.11, -0.28),
    "llama-2-7b": (0.12, -0.26),
}
"""Median symmetry and directionality over layers, two digits (tables of the code of Saponati et al.)."""


def layer_scores(model: HookedModel | nn.Module) -> LayerScores:
    """Of all layers in memory."""
    found = [_scores(summed(kernel(model, i, fold_norm=False).bilinear)) for i in range(n_kernel_layers(model))]
    return LayerScores(*(torch.stack(scores) for scores in zip(*found, strict=True)))


def summed(m: Bilinear) -> Bilinear:
    """Σ_h M_h of heads `h d e`, as one product of width h e."""
    return Bilinear(*(factor.movedim(-3, -2).flatten(-2) for factor in (m.left, m.right)))


def _scores(m: Bilinear) -> tuple[Tensor, Tensor]:
    cross = m.right.mT @ m.left
    square = ((m.left.mT @ m.left) * (m.right.mT @ m.right)).sum()
    return (cross * cross.mT).sum().cpu() / square.cpu(), directionality(m)
