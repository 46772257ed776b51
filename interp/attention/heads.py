"""Query-key kernels of attention heads: factors of M_h = scale · W_Q^h (W_K^g(h))^T, read from a model's weights.

    kernel(model, layer).bilinear          # left = scale · W_Q, right = W_K, both `h d e`: M = left right^T, `h d d`

With x the row that queries and keys read, a head's logit before cap and mask, without rotary embedding or at offset 0,
is x_i^T M x_j. Query head i reads group g(i) = i // (heads // groups). Which x that is depends on the convention, which
the `Kernel` records, for M's spectra change with it:

    fold_norm=True     x is the normalised stream before the norm's gain γ (`ln1.hook_normalized`): both factors get
                       diag(γ) in front, (1 + w) for Gemma. A LayerNorm's rows are centred, so the factors are centred
                       as well, C M C with C = I - 1 1^T / d, and its bias counts as a bias of queries and keys
    fold_norm=False    x is what the norm puts out; raw weights
    biases=True        x gets a last coordinate of one, the factors a last row: d + 1 rows; without, biases are left out

Normalising queries and keys (Qwen 3, Gemma 3) makes the logit no bilinear form of x: refused. In encoders whose norms
stand behind the blocks (BERT) queries and keys read the stream itself: there is nothing to fold, and `folded` says so.
Sources: Elhage et al. 2021 for the kernel; Li 2026 (qk-spectral-fingerprint) for C M C.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.attention.bilinear import Bilinear
from interp.attention.encoder import encoder_projections, encoder_shape, is_encoder
from interp.attention.projections import KernelShape, Projections, weight_of
from interp.errors import InputError
from interp.model import HookedModel
from interp.offload import here

ALIBI = ("bloom", "mpt")


@dataclass(frozen=True)
class Kernel:
    """Factors of the kernels of one layer's heads, float64, with the convention behind them."""

    left: Float[Tensor, "h d e"]
    """scale · W_Q of each query head."""
    right: Float[Tensor, "h d e"]
    """W_K of each query head's group."""
    layer: int
    scale: float
    folded: bool
    """Whether the gain of the norm is in the factors."""
    centred: bool
    """Whether the factors are centred, as the rows of a LayerNorm are."""
    biased: bool
    """Whether the last row holds biases; d is then the width of the stream and one."""
    groups: int

    @property
    def bilinear(self) -> Bilinear:
        """M of all heads."""
        return Bilinear(self.left, self.right)

    @property
    def dimensions(self) -> int:
        """Of the space that holds the factors' columns: their rows, one less where they are centred."""
        return self.left.shape[-2] - self.centred

    def head(self, index: int) -> Bilinear:
        """M of one head."""
        if not 0 <= index < len(self.left):
            raise InputError(f"head {index} does not exist: layer {self.layer} has {len(self.left)}, from 0 on")
        return Bilinear(self.left[index], self.right[index])

    def __repr__(self) -> str:
        heads, d, e = self.left.shape
        said = [name for name in ("folded", "centred", "biased") if getattr(self, name)]
        how = ", ".join(said) or "raw"
        return f"Kernel(layer {self.layer}: {heads} heads of {self.groups} groups, d {d}, e {e}, {how})"


@torch.no_grad()
def kernel(model: HookedModel | nn.Module, layer: int, *, fold_norm: bool = True, biases: bool = False) -> Kernel:
    """The kernels of all heads of a layer. `model`: a `HookedModel`, or a Hugging Face model (BERT among them)."""
    shape = kernel_shape(model)
    if not 0 <= layer < shape.layers:
        raise InputError(f"layer {layer} does not exist: the model has {shape.layers} layers in memory, from 0 on")
    if not isinstance(model, HookedModel) and is_encoder(model):
        found = encoder_projections(model, layer)
    else:
        found = _decoder_projections(hooked(model), layer)
    return _kernel(found, layer, shape, fold_norm=fold_norm, biases=biases)


