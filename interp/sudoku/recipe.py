"""`SudokuTraining`: everything that decides a run, and nothing else."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from interp.errors import InputError
from interp.sudoku.generate import Kind
from interp.sudoku.model import SudokuModelConfig
from interp.sudoku.objectives import Objective
from interp.sudoku.replay import Singles
from interp.sudoku.traces import Order
from interp.typed import built

Compute = Literal["float32", "bfloat16"]
_CHOICES: dict[str, Any] = {
    "kind": Kind,
    "singles": Singles,
    "order": Order,
    "objective": Objective,
    "compute": Compute,
}


@dataclass(frozen=True, kw_only=True)
class SudokuTraining:
    """The settings of a run."""

    model: SudokuModelConfig
    kind: Kind = "dense"
    """Minimal puzzles, or such with 10 to 90 % of the empty cells given back."""
    singles: Singles = "naked+hidden"
    """What counts as a forced move, in traces and targets."""
    order: Order = "random"
    """Which forced move a trace makes first."""
    objective: Objective = "multi"
    rows: int = 256
    """Packed rows of `model.n_ctx` tokens in a step."""
    steps: int = 1000
    lr: float = 1e-3
    """At its peak."""
    warmup: int = 50
    """Steps in which the rate rises from 0."""
    weight_decay: float = 0.1
    """AdamW's, on matrices and embeddings; never on biases and the gains of norms."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    """Largest norm of the gradient; `None`: as it comes."""
    compute: Compute = "float32"
    """Of the forward and backward pass; weights, gradients and AdamW's state are float32."""
    pool: int = 0
    """Draw from so many base puzzles, those held out left aside, under random symmetries; 0: new puzzles every step."""
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    solve_every: int = 0
    """Solve unseen puzzles every so many steps (a multiple of `log_every`); 0: never."""
    solve_puzzles: int = 256

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(choices))}")
        for name in ("rows", "steps", "log_every", "checkpoint_every", "solve_puzzles"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more")
        for name in ("warmup", "pool", "solve_every", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)}: expected 0 or more")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr={self.lr}: expected a learning rate above 0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip={self.clip}: expected a norm above 0, or None for no limit")
        if self.solve_every % self.log_every:
            raise InputError(
                f"solve_every={self.solve_every}: expected a multiple of log_every={self.log_every}, or 0 for never"
            )

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0: linear to the peak, then half a cosine down to 1 %."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return self.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as `run.json` holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> "SudokuTraining":
        """What `to_json` gave; refuses fields it does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != known:
            found = sorted(fields) if isinstance(fields, dict) else fields
            raise InputError(
                f"settings of a Sudoku run have the fields {found!s:.300}; expected {sorted(known)}: were they "
                f"written by another version?"
            )
        return built(cls, fields, "settings of a Sudoku run")
