"""Training a solver: packed rows of traces, one of two objectives, AdamW with warm-up and cosine, bit-exact resume.

    folder/run.json, metrics.jsonl, checkpoints/       see `interp.loop`
    folder/pool/                                       base traces, where the settings ask for a pool
    folder/model.safetensors, config.json              the model, once all steps are done: `load_model(folder)`

    g <- grad mean loss over the batch's predicted tokens;  g <- g min(1, clip / |g|);  AdamW(g; rate(step))

A run is a function of its settings: weights start from `seed`, batch `step` from (seed, step). Where every document has
its row the batch carries no mask. The device gets its batches from pinned memory and is asked for figures only when
metrics are due. Nothing in the metrics depends on the clock.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.loop import NotFinite, Pace, claim, train
from interp.masks import one_sequence_per_row
from interp.sealing import read_json
from interp.sudoku.drawing import Batch, Drawing, pool_for, unseen_puzzles
from interp.sudoku.generate import PuzzleSet
from interp.sudoku.model import WEIGHTS, SudokuModel, build_model, load_model, save_model
from interp.sudoku.objectives import Outcome, multi_target, single_target
from interp.sudoku.packing import hidden_states
from interp.sudoku.recipe import SudokuTraining
from interp.sudoku.solving import solve_rate
from interp.trackers import Tracker


def train_sudoku(
    settings: SudokuTraining,
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    workers: int = 1,
    tracker: Tracker | None = None,
    show: bool | None = None,
) -> SudokuModel:
    """Train in `folder`, or go on where a run with these settings stopped there; the finished model.

    `workers` make the pool and the puzzles to test on. `device=None` is a GPU if there is one; `show` is the
    progress bar's.
    """
    folder = Path(folder)
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    claim(folder, settings.to_json())
    if (folder / WEIGHTS).exists():
        return load_model(folder, device=device)
    drawing = Drawing(settings, pool_for(settings, folder, workers=workers))
    tests = None
    if settings.solve_every:
        rules, count = settings.model.rules, settings.solve_puzzles
        tests = unseen_puzzles(rules, count, kind=settings.kind, seed=settings.seed, workers=workers)
    trainee = Trainer(settings, device, tests)
    pace = Pace(steps=settings.steps, log_every=settings.log_every, checkpoint_every=settings.checkpoint_every)
    try:
        train(
            trainee,
            drawing.batches,
            pace,
            folder,
            settings=settings.to_json(),
            label=f"{settings.model.n}x{settings.model.n} Sudoku",
            tracker=tracker,
            show=show,
        )
    except NotFinite as error:
        advice = "lower lr, or set clip=1.0" if settings.clip is None else "lower lr or clip"
        raise NotFinite(f"{error}: {advice}, in a new folder", after=error.after, until=error.until) from None
    save_model(trainee.hf, settings.model, folder)
    return SudokuModel.of(trainee.hf, settings.model)


def settings_of(folder: str | Path) -> SudokuTraining:
    """The settings of the run in `folder`."""
    return SudokuTraining.from_json(read_json(Path(folder) / "run.json", "training run"))


class Trainer:
    """A model in training, as `interp.loop` wants it."""

    def __init__(self, settings: SudokuTraining, device: torch.device, tests: PuzzleSet | None = None) -> None:
        self.settings, self.device, self.tests = settings, device, tests
        self.hf = build_model(settings.model, seed=settings.seed)
        torch.nn.Module.to(self.hf, device)  # transformers' own `to` hides its type
        self.parameters = dict(self.hf.named_parameters())
        shrunk = [p for p in self.parameters.values() if p.ndim > 1]
        plain = [p for p in self.parameters.values() if p.ndim == 1]
        groups = [{"params": shrunk, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, fused=True)
        self.done, self.documents = 0, 0
        self.sums = torch.zeros(4, device=device)

    def step(self, batch: Batch) -> None:
        """Learn from one batch."""
        settings = self.settings
        outcome = self.outcome(batch.to(self.device))
        outcome.loss.backward()
        limit = float("inf") if settings.clip is None else settings.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        for group in self.adam.param_groups:
            group["lr"] = settings.rate(self.done)
        self.adam.step()
        self.adam.zero_grad()
        self.done += 1
        self.documents += batch.documents
        self.sums += torch.stack([outcome.loss.detach(), outcome.floor, outcome.hits, norm])

    def outcome(self, batch: Batch) -> Outcome:
        """Loss and figures of a batch that is on the device."""
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.compute == "bfloat16"),
            one_sequence_per_row(self.device),
        ):
            hidden = hidden_states(self.hf, batch.rows)
            logits = self.hf.lm_head(hidden.flatten(0, 1)[batch.where])
        objective: Any = single_target if self.settings.objective == "single" else multi_target
        return objective(logits.float(), batch.targets)

    def metrics(self) -> dict[str, float]:
        """Means since the last call; now and then what the model solves."""
        since = (self.done - 1) % self.settings.log_every + 1
        loss, floor, hits, norm = (self.sums / since).tolist()
        self.sums.zero_()
        figures = {
            "puzzles": self.documents,
            "loss": loss,
            "excess": loss - floor,
            "hits": hits,
            "gradient": norm,
            "lr": self.settings.rate(self.done - 1),
        }
        return {**figures, **self._solving()}

    def _solving(self) -> dict[str, float]:
        every, tests = self.settings.solve_every, self.tests
        if tests is None or (self.done % every and self.done < self.settings.steps):
            return {}
        report = solve_rate(SudokuModel.of(self.hf, self.settings.model), tests.puzzles, tests.solutions)
        return {"solved": report.rate, "cells": report.cell_accuracy, "invalid": report.invalid_rate}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, AdamW's moments, counters."""
        state = self.adam.state
        moments = {
            f"{key}.{name}": state[parameter][key]
            for name, parameter in self.parameters.items()
            for key in ("exp_avg", "exp_avg_sq")
        }
        weights = {f"weight.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        return {**weights, **moments, "counters": torch.tensor([self.done, self.documents])}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors()`."""
        wanted = {f"{key}.{name}" for name in self.parameters for key in ("weight", "exp_avg", "exp_avg_sq")}
        if set(tensors) != wanted | {"counters"}:
            raise InputError("the checkpoint is not of this model: begin in a new folder")
        self.done, self.documents = tensors["counters"].tolist()
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            moments = {key: tensors[f"{key}.{name}"].to(self.device) for key in ("exp_avg", "exp_avg_sq")}
            steps = torch.tensor(float(self.done), device=self.device)
            self.adam.state[parameter] = {"step": steps, **moments}