def kernel_shape(model: HookedModel | nn.Module) -> KernelShape:
    """How many kernels a model has, and their sizes; refuses a model whose attention has none."""
    if not isinstance(model, HookedModel) and is_encoder(model):
        return encoder_shape(model)
    model = hooked(model)
    spec = model.cfg
    if model.anatomy.q_norm is not None or model.anatomy.k_norm is not None:
        raise InputError(
            f"{spec.family} normalises queries and keys, head by head, before comparing them: its logits are no "
            "bilinear form of the stream, and a kernel would describe them up to a factor per token only. The "
            "operating interaction is exact for it: interp.attention.operating"
        )
    return KernelShape(model.loaded_layers, spec.n_heads, spec.n_kv_heads, spec.d_model, spec.d_head)


def n_kernel_layers(model: HookedModel | nn.Module) -> int:
    """How many layers of the model are in memory."""
    return kernel_shape(model).layers


def hooked(model: HookedModel | nn.Module) -> HookedModel:
    """A wrapped decoder; refuses attention with position biases that no kernel holds."""
    if isinstance(model, HookedModel):
        return model
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) in ALIBI or getattr(config, "alibi", False):
        raise InputError(
            f"{type(model).__name__} adds ALiBi's biases, linear in the distance, to its logits: its kernel alone is "
            "not what its heads compare by. Expected a model with rotary, learned or no position embedding"
        )
    return HookedModel.wrap(model)


def _kernel(found: Projections, layer: int, shape: KernelShape, *, fold_norm: bool, biases: bool) -> Kernel:
    left, right = found.q.double(), found.k.double()
    rows = [None if b is None else b.double() for b in (found.b_q, found.b_k)]
    folded = fold_norm and found.gain is not None
    if folded:
        assert found.gain is not None
        if found.norm_bias is not None:
            inner = [torch.einsum("d,hde->he", found.norm_bias.double(), factor) for factor in (left, right)]
            rows = [more if row is None else row + more for row, more in zip(rows, inner, strict=True)]
        left, right = (found.gain.double()[:, None] * factor for factor in (left, right))
        if found.centred:
            left, right = (factor - factor.mean(-2, keepdim=True) for factor in (left, right))
    if biases:
        left, right = (
            torch.cat([factor, factor.new_zeros(len(factor), 1, factor.shape[-1]) if row is None else row[:, None]], -2)
            for factor, row in zip((left, right), rows, strict=True)
        )
    right = right.repeat_interleave(shape.heads // shape.groups, dim=0)
    return Kernel(found.scale * left, right, layer, found.scale, folded, folded and found.centred, biases, shape.groups)


class _Row(NamedTuple):
    """A projection's matrix and bias by head."""

    matrix: Float[Tensor, "h d e"]
    bias: Float[Tensor, "h e"] | None


def _decoder_projections(model: HookedModel, layer: int) -> Projections:
    anatomy, spec = model.anatomy, model.cfg
    if anatomy.fused == "none":
        q, k = (
            _by_head(anatomy.at(model.hf, layer, path), (heads, spec.d_head), (), path)
            for path, heads in ((anatomy.q, spec.n_heads), (anatomy.k, spec.n_kv_heads))
        )
    else:
        blocks = anatomy.fused == "blocks"
        shape = (3, spec.n_heads, spec.d_head) if blocks else (spec.n_heads, 3, spec.d_head)
        module = anatomy.at(model.hf, layer, anatomy.q)
        q, k = (_by_head(module, shape, (0 if blocks else 1, place), anatomy.q) for place in (0, 1))
    norm = anatomy.at(model.hf, layer, anatomy.ln1)
    gain = here(norm, "weight")
    if gain is not None and spec.norm == "rms_offset":
        gain = 1 + gain.double()
    layer_norm = spec.norm == "layer"
    return Projections(
        q.matrix,
        k.matrix,
        q.bias,
        k.bias,
        scale=spec.scale(layer),
        gain=gain,
        norm_bias=here(norm, "bias") if layer_norm else None,
        centred=layer_norm,
    )


def _by_head(module: nn.Module, shape: tuple[int, ...], which: tuple[int, ...], path: str) -> _Row:
    """Matrix and bias of a projection by head; `which` is (axis, index) of queries or keys in a fused one."""
    weight, bias = weight_of(module, path)
    weight = weight.unflatten(0, shape)
    bias = None if bias is None else bias.unflatten(0, shape)
    if which:
        weight, bias = weight.select(*which), None if bias is None else bias.select(*which)
    return _Row(weight.permute(0, 2, 1), bias)
