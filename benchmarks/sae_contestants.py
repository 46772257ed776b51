"""The two trainers that `sae_speed.py` and `sae_quality.py` compare, configured alike.

SAELens runs as its documentation (docs/training_saes.md) configures each architecture: inputs scaled
(`expected_average_only_in`), Adam without warm-up, linear decay over the last fifth, decoder norm free (0.1 at the
start) and, in the topk family, inside the selection, AuxK coefficient 1. Equal for both: rows, steps, batch size,
width, k, the nested widths of Matryoshka.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from saes.beginning import first_state
from saes.frame import Frame, measure
from saes.optimise import refresh, step
from saes.recipe import TrainConfig

ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
RIVAL_RATE = 3e-4  # its trainer's default


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One configuration of SAELens that the comparison of quality tries."""

    name: str
    rate: float | None = RIVAL_RATE
    """Learning rate; None: ours."""
    rate_of: str | None = None
    """Whose rate is ours, where not the same architecture's."""
    window: float | None = None
    """Part of the steps without firing after which a feature is dead; None: its own 1,000 steps."""
    ramp: float | None = None
    """jumprelu: part of the steps over which the penalty rises."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of its training configuration."""

    def lr(self, config: TrainConfig, steps: int, d: int) -> float:
        """Learning rate in the middle of the run."""
        ours = dataclasses.replace(config, architecture=self.rate_of or config.architecture)
        return self.rate or ours.rate(steps // 2, steps, config.width(d))

    def dead_window(self, steps: int) -> int | None:
        """Steps, or None for its own."""
        return None if self.window is None else round(self.window * steps)

    def settings(self, steps: int) -> dict[str, Any]:
        """Of its training configuration, for a run of `steps`."""
        return self.options | ({} if self.ramp is None else {"l0_warm_up_steps": round(self.ramp * steps)})

    def describe(self, config: TrainConfig, steps: int, d: int) -> dict[str, Any]:
        """For the record."""
        learning = {"lr": self.lr(config, steps, d), "dead_window": self.dead_window(steps)}
        return {**learning, "batch_size": config.batch_size, **self.settings(steps)}


_SELECTING = (
    Attempt("its lr"),
    Attempt("our lr, dead after 1/16 of the run", rate=None, window=1 / 16),
)


# Of its documentation; the coefficient is the one there, 5, or less, since 5 leads far below k here.
_TANH = {
    "jumprelu_sparsity_loss_mode": "tanh",
    "jumprelu_bandwidth": 2.0,
    "jumprelu_init_threshold": 0.1,
    "pre_act_loss_coefficient": 3e-6,
}


def _jumprelu(k: int) -> tuple[Attempt, ...]:
    def tanh(coefficient: float) -> dict[str, Any]:
        return _TANH | {"l0_coefficient": coefficient, "jumprelu_ste_to_input": True}

    quadratic = {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": k,
        "l0_coefficient": 5.0,
        "jumprelu_bandwidth": 2.0,
        "jumprelu_init_threshold": 0.3,
    }
    return (
        Attempt("tanh 5, as documented", ramp=1.0, options=_TANH | {"l0_coefficient": 5.0}),
        Attempt("tanh 1, our topk's lr", rate=None, rate_of="topk", ramp=1.0, options=tanh(1.0)),
        Attempt("tanh 0.5, our topk's lr", rate=None, rate_of="topk", ramp=1.0, options=tanh(0.5)),
        Attempt("quadratic, wide, our topk's lr", rate=None, rate_of="topk", options=quadratic),
        Attempt("tanh 0.5, our lr", rate=None, ramp=1.0, options=tanh(0.5)),
    )


def rival_attempts(architecture: str, k: int) -> list[Attempt]:
    """What is tried: its defaults; our learning rate with a window for dead features that fits so short a run."""
    return list(_jumprelu(k) if architecture == "jumprelu" else _SELECTING)


def level_ends(config: TrainConfig, d: int) -> list[int]:
    """Numbers of features of the nested dictionaries."""
    filled = config.filled(config.shape(d))
    f, parts = config.width(d), torch.tensor(filled.groups)
    return [*(f * parts.cumsum(0)[:-1]).round().int().clamp(min=1).tolist(), f]


def rival_sae(config: TrainConfig, d: int, **settings: Any) -> Any:
    """SAELens's training SAE for a recipe; `settings` replace what its documentation recommends."""
    import sae_lens

    shared = {"d_in": d, "d_sae": config.width(d), "normalize_activations": "expected_average_only_in"}
    match config.architecture:
        case "topk":
            recipe = sae_lens.TopKTrainingSAEConfig(**{**shared, "k": config.k, **settings})
            return sae_lens.TopKTrainingSAE(recipe)
        case "batchtopk":
            recipe = sae_lens.BatchTopKTrainingSAEConfig(**{**shared, "k": config.k, **settings})
            return sae_lens.BatchTopKTrainingSAE(recipe)
        case "matryoshka_batchtopk":
            widths = {"matryoshka_widths": level_ends(config, d)}
            recipe = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**{**shared, **widths, "k": config.k, **settings})
            return sae_lens.MatryoshkaBatchTopKTrainingSAE(recipe)
        case "jumprelu":
            return sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(**{**shared, **settings}))
        case other:
            raise ValueError(f"compared are {', '.join(ARCHITECTURES)}; got {other}")


