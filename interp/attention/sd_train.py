"""Training the twins: one command for every kind of attention, size and allocation.

    folder/model.safetensors    the trained weights (float32), with the model's shape in the file's header
    folder/training/            run.json, metrics.jsonl (loss in nats per byte; ranks at log-spaced steps), checkpoints

AdamW (0.9, 0.95; decay on matrices), warm-up, cosine to a tenth, gradients clipped to norm 1. Weights, moments and
the residual stream are float32; matrix products run in `compute`. A step whose gradient is not finite counts as a
gradient of zero, and as `skipped` in the log; a run in which all steps between two lines of the log are, ends. A run
is a function of its settings: order, start and schedule come from (seed, step), and a run that was killed goes on bit
for bit (`interp.loop`).
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.attention.cascade import log_spaced, rank_metrics
from interp.attention.sd_attention import AttentionKind
from interp.attention.sd_data import IGNORED, batches, chosen_documents, windows
from interp.attention.sd_model import Twin, TwinConfig, sized
from interp.corpus import read_corpus, split
from interp.errors import InputError
from interp.heap import trimmed
from interp.loop import Pace, train
from interp.tensorfile import read_tensors, write_tensors
from interp.to_device import to_device

MODEL = "model.safetensors"
COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BETAS = (0.9, 0.95)
RANKED = 4
"""Held-out sequences behind the ranks of the log."""


@dataclass(frozen=True, kw_only=True)
class TwinTraining:
    """Everything that decides a trained twin."""

    attention: AttentionKind = "sd_token"
    """standard, sd_token (skew minus diagonal over positions, no softmax), sd_unit (the same with queries and keys of
    one length), sd_kernel (skew minus diagonal weights), elu."""
    size: str = "1m"
    """1m, 7m, 19m, 42m, 85m, 125m, 355m: parameters, about."""
    norm: bool | None = None
    """Layer norm; by default for standard and elu attention only."""
    rotary: bool = True
    """Rotary positions; otherwise learned ones."""
    elu_first: int = 0
    """This many first layers have 1 + ELU linear attention instead."""
    head_widths: tuple[int, ...] = ()
    """Width of the heads in each layer, as `midlens attention cascade` proposes; by default equal."""
    n_ctx: int = 256
    """Positions, so bytes, of a window."""
    corpus: str = "builtin"
    """`builtin`, a .txt / .jsonl / .parquet file, a folder of .txt, or `hf:NAME[:SPLIT]`; 15 % is held out."""
    total_bytes: int = 4_096_000
    """Positions trained on, filled-up ones included; the length of the run."""
    batch: int = 8
    """Windows per step."""
    lr: float = 2e-3
    """At its height."""
    warmup: int = 100
    """Steps over which it rises."""
    weight_decay: float = 0.1
    """On matrices."""
    clip: float = 1.0
    """Norm to which gradients are clipped."""
    compute: str = "bfloat16"
    """Dtype of matrix products: float32 or bfloat16."""
    compile: bool = False
    """Compile the layers; on CPU half as fast again, after a minute."""
    seed: int = 0
    """Of the first weights and of the order."""
    log_every: int = 20
    """Steps."""
    checkpoint_every: int = 200
    """Steps."""

    def __post_init__(self) -> None:
        if self.compute not in COMPUTE:
            raise InputError(f"compute must be one of {', '.join(COMPUTE)}, got {self.compute!r}")
        if not 0 <= self.elu_first <= sized(self.size)[0]:
            raise InputError(f"elu_first must lie between 0 and {sized(self.size)[0]} layers, got {self.elu_first}")
        if self.lr <= 0 or self.clip <= 0 or min(self.batch, self.log_every, self.checkpoint_every) < 1:
            raise InputError("lr, clip, batch, log_every and checkpoint_every must be above 0")
        if self.steps < 1:
            raise InputError(f"total_bytes ({self.total_bytes}) is less than one step of {self.batch * self.n_ctx}")
        self.shape()

    @property
    def steps(self) -> int:
        """How many."""
        return self.total_bytes // (self.batch * self.n_ctx)

    def shape(self) -> TwinConfig:
        """The model's shape."""
        layers, width, heads = sized(self.size)
        kinds: list[AttentionKind] = ["elu" if layer < self.elu_first else self.attention for layer in range(layers)]
        return TwinConfig(
            kinds=tuple(kinds),
            width=width,
            heads=heads,
            head_widths=tuple(self.head_widths) or (width // heads,) * layers,
            n_ctx=self.n_ctx,
            norm=self.attention in ("standard", "elu") if self.norm is None else self.norm,
            rotary=self.rotary,
        )

    def rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * done))


