"""The split by symmetry class, and batches that keep to it."""

import itertools

import numpy as np
import pytest

from interp.errors import InputError
from interp.sudoku import splitting
from interp.sudoku.board import Rules
from interp.sudoku.drawing import fresh_puzzles, unseen_puzzles
from interp.sudoku.generate import generate
from interp.sudoku.splitting import held_out, symmetric_hash

RULES = Rules.of(4)


def cell_symmetries() -> np.ndarray:
    """All 128 ways to permute the cells of a 4x4 board that keep rows, columns and boxes, by brute force."""
    lines = [(*a, *b) for a in ((0, 1), (1, 0)) for b in ((2, 3), (3, 2))]
    lines += [(*b, *a) for a in ((0, 1), (1, 0)) for b in ((2, 3), (3, 2))]
    cells = np.arange(16).reshape(4, 4)
    boards = [cells[list(rows)][:, list(columns)] for rows in lines for columns in lines]
    return np.array([x.ravel() for board in boards for x in (board, board.T)])


def canonical(puzzle: np.ndarray, symmetries: np.ndarray) -> bytes:
    """The least image of a puzzle under all 128 * 24 symmetries."""
    images = puzzle[symmetries]
    digits = np.array([(0, *p) for p in itertools.permutations((1, 2, 3, 4))], np.int8)
    return min(digits[:, images].reshape(-1, 16).tolist()).__repr__().encode()


def test_the_hash_is_equal_for_images_and_tells_classes_apart():
    symmetries = cell_symmetries()
    assert len({tuple(s) for s in symmetries}) == 128
    puzzles = np.concatenate([generate(RULES, 40, kind=kind, seed=3).puzzles for kind in ("minimal", "dense")])
    classes = [canonical(puzzle, symmetries) for puzzle in puzzles]
    hashes = symmetric_hash(RULES, puzzles)
    generator = np.random.default_rng(0)
    for puzzle, found in zip(puzzles, hashes, strict=True):
        digits = np.array([0, *generator.permutation(4) + 1], np.int8)
        images = digits[puzzle[symmetries]]
        assert (symmetric_hash(RULES, images) == found).all()
    # and no coarser than need be: different classes have different hashes
    assert len(set(classes)) == len(set(hashes.tolist())) == len(set(zip(classes, hashes.tolist(), strict=True)))
    assert len(set(classes)) > 20


@pytest.mark.parametrize("n", [4, 6, 9])
def test_a_changed_clue_changes_the_hash(n: int):
    rules = Rules.of(n)
    puzzle = generate(rules, 1, kind="minimal", seed=1).puzzles
    changed = puzzle.copy()
    clue = np.flatnonzero(puzzle[0])[0]
    changed[0, clue] = 0
    assert symmetric_hash(rules, puzzle) != symmetric_hash(rules, changed)
    renamed = np.where(puzzle > 0, n + 1 - puzzle, 0).astype(np.int8)
    assert symmetric_hash(rules, puzzle) == symmetric_hash(rules, renamed)


def test_the_two_sides_share_no_class():
    train = fresh_puzzles(RULES, 400, kind="dense", unseen=False, seed=5)
    test = unseen_puzzles(RULES, 40, kind="dense", seed=5)
    assert len(train.puzzles) == 400 and len(test.puzzles) == 40
    assert not held_out(RULES, train.puzzles).any() and held_out(RULES, test.puzzles).all()
    symmetries = cell_symmetries()
    seen = {canonical(puzzle, symmetries) for puzzle in train.puzzles[:120]}
    assert not seen & {canonical(puzzle, symmetries) for puzzle in test.puzzles}
    # without the split, fresh draws meet classes that were seen
    other = generate(RULES, 40, kind="dense", seed=99).puzzles
    assert seen & {canonical(puzzle, symmetries) for puzzle in other}
    assert ((test.solutions == test.puzzles) | (test.puzzles == 0)).all()


def test_the_share_held_out_is_the_one_asked_for():
    puzzles = generate(Rules.of(6), 3000, kind="dense", seed=2).puzzles
    assert abs(held_out(Rules.of(6), puzzles).mean() - 0.1) < 0.03
    assert abs(held_out(Rules.of(6), puzzles, fraction=0.5).mean() - 0.5) < 0.05
    with pytest.raises(InputError, match=r"fraction=1\.5: expected the share of puzzles to hold out"):
        held_out(RULES, puzzles[:, :16], fraction=1.5)


def test_the_hash_does_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch):
    puzzles = generate(RULES, 25, kind="dense", seed=2).puzzles
    whole = symmetric_hash(RULES, puzzles)
    monkeypatch.setattr(splitting, "PART", 7)
    assert (symmetric_hash(RULES, puzzles) == whole).all() and len(symmetric_hash(RULES, puzzles[:0])) == 0
