"""The guard finds planted faults, each beside the same kernel without it; so does the compiler."""

import os

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from tests.kernels.compile_only import CannotCompile, compile_for
from tests.kernels.guard import checked
from tests.kernels.planted_kernels import compared_and_swapped, doubled, passed_on, row_copied, scattered, total

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not interpreted, reason="the guard watches the interpreter, and here a GPU runs the kernels"
)
BLOCK = 4


def within(n: int, more: int = 3) -> torch.Tensor:
    """n numbers in the middle of a larger storage, where a stray access does no harm."""
    return torch.arange(float(n + 2 * more))[more : more + n]


def test_a_dropped_mask_is_found_and_the_masked_kernel_passes():
    x, y = within(6), within(6)
    with checked():
        doubled[(2,)](y, x, 6, True, True, BLOCK=BLOCK)
    torch.testing.assert_close(y, 2 * x)
    with checked(), pytest.raises(InterpreterError, match=r"OutOfBounds.*load: 2 of 4 active lanes lie outside every"):
        doubled[(2,)](y, x, 6, False, True, BLOCK=BLOCK)
    with checked(), pytest.raises(InterpreterError, match=r"OutOfBounds.*store: 2 of 4 active lanes lie outside every"):
        doubled[(2,)](y, x, 6, True, False, BLOCK=BLOCK)
    doubled[(2,)](y, x, 6, False, False, BLOCK=BLOCK)  # without the guard nobody notices


def test_an_overwritten_address_is_found_and_an_atomic_sum_passes():
    x, y = torch.arange(8.0), torch.zeros(1)
    with checked(order_seed=0):
        total[(2,)](y, x, BLOCK, "atomic")
    assert y.item() == 28
    with checked(), pytest.raises(InterpreterError, match=r"Race.*the store of program .* meets the store of program"):
        total[(2,)](y, x, BLOCK, "overwrite")
    with checked():
        total[(1,)](y, x, BLOCK, "overwrite")  # one program alone may


def test_a_read_modify_write_without_atomics_is_found():
    x, y = torch.arange(8.0), torch.zeros(1)
    total[(2,)](y, x, BLOCK, "read and write")
    assert y.item() == 28  # the interpreter's answer is right, a GPU's need not be
    with checked(), pytest.raises(InterpreterError, match=r"Race.*the load of program .* meets the store of program"):
        total[(2,)](y, x, BLOCK, "read and write")
    with checked(), pytest.raises(InterpreterError, match=r"Race.*the load of program .* meets the store of program"):
        passed_on[(3,)](torch.zeros(3))


def test_a_swap_counts_as_atomic():
    y, other = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with checked(order_seed=1):
        compared_and_swapped[(3,)](y, other)
    assert y.tolist() == [1, 1, 1]
    with checked(), pytest.raises(InterpreterError, match=r"Race.*the load of program .* meets the atomic of program"):
        compared_and_swapped[(3,)](y, y)
    with checked(), pytest.raises(InterpreterError, match=r"OutOfBounds.*atomic: 1 of 1 active lanes"):
        compared_and_swapped[(4,)](y, other)


def test_lanes_of_one_store_may_not_disagree():
    x, y, where = torch.tensor([1.0, 2.0, 2.0, float("nan")]), torch.zeros(8), torch.tensor([0, 3, 3, 5])
    with checked():
        scattered[(1,)](y, x, where, BLOCK=BLOCK)
    assert y[:5].tolist() == [1, 0, 0, 2, 0] and y[5].isnan()
    with checked(), pytest.raises(InterpreterError, match=r"Race.*the same address different values"):
        scattered[(1,)](y, x, where - 2 * (where == 5), BLOCK=BLOCK)


def test_programs_run_in_the_order_of_the_seed():
    results = set()
    for seed in range(6):
        y = torch.zeros(1)
        with checked(order_seed=seed), pytest.raises(InterpreterError, match="Race"):
            total[(4,)](y, torch.arange(16.0), BLOCK, "overwrite")
        results.add(y.item())  # the sum of whichever block came first
    assert len(results) > 1 and results <= {6.0, 22.0, 38.0, 54.0}


def test_every_program_runs_once_in_any_order():
    for seed in (None, *range(4)):
        x, y = torch.arange(13.0), torch.zeros(13)
        with checked(order_seed=seed):
            doubled[(4,)](y, x, 13, True, True, BLOCK=BLOCK)
        torch.testing.assert_close(y, 2 * x)


def test_a_row_past_2_to_the_31_needs_an_offset_of_64_bits():
    """The last row starts past 2^31 elements; the pages between are never touched."""
    last = 2**31 // BLOCK + 3
    x, y = (torch.empty(last + 1, BLOCK, dtype=torch.float16) for _ in range(2))
    x[last], y[last] = torch.arange(4.0), 0
    with checked(program=(last, 0, 0)):
        row_copied[(1,)](y, x, BLOCK, True, BLOCK=BLOCK)
    assert y[last].tolist() == [0, 1, 2, 3]
    with checked(program=(last, 0, 0)), pytest.raises(InterpreterError, match=r"OutOfBounds"):
        row_copied[(1,)](y, x, BLOCK, False, BLOCK=BLOCK)
    with checked(program=(5, 0, 0)):
        row_copied[(1,)](y, x, BLOCK, False, BLOCK=BLOCK)  # near the start nobody notices


def test_nothing_of_the_guard_is_left_behind():
    x, y = within(6), within(6)
    with checked(), pytest.raises(InterpreterError, match=r"OutOfBounds"):
        doubled[(2,)](y, x, 6, False, False, BLOCK=BLOCK)
    doubled[(2,)](y, x, 6, False, False, BLOCK=BLOCK)
    with checked():  # and what a launch touched is forgotten by the next one
        total[(1,)](y, x, BLOCK, "overwrite")
        total[(1,)](y, x, BLOCK, "read and write")


def test_what_quick_leaves_out_finds_nothing(monkeypatch):
    """In the interpreter as it comes, integers that overflow are computed twice, and pass."""
    builder = interpreter.interpreter_builder
    assert not builder.options.sanitize_overflow
    largest, twice = torch.full((4,), 2**31 - 1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    monkeypatch.setattr(builder, "options", interpreter.InterpreterOptions())
    assert builder.options.sanitize_overflow
    doubled[(1,)](twice, largest, 4, True, True, BLOCK=BLOCK)
    assert twice.tolist() == [-2] * 4


@pytest.mark.parametrize("capability", [80, 90])
def test_the_compiler_refuses_what_no_gpu_can_run(capability):
    module = "tests.kernels.planted_kernels"
    types, constants = {"y": "*bf16", "x": "*bf16", "D": "i32"}, {"MASKED_LOAD": True, "MASKED_STORE": True}

    def compiled(block):
        return compile_for(module, "doubled", types, constants | {"BLOCK": block}, capability)

    assert f".target sm_{capability}" in compiled(4) and ".entry doubled" in compiled(4)
    with pytest.raises(CannotCompile, match="arange's range must be a power of 2"):
        compiled(6)
    with pytest.raises(CannotCompile, match="no type given for D"):
        compile_for(module, "doubled", {"y": "*bf16", "x": "*bf16"}, constants | {"BLOCK": 4}, capability)
    with pytest.raises(CannotCompile, match="no argument is called E; it takes y, x, D"):
        compile_for(module, "doubled", types | {"E": "i32"}, constants | {"BLOCK": 4}, capability)
    with pytest.raises(CannotCompile, match="has no attribute 'halved'"):
        compile_for(module, "halved", types, constants, capability)
