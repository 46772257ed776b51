"""Faults planted in the kernels of `topk_decode`: what the tests beside this check finds each of them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")

from midlens_kernels.topk_decode import _triton as kernels
from triton.runtime.errors import InterpreterError

from tests.kernels.test_topk_decode_triton import (
    INTERPRETED,
    RAGGED,
    SMALL,
    assert_far_rows_are_reached,
    assert_right,
    case,
    scattered,
)

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the guard watches the interpreter")
RIGHT = "sums += a * tl.load(right + from_right + column, mask=mask, other=0.0)"
FAULTS = {
    "no mask on columns read": ("there[:, None] & inside[None, :], other", "there[:, None], other"),
    "no mask on columns written": ("out.dtype.element_ty), mask=inside)", "out.dtype.element_ty))"),
    "no mask on columns of pieces": ("tl.sum(sums, axis=0), mask=inside)", "tl.sum(sums, axis=0))"),
    "one entry too many": ("there = entry < stop", "there = entry <= stop"),
    "one entry too few": ("range(begin, stop, TILE)", "range(begin, stop - 1, TILE)"),
    "overwritten instead of added": ("sums += weight[:, None] * value", "sums = weight[:, None] * value"),
    "no weights": ("sums += weight[:, None] * value", "sums += value"),
    "bfloat16 not widened": (
        f"other=0.0).to(tl.float32)\n        {RIGHT}.to(tl.float32)",
        f"other=0.0)\n        {RIGHT}",
    ),
    "rows of 32 bits": ("other=0).to(tl.int64)\n        weight", "other=0)\n        weight"),
    "left rows of 32 bits": (
        "left_rows + entry, mask=there, other=0).to(tl.int64)",
        "left_rows + entry, mask=there, other=0)",
    ),
    "right rows of 32 bits": (
        "right_rows + entry, mask=there, other=0).to(tl.int64)",
        "right_rows + entry, mask=there, other=0)",
    ),
    "bags of 32 bits": (
        "    bag = tl.program_id(0).to(tl.int64)\n    column",
        "    bag = tl.program_id(0)\n    column",
    ),
    "pieces of 32 bits": ("piece = tl.program_id(0).to(tl.int64)", "piece = tl.program_id(0)"),
    "pieces read with 32 bits": (
        "piece = (start + tl.arange(0, TILE)).to(tl.int64)",
        "piece = start + tl.arange(0, TILE)",
    ),
    "pieces overwritten": ("tl.store(pieces + piece * D", "tl.store(pieces + bag * D"),
    "pieces that begin too early": ("(piece - tl.load(edges + bag) + 1)", "(piece - tl.load(edges + bag))"),
    "pieces that end too late": ("tl.minimum(begin + SPLIT, ", "tl.maximum(begin + SPLIT, "),
    "pieces of nobody": ("if bag < n_bags:", "if bag <= n_bags:"),
    "pieces of the next bag": ("mask = (piece < last)[:, None] &", "mask = (piece <= last)[:, None] &"),
    "pieces left out": ("for start in range(tl.load(edges + bag), last, TILE)", "for start in range(0, 0, TILE)"),
    "entries counted twice": ("stop = tl.minimum(stop, begin + SPLIT)", "stop = stop"),
    "contiguous rows assumed": (
        "split, pieces, edges = 0, out, offsets",
        "split, pieces, edges, stride = 0, out, offsets, d",
    ),
    "no mask on entries read": ("tl.load(left_rows + entry, mask=there, other=0)", "tl.load(left_rows + entry)"),
    "no mask on entries written": ("to(out.dtype.element_ty), mask=there)", "to(out.dtype.element_ty))"),
    "one block of columns": ("for start in range(0, D, BLOCK)", "for start in range(0, BLOCK, BLOCK)"),
    "entries not reordered": ("weighted_bags(tokens, rows[entries]", "weighted_bags(tokens, rows"),
    "weights not reordered": ("weights[entries], offsets)", "weights, offsets)"),
    "activations as they lie": ("weights.contiguous()", "weights"),
    "indices as they lie": ("indices.contiguous()", "indices"),
    "indices as they lie, backward": ("idx.contiguous()", "idx"),
    "gradient as it lies": ("else table.contiguous(), tokens.contiguous()", "else table.contiguous(), tokens"),
    "a gradient of zero": ("g_acts = entry_dots(W_dec, idx, g_y, rows)", "g_acts = torch.zeros_like(acts)"),
}


def altered(folder: Path, old: str, new: str) -> ModuleType:
    """The kernels' module with one place changed."""
    source = Path(kernels.__file__).read_text()
    assert source.count(old) == 1, f"{source.count(old)} places to change"
    file = folder / "altered.py"
    file.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("altered", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(SMALL)
    return module


def assert_sound(module: ModuleType) -> None:
    assert_far_rows_are_reached(module)
    assert_right(module.topk_decode_triton, scattered(case(RAGGED, 3, 20, torch.bfloat16)), seed=1)


def test_the_checks_pass_without_a_fault(tmp_path):
    assert_sound(altered(tmp_path, "COLUMNS = 512", "COLUMNS = 512"))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, tmp_path):
    module = altered(tmp_path, *FAULTS[fault])
    with pytest.raises((AssertionError, InterpreterError, ValueError)):
        assert_sound(module)
