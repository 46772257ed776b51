"""Targets that are files of tensors with facts: steerings, moments, traces, models, adapters, control vectors."""

import shutil
from pathlib import Path

import numpy as np
import torch
from fuzzing.mutate import Kind, written
from fuzzing.registry import Prepared, target

FIXTURES = Path(__file__).parents[1] / "fixtures"


def _steering(folder: Path) -> Path:
    from interp.steering.steering import Steering
    from interp.steering.vectors import steering_from_vectors

    made = steering_from_vectors({1: torch.ones(4), 2: torch.arange(4.0)}, method="add", note="toy")
    assert isinstance(made, Steering)
    made.save(folder / "steering")
    return folder / "steering"


def _of_steering(name: str, file: str, kind: Kind) -> None:
    @target(name, kind)
    def _(folder: Path) -> Prepared:
        from interp.steering.steering import Steering

        path = _steering(folder)

        def parse(_: bytes) -> None:
            found = Steering.load(path)
            for edit in found.at(0.5).edits.values():
                assert edit(torch.zeros(1, edit.d)).shape == (1, edit.d)

        return Prepared(parse, [(path / file).read_bytes()], path / file)


_of_steering("steering_json", "steering.json", "json")
_of_steering("steering_tensors", "edits.safetensors", "safetensors")


@target("tensorfile", "safetensors")
def _(folder: Path) -> Prepared:
    from interp.tensorfile import read_tensors, write_tensors

    path = folder / "a.safetensors"
    write_tensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int32)}, {"k": [1, None]})

    def parse(_: bytes) -> None:
        tensors, _ = read_tensors(path, "thing")
        assert all(isinstance(tensor, torch.Tensor) and tensor.shape is not None for tensor in tensors.values())

    return Prepared(parse, [path.read_bytes()], path)


@target("checkpoint", "safetensors")
def _(folder: Path) -> Prepared:
    from interp import loop
    from interp.sudoku.model import SudokuModelConfig
    from interp.sudoku.recipe import SudokuTraining
    from interp.sudoku.train import Trainer

    class Kept(Trainer):
        """Takes any state: what is looked at here is how a checkpoint is read, not what is in it."""

        def restore(self, tensors: dict[str, torch.Tensor]) -> None:
            assert isinstance(tensors, dict)

    shape = SudokuModelConfig(n=4, n_layers=1, n_heads=1, d_model=4, d_mlp=4, n_ctx=40)
    trainee = Kept(SudokuTraining(model=shape), torch.device("cpu"))
    loop.save_checkpoint(folder, 7, {"w": torch.ones(3)})
    path = loop.checkpoints(folder)[0]

    def parse(_: bytes) -> None:
        step = loop._resume(trainee, folder)
        assert isinstance(step, int) and step >= 0

    return Prepared(parse, [path.read_bytes()], path)


@target("moments", "safetensors")
def _(folder: Path) -> Prepared:
    from interp.moments import Moments

    path = folder / "moments.safetensors"
    Moments(3, 2).update(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.ones(5, 2)).save(path)

    def parse(_: bytes) -> None:
        found = Moments.load(path)
        if found.n > 1:
            assert found.covariance().shape == (3, 3) and found.cross_covariance().shape == (3, 2)
        found.merge(found)

    return Prepared(parse, [path.read_bytes()], path)


@target("site_facts", "safetensors")
def _(folder: Path) -> Prepared:
    from saes.primitives.dictionary import SiteFacts

    path = folder / "facts.safetensors"
    SiteFacts(10.0, 3.5, 100, torch.rand(6)).save(path)

    def parse(_: bytes) -> None:
        found = SiteFacts.load(path)
        assert found.mean_norm > 0 and found.density.ndim == 1 and found.n_tokens > 0 and found.l0 >= 0

    return Prepared(parse, [path.read_bytes()], path)


@target("sudoku_traces", "safetensors")
def _(folder: Path) -> Prepared:
    from interp.sudoku.board import Rules
    from interp.sudoku.traces import TraceSet, make_traces

    full = [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]
    puzzles = np.array([[0, *full[1:]], [0, 0, *full[2:]]], np.int8)
    path = folder / "traces.safetensors"
    make_traces(Rules.of(4), puzzles, seed=0).save(path)

    def parse(_: bytes) -> None:
        traces = TraceSet.load(path)
        for i in range(min(len(traces), 2)):
            trace = traces.trace(i)
            assert trace.boards.shape == (len(trace.tokens), traces.rules.n_cells)
        assert len(traces[:1]) <= 1

    return Prepared(parse, [path.read_bytes()], path)


def _sudoku_model(folder: Path) -> Path:
    from interp.sudoku.model import SudokuModelConfig, build_model, save_model

    config = SudokuModelConfig(n=4, n_layers=1, n_heads=1, d_model=4, d_mlp=4, n_ctx=40)
    save_model(build_model(config, seed=0), config, folder)
    return folder


@target("sudoku_model", "safetensors")
def _(folder: Path) -> Prepared:
    from interp.sudoku.model import WEIGHTS, load_model

    path = _sudoku_model(folder) / WEIGHTS

    def parse(_: bytes) -> None:
        model = load_model(folder, device="cpu")
        assert model.rules.n == model.config.n

    return Prepared(parse, [path.read_bytes()], path)


@target("sudoku_run", "json")
def _(folder: Path) -> Prepared:
    from interp.sudoku.model import SudokuModelConfig
    from interp.sudoku.recipe import SudokuTraining
    from interp.sudoku.train import settings_of

    path = folder / "run.json"

    def parse(_: bytes) -> None:
        found = settings_of(folder)
        assert SudokuTraining.from_json(found.to_json()) == found

    shape = SudokuModelConfig(n=4, n_layers=1, n_heads=1, d_model=4, d_mlp=4, n_ctx=40)
    return Prepared(parse, [written(SudokuTraining(model=shape).to_json())], path)


def _of_lora(name: str, file: str, kind: Kind) -> None:
    @target(name, kind)
    def _(folder: Path) -> Prepared:
        from interp.steering.lora import load_lora

        path = folder / "lora"
        shutil.copytree(FIXTURES / "steering_lora" / "llama", path)

        def parse(_: bytes) -> None:
            adapter = load_lora(path)
            for change in adapter.changes.values():
                assert change.A.shape[0] == change.B.shape[1] and isinstance(adapter.provenance, dict)

        return Prepared(parse, [(path / file).read_bytes()], path / file)


_of_lora("lora_config", "adapter_config.json", "json")
_of_lora("lora_tensors", "adapter_model.safetensors", "safetensors")


@target("control_vector", "bytes")
def _(folder: Path) -> Prepared:
    from interp.steering.vectors import read_control_vector, vectors_of

    path = folder / "vector.gguf"
    return Prepared(lambda _: vectors_of(read_control_vector(path)),
                    [(FIXTURES / "steering_vectors" / "repeng.gguf").read_bytes()], path)  # fmt: skip