class Training:
    """A twin being trained, as `interp.loop` wants it."""

    def __init__(self, config: TwinTraining, ranked: Tensor, device: str | torch.device = "cpu") -> None:
        self.config, self.ranked, self.done = config, ranked.to(device), 0
        self.model = Twin(config.shape(), seed=config.seed).to(device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.skipped = torch.tensor([0.0, 0.0, 0.0, 1.0], device=device)
        named = dict(self.model.named_parameters())
        kept = {name for name, p in named.items() if p.ndim < 2 or name.endswith("attention.delta")}
        decayed = [p for name, p in named.items() if name not in kept]
        rest = [p for name, p in named.items() if name in kept]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=BETAS, fused=True)
        if config.compile:
            for block in self.model.blocks:
                block.compile(dynamic=False)

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Learn from one batch of windows."""
        tokens, targets = (to_device(x, self.sums.device) for x in batch)
        logits = self.model(tokens, COMPUTE[self.config.compute])
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.nan_to_num_(0.0)  # all of it, if the norm is not finite: one window in 5,000 overflows S-D
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.done)
        self.optimizer.step()
        self.done += 1
        one, sound = torch.ones_like(norm), norm.isfinite()
        self.sums += torch.where(sound, torch.stack([one, loss.detach(), norm, 0 * one]), self.skipped).double()

    def metrics(self) -> dict[str, float]:
        """Loss in nats per byte and gradient norm since the last call, skipped steps; ranks where they are due."""
        steps, loss, norm, skipped = self.sums.tolist()
        self.sums.zero_()
        steps = steps or math.nan
        found = {"loss": loss / steps, "gradient_norm": norm / steps, "lr": self.config.rate(self.done - 1)}
        found["skipped"] = skipped
        if log_spaced(self.done, self.config.log_every) or self.done == self.config.steps:
            found |= rank_metrics(self.model, self.ranked)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Weights, moments, steps done."""
        found = {"done": torch.tensor(self.done)}
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            found |= {f"weight.{name}": p} | {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq", "step")}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `tensors()`."""
        self.done = int(tensors["done"])
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"weight.{name}"])
                moments = {key: tensors[f"{key}.{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq", "step")}
                self.optimizer.state[p] = moments


@trimmed()
def train_twin(
    config: TwinTraining,
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    announce: Callable[[str], None] | None = None,
) -> Path:
    """Train, or go on training, and save; the path of the model's file."""
    out = Path(out)
    training_text, held_out = split(read_corpus(config.corpus))
    data = windows(training_text, config.n_ctx)
    ranked = windows(chosen_documents(held_out, 200), config.n_ctx, once=True)
    training = Training(config, ranked.batch(ranked.spread(RANKED))[0], device)
    if announce is not None:
        sizes = training.model.sizes()
        announce(
            f"{sizes['parameters']:,} parameters, {sizes['attention_parameters']:,} of them in attention; "
            f"{config.steps:,} steps of {config.batch * config.n_ctx:,} bytes; {len(data):,} windows an epoch"
        )
    train(
        training,
        lambda first: batches(data, config.batch, seed=config.seed, first=first),
        Pace(steps=config.steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every),
        out / "training",
        settings=dataclasses.asdict(config) | {"corpus_digest": training_text.digest},
        label=config.attention,
        unit="B",
        units_per_step=config.batch * config.n_ctx,
    )
    weights = {name: p.detach() for name, p in training.model.named_parameters()}
    facts: dict[str, Any] = {"shape": config.shape().to_json(), "training": dataclasses.asdict(config)}
    write_tensors(out / MODEL, weights, facts)
    return out / MODEL


def load_twin(folder: str | Path) -> tuple[Twin, TwinTraining]:
    """A trained twin, on the CPU in float32, and how it was trained."""
    weights, facts = read_tensors(Path(folder) / MODEL, "trained twin")
    model = Twin(TwinConfig.from_json(facts["shape"]))
    model.load_state_dict(weights)
    how: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts["training"].items()
    }
    return model.eval(), TwinTraining(**how)
