"""`TrainConfig`: the recipe of a training run. Everything that decides the result stands here."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from interp.errors import InputError

Start = Literal["geometric_median", "mean", "zeros"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train a TopK SAE. Defaults: measured on 200,000 activations of SmolLM2-135M, layer 15, width 4,608."""

    d_sae: int | None = None
    """Number of features; by default `expansion` times the width of the activations."""
    expansion: int = 8
    """Features per dimension, where `d_sae` is not given."""
    k: int = 32
    """Active features per token."""
    epochs: float = 8.0
    """Passes over the store, where `tokens` is not given."""
    tokens: int | None = None
    """Activations to train on, repeats counted."""
    batch_size: int = 1024
    """Activations per step."""
    lr: float | None = None
    """Peak learning rate of Adam; by default 8e-4 / sqrt(d_sae / 2^14)."""
    warmup: float = 0.05
    """Part of the steps over which the learning rate rises linearly from 0."""
    decay: float = 0.2
    """Last part of the steps, over which it falls linearly to 0."""
    clip: float = 1.0
    """Largest norm of the gradient; the loss is a fraction of the variance."""
    aux_weight: float = 1 / 32
    """Weight of the auxiliary loss; 0 leaves it out."""
    k_aux: int | None = None
    """Dead features per token in the auxiliary loss; by default half the width of the activations."""
    dead_after_tokens: int | None = None
    """A feature that has not fired for this many tokens counts as dead; by default 10 million, or a sixteenth of the
    run if that is less."""
    b_dec: Start | str = "geometric_median"
    """Where the decoder's bias starts."""
    massive: float = 10.0
    """Rows whose norm exceeds this many times the median are kept out of training and counted."""
    sample: int = 16_384
    """Activations, the first of the run's own order, that give scale, median norm and the start of b_dec."""
    seed: int = 0
    log_every: int = 10
    """Steps between lines of metrics; the list of dead features is renewed at the same time."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if self.b_dec not in get_args(Start):
            raise InputError(f"b_dec starts at one of {', '.join(map(repr, get_args(Start)))}, got {self.b_dec!r}")
        for name in ("expansion", "k", "batch_size", "sample", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        given = [name for name in ("lr", "tokens", "k_aux", "dead_after_tokens") if getattr(self, name) is not None]
        for name in ("epochs", "clip", "massive", *given):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if not (0 <= self.warmup <= 1 and 0 <= self.decay <= 1 and self.aux_weight >= 0):
            raise InputError(
                f"warmup and decay are parts of the run (0 to 1) and aux_weight is not negative, got "
                f"warmup={self.warmup}, decay={self.decay}, aux_weight={self.aux_weight}"
            )

    def width(self, d_in: int) -> int:
        """Number of features for activations of width `d_in`."""
        return self.d_sae or self.expansion * d_in

    def steps(self, rows: int) -> int:
        """Number of steps over a store of `rows` activations."""
        size = min(self.batch_size, rows)
        return max(1, math.ceil(self.tokens / size) if self.tokens else round(self.epochs * math.ceil(rows / size)))

    def silence(self, steps: int) -> int:
        """Tokens without firing after which a feature is dead, in a run of `steps` steps."""
        return self.dead_after_tokens or min(10_000_000, max(1, steps * self.batch_size // 16))

    def rate(self, step: int, steps: int, d_sae: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`: linear warm-up, constant, linear decay to 0."""
        peak = self.lr or 8e-4 / math.sqrt(d_sae / 2**14)
        rise = (step + 1) / (self.warmup * steps) if self.warmup else 1.0
        fall = (steps - step) / (self.decay * steps) if self.decay else 1.0
        return peak * min(1.0, rise, fall)
