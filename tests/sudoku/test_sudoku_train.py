"""Training: exact resume, the losses of a batch, the rate, what is refused, and a real fall of the loss."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.loop import NotFinite
from interp.sudoku.drawing import Drawing, augmented, pool_for, unseen_puzzles
from interp.sudoku.model import SudokuModel, SudokuModelConfig, build_model, load_model
from interp.sudoku.presets import PRESETS, preset
from interp.sudoku.recipe import SudokuTraining
from interp.sudoku.replay import replay
from interp.sudoku.solving import solve_rate
from interp.sudoku.splitting import held_out
from interp.sudoku.train import Trainer, settings_of, train_sudoku

SMALL = SudokuModelConfig(n=4, d_model=16, n_layers=1, n_heads=2, d_mlp=32, n_ctx=40)
TINY = SudokuTraining(model=SMALL, rows=8, steps=100, warmup=10, log_every=10, checkpoint_every=20, pool=0, seed=3)
CPU = torch.device("cpu")


class Killed(Exception):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the trainer die in its step number `steps`, counted over what it does from now on."""
    own, count = Trainer.step, [0]

    def step(self: Trainer, batch: object) -> None:
        count[0] += 1
        if count[0] > steps:
            raise Killed
        own(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize("changes", [{}, {"pool": 30, "kind": "minimal", "objective": "single"}])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict):
    settings = dataclasses.replace(TINY, solve_every=50, solve_puzzles=5, **changes)
    whole = train_sudoku(settings, tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patch:
        kill_after(patch, 53)
        with pytest.raises(Killed):
            train_sudoku(settings, tmp_path / "parts", device="cpu")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = train_sudoku(settings, tmp_path / "parts", device="cpu")
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (dict(model.hooked.hf.named_parameters()) for model in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 101, 10)) and "solved" in lines[4]
    assert settings_of(tmp_path / "whole") == settings
    again = load_model(tmp_path / "whole", device="cpu")
    assert all(torch.equal(first[name], p) for name, p in again.hooked.hf.named_parameters())


def test_the_bar_of_training_can_be_silenced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = dataclasses.replace(TINY, steps=1, log_every=1, solve_every=0)
    train_sudoku(settings, tmp_path / "silent", device="cpu", show=False)
    assert capsys.readouterr().err == ""
    train_sudoku(settings, tmp_path / "said", device="cpu")
    assert "4x4 Sudoku" in capsys.readouterr().err


def test_another_seed_gives_another_run():
    weights = []
    for settings in (TINY, TINY, dataclasses.replace(TINY, seed=4)):
        trainer, drawing = Trainer(settings, CPU), Drawing(settings)
        for step in range(2):
            trainer.step(drawing.batch(step))
        weights.append(trainer.hf.lm_head.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2])


@pytest.mark.parametrize("objective", ["single", "multi"])
def test_the_loss_of_packed_rows_is_that_of_the_documents_one_by_one(objective: str):
    settings = dataclasses.replace(TINY, objective=objective)
    batch = Drawing(settings).batch(0)
    assert batch.rows.documents is not None and batch.documents > settings.rows
    trainer = Trainer(settings, CPU)
    trainer.hf.double()
    packed = trainer.outcome(batch).loss.item()
    losses = []
    for row in range(settings.rows):
        for document in range(int(batch.rows.documents[row].max()) + 1):
            inside = batch.rows.documents[row] == document
            tokens = batch.rows.tokens[row][inside]
            begin = row * SMALL.n_ctx + int(inside.nonzero()[0])
            logits = trainer.hf(tokens[None]).logits[0].float().log_softmax(-1)
            clues = int((tokens == SMALL.vocabulary.end_clues).nonzero())
            for position in range(clues, len(tokens) - 1):
                (entry,) = (batch.where == begin + position).nonzero().ravel()
                target = batch.targets[entry]
                wanted = target.nonzero().ravel() if objective == "multi" else target[None]
                assert int(tokens[position + 1]) in wanted.tolist()
                losses.append(-logits[position, wanted].mean().item())
    assert len(losses) == len(batch.where) and packed == pytest.approx(np.mean(losses), abs=1e-5)


