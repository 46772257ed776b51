"""Training states of every architecture and kind of dictionary; the plain reference's answer on the same weights."""

from typing import Any

import torch
from torch import Tensor, nn

from saes.frame import Frame, Framed, Scaling
from saes.optimise import TrainState
from saes.recipe import TrainConfig
from saes.sae import SAE
from tests import plain_sae
from tests.plain_sae import Setting

D, OUT, F, N = 6, 5, 24, 20
PENALTY = {"sparsity": 0.3, "sparsity_warmup": 0.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {"architecture": "topk", "k": 4},
    "batchtopk": {"architecture": "batchtopk", "k": 4},
    "matryoshka": {"architecture": "matryoshka_batchtopk", "k": 4, "groups": (0.25, 0.125, 0.625)},
    "standard": {"architecture": "standard", **PENALTY},
    "gated": {"architecture": "gated", **PENALTY},
    "jump-step": {"architecture": "jumprelu", "penalty": "step", "bandwidth": 0.8, **PENALTY},
    "jump-target": {
        "architecture": "jumprelu",
        "penalty": "target",
        "bandwidth": 0.8,
        "threshold_rate": 3.0,
        "k": 4,
        **PENALTY,
    },
    "jump-tanh": {
        "architecture": "jumprelu",
        "penalty": "tanh",
        "bandwidth": 0.8,
        "tanh_scale": 0.7,
        "pre_act": 0.2,
        **PENALTY,
    },
}
SELECTING = ("topk", "batchtopk", "matryoshka")
KINDS: dict[str, dict[str, Any]] = {
    "sae": {},
    "transcoder": {"d_out": OUT},
    "skip": {"d_out": OUT, "skip": True},
    "crosscoder": {"sources": (4, 2)},
}
UNIT = 1.25


def scaling(variance: float, *, scale: float = 2.0, threshold: float = 50.0, unit: float = UNIT) -> Scaling:
    return Scaling(scale=scale, threshold=threshold, variance=variance, rows=10, massive=0, unit=unit)


def frame_of(kind: str) -> Frame:
    """Scales are powers of two, so that scaled float32 inputs are exact."""
    if kind == "crosscoder":
        return Frame((scaling(4.0), scaling(3.0, scale=0.5)), (4, 2))
    return Frame((scaling(7.0),), (D,), scaling(6.0, scale=4.0) if kind in ("transcoder", "skip") else None)


def training(name: str, kind: str = "sae", *, dtype: str = "float64", dead: Any = (), seed: int = 1, **over: Any):
    """A state with random weights; thresholds differ from feature to feature."""
    options = {"d_sae": F, "lr": 1e-2, "warmup": 0.0, "k_aux": 5, "aux_weight": 1 / 16, **ARCHITECTURES[name], **over}
    shape = KINDS[kind]
    config = TrainConfig(**options, skip=bool(shape.get("skip")))
    base = config.shape(D, d_out=shape.get("d_out"), sources=shape.get("sources", ()))
    g = torch.Generator().manual_seed(seed)
    sae = SAE.of_weights(
        type(base)(**{**base.__dict__, "dtype": dtype}),
        **{n: (torch.randn(*s, generator=g, dtype=torch.float64) * 0.4).abs() for n, s in base.shapes().items()},
    )
    with torch.no_grad():
        sae.encoder.copy_(torch.randn(sae.encoder.shape, generator=g, dtype=torch.float64))
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=g, dtype=torch.float64) / 2)
    state = TrainState(sae, config, frame_of(kind), steps=100)
    if state.config.decoder_norm == "unit":
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    if config.architecture == "jumprelu":
        with torch.no_grad():
            state.log_threshold.copy_(torch.randn(F, generator=g, dtype=torch.float64) * 0.5)
    state.dead = torch.tensor(dead, dtype=torch.int64)
    return state


def batch_for(kind: str, *, seed: int = 2, n: int = N, massive: tuple[int, ...] = (), dtype: Any = torch.float64):
    """A scaled batch, with massive rows emptied as `Frame.scaled` empties them."""
    g = torch.Generator().manual_seed(seed)
    kept = torch.ones(n, dtype=dtype)
    kept[list(massive)] = 0
    x = torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype) * kept[:, None]
    y = x
    if kind in ("transcoder", "skip"):
        y = torch.randn(n, OUT, generator=g, dtype=torch.float64).to(dtype) * kept[:, None]
    return Framed(x, y, kept)


def setting_of(state: TrainState) -> Setting:
    """What the equations need, from the recipe: lengths stated for mean norm sqrt(d) in the units of the run."""
    c, f = state.config, state.sae.config.d_sae
    ends = [round(f * sum(c.groups[: i + 1])) for i in range(len(c.groups))] if c.groups else []
    return Setting(
        centred=0.0 if state.sae.config.is_transcoder else 1 - (c.mean_read or 0.0),
        blocks=state.sae.config.sources,
        weighted=c.decoder_norm == "weighted",
        k=c.k,
        aux_weight=c.aux_weight,
        k_aux=c.k_aux,
        sizes=tuple(ends),
        sparsity=c.sparsity or 0.0,
        bandwidth=(c.bandwidth or 0.0) * UNIT,
        every=c.penalty == "tanh",
        target_l0=c.k,
        tanh_scale=(c.tanh_scale or 0.0) / UNIT,
        pre_act=c.pre_act or 0.0,
    )


def plain_weights(state: TrainState) -> dict[str, Tensor]:
    """Leaves of their own, in float64."""
    return {name: t.detach().double().clone().requires_grad_() for name, t in state.parameters.items()}


def plain_loss(state: TrainState, weights: dict[str, Tensor], batch: Framed, **over: Any) -> dict[str, Tensor]:
    """The reference's loss on these weights, under the recipe of `state` (whose own weights are not looked at)."""
    s = setting_of(state)
    s = Setting(**{**s.__dict__, **over})
    x, y, kept = (t.double() for t in batch)
    terms = (weights, x, y, kept, state.frame.variance, s)
    match state.config.architecture:
        case "topk":
            return plain_sae.topk(*terms, state.dead)
        case "batchtopk" | "matryoshka_batchtopk":
            return plain_sae.topk(*terms, state.dead, batch=True)
        case "standard":
            made = plain_sae.standard(*terms)
        case "gated":
            made = plain_sae.gated(*terms)
        case _:
            made = plain_sae.jumprelu(*terms, state.dead, mode=state.config.penalty)
    x, y = plain_sae.cut(x, y, kept)
    aux = plain_sae.dead_residual(weights, x, y - plain_sae.rebuilt(weights, made["codes"], x), state.dead, s)
    return {**made, "loss": made["loss"] + s.aux_weight * aux, "aux": aux}


def gradients(loss: Tensor, parameters: dict[str, Any]) -> dict[str, Tensor]:
    """By every parameter; zeros for those the loss does not depend on."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(parameters.items(), found, strict=True)
    }


def set_bias(state: TrainState, value: float, features: Any = slice(None)) -> nn.Parameter:
    """Move pre-activations of some features out of sight (or into it)."""
    with torch.no_grad():
        state.sae.b_enc[features] = value
    return state.sae.b_enc
