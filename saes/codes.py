"""`Codes`: the sparse activations of a batch of tokens, grouped by token.

    x[i] ~ b_dec + sum over entries j of token i:  values[j] * W_dec[indices[j]]

Token i owns the entries from `offsets[i]` to `offsets[i + 1]`. This is compressed sparse row storage; `transpose`
regroups the same entries by feature. Values are non-negative; entries of value zero may occur inside a training step
(where the shapes must not depend on the data) and are dropped by `pruned`, which `SAE.encode` does for its callers.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from midlens_kernels import reverse_index
from torch import Tensor


class Codes(NamedTuple):
    """Sparse activations of n tokens over `n_features` features; m entries in all."""

    values: Float[Tensor, " m"]
    indices: Int[Tensor, " m"]
    offsets: Int[Tensor, " n_plus_1"]
    n_features: int

    @classmethod
    def of_fixed_k(cls, values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], n_features: int) -> "Codes":
        """k entries for every token, zeros kept."""
        n, k = values.shape
        offsets = torch.arange(n + 1, device=values.device) * k
        return cls(values.reshape(-1), indices.reshape(-1), offsets, n_features)

    @property
    def n_tokens(self) -> int:
        """Tokens encoded, with or without entries."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int[Tensor, " n"]:
        """Entries of each token: its L0, once pruned."""
        return self.offsets.diff()

    @property
    def rows(self) -> Int[Tensor, " m"]:
        """The token of each entry."""
        tokens = torch.arange(self.n_tokens, device=self.offsets.device)
        return torch.repeat_interleave(tokens, self.counts, output_size=len(self.values))

    def pruned(self) -> "Codes":
        """The same codes without entries of value zero."""
        kept = self.values > 0
        below = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return Codes(self.values[kept], self.indices[kept], below[self.offsets], self.n_features)

    def dense(self) -> Float[Tensor, "n f"]:
        """The matrix of activations; for small batches."""
        empty = self.values.new_zeros(self.n_tokens, self.n_features)
        return empty.index_put((self.rows, self.indices), self.values, accumulate=True)

    def transpose(self) -> "Codes":
        """Grouped by feature: `indices` are then tokens (ascending), and row i lists where feature i fired."""
        entries, offsets = reverse_index(self.indices, self.n_features)
        return Codes(self.values[entries], self.rows[entries], offsets, self.n_tokens)
