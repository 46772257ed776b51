"""A GPT-2 that plays legal moves on 4x4 boards because its weights were written to: no training.

The stream's dimensions 0-68 hold the current token, 72-140 what conflicts with each placement. Both heads of block 0
attend uniformly, so that a head adds the mean over the tokens so far of its matrix's rows: minus one for each placement
that a held digit rules out. Head 1 does this for column 1 only (unit 5), head 0 for everything else, singles in other
cells' favour included. The unembedding reads the second half. Neuron k of the only MLP that does anything (k < 16)
fires on some states and writes to the tokens of cell k.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.sudoku.board import Rules
from interp.sudoku.model import SudokuModel, SudokuModelConfig, build_model

UNIT = 5
HALF = 72


def exclusions(rules: Rules) -> tuple[Tensor, Tensor]:
    """By (held placement, move): whether it rules the move out by way of unit 5; and by way of anything else."""
    n, cells = rules.n, rules.n_cells
    by_unit, by_rest = torch.zeros(2, cells * n, cells * n)
    for a in range(cells):
        for b in range(cells):
            shared = set(rules.units_of[a].tolist()) & set(rules.units_of[b].tolist())
            for d in range(n):
                if a != b and UNIT in shared:
                    by_unit[a * n + d, b * n + d] = 1
                if a != b and shared - {UNIT}:
                    by_rest[a * n + d, b * n + d] = 1
                if a == b:
                    by_rest[a * n + d, b * n : (b + 1) * n] = 4
    return by_unit, by_rest


def planted_solver(*, strength: float = 2.0, neurons: float = 0.0) -> SudokuModel:
    """The model; with `neurons` its MLP writes that much."""
    config = SudokuModelConfig(n=4, d_model=2 * HALF, n_layers=2, n_heads=2, d_mlp=24, n_ctx=18)
    hf: Any = build_model(config, seed=0)
    body, (first, second) = hf.transformer, hf.transformer.h
    by_unit, by_rest = exclusions(config.rules)
    # A digit that is ruled out makes the cell's other digits likelier: a naked single stands above the rest.
    cell = torch.block_diag(*[1 - torch.eye(4)] * 16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for norm in (body.ln_f, *(n for block in body.h for n in (block.ln_1, block.ln_2))):
            norm.weight.fill_(1.0)
        body.wte.weight[:, :69] = torch.eye(69)
        values = first.attn.c_attn.weight[:, 2 * (2 * HALF) :]
        values[:64, :64] = values[:64, HALF : HALF + 64] = torch.eye(64)
        out = first.attn.c_proj.weight
        out[:64, HALF : HALF + 64] = -strength * by_rest + 0.2 * strength * by_rest.clamp(max=1) @ cell
        out[HALF : HALF + 64, HALF : HALF + 64] = -strength * by_unit + 0.2 * strength * by_unit @ cell
        hf.lm_head.weight[:64, HALF : HALF + 64] = 40 * torch.eye(64)
        hf.lm_head.weight[64:, HALF + 64 :] = -10.0  # control tokens: never
        hf.lm_head.weight[:64] += 0.001 * torch.randn(64, 2 * HALF, generator=generator)
        if neurons:
            second.mlp.c_fc.weight.copy_(torch.randn(2 * HALF, 24, generator=generator))
            for k in range(16):
                second.mlp.c_proj.weight[k, HALF + 4 * k : HALF + 4 * k + 4] = neurons
    return SudokuModel.of(hf, config)


def unit_probe_weights(rules: Rules) -> Tensor:
    """Directions of "unit holds digit" in the planted stream: the held placements' own dimensions are gone, what is
    left is what they rule out in the unit."""
    weight = torch.zeros(3 * rules.n, rules.n, 2 * HALF)
    for unit, cells in enumerate(rules.units):
        for digit in range(rules.n):
            weight[unit, digit, HALF + np.asarray(cells) * rules.n + digit] = -1.0
    return weight
