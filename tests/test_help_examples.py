"""Every example of a command's help is run as it stands, one after the other in one folder, only smaller.

Options behind the example make it small; words of the example stay. Where the example needs a model that is not here,
its plan is made. Each result is asked for as JSON, and what the JSON says has to be in what people are shown.
"""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midlens.__main__ import main
from midlens.commands import entries

pytestmark = pytest.mark.slow

SOLVER = "--preset 4x4-dense --steps 300 --test-puzzles 20 --device cpu"  # fewer write no state of interest
TEXT = "--max-tokens 600 --max-length 64"
CONTRAST = "--max-prompts 24 --level None"

# By command: what comes before (commands that the example leaves to its reader), and the options that make it small.
SMALL: dict[str, tuple[list[str], str]] = {
    "extract": ([], "--max-tokens 1500 --max-length 64"),
    "store": ([], ""),
    "parity": ([], ""),
    "discover": ([], "--train-tokens 1500 --held-out-tokens 600 --loss-tokens 200 --epochs 1 --expansion 1"),
    "train": ([], "--expansion 1 --batch-size 256 --epochs 1"),
    "sweep": ([], "--k 4 8 --expansions 1 --base.batch-size 256 --base.epochs 1"),
    "evaluate": (
        [f"midlens extract --sites resid_post.15 --split held-out --out runs/held-out {TEXT}"],
        "--loss-tokens 200",
    ),
    "primitives": ([], "--dry-run"),
    "attention survey": ([], "--dry-run"),
    "attention surgery": ([], "--planes 4 --modes --max-tokens 96 --calibration 96 --max-length 32"),
    "attention train": ([], "--n-ctx 32 --total-bytes 512 --batch 4 --warmup 1 --compute float32 --device cpu"),
    "attention cascade": (
        [
            f"midlens attention train --attention {kind} --out runs/twin-{name} --n-ctx 32 --total-bytes 512 --batch 4"
            " --warmup 1 --compute float32 --device cpu"
            for kind, name in (("sd_token", "a"), ("standard", "b"))
        ],
        "--documents 2 --sequences 2 --calibration 2",
    ),
    "steer fit": ([], CONTRAST),
    "steer apply": ([], "--max-new-tokens 4"),
    "steer evaluate": (
        [],
        "--betas 1 --n-prompts 2 --max-new-tokens 4 --neutral-documents 2 --neutral-length 16 --questions 0"
        " --judges lexicon --samples 1",
    ),
    "steer fold": (
        [f"midlens steer fit --contrast horse-motorcycle --sites mlp_out.8 --out runs/horses-mlp {CONTRAST}"],
        "",
    ),
    "sudoku generate": ([], "--n 4 --count 20"),
    "sudoku train": ([], SOLVER),
    "sudoku probe": ([], "--puzzles 120 --probes logistic --draws 10 --no-transfer --device cpu"),
    "sudoku intervene": ([], "--puzzles 120 --samples 10 --draws 2 --device cpu"),
    "sudoku circuit": ([], "--puzzles 200 --draws 3 --head-puzzles 20 --pages 1 --device cpu"),
    "sudoku report": ([], ""),
    "sudoku demo": ([], "--dry-run"),
    "bench": ([], ""),
    "doctor": ([], ""),
    "completion": ([], ""),
}


def test_none_is_left_out():
    assert list(SMALL) == [entry.name for entry in entries()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def run(line: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, str]:
    first, *words = shlex.split(line)
    assert first == "midlens"
    status = main([*words, *more])
    out, err = capsys.readouterr()
    assert status == 0, f"{line}: {err}"
    return out, err


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


@pytest.mark.parametrize("name", SMALL)
def test_an_example_does_what_it_says(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(folder)
    before, options = SMALL[name]
    kind = next(entry.load() for entry in entries() if entry.name == name)
    for line in before:
        run(line, capsys)
    line = f"{kind.example} {options}".removesuffix(" ")
    shown, _ = run(line.replace(" --json", ""), capsys)
    if name == "steer fold":  # writes into a new folder only
        shutil.rmtree("runs/folded")
    out, _ = run(line, capsys, *([] if " --json" in line else ["--json"]))
    held = [json.loads(text) for text in out.splitlines()]
    assert held and (kind.streams or len(held) == 1), out
    if kind.streams:
        # Measurements are other numbers each time.
        said = [one["measurement"] for one in held] if name == "bench" else list(leaves(held))
        assert said and all(str(value) in shown for value in said)
        return
    (told,) = held
    assert (told["command"], told["status"]) == (name, 0)
    for path in told.get("paths", []):
        assert Path(path).exists() and path in shown
    if "--dry-run" in line:
        assert told["dry_run"] and told["plan"]
        assert all(" ".join(str(key).split("_")) in shown or str(key) in shown for key in told["plan"])
    elif kind.figures and name not in ("doctor", "completion"):
        assert told["figures"], "the help promises figures"
