"""Packed rows: documents do not see each other, positions restart, nothing is lost."""

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.sudoku.model import SudokuModelConfig, build_model
from interp.sudoku.packing import Rows, block_mask, hidden_states, pack, place

CONFIG = SudokuModelConfig(n=4, d_model=32, n_layers=2, n_heads=4, d_mlp=64, n_ctx=40)


def documents(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 64, size=(len(lengths), max(lengths))).astype(np.int16)
    return tokens, np.array(lengths)


def packed(lengths: list[int], rows: int) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray]:
    tokens, sizes = documents(lengths)
    places = place(sizes, 40, rows=rows)
    return pack(tokens, sizes, places, n_ctx=40, rows=rows, pad=65), tokens, places.row, places.start


def test_next_fit():
    row, start = place(np.array([20, 15, 10, 30, 40, 3]), 40)
    assert row.tolist() == [0, 0, 1, 1, 2, 3] and start.tolist() == [0, 20, 0, 10, 0, 0]
    assert len(place(np.array([20, 15, 10, 30, 40, 3]), 40, rows=2)) == 4
    assert len(place(np.zeros(0, np.int64), 40)) == 0


def test_a_document_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match=r"document 1 has 41 tokens, more than the 40 positions of the model"):
        place(np.array([20, 41]), 40)


def test_every_token_stands_once_where_it_was_placed():
    rows, tokens, row, start = packed([20, 15, 10, 30, 3], 3)
    assert rows.documents is not None
    for i, n in enumerate([20, 15, 10, 30, 3]):
        span = slice(start[i], start[i] + n)
        assert (rows.tokens[row[i], span].numpy() == tokens[i, :n]).all()
        assert (rows.positions[row[i], span].numpy() == np.arange(n)).all()
        assert rows.documents[row[i], span].unique().numel() == 1
    assert int((rows.documents >= 0).sum()) == 78 and int((rows.tokens == 65).sum()) == 120 - 78
    assert (rows.tokens[rows.documents < 0] == 65).all()


def test_the_mask_is_causal_within_documents():
    mask = block_mask(torch.tensor([[0, 0, 1, 1, 1, -1]]))[0, 0]
    expected = [[t >= s and "AABBB."[t] == "AABBB."[s] for s in range(6)] for t in range(6)]
    assert mask.tolist() == expected


def test_a_packed_document_has_the_logits_it_has_alone():
    hf = build_model(CONFIG, seed=1).double()
    lengths = [20, 15, 10, 30, 40, 3]
    rows, tokens, row, start = packed(lengths, 4)
    with torch.no_grad():
        together = hf.lm_head(hidden_states(hf, rows))
        # the same rows with positions restarting but without the blocks
        unmasked = hf.lm_head(hidden_states(hf, rows._replace(documents=torch.zeros_like(rows.tokens))))
        apart = [hf(torch.from_numpy(tokens[i : i + 1, :n].astype(np.int64))).logits[0] for i, n in enumerate(lengths)]
    for i, n in enumerate(lengths):
        span = slice(start[i], start[i] + n)
        assert (together[row[i], span] - apart[i]).abs().max() < 1e-12
        differs = (unmasked[row[i], span] - apart[i]).abs().amax(-1)
        assert (differs > 1e-3).all() if start[i] else (differs < 1e-12).all()


def test_one_document_a_row_needs_no_mask():
    hf = build_model(CONFIG, seed=1).double()
    rows, tokens, _, _ = packed([30, 25], 2)
    assert rows.documents is None
    with torch.no_grad():
        together = hf.lm_head(hidden_states(hf, rows))
        for i, n in enumerate([30, 25]):
            alone = hf(torch.from_numpy(tokens[i : i + 1, :n].astype(np.int64))).logits[0]
            assert (together[i, :n] - alone).abs().max() < 1e-12
