"""CSV files of puzzles, and folders of puzzles with traces."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.errors import InputError
from interp.sudoku.board import Rules
from interp.sudoku.generate import PuzzleSet, generate
from interp.sudoku.generate_files import PuzzleConfig, load_puzzles, summary, write_puzzles
from interp.sudoku.puzzle_files import read_csv, write_csv
from interp.sudoku.traces import ARRAYS, TraceSet, make_traces


@pytest.fixture
def pair() -> PuzzleSet:
    return generate(Rules.of(4), 2, seed=0)


def texts(grids: np.ndarray, empty: str = ".") -> list[str]:
    return ["".join(map(str, grid)).replace("0", empty) for grid in grids.tolist()]


@pytest.mark.parametrize("n", [4, 6, 9])
def test_round_trip(n: int, tmp_path: Path):
    made = generate(Rules.of(n), 25, seed=1)
    write_csv(tmp_path / "a.csv", made)
    rules, again = read_csv(tmp_path / "a.csv")
    assert rules == Rules.of(n)
    assert all(map(np.array_equal, again, made))
    first = (tmp_path / "a.csv").read_text().splitlines()[:2]
    assert first == ["puzzle,solution", f"{texts(made.puzzles)[0]},{texts(made.solutions)[0]}"]
    _, some = read_csv(tmp_path / "a.csv", rules=Rules.of(n), limit=7, workers=2)
    assert np.array_equal(some.puzzles, made.puzzles[:7])


@pytest.mark.parametrize("empty", ["0", "."])
def test_other_layouts(empty: str, pair: PuzzleSet, tmp_path: Path):
    """More columns, another order, a byte-order mark, blank lines, no solutions or some."""
    path, (a, b) = tmp_path / "a.csv", texts(pair.puzzles, empty)
    path.write_text(
        f"\ufeffid,Solution,clues, puzzle\r\n1,,4,{a}\r\n\r\n2,{texts(pair.solutions)[1]},4,{b}\r\n", "utf-8"
    )
    assert all(map(np.array_equal, read_csv(path)[1], pair))
    path.write_text(f"puzzle\n{a}\n{b}\n")
    assert all(map(np.array_equal, read_csv(path)[1], pair))


def refused(path: Path, content: str | bytes, message: str, rules: Rules | None = None) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=message):
        read_csv(path, rules=rules)


def test_bad_files(pair: PuzzleSet, tmp_path: Path):
    path = tmp_path / "bad.csv"
    with pytest.raises(InputError, match=r"none\.csv cannot be read as CSV in UTF-8: .*No such file"):
        read_csv(tmp_path / "none.csv")
    (a, b), (s, t) = texts(pair.puzzles), texts(pair.solutions)
    good = f"puzzle,solution\n{a},{s}\n"
    refused(path, "", r"bad\.csv is empty; it should begin with the line puzzle,solution")
    refused(path, "puzzle,solution\n", r"bad\.csv holds no puzzles, only the names of the columns")
    refused(path, f"{a},{s}\n", r"the first line names the columns .* and no puzzle; it should be puzzle,solution")
    refused(path, "puzzle\n\xe9".encode("latin-1"), r"cannot be read as CSV in UTF-8")
    refused(path, good + f"{b}\n", r"bad\.csv, line 3: 1 columns, but the first line names 2")
    refused(path, good + f"{b}.,{t}\n", r"line 3: the puzzle has 17 characters, a board of side 4 has 16 cells")
    refused(path, good + f"{b},{t[:-1]}\n", r"line 3: the solution has 15 characters, a board of side 4 has 16 cells")
    refused(
        path, "puzzle\n123\n", r"line 2: the puzzle has 3 characters; boards have 16 \(4x4\), 36 \(6x6\), 81 \(9x9\)"
    )
    refused(path, good, r"line 2: the puzzle has 16 characters, a board of side 9 has 81 cells", Rules.of(9))
    wrong = "5" + b[1:]
    refused(
        path, good + f"{wrong},{t}\n", r"line 3: the puzzle has '5' at place 1; .* digits 1 to 4, and 0 or \. for an"
    )
    refused(path, good + f"{b},{'.' + t[1:]}\n", r"line 3: the solution has '\.' at place 1; .* digits 1 to 4$")
    refused(path, good + f"{'٣' + b[1:]},{t}\n", r"line 3: the puzzle has '٣' at place 1")
    refused(path, good + "\n" + "." * 16 + f",{t}\n", r"line 4: the puzzle has more than one solution: \.{16}")
    refused(path, good + "11" + "." * 14 + ",\n", r"line 3: the puzzle contradicts itself: row 1 holds the digit 1 in")
    refused(path, good + "123...4.........,\n", r"line 3: the puzzle has no solution")
    refused(path, good + f"{b},{s}\n", rf"line 3: the solution {s} is not that of the puzzle, which is {t}; correct it")


CONFIG = PuzzleConfig(n=4, count=70, part=30, seed=5, kind="dense")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(a: TraceSet, b: TraceSet) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def test_a_folder_of_puzzles(tmp_path: Path):
    made = write_puzzles(CONFIG, tmp_path / "a", show=False)
    assert sorted(files(tmp_path / "a")) == [
        "puzzles.json",
        "summary.json",
        *(f"traces-0000{p}.safetensors" for p in range(3)),
    ]
    assert same(load_puzzles(tmp_path / "a"), made)
    puzzles = generate(Rules.of(4), 70, seed=5, kind="dense")
    assert same(made, make_traces(Rules.of(4), puzzles.puzzles, seed=5, max_length=300))
    write_puzzles(CONFIG, tmp_path / "b", show=False, workers=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    told = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert told == {**summary(made), "left_out": 0}
    assert told["clues_mean"] == (puzzles.puzzles > 0).sum(axis=1).mean()
    assert told["length"] == {"p50": 18, "p95": 18, "p99": 18, "max": 18}
    assert (told["puzzles"], told["no_guess"]) == (70, 1.0)
    assert told["trace_tokens_mean"] == pytest.approx(17 - told["clues_mean"])


def test_it_goes_on_where_it_was(tmp_path: Path):
    """Whichever files are there, and with the leftover of a killed write; finished parts are not made again."""
    write_puzzles(CONFIG, tmp_path / "whole", show=False)
    whole = files(tmp_path / "whole")
    for kept in (["puzzles.json"], ["puzzles.json", "traces-00001.safetensors"], sorted(whole)[:1] + sorted(whole)[2:]):
        folder = tmp_path / "-".join(kept)
        folder.mkdir()
        for name in kept:
            (folder / name).write_bytes(whole[name])
            os.utime(folder / name, ns=(1, 1))
        (folder / ".traces-00000.safetensors.partial").write_bytes(b"half")
        with pytest.raises(InputError, match=r"holds no summary\.json, so it is no finished folder of Sudoku puzzles"):
            load_puzzles(folder)
        write_puzzles(CONFIG, folder, show=False)
        assert {k: v for k, v in files(folder).items() if not k.startswith(".")} == whole
        assert all((folder / name).stat().st_mtime_ns == 1 for name in kept)


def test_what_a_folder_refuses(tmp_path: Path):
    write_puzzles(CONFIG, tmp_path / "a", show=False)
    other = PuzzleConfig(n=4, count=70, part=30, seed=6, kind="minimal")
    with pytest.raises(InputError, match=r"other settings \(kind: 'dense' there, 'minimal' asked for; seed: 5"):
        write_puzzles(other, tmp_path / "a", show=False)
    part = tmp_path / "a" / "traces-00001.safetensors"
    spoilt = bytearray(part.read_bytes())
    spoilt[-1] ^= 1
    part.write_bytes(bytes(spoilt))
    with pytest.raises(InputError, match=r"traces-00001\.safetensors is damaged"):
        load_puzzles(tmp_path / "a")
    with pytest.raises(InputError, match=r"traces-00001\.safetensors is damaged"):
        write_puzzles(CONFIG, tmp_path / "a", show=False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(mine\.txt\); give a new or an empty folder"):
        write_puzzles(CONFIG, tmp_path / "b", show=False)
    wrongs: list[dict[str, Any]] = [{"count": 0}, {"part": -1}, {"max_length": 0}]
    for wrong in wrongs:
        name, value = next(iter(wrong.items()))
        with pytest.raises(InputError, match=f"{name} is {value}; it must be 1 or more"):
            PuzzleConfig(**wrong)
    with pytest.raises(InputError, match="no board of side 5 here"):
        write_puzzles(PuzzleConfig(n=5), tmp_path / "c", show=False)
    assert not (tmp_path / "c").exists()


def test_long_traces_are_left_out_and_counted(tmp_path: Path):
    config = PuzzleConfig(n=6, count=300, part=100, seed=1, singles="naked", max_length=40)
    made = write_puzzles(config, tmp_path, show=False)
    left_out = json.loads((tmp_path / "summary.json").read_text())["left_out"]
    assert len(made) == 300 - left_out
    assert 0 < left_out < 300
    assert made.lengths.max() <= 40
    with pytest.raises(InputError, match=r"none of the 10 traces of part 0 has at most max_length=5 tokens; give more"):
        write_puzzles(PuzzleConfig(n=6, count=10, max_length=5), tmp_path / "none", show=False)
    with pytest.raises(InputError, match="there is no trace to save"):
        made[:0].save(tmp_path / "empty.safetensors")
