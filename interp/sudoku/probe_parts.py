"""What the probing study computes, part by part: activations of a source, one fit with its scores, a file for each.

A part is one fit (model, source, layer, target, probe) or one noisy reference code; its file holds metrics, and what
each test puzzle added to them, so that a study that was cut off goes on where it stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.probe_metrics import Counts, Scored, score
from interp.probes import LinearProbe, fit_probe, shuffled
from interp.sealing import differences, digest, read_json, write_json
from interp.sites import Point, Site
from interp.sudoku.board import Rules
from interp.sudoku.labels import Labels
from interp.sudoku.model import SudokuModel, build_model
from interp.sudoku.oracle import cell_code, random_projection, substructure_code
from interp.sudoku.probe_records import ProbeConfig
from interp.sudoku.reads import States, read
from interp.sudoku.replay import replay
from interp.sudoku.traces import TraceSet

Activations = dict[int, Float[Tensor, "n d"]]


class Split(NamedTuple):
    """Rows to fit on and rows to score."""

    train: Int[np.ndarray, " n"]
    test: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, count: int, config: ProbeConfig) -> "Split":
        """By puzzle, a function of the seed."""
        order = np.random.default_rng(config.seed).permutation(count)
        held = round(count * config.test_share)
        return cls(np.sort(order[held:]), np.sort(order[:held]))


def sites(model: SudokuModel) -> dict[int, Site]:
    """Layer 0: the first block's input (embeddings); l: the output of block l - 1."""
    return {0: Site(Point.RESID_PRE, 0)} | {
        layer + 1: Site(Point.RESID_POST, layer) for layer in range(model.config.n_layers)
    }


def activations(model: SudokuModel, states: States) -> Activations:
    """Of every layer at the states' positions."""
    where = sites(model)
    found = read(model, states, list(where.values()))[1]
    return {layer: found[site] for layer, site in where.items()}


def untrained(model: SudokuModel, *, seed: int, uniform: bool = False) -> SudokuModel:
    """A model of the same config that was never trained; with `uniform` its queries are 0."""
    device = next(model.hooked.hf.parameters()).device
    hf = build_model(model.config, seed=seed)
    if uniform:
        with torch.no_grad():
            for name, parameter in hf.named_parameters():
                if ".attn.c_attn." in name:  # [d, 3 d] or [3 d]: queries, keys, values side by side
                    parameter[..., : model.config.d_model] = 0
    torch.nn.Module.to(hf, device)
    return SudokuModel.of(hf, model.config)


def oracle_codes(rules: Rules, boards: Int[np.ndarray, "m cells"], d: int, *, seed: int) -> Activations:
    """The four codes, by their place in `probe_records.ORACLES`."""
    sub, cell = substructure_code(rules, boards), cell_code(rules, boards)
    return {
        0: sub,
        1: cell,
        2: random_projection(sub, d, seed=seed),
        3: random_projection(cell, d, seed=seed + 1),
    }


def states_with(traces: TraceSet, empties: int) -> States:
    """The first position of each trace, from END_CLUES on, with a legal past and so many empty cells, if any."""
    played = replay(traces.rules, traces.tokens)
    place = np.arange(traces.tokens.shape[1])
    fits = (place >= traces.n_clues[:, None]) & (place < traces.lengths[:, None]) & played.valid
    fits &= (played.boards == 0).sum(-1) == empties
    row = np.flatnonzero(fits.any(1))
    at = fits[row].argmax(1)
    return States(traces, row, at, played.boards[row, at])


def fit_and_score(
    x: Float[Tensor, "n d"],
    found: Labels,
    split: Split,
    probe: str,
    config: ProbeConfig,
    *,
    shuffle: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[LinearProbe, Scored]:
    """Fit on one side of the split, score on the other; `shuffle` gives each puzzle the labels of another's board."""
    train, test = split
    if shuffle:
        train, test = (side[shuffled(len(side), seed=config.seed + i)] for i, side in enumerate(split))
    fitted, own = found.rows(train), found.rows(test)
    options: dict[str, Any] = {"alpha": config.alpha} if probe == "ridge" else {}
    if probe == "logistic":
        options = {"C": config.C, "tol": config.tol, "max_iter": config.max_iter}
    made = fit_probe(probe, x[split.train], fitted.y, mask=fitted.mask, classes=fitted.classes, dtype=dtype, **options)
    return made, scored(made, x[split.test], own, config)


def scored(probe: LinearProbe, x: Float[Tensor, "n d"], own: Labels, config: ProbeConfig) -> Scored:
    """Metrics on given rows."""
    return score(probe, x, own.y, mask=own.mask, group=own.group, draws=config.draws, seed=config.seed)


def metrics(found: Scored) -> dict[str, Any]:
    """The four metrics by name."""
    return {name: getattr(found.scores, name) for name in ("accuracy", "exact", "auc", "mse")}


def counts(found: Scored) -> dict[str, list[int]]:
    """Exact matches of each test puzzle."""
    return {"right": found.exact.right.astype(int).tolist(), "counted": found.exact.counted.astype(int).tolist()}


def counts_of(part: dict[str, Any]) -> Counts:
    """What `counts` gave."""
    return Counts(np.array(part["right"], np.float64), np.array(part["counted"], np.float64))


class Parts:
    """Parts that are done, in a folder (or in memory only)."""

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder, self.held = folder, {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "study.json"
        if path.exists():
            there = read_json(path, "probing study")
            if digest(there) != digest(settings):
                raise InputError(
                    f"{folder} holds a study of other models or settings ({differences(there, settings)}); give the "
                    f"same ones, or another folder"
                )
        else:
            write_json(path, settings)

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part, computed unless it is there."""
        if name in self.held:
            return self.held[name]
        path = None if self.folder is None else self.folder / f"{name.replace(' ', '-')}.json"
        if path is not None and path.exists():
            self.held[name] = read_json(path, "part of a probing study")
        else:
            self.held[name] = make()
            if path is not None:
                write_json(path, self.held[name])
        return self.held[name]
