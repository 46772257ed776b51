"""One training step: a function of (state, batch). The state is advanced in place, only here.

Where the decoder's rows keep unit norm, what of the gradient is parallel to a row is removed before Adam sees it, and
norms are renewed after. Rows of massive norm stay in the batch with weight zero, so that no shape depends on the data;
in the topk family nothing waits for the device. Features that have not fired for `dead_after_tokens` are listed by
`refresh`, at logging steps, which also decides whether the next steps treat activations as sparse or dense.
"""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saes.frame import Frame
from saes.init import quantiles
from saes.objectives import objective
from saes.recipe import PENALISED, TrainConfig
from saes.sae import SAE

DENSE = 1 / 16  # of the features active: beyond, dense products are faster than gathering rows
_CHUNK = 2**24  # elements of a temporary


class StepLog(NamedTuple):
    """Figures of one step, still on the device."""

    loss: Float[Tensor, ""]
    """Reconstruction error as a fraction of the variance."""
    aux: Float[Tensor, ""]
    """Auxiliary loss, unweighted; 0 where there was none."""
    penalty: Float[Tensor, ""]
    """Sparsity penalty without its coefficient; 0 where there is none."""
    l0: Float[Tensor, ""]
    """Active features per token."""
    massive: Float[Tensor, ""]
    """Rows left out for their norm."""