def test_augmented_traces_are_traces_of_other_puzzles(tmp_path: Path):
    settings = dataclasses.replace(TINY, pool=40, kind="minimal")
    pool = pool_for(settings, tmp_path)
    assert pool is not None and 20 < len(pool) < 40 and not held_out(pool.rules, pool.puzzles).any()
    m = len(pool)
    other = augmented(pool, np.random.default_rng(0))
    assert (other.tokens != pool.tokens).any(1).all()
    played, before = replay(pool.rules, other.tokens), replay(pool.rules, pool.tokens)
    rows, last = np.arange(m), pool.lengths - 1
    assert played.valid[rows, last].all() and (played.boards[rows, last] > 0).all()
    puzzles = played.boards[rows, pool.n_clues]
    assert not held_out(pool.rules, puzzles).any() and (puzzles != pool.puzzles).any(1).all()
    assert ((puzzles > 0).sum(1) == pool.n_clues).all() and (played.depth == before.depth).all()
    again = pool_for(settings, tmp_path)
    assert again is not None and (again.tokens == pool.tokens).all()


def test_batches_hold_no_puzzle_of_the_other_side():
    for changes in ({}, {"kind": "minimal"}):
        settings = dataclasses.replace(TINY, rows=64, **changes)
        batch = Drawing(settings).batch(7)
        rules, words = SMALL.rules, SMALL.vocabulary
        assert batch.rows.documents is not None
        for row in range(64):
            for document in range(int(batch.rows.documents[row].max()) + 1):
                tokens = batch.rows.tokens[row][batch.rows.documents[row] == document].numpy()
                clues = int(np.flatnonzero(tokens == words.end_clues)[0])
                assert not held_out(rules, replay(rules, tokens[None]).boards[:, clues]).any()


def test_the_rate_rises_linearly_and_falls_to_one_percent():
    settings = dataclasses.replace(TINY, steps=1000, warmup=50, lr=2.0)
    assert [settings.rate(s) for s in (0, 24, 49)] == pytest.approx([0.04, 1.0, 2.0])
    assert settings.rate(50) == pytest.approx(2.0) and settings.rate(999) == pytest.approx(0.02)
    middle = 50 + (999 - 50) / 2
    assert settings.rate(int(middle)) == pytest.approx(2 * (0.01 + 0.99 / 2), rel=1e-2)


def test_weight_decay_leaves_norms_and_biases_alone():
    trainer = Trainer(dataclasses.replace(TINY, weight_decay=0.5, lr=0.1, warmup=0), CPU)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    for group in trainer.adam.param_groups:
        group["lr"] = 0.1
    for p in trainer.parameters.values():
        p.grad = torch.zeros_like(p)
    trainer.adam.step()
    for name, p in trainer.parameters.items():
        decayed = "ln_" not in name and not name.endswith("bias")
        assert torch.allclose(p, before[name] * 0.95 if decayed else before[name])


def test_clipping_bounds_what_the_step_sees():
    batch = Drawing(TINY).batch(0)
    moments = {}
    for clip in (None, 1e-3):
        trainer = Trainer(dataclasses.replace(TINY, clip=clip), CPU)
        trainer.step(batch)
        first = [trainer.adam.state[p]["exp_avg"] for p in trainer.parameters.values()]
        moments[clip] = torch.cat([m.ravel() for m in first]) / 0.1  # the gradient as AdamW got it
    assert moments[1e-3].norm() == pytest.approx(1e-3, rel=1e-3) and moments[None].norm() > 0.1
    assert torch.allclose(moments[1e-3] / moments[1e-3].norm(), moments[None] / moments[None].norm(), atol=1e-4)


