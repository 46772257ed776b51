"""Pieces of one plan, computed apart and joined: the bytes of one machine, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interp.errors import InputError
from interp.extract import extract, prepare
from interp.joining import join
from interp.manifest import part_file
from interp.pieces import Piece
from interp.store import ActivationStore
from tests.toy_store import SITES, ToyModel, files_of, token_file

LENGTHS = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40, 33, 21, 8, 50]
SMALL = {"max_length": 16, "token_budget": 32, "rows_per_shard": 50}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens") / "t", LENGTHS)


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    store = extract(ToyModel(), file, SITES, tmp_path_factory.mktemp("whole") / "s", progress=False, **SMALL)
    assert len(store.manifest["shards"]) >= 5
    return store


def compute(file, out: Path, count: int, *, model=None, **settings) -> list[Path]:
    """All pieces of `count`."""
    folders = []
    for index in range(1, count + 1):
        piece = Piece(index, count)
        folders.append(piece.folder(out))
        one = model or ToyModel()
        prepare(one, file, SITES, folders[-1], piece=piece, **{**SMALL, **settings}).fill(progress=False)
    return folders


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 50])
def test_the_pieces_joined_are_the_store_of_one_machine(file, tmp_path, count, dtype):
    whole = extract(ToyModel(), file, SITES, tmp_path / "w", store_dtype=dtype, progress=False, **SMALL)
    model = ToyModel()
    folders = compute(file, tmp_path / "s", count, model=model, store_dtype=dtype)
    joined = join(folders[::-1], tmp_path / "s")
    assert files_of(joined.path) == files_of(whole.path)
    assert model.passes == len(json.loads((whole.path / "plan.json").read_text())["batch_windows"])


def test_shares_cover_every_shard_once():
    for total in range(8):
        for count in range(1, 12):
            assert [s for i in range(count) for s in Piece(i + 1, count).shards(total)] == list(range(total))


def test_a_finished_piece_is_not_computed_again_and_a_damaged_one_only_in_part(file, whole, tmp_path):
    folders = compute(file, tmp_path / "s", 2)
    model = ToyModel()
    compute(file, tmp_path / "s", 2, model=model)
    assert model.passes == 0
    shard = sorted(folders[1].glob("shard-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{shard.name} holds .* truncated .*Run piece 2/2 again"):
        join(folders, tmp_path / "s")
    compute(file, tmp_path / "s", 2, model=model)
    assert 0 < model.passes < len(json.loads((folders[1] / "plan.json").read_text())["batch_windows"]) / 2
    assert files_of(join(folders, tmp_path / "s").path) == files_of(whole.path)


CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.kill_child import arm
from interp.extract import prepare
from interp.pieces import Piece
from interp.tokenfile import TokenFile
from tests.test_pieces import SMALL
from tests.toy_store import SITES, ToyModel
for point in sys.argv[4:]:
    child = os.fork()
    if child == 0:
        arm(point)
        out = Path(sys.argv[3]) / point
        prepare(ToyModel(log=Path(sys.argv[3]) / (point + ".log")), TokenFile.open(sys.argv[2]), SITES, out,
                piece=Piece(2, 2), **SMALL).fill(progress=False)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9, point
"""
POINTS = [
    "replace:1:after",
    "replace:2:before",
    "replace:4:before",
    "replace:4:after",
    "replace:5:after",
    "fsync:9:after",
]