@dataclass
class TrainState:
    """Everything a run carries from step to step; `sae` works on scaled activations."""

    sae: SAE
    config: TrainConfig
    """The recipe; its open defaults are put in here."""
    frame: Frame
    steps: int
    step: int = 0
    parameters: dict[str, nn.Parameter] = field(init=False)
    adam: torch.optim.Adam = field(init=False)
    silent: Tensor = field(init=False)
    """Per feature, tokens since it last fired."""
    dead: Tensor = field(init=False)
    """The features the auxiliary loss trains until the next `refresh`."""
    seen: Tensor = field(init=False)
    """Rows trained on so far."""
    massive: Tensor = field(init=False)
    """Rows left out so far for their norm."""
    l0: Tensor = field(init=False)
    """Active features per token in the last step."""
    memory: dict[str, Tensor] = field(init=False)
    """What one architecture alone carries: the running threshold, the annealed penalty's factor."""

    def __post_init__(self) -> None:
        sae, device = self.sae, self.sae.b_dec.device
        self.config = config = self.config.filled(sae.config)
        self.parameters = dict(sae.named_parameters())
        if config.architecture == "jumprelu":
            start = torch.full_like(sae.b_enc, self.length(config.threshold)).log()
            self.parameters["log_threshold"] = nn.Parameter(start)
        self.adam = torch.optim.Adam(self.parameters.values(), lr=0.0, betas=config.betas, eps=6.25e-10, fused=True)
        self.silent = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=device)
        self.dead = torch.zeros(0, dtype=torch.int64, device=device)
        self.seen, self.massive = torch.zeros(2, dtype=torch.int64, device=device)
        self.l0 = torch.tensor(float(sae.config.d_sae), device=device)
        self.dense = config.architecture in PENALISED
        self.memory = {name: tensor.to(device) for name, tensor in _memory(config).items()}

    @property
    def log_threshold(self) -> nn.Parameter:
        """Of a jumprelu run, `f`."""
        return self.parameters["log_threshold"]

    @property
    def compute(self) -> torch.dtype | None:
        """Precision of the dense product, None for that of the weights."""
        return torch.bfloat16 if self.config.compute == "bfloat16" else None

    @property
    def level_ends(self) -> list[int]:
        """Of a matryoshka run: the number of features of each nested dictionary."""
        assert self.config.groups is not None
        f = self.sae.config.d_sae
        return [*(max(1, round(f * part)) for part in list(accumulate(self.config.groups))[:-1]), f]

    def length(self, stated: float | None) -> float:
        """A length stated for mean norm sqrt(d), in the units of this run."""
        assert stated is not None
        return stated * self.frame.unit

    def begin_at(self, level: Float[Tensor, " f"]) -> None:
        """Let each feature fire above this pre-activation: through its bias or, of a jumprelu run, its threshold."""
        with torch.no_grad():
            if self.config.architecture == "jumprelu":
                self.log_threshold.copy_(level.clamp(min=self.length(self.config.threshold)).log())
            else:
                self.sae.b_enc.sub_(level)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.config.rate(step, self.steps, self.sae.config.d_sae)

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step."""
        held = {name: getattr(self, name) for name in _HELD}
        held |= {"step": torch.tensor(self.step), "dense": torch.tensor(self.dense)}
        held |= {f"memory.{name}": tensor for name, tensor in self.memory.items()}
        for name, parameter in self.parameters.items():
            held[f"sae.{name}"] = parameter
            held |= {f"adam.{name}.{key}": moment for key, moment in self.adam.state[parameter].items()}
        return held

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        device = self.sae.b_dec.device
        held = {name: tensor.to(device) for name, tensor in tensors.items()}
        for name in _HELD:
            setattr(self, name, held[name])
        self.step, self.dense = int(held["step"]), bool(held["dense"])
        self.memory = {name: held[f"memory.{name}"] for name in self.memory}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(held[f"sae.{name}"])
                prefix = f"adam.{name}."
                moments = {key.removeprefix(prefix): t for key, t in held.items() if key.startswith(prefix)}
                self.adam.state[parameter] = moments


_HELD = ("silent", "dead", "seen", "massive", "l0")


def _memory(config: TrainConfig) -> dict[str, Tensor]:
    if config.threshold_momentum is not None:
        return {"threshold": torch.tensor(-1.0, dtype=torch.float64)}
    if config.p_end not in (None, 1):
        one = torch.ones((), dtype=torch.float64)
        return {"p": one, "p_factor": one.clone(), "p_recent": torch.zeros(10, 2, dtype=torch.float64)}
    return {}


def begin(state: TrainState, sample: Float[Tensor, "n d"], written: Float[Tensor, "n out"] | None = None) -> TrainState:
    """Set biases or thresholds from a sample of raw activations, if the recipe has `start_l0`."""
    if state.config.start_l0 is not None:
        state.begin_at(quantiles(state.sae, state.frame.scaled(sample, written), l0=state.config.start_l0))
    return state


def step(state: TrainState, x: Float[Tensor, "n d"], y: Float[Tensor, "n out"] | None = None) -> StepLog:
    """Learn from the activations `x` (and those of a transcoder's second site, `y`), as they come from the model."""
    batch = state.frame.scaled(x, y)
    outcome = objective(state, batch)
    outcome.loss.backward()
    _descend(state)
    with torch.no_grad():
        entries, n = outcome.entries, batch.kept.sum()
        active = (outcome.values > 0) * entries.of_tokens(batch.kept)
        fired = entries.per_feature(active)
        state.silent = torch.where(fired > 0, 0, state.silent + n.long())
        state.seen, state.massive = state.seen + n.long(), state.massive + (len(x) - n).long()
        state.l0 = active.sum() / n.clamp(min=1)
        loss, aux, penalty = (q.detach() for q in (outcome.reconstruction, outcome.aux, outcome.penalty))
        return StepLog(loss, aux, penalty, state.l0, len(x) - n)


@torch.no_grad()
def _descend(state: TrainState) -> None:
    """One step of Adam; decoder rows of unit norm, if the recipe wants them."""
    W_dec, unit = state.sae.W_dec, state.config.decoder_norm == "unit"
    rows = max(1, _CHUNK // W_dec.shape[1])
    if unit:
        assert W_dec.grad is not None
        for gradient, row in zip(W_dec.grad.split(rows), W_dec.split(rows), strict=True):
            gradient.addcmul_((gradient * row).sum(1, keepdim=True), row, value=-1)
    torch.nn.utils.clip_grad_norm_(state.parameters.values(), state.config.clip)
    for group in state.adam.param_groups:
        group["lr"] = state.rate(state.step)
    state.adam.step()
    state.adam.zero_grad()
    if unit:
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
    state.step += 1


def refresh(state: TrainState) -> None:
    """List the dead features anew, and choose between sparse and dense (waits for the device)."""
    state.dead = (state.silent >= state.config.silence(state.steps)).nonzero()[:, 0]
    if state.config.architecture in PENALISED:
        state.dense = bool(state.l0 > DENSE * state.sae.config.d_sae) or state.sae.b_dec.device.type != "cpu"
