"""`Entries`: the pre-activations a training step works on, sparse (the few that matter) or dense (all).

Every penalty and gate is written once over either form: per entry, with per-feature and per-token quantities brought
to the entries by `at` and `of_tokens`. Sparse entries are compressed by token, as in `saes.codes`.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from midlens_kernels import threshold_encode, topk_decode
from torch import Tensor
from torch.nn import functional

from saes.sae import SAE
from saes.team import ALONE, Team


class Entries(NamedTuple):
    """Pre-activations: flat (`m`) with features and offsets, or a matrix (`n f`) with neither."""

    pre: Float[Tensor, "*entries"]
    indices: Int[Tensor, " m"] | None
    offsets: Int[Tensor, " n_plus_1"] | None
    n_features: int

    def at(self, per_feature: Float[Tensor, " f"]) -> Float[Tensor, "*entries"]:
        """A quantity of each entry's feature."""
        return per_feature if self.indices is None else per_feature.index_select(0, self.indices)

    @property
    def rows(self) -> Int[Tensor, " m"]:
        """The token of each sparse entry."""
        assert self.indices is not None and self.offsets is not None
        tokens = torch.arange(len(self.offsets) - 1, device=self.indices.device)
        return torch.repeat_interleave(tokens, self.offsets.diff(), output_size=len(self.indices))

    def of_tokens(self, per_token: Float[Tensor, " n"]) -> Float[Tensor, "*entries"]:
        """A quantity of each entry's token."""
        return per_token[:, None] if self.indices is None else per_token.index_select(0, self.rows)

    def decode(self, values: Float[Tensor, "*entries"], W_dec: Float[Tensor, "f out"]) -> Float[Tensor, "n out"]:
        """What the features write, given the entries' activations; no bias."""
        if self.indices is None or self.offsets is None:
            return values @ W_dec
        return topk_decode(values, self.indices, W_dec, offsets=self.offsets)

    def per_feature(self, values: Float[Tensor, "*entries"]) -> Float[Tensor, " f"]:
        """Sums over the tokens."""
        if self.indices is None:
            return values.sum(0)
        return values.new_zeros(self.n_features).index_add_(0, self.indices, values)


def entries_above(
    sae: SAE,
    read: Float[Tensor, "n d"],
    floor: Float[Tensor, " f"],
    *,
    dense: bool,
    compute: torch.dtype | None,
    team: Team = ALONE,
) -> Entries:
    """The pre-activations above `floor` or, `dense`, all of them; gradients reach what is `read` and the encoder."""
    read, f = team.read(read), sae.config.d_sae
    if not dense:
        return Entries(*threshold_encode(read, sae.W_enc, sae.b_enc, floor, compute=compute), f)
    if compute is not None:
        return Entries(_Linear.apply(read, sae.encoder, sae.b_enc, compute), None, None, f)
    return Entries(functional.linear(read, sae.encoder, sae.b_enc), None, None, f)


class _Linear(torch.autograd.Function):
    """A dense product in lower precision, with gradients in full: weights learn from unrounded ones, as when sparse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, bias: Tensor, compute: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, rows)
        return functional.linear(*(t.to(compute) for t in (x, rows, bias))).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, rows = ctx.saved_tensors
        return g @ rows, g.T @ x, g.sum(0), None
