"""`midlens sudoku …` as a user types it, on solvers whose weights were planted or hardly trained."""

import json
from pathlib import Path

import pytest

from interp.sealing import write_json
from interp.sudoku.demo import DemoConfig, demo
from interp.sudoku.model import WEIGHTS, save_model
from interp.sudoku.presets import preset
from interp.sudoku.study_files import read_result
from midlens.__main__ import main
from tests.sudoku import study_samples as samples


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    status = main(["sudoku", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the planted solver."""
    folder = tmp_path_factory.mktemp("models") / "planted"
    model, _ = samples.planted()
    save_model(model.hooked.hf, model.config, folder)  # pyright: ignore[reportArgumentType]
    return folder


def test_puzzles_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["generate", "--n", "4", "--count", "20", "--kind", "dense", "--out", tmp_path / "puzzles"]
    status, out, err = run(capsys, *command)
    assert status == 0 and out[-1] == str((tmp_path / "puzzles").resolve()), err
    made = (tmp_path / "puzzles" / "traces-00000.safetensors").stat().st_mtime_ns
    assert run(capsys, *command)[0] == 0
    assert (tmp_path / "puzzles" / "traces-00000.safetensors").stat().st_mtime_ns == made


def test_a_run_is_trained_tried_and_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [
        "train",
        "--steps",
        "2",
        "--seed",
        "3",
        "--test-puzzles",
        "30",
        "--device",
        "cpu",
        "--out",
        tmp_path / "a",
    ]
    status, out, err = run(capsys, *command)
    assert status == 0 and out[-1] == str((tmp_path / "a").resolve()), err
    assert out[0].startswith("solved ") and "of 30 unseen puzzles" in out[0]
    solving = read_result(tmp_path / "a" / "solving.json").value
    assert solving.curve.step.tolist() == [2] and solving.curve.puzzles.tolist() == [256]
    weights = (tmp_path / "a" / WEIGHTS).stat().st_mtime_ns
    assert run(capsys, *command)[1] == out and (tmp_path / "a" / WEIGHTS).stat().st_mtime_ns == weights
    status, _, err = run(capsys, *[*command[:2], "3", *command[3:]])
    assert status == 2 and "steps" in err and err.count("\n") == 1


def test_a_study_of_one_model_and_its_page(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = {
        "intervene": ["--puzzles", "160", "--samples", "20", "--draws", "2"],
        "circuit": ["--puzzles", "200", "--draws", "3", "--head-puzzles", "20", "--pages", "1"],
    }
    for name, options in few.items():
        path = tmp_path / "results" / f"{name}.json"
        for _ in range(2):
            status, out, err = run(capsys, name, planted, "--out", path, "--device", "cpu", *options)
            assert status == 0 and out[-1] == str(path.resolve()), err
    held = json.loads((tmp_path / "results" / "intervene.json").read_text())
    assert (held["part"], held["name"], held["settings"]["samples"]) == ("interventions", "planted", 20)
    other = ["--puzzles", "160", "--samples", "21", "--draws", "2"]
    status, _, err = run(capsys, "intervene", planted, "--out", tmp_path / "results" / "intervene.json", *other)
    assert status == 2 and "holds a result of other settings (samples" in err and err.count("\n") == 1
    page = tmp_path / "page.html"
    status, out, err = run(capsys, "report", tmp_path / "results", "--out", page)
    assert status == 0 and out[-1] == str(page.resolve()), err
    assert "Naked-single neurons" in page.read_text()


def test_probes_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed in (0, 1):
        model = samples.tiny_model(seed)
        save_model(model.hooked.hf, model.config, tmp_path / f"tiny{seed}")  # pyright: ignore[reportArgumentType]
    path = tmp_path / "probes.json"
    few = ["--puzzles", "120", "--probes", "ridge", "--targets", "filled", "--draws", "10", "--device", "cpu"]
    command = ["probe", tmp_path / "tiny0", tmp_path / "tiny1", "--out", path, *few]
    status, out, err = run(capsys, *command)
    assert status == 0 and out[-1] == str(path.resolve()), err
    study = read_result(path)
    assert study.name == "tiny0, tiny1" and study.value.models == ("tiny0", "tiny1")
    path.unlink()  # its parts are there: made again from these
    parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "probes-parts").iterdir()}
    assert run(capsys, *command)[0] == 0
    assert parts == {part: part.stat().st_mtime_ns for part in (tmp_path / "probes-parts").iterdir()}
    assert read_result(path).value.to_json() == study.value.to_json()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "--preset", "5x5", "--out", "x"], "'5x5' is no preset of Sudoku training"),
        (["intervene", "nothing", "--out", "x.json"], "nothing holds no trained Sudoku model (model.safetensors)"),
        (["circuit", "nothing", "--out", "x.json"], "nothing holds no trained Sudoku model"),
        (["probe", "--out", "x.json"], "no model was given"),
        (["probe", "a/m", "b/m", "--out", "x.json"], "two models have the same name (m, m)"),
        (["report", "--out", "x.html"], "there is nothing to report"),
        (["report", "nothing.json", "--out", "x.html"], "nothing.json"),
        (["demo", "--seeds", "1", "1", "--out", "x"], "expected different seeds"),
        (["demo", "--preset", "5x5", "--out", "x"], "'5x5' is no preset"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *command)
    assert status == 2 and said in err and err.count("\n") == 1, err


@pytest.mark.slow
def test_the_demonstration_studies_what_was_trained(tmp_path: Path):
    """On finished runs: their settings, with the planted solver's weights."""
    model, _ = samples.planted()
    for seed in (0, 1):
        folder = tmp_path / "models" / f"seed{seed}"
        save_model(model.hooked.hf, model.config, folder)  # pyright: ignore[reportArgumentType]
        write_json(folder / "run.json", preset("4x4-dense", seed=seed).to_json())
    said: list[str] = []
    config = DemoConfig(test_puzzles=40, probe_puzzles=160, circuit_puzzles=200, workers=1)
    page = demo(tmp_path, config, announce=said.append, show=False)
    assert page == tmp_path / "report.html" and "The crossing" in page.read_text()
    assert [line.split(":")[0] for line in said[:2]] == ["seed0", "seed1"] and "of 40 unseen puzzles" in said[0]
    names = {path.name for path in (tmp_path / "results").glob("*.json")}
    parts = {f"{part}-seed{seed}.json" for part in ("solving", "interventions", "circuit") for seed in (0, 1)}
    assert names == parts | {"probes.json"}