def test_bfloat16_is_near_float32():
    batch = Drawing(TINY).batch(0)
    losses = [
        Trainer(dataclasses.replace(TINY, compute=compute), CPU).outcome(batch).loss.item()
        for compute in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=5e-3)


def test_what_is_refused(tmp_path: Path):
    train_sudoku(dataclasses.replace(TINY, steps=2), tmp_path / "a", device="cpu")
    with pytest.raises(InputError, match=r"holds a run with other settings .*lr: 0\.001 there, 0\.1 asked for"):
        train_sudoku(dataclasses.replace(TINY, steps=2, lr=0.1), tmp_path / "a", device="cpu")
    with pytest.raises(InputError, match="'5x5' is no preset of Sudoku training; expected one of 4x4-dense, 6x6-dense"):
        preset("5x5")
    with pytest.raises(InputError, match="learning_rate: no such setting; expected some of betas, "):
        preset("4x4-dense", learning_rate=1.0)
    short = dataclasses.replace(SMALL, n=9, n_ctx=83)  # no guess fits, and naked singles alone ask for guesses
    with pytest.raises(InputError, match=r"of \d+ traces are longer than the model's 83 positions: raise n_ctx"):
        Drawing(dataclasses.replace(TINY, model=short, kind="minimal", singles="naked")).batch(0)
    settings = dataclasses.replace(TINY)
    object.__setattr__(settings, "kind", "easy")  # as a caller without type checks would
    with pytest.raises(InputError, match="kind='easy': expected one of minimal, dense"):
        settings.__post_init__()
    for changes, message in (
        ({"rows": 0}, "rows=0: expected 1 or more"),
        ({"lr": math.nan}, "lr=nan: expected a learning rate above 0"),
        ({"clip": 0.0}, "clip=0.0: expected a norm above 0, or None"),
        ({"solve_every": 15}, "solve_every=15: expected a multiple of log_every=10"),
        ({"warmup": -1}, "warmup=-1: expected 0 or more"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(TINY, **changes)
    with pytest.raises(InputError, match=r"settings of a Sudoku run have the fields \['lr'\]"):
        SudokuTraining.from_json({"lr": 1.0})


def test_a_run_that_leaves_the_numbers_says_so(tmp_path: Path):
    with pytest.raises(NotFinite, match=r"became NaN or infinite in steps 1 to 10: lower lr, or set clip=1\.0"):
        train_sudoku(dataclasses.replace(TINY, lr=1e30, clip=None), tmp_path, device="cpu")
    assert not list((tmp_path / "checkpoints").glob("*")) if (tmp_path / "checkpoints").exists() else True


def test_presets_say_what_they_are():
    assert list(PRESETS) == ["4x4-dense", "6x6-dense", "9x9-paper"]
    with torch.device("meta"):
        model = build_model(PRESETS["9x9-paper"].model, seed=0)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 43.56  # as many as the paper's
    assert PRESETS["9x9-paper"].model.vocabulary.size == 734


@pytest.mark.slow
def test_a_short_run_learns_to_solve(tmp_path: Path):
    """Half a minute on one core: the loss falls towards its floor, and unseen puzzles are solved."""
    settings = preset("4x4-dense", steps=400, solve_every=0, seed=11)
    puzzles = unseen_puzzles(settings.model.rules, 200, kind="dense", seed=8)
    untrained = SudokuModel.of(build_model(settings.model, seed=11), settings.model)
    before = solve_rate(untrained, puzzles.puzzles, puzzles.solutions)
    trained = train_sudoku(settings, tmp_path, device="cpu")
    after = solve_rate(trained, puzzles.puzzles, puzzles.solutions)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["excess"] < lines[0]["excess"] / 2
    assert after.interval.low > before.interval.high and before.rate < 0.05
    assert after.cell_accuracy > before.cell_accuracy + 0.2
