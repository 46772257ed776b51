"""The definition of `topk_encode`, in plain PyTorch."""

from jaxtyping import Float, Int
from torch import Tensor


def topk_encode_reference(
    x: Float[Tensor, "n d"], W_enc: Float[Tensor, "d f"], b_enc: Float[Tensor, " f"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest pre-activations of each token, then ReLU."""
    values, idx = (x @ W_enc + b_enc).topk(k, dim=-1)
    return values.relu(), idx