def test_killed_pieces_go_on(file, whole, tmp_path):
    first, second = compute(file, tmp_path / "s", 2)
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "k").mkdir()
    subprocess.run(
        [sys.executable, "-c", CHILD, str(root), str(file.path), str(tmp_path / "k"), *POINTS], check=True, timeout=300
    )
    plan = json.loads((second / "plan.json").read_text())
    begin = plan["shard_windows"][len(plan["shard_rows"]) // 2 - 1]
    batches = sum(end > begin for end in plan["batch_windows"])
    for point in POINTS:
        log, model = tmp_path / "k" / f"{point}.log", ToyModel()
        before = log.stat().st_size - 1 if log.exists() else 0
        prepare(model, file, SITES, tmp_path / "k" / point, piece=Piece(2, 2), **SMALL).fill(progress=False)
        assert files_of(tmp_path / "k" / point) == files_of(second)
        assert batches <= max(0, before) + model.passes <= batches + 3, point  # a shard has at most three batches
        assert files_of(join([first, tmp_path / "k" / point], tmp_path / "out").path) == files_of(whole.path)
        shutil.rmtree(tmp_path / "out")


class Cramped(ToyModel):
    """Has no room for more than this many positions."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def capture(self, tokens, sites, **options):
        if tokens.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().capture(tokens, sites, **options)


def test_a_piece_short_of_memory_cuts_its_own_batches(file, whole, tmp_path):
    """The rows are those of the store; the plan says which batches ran, those of the others as they were."""
    folders = []
    for index, model in enumerate([ToyModel(), Cramped(16), ToyModel()], 1):
        folders.append(tmp_path / str(index))
        prepare(model, file, SITES, folders[-1], piece=Piece(index, 3), **SMALL).fill(progress=False)
    store = join(folders, tmp_path / "s")
    store.verify()
    found, expected = files_of(store.path), files_of(whole.path)
    assert {n: b for n, b in found.items() if n.startswith("shard")} == {
        n: b for n, b in expected.items() if n.startswith("shard")
    }
    plan, uncut = (json.loads(files[part_file(0)]) for files in (found, expected))
    assert set(uncut["batch_windows"]) < set(plan["batch_windows"])
    assert plan["splits"] and store.manifest["parts"][0]["splits"] == len(plan["splits"])
    begin, stop = (plan["shard_windows"][len(plan["shard_rows"]) * i // 3 - 1] for i in (1, 2))
    assert all(begin < end <= stop for end in set(plan["batch_windows"]) - set(uncut["batch_windows"]))


def test_pieces_that_do_not_make_a_store_are_named(file, tmp_path):
    folders = compute(file, tmp_path / "s", 3)
    with pytest.raises(InputError, match=r"^2 of 3 pieces are missing: 1/3, 3/3$"):
        join(folders[1:2], tmp_path / "s")
    with pytest.raises(InputError, match=r"^piece 2/3 is there twice: .*00002-of-00003 and .*copy$"):
        join([*folders, shutil.copytree(folders[1], tmp_path / "copy")], tmp_path / "s")
    with pytest.raises(InputError, match=r"of different divisions: .*00001-of-00003 is 1/3, .* is 2/2"):
        join([folders[0], compute(file, tmp_path / "o", 2)[1]], tmp_path / "s")
    with pytest.raises(InputError, match="no piece to join"):
        join([], tmp_path / "s")
    with pytest.raises(InputError, match="is no piece of an extraction"):
        join([tmp_path], tmp_path / "s")
    other = compute(file, tmp_path / "m", 3, seed=1)
    with pytest.raises(InputError, match=r"not pieces of one extraction: seed: 0 there, 1 asked for"):
        join([*folders[:2], other[2]], tmp_path / "s")
    other = compute(file, tmp_path / "b", 3, token_budget=64)
    with pytest.raises(InputError, match=r"token_budget: 32 there, 64 asked for\): give every piece the same token_b"):
        join([*folders[:2], other[2]], tmp_path / "s")
    facts = json.loads((folders[2] / "piece.json").read_text())
    (folders[2] / "piece.json").write_text(json.dumps({**facts, "versions": {**facts["versions"], "torch": "0.1"}}))
    with pytest.raises(InputError, match=r"other versions computed them: versions|other versions computed them: torch"):
        join(folders, tmp_path / "s")
    (tmp_path / "s").mkdir()
    with pytest.raises(InputError, match="exists already"):
        join(folders, tmp_path / "s")


def test_an_unfinished_piece_is_named(file, tmp_path):
    folders = compute(file, tmp_path / "s", 2)
    ledger = folders[1] / "ledger.jsonl"
    ledger.write_text("".join(line + "\n" for line in ledger.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match=r"piece 2/2 in .* is not finished, 1 of its \d+ shards are missing \(\d+\)"):
        join(folders, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_folder_keeps_to_its_piece(file, whole, tmp_path):
    (folder,) = compute(file, tmp_path / "s", 1)
    with pytest.raises(InputError, match=r"holds piece 1/1, and piece 1/2 is asked for"):
        prepare(ToyModel(), file, SITES, folder, piece=Piece(1, 2), **SMALL)
    with pytest.raises(InputError, match=r"holds piece 1/1, and a whole store is asked for"):
        prepare(ToyModel(), file, SITES, folder, **SMALL)
    with pytest.raises(InputError, match=r"holds a whole store, and piece 1/2 is asked for"):
        prepare(ToyModel(), file, SITES, whole.path, piece=Piece(1, 2), **SMALL)
    with pytest.raises(InputError, match=r"made with other settings \(seed: 0 there, 3 asked for\)"):
        prepare(ToyModel(), file, SITES, folder, piece=Piece(1, 1), seed=3, **SMALL)
    with pytest.raises(InputError, match="append and piece 1/2 exclude each other"):
        prepare(ToyModel(), file, SITES, tmp_path / "a", piece=Piece(1, 2), append=True, **SMALL)
    with pytest.raises(InputError, match="so it is no finished activation store"):
        ActivationStore.open(folder)


@pytest.mark.parametrize("text", ["3/2", "0/0", "0/4", "-1/4"])
def test_a_piece_that_does_not_exist(text):
    with pytest.raises(InputError, match=rf"^piece {text} does not exist: pieces are written i/n with 1 <= i <= n"):
        Piece.parse(text)


@pytest.mark.parametrize("text", ["", "2", "a/b", "1/2/3", "1.5/2"])
def test_a_piece_that_is_no_piece(text):
    with pytest.raises(InputError, match="a piece is written i/n, such as 2/4 for the second of four; got"):
        Piece.parse(text)
