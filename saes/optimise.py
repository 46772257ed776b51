"""One training step of a TopK SAE: a function of (state, batch). The state is advanced in place, only here.

The decoder's rows keep unit norm: what of the gradient is parallel to a row is removed before Adam sees it, and norms
are renewed after. Rows of massive norm stay in the batch with weight zero, so that no shape depends on the data;
nothing waits for the device. Features that have not fired for `dead_after_tokens` are listed by `refresh`, at logging
steps.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saes.init import Scaling
from saes.losses import auxiliary, reconstruction
from saes.recipe import TrainConfig
from saes.sae import SAE


class StepLog(NamedTuple):
    """Figures of one step, still on the device."""

    loss: Float[Tensor, ""]
    """Reconstruction error as a fraction of the variance."""
    aux: Float[Tensor, ""]
    """Auxiliary loss, unweighted; 0 where there was none."""
    l0: Float[Tensor, ""]
    """Active features per token."""
    massive: Float[Tensor, ""]
    """Rows left out for their norm."""


@dataclass
class TrainState:
    """Everything a run carries from step to step; `sae` works on scaled activations."""

    sae: SAE
    config: TrainConfig
    scaling: Scaling
    steps: int
    step: int = 0
    adam: torch.optim.Adam = field(init=False)
    silent: Tensor = field(init=False)
    """Per feature, tokens since it last fired."""
    dead: Tensor = field(init=False)
    """The features the auxiliary loss trains until the next `refresh`."""
    seen: Tensor = field(init=False)
    """Rows trained on so far."""
    massive: Tensor = field(init=False)
    """Rows left out so far for their norm."""

    def __post_init__(self) -> None:
        device = self.sae.b_dec.device
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=0.0, eps=6.25e-10, fused=True)
        self.silent = torch.zeros(self.sae.config.d_sae, dtype=torch.int64, device=device)
        self.dead = torch.zeros(0, dtype=torch.int64, device=device)
        self.seen, self.massive = torch.zeros(2, dtype=torch.int64, device=device)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.config.rate(step, self.steps, self.sae.config.d_sae)

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step."""
        held = {name: getattr(self, name) for name in ("silent", "dead", "seen", "massive")}
        held["step"] = torch.tensor(self.step)
        for name, parameter in self.sae.named_parameters():
            held[f"sae.{name}"] = parameter
            held |= {f"adam.{name}.{key}": moment for key, moment in self.adam.state[parameter].items()}
        return held

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        device = self.sae.b_dec.device
        held = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.silent, self.dead, self.seen, self.massive = (held[n] for n in ("silent", "dead", "seen", "massive"))
        self.step = int(held["step"])
        with torch.no_grad():
            for name, parameter in self.sae.named_parameters():
                parameter.copy_(held[f"sae.{name}"])
                prefix = f"adam.{name}."
                moments = {key.removeprefix(prefix): t for key, t in held.items() if key.startswith(prefix)}
                self.adam.state[parameter] = moments


def step(state: TrainState, x: Float[Tensor, "n d"]) -> StepLog:
    """Learn from the activations `x`, given as they come from the model."""
    config, sae = state.config, state.sae
    x = x.float()
    kept = (x.norm(dim=1) <= state.scaling.threshold).float()
    x = x * (state.scaling.scale * kept)[:, None]
    codes = sae.activate(x)
    values = codes.values * kept.repeat_interleave(config.k)
    error = (x - sae.decode(codes._replace(values=values))) * kept[:, None]
    loss = reconstruction(error, kept, state.scaling.variance)
    aux = _auxiliary(state, x, error) if config.aux_weight and len(state.dead) else x.new_zeros(())
    (loss + config.aux_weight * aux).backward()
    _descend(state)
    with torch.no_grad():
        active = (values > 0).float()
        fired = active.new_zeros(sae.config.d_sae).index_add_(0, codes.indices, active)
        n = kept.sum()
        state.silent = torch.where(fired > 0, 0, state.silent + n.long())
        state.seen, state.massive = state.seen + n.long(), state.massive + (len(x) - n).long()
        return StepLog(loss.detach(), aux.detach(), active.sum() / n.clamp(min=1), len(x) - n)


def _auxiliary(state: TrainState, x: Tensor, error: Tensor) -> Tensor:
    sae = state.sae
    k_aux = state.config.k_aux or max(1, sae.config.d_in // 2)
    return auxiliary(x - sae.b_dec, error, state.dead, sae.encoder, sae.b_enc, sae.W_dec, k_aux=k_aux)


@torch.no_grad()
def _descend(state: TrainState) -> None:
    """One step of Adam with unit-norm decoder rows."""
    sae, gradient = state.sae, state.sae.W_dec.grad
    assert gradient is not None
    gradient.addcmul_((gradient * sae.W_dec).sum(1, keepdim=True), sae.W_dec, value=-1)
    torch.nn.utils.clip_grad_norm_(sae.parameters(), state.config.clip)
    for group in state.adam.param_groups:
        group["lr"] = state.rate(state.step)
    state.adam.step()
    state.adam.zero_grad()
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    state.step += 1


def refresh(state: TrainState) -> None:
    """List the dead features anew (waits for the device)."""
    state.dead = (state.silent >= state.config.silence(state.steps)).nonzero()[:, 0]
