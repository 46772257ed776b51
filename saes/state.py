"""`TrainState`: everything a training run carries from step to step, and its form in a checkpoint."""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saes.config import SAEConfig
from saes.frame import Frame
from saes.recipe import PENALISED, TrainConfig
from saes.sae import SAE
from saes.team import ALONE, Team


@dataclass
class TrainState:
    """Everything a run carries from step to step; `sae` works on scaled activations."""

    sae: SAE
    config: TrainConfig
    """The recipe; its open defaults are put in here."""
    frame: Frame
    steps: int
    step: int = 0
    batch_size: int | None = None
    """Rows of a step, where the store has fewer than the recipe's."""
    team: Team = ALONE
    """The processes that train together; `sae` holds this one's features."""
    shape: SAEConfig | None = None
    """Of the whole dictionary, where `sae` is a part of it."""
    parameters: dict[str, nn.Parameter] = field(init=False)
    adam: torch.optim.Adam = field(init=False)
    silent: Tensor = field(init=False)
    """Per feature, tokens since it last fired."""
    dead: Tensor = field(init=False)
    """The features the auxiliary loss trains until the next `refresh`."""
    dead_elsewhere: int = field(init=False, default=0)
    """How many more there are in other processes."""
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
        self.config = config = self.config.filled(self.whole)
        self.parameters = dict(sae.named_parameters())
        if config.architecture == "jumprelu":
            start = torch.full_like(sae.b_enc, self.length(config.threshold)).log()
            self.parameters["log_threshold"] = nn.Parameter(start)
        groups: list[dict[str, Any]] = [
            {"params": [parameter], "factor": (config.threshold_rate or 1.0) if name == "log_threshold" else 1.0}
            for name, parameter in self.parameters.items()
        ]
        self.adam = torch.optim.Adam(groups, lr=0.0, betas=config.betas, eps=6.25e-10, fused=True)
        self.silent = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=device)
        self.dead = torch.zeros(0, dtype=torch.int64, device=device)
        self.seen, self.massive = torch.zeros(2, dtype=torch.int64, device=device)
        self.l0 = torch.tensor(float(self.whole.d_sae), device=device)
        self.dense = config.architecture in PENALISED
        self.memory = {name: tensor.to(device) for name, tensor in _memory(config).items()}

    @property
    def whole(self) -> SAEConfig:
        """The shape of the whole dictionary."""
        return self.shape or self.sae.config

    def count_dead(self) -> None:
        """Learn how many features are dead elsewhere."""
        self.dead_elsewhere = self.team.agreed(len(self.dead)) - len(self.dead)

    @property
    def n_dead(self) -> int:
        """Features the auxiliary loss trains, in the whole dictionary."""
        return len(self.dead) + self.dead_elsewhere

    @property
    def log_threshold(self) -> nn.Parameter:
        """Of a jumprelu run, `f`."""
        return self.parameters["log_threshold"]

    @property
    def bias_subtracted(self) -> float:
        """Part of b_dec that is taken from the encoder's input in training only, and goes into its bias afterwards."""
        return 1 - self.config.mean_read if self.config.mean_read else 0.0

    def read(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """What the encoder's weights are applied to: x - (1 - mean_read) b_dec."""
        centred, part = self.sae.centred(x), self.bias_subtracted
        return centred - part * self.sae.b_dec if part else centred

    @property
    def compute(self) -> torch.dtype | None:
        """Precision of the dense product, None for that of the weights."""
        return torch.bfloat16 if self.config.compute == "bfloat16" else None

    @property
    def level_ends(self) -> list[int]:
        """Of a matryoshka run: the number of this process's features in each nested dictionary."""
        assert self.config.groups is not None
        f, here = self.whole.d_sae, self.team.features(self.whole.d_sae)
        ends = [*(max(1, round(f * part)) for part in list(accumulate(self.config.groups))[:-1]), f]
        return [min(max(end - here.start, 0), here.stop - here.start) for end in ends]

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
        return self.config.rate(step, self.steps, self.whole.d_sae)

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