def rival_trainer(
    sae: Any, rows: Iterator[Tensor], *, steps: int, batch_size: int, lr: float, dead_window: int | None = None
) -> Any:
    """SAELens's trainer over endless batches; a feature silent for `dead_window` steps is dead (its own: 1,000)."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=lr,
        lr_end=lr / 10,  # what its runner fills in; only its cosine schedules read it
        lr_decay_steps=steps // 5,
        n_batches_for_norm_estimate=32,
    )
    if dead_window is not None:
        settings = dataclasses.replace(settings, dead_feature_window=dead_window)
    return SAETrainer(settings, sae, rows)


class Rival:
    """SAELens's training step on batches from memory."""

    name = "SAELens"

    def __init__(self, config: TrainConfig, sample: Tensor, *, steps: int) -> None:
        torch.manual_seed(config.seed)
        sae = rival_sae(config, sample.shape[1])
        self.trainer = rival_trainer(
            sae, iter(()), steps=steps, batch_size=config.batch_size, lr=config.rate(steps // 2, steps, sae.cfg.d_sae)
        )
        scaler = self.trainer.activation_scaler
        scaler.scaling_factor = sample.shape[1] ** 0.5 / sample.norm(dim=1).mean().item()
        if config.architecture == "jumprelu":  # as sparse as ours from the start
            with torch.no_grad():
                scaled = scaler(sample[:4096])
                rank = len(scaled) - round(len(scaled) * config.k / sae.cfg.d_sae)
                for part in torch.arange(sae.cfg.d_sae).split(1024):
                    pre = (scaled - sae.b_dec) @ sae.W_enc[:, part] + sae.b_enc[part]
                    sae.threshold[part] = pre.kthvalue(rank, dim=0).values

    def step(self, x: Tensor) -> None:
        out = self.trainer.step(x)
        self.trainer.n_training_steps += 1
        self.last = out

    def active(self) -> float:
        """Active features per token in the last step."""
        return float((self.last.feature_acts > 0).sum(-1).float().mean())


class Ours:
    """`saes.optimise.step` on batches from memory, with the renewals of the dead list that a run makes."""

    name = "midlens"

    def __init__(self, config: TrainConfig, sample: Tensor, *, steps: int, dense: bool = False) -> None:
        d = sample.shape[1]
        if config.architecture == "jumprelu":
            config = dataclasses.replace(config, start_l0=config.width(d) / 2 if dense else config.k)
        frame = Frame((measure(sample, massive=config.massive),), (d,))
        self.state = first_state(config, config.shape(d), frame, sample, steps=steps)
        if config.architecture == "jumprelu" and not dense:
            self.state.dense = False  # what the first renewal would find

    def step(self, x: Tensor) -> None:
        step(self.state, x)
        if self.state.step % self.state.config.log_every == 0:
            refresh(self.state)

    def active(self) -> float:
        """Active features per token in the last step."""
        return float(self.state.l0)


def quietly() -> None:
    """Silence the warnings and progress bars of SAELens's imports."""
    warnings.filterwarnings("ignore", module="sae_lens|transformer_lens|beartype|pydantic")
