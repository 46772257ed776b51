"""The plain forward pass with other attention scores, and the dense matrices that surgery is held against: float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp.plain.blocks as blocks
from interp.model import HookedModel
from interp.plain import plain_run
from interp.plain.settings import Settings, read_settings
from interp.plain.weights import Weights
from interp.sites import Site
from tests.tiny_models import VARIANTS, tiny

QK_NORM = [name for name in VARIANTS if name.startswith(("qwen3", "gemma3"))]
BILINEAR = [name for name in VARIANTS if name not in QK_NORM]

Scores = Callable[[Tensor, Tensor, int], Tensor]
"""(scaled q, k of each query head, both as compared; layer) -> scores `b h t s` before cap and mask."""


def double_model(name: str, **config) -> HookedModel:
    return HookedModel.wrap(tiny(name, **config).double())


def settings_of(model: HookedModel) -> Settings:
    return read_settings(model.hf.config.to_dict())


def dense(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bthe,bshe->bhts", q, k)


def plain_logits(model: HookedModel, tokens: Tensor, scores: Scores) -> Tensor:
    """Logits of the plain forward pass with `scores` in place of its own."""
    layer = -1

    def replaced(q, k, *, scale, cap, window):
        nonlocal layer
        layer += 1
        raw = blocks.soft_cap(scores(q * scale, k.repeat_interleave(q.shape[2] // k.shape[2], 2), layer), cap)
        return raw.masked_fill(~blocks.allowed(q.shape[1], window, device=q.device), -math.inf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "attention_scores", replaced)
        logits = plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens).logits
    assert logits is not None
    return logits


def plain_site(model: HookedModel, tokens: Tensor, site: str) -> Tensor:
    wanted = Site.parse(site)
    return plain_run(model.hf.config.to_dict(), model.hf.state_dict(), tokens, sites=[wanted]).sites[wanted]


def close(model: HookedModel, got: Tensor, expected: Tensor) -> None:
    """Equal up to what transformers loses by computing cos and sin, and softmax under a cap, in float32."""
    tolerance = 3e-6 if model.cfg.rotary else 1e-12
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def augmented(model: HookedModel, layer: int) -> tuple[Tensor, Tensor]:
    """s P and K of every query head, `h d+1 e`: norm and LayerNorm's centring folded in, biases as the last row."""
    settings = settings_of(model)
    w = Weights(model.hf.state_dict(), settings, dtype=torch.float64).layer(layer)
    gain = 1 + w.ln1.gain if settings.norm == "rms_plus_one" else w.ln1.gain
    shift = torch.zeros_like(gain) if w.ln1.bias is None else w.ln1.bias
    made = []
    for matrix, bias in ((w.q, w.b_q), (w.k, w.b_k)):
        rows = matrix * gain
        if settings.norm == "layer":
            rows = rows - rows.mean(-1, keepdim=True)
        last = matrix @ shift + (0 if bias is None else bias)
        made.append(torch.cat([rows, last[..., None]], -1).mT.repeat_interleave(settings.h // len(matrix), 0))
    return made[0] * settings.score_scales[layer], made[1]


def turn(model: HookedModel, layer: int, delta: int) -> Tensor:
    """R_Δ as an e x e matrix."""
    settings = settings_of(model)
    rope, R = settings.ropes[layer], torch.eye(settings.e, dtype=torch.float64)
    if rope is not None:
        for i, omega in enumerate(blocks.frequencies(rope, dtype=torch.float64, device=torch.device("cpu"))):
            j, (c, s) = i + rope.dims // 2, (math.cos(delta * omega), math.sin(delta * omega))
            R[i, i], R[i, j], R[j, i], R[j, j] = c, -s, s, c
    return R


def skew_and_symmetric(M: Tensor) -> tuple[Tensor, Tensor]:
    return (M - M.mT) / 2, (M + M.mT) / 2


def leading(M: Tensor, planes: int | None, modes: int | None) -> tuple[Tensor, Tensor]:
    """Orthogonal projections on the leading planes of the skew part and on the leading modes of the symmetric part."""
    skew, symmetric = skew_and_symmetric(M)
    pi_skew = pi_symmetric = torch.eye(len(M), dtype=M.dtype)
    if planes is not None:
        u = torch.linalg.svd(skew).U[:, : 2 * planes]
        pi_skew = u @ u.T
    if modes is not None:
        values, vectors = torch.linalg.eigh(symmetric)
        u = vectors[:, values.abs().argsort(descending=True)[:modes]]
        pi_symmetric = u @ u.T
    return pi_skew, pi_symmetric
