"""Linearising the first layers of a trained twin, without retraining: what does its perplexity lose?

    mean      the operator of each of the first L layers is frozen to its mean over calibration windows, one number per
              head and pair of positions: values are then mixed linearly, whatever the input
    taylor    softmax to first order about zero scores: (1 + b_ij - mean_j' b_ij') / n_i over the n_i allowed j'
    zero      no operator: attention of these layers is left out

arXiv 2605.18826 reports that linearising seven layers of its S-D model costs under 5 % of perplexity while standard
attention collapses; how it linearises is not known to us, and these are two readings of it. Token-space S-D attention
has no nonlinearity between scores and operator, so `taylor` changes nothing there, by construction: that it survives
says nothing; `mean` is the comparison that could go either way, and `zero` its control, for what can be left out has
not been linearised. Calibration windows come from training text, perplexities from held-out text. Under either mode
the layer's norm (where there is one) and its MLP stay as they are, and layer l is measured with the layers before it
already replaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.attention.sd_attention import Attention, EluAttention, TokenSD
from interp.attention.sd_data import IGNORED, Windows
from interp.attention.sd_model import Twin
from interp.errors import InputError
from interp.stats import bootstrap_ratio

LinearMode = Literal["mean", "taylor", "zero"]
MODES: tuple[LinearMode, ...] = ("mean", "taylor", "zero")


@dataclass(frozen=True, kw_only=True)
class Linearised:
    """Which layers, and how; frozen values, nothing of the model is changed."""

    layers: int = 0
    """The first so many."""
    mode: LinearMode = "mean"
    """mean, taylor or zero."""
    means: tuple[Float[Tensor, "h t s"], ...] = field(default=(), repr=False)
    """Mean operator of each layer, from `mean_operators`; for `mean` only."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.layers < 0:
            raise InputError(f"layers must be 0 or more, got {self.layers}")
        if self.mode == "mean" and len(self.means) < self.layers:
            raise InputError(
                f"mode 'mean' needs a mean operator for each of the {self.layers} layers, got {len(self.means)}; "
                "they come from mean_operators(model, windows)"
            )

    def operator(self, attention: Attention, layer: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "_ h t s"]:
        """What mixes the values of this layer instead."""
        if self.mode == "mean":
            return self.means[layer][None, :, : x.shape[1], : x.shape[1]].to(x.dtype)
        if self.mode == "zero":
            return x.new_zeros(1, attention.heads, x.shape[1], x.shape[1])
        if isinstance(attention, TokenSD):
            return attention.operator(x)
        if isinstance(attention, EluAttention):
            raise InputError("mode 'taylor' expands a softmax; elu attention has none")
        return first_order(attention.scores(x))


def first_order(scores: Float[Tensor, "*b t s"]) -> Float[Tensor, "*b t s"]:
    """Causal softmax to first order about zero scores; rows sum to 1."""
    allowed = torch.ones(scores.shape[-2:], dtype=scores.dtype, device=scores.device).tril()
    counts = allowed.sum(-1, keepdim=True)
    centred = scores - (scores * allowed).sum(-1, keepdim=True) / counts
    return allowed * (1 + centred) / counts


def linearised_logits(model: Twin, tokens: Int[Tensor, "b t"], change: Linearised) -> Float[Tensor, "b t v"]:
    """Logits with the first layers of the model linearised."""
    if change.layers > model.config.layers:
        raise InputError(f"the model has {model.config.layers} layers, {change.layers} were to be linearised")
    x = model.embed(tokens)
    for layer, block in enumerate(model.layers()):
        if layer < change.layers:
            y = block.norm_1(x)
            x = x + block.attention.applied(change.operator(block.attention, layer, y), y)
            x = x + block.mlp(x, x.dtype)
        else:
            x = block(x, x.dtype)
    return model.unembed(x, x.dtype)


@torch.no_grad()
def mean_operators(model: Twin, data: Windows, *, most: int = 64, batch: int = 8) -> tuple[Tensor, ...]:
    """Mean operator of each layer over `most` full windows of different documents, summed in float64."""
    chosen = data.spread(most)
    sums: list[Tensor] = []
    for part in chosen.split(batch):
        inputs = model.attention_inputs(data.batch(part)[0])
        found = [block.attention.operator(x).double().sum(0) for block, x in zip(model.layers(), inputs, strict=True)]
        sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
    return tuple(total / len(chosen) for total in sums)


@torch.no_grad()
def document_losses(
    model: Twin, data: Windows, change: Linearised | None = None, *, batch: int = 16
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Per document that has any byte: sum of the nats of its bytes, and how many bytes, in float64."""
    sums = torch.zeros(int(data.documents.max()) + 1, 2, dtype=torch.float64)
    for part in torch.arange(len(data)).split(batch):
        tokens, targets = data.batch(part)
        logits = model(tokens) if change is None else linearised_logits(model, tokens, change)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        counted = (targets != IGNORED).double()
        pairs = torch.stack([losses.view_as(targets).double().sum(-1), counted.sum(-1)], -1)
        sums.index_add_(0, data.documents[part], pairs)
    sums = sums[sums[:, 1] > 0]
    return sums[:, 0].numpy(), sums[:, 1].numpy()


def linearise_sweep(
    model: Twin, data: Windows, means: Sequence[Tensor], *, modes: Sequence[LinearMode] = MODES
) -> list[dict[str, Any]]:
    """A row for each mode and each number of first layers, 1 to all: perplexity per byte, and its ratio to the model's.

    `low` and `high` bound the ratio: differences of losses, bootstrapped over documents.
    """
    plain, counts = document_losses(model, data)
    rows: list[dict[str, Any]] = []
    for mode in modes:
        for n in range(1, model.config.layers + 1):
            sums, _ = document_losses(model, data, Linearised(layers=n, mode=mode, means=tuple(means)))
            change = sums - plain
            low, high = np.exp(bootstrap_ratio(change, counts))
            perplexity, ratio = np.exp(sums.sum() / counts.sum()), np.exp(change.sum() / counts.sum())
            row = {"perplexity": perplexity, "ratio": ratio, "low": low, "high": high}
            rows.append({"mode": mode, "layers": n, **{name: float(value) for name, value in row.items()}})
    return rows
