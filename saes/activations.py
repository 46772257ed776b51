"""Which features of a token are active, and how strongly: the rules that make an SAE sparse.

A rule maps tokens and encoder weights to `Codes`, without a dense matrix of activations:

    TopK:  relu(the k largest of x W_enc + b_enc)
"""

from dataclasses import dataclass

from jaxtyping import Float
from midlens_kernels import topk_encode
from torch import Tensor

from saes.codes import Codes


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each token, then ReLU; always k entries per token, some may be zero."""

    k: int

    def __call__(self, x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"]) -> Codes:
        """Encode; gradients reach all three tensors."""
        return Codes.of_fixed_k(*topk_encode(x, W_enc, b_enc, self.k), len(b_enc))
