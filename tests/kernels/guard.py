"""Runs Triton kernels in the interpreter with checks that neither it nor the hardware makes.

    with checked(order_seed=3):
        kernel[grid](...)

Inside the block, from launch to launch anew:

* every active lane of a load, store or atomic lies inside a tensor argument (`OutOfBounds`);
* two programs touch the same address only if both read or both use atomics, and one store gives an address one value
  (`Race`): the interpreter runs programs one after another, so a real race would pass unseen;
* with `order_seed` the programs run in a shuffled order, so that what depends on their order shows in the result;
* with `program` that one runs instead of all others, whether or not the grid contains it: a row whose offset exceeds
  2^31 elements costs no more than the first one, in a tensor whose other pages are never touched.

The interpreter wraps what is raised: expect its `InterpreterError`, whose text begins with the name of ours. Works with
the interpreters of Triton 3.6 and 3.9, whose builders differ in the arguments that this passes through.
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

Program = tuple[int, int, int]
HARMLESS = {"load": "load", "store": None, "atomic": "atomic"}  # what other programs may do to the same address
SEVERAL = (-1, -1, -1)  # no program's id


class OutOfBounds(AssertionError):
    """An active lane outside every tensor that the kernel was given."""


class Race(AssertionError):
    """What ends up in memory, or is read from it, depends on who comes first."""


class _Memory:
    """What one launch may touch, and which program has touched what."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self.touched: dict[str, dict[int, Program]] = defaultdict(dict)

    def launch(self, arguments: Iterable[Any]) -> None:
        self.spans = [(t.data_ptr(), t.data_ptr() + _extent(t)) for t in _tensors(arguments) if t.numel()]
        self.touched.clear()

    def touch(self, kind: str, pointers: Any, mask: Any, program: Program) -> None:
        addresses = _active(pointers, mask)
        self._inside(kind, addresses, max(1, pointers.get_element_ty().primitive_bitwidth // 8), program)
        dangers = [(other, by) for other, by in self.touched.items() if other != HARMLESS[kind]]
        mine = self.touched[kind]
        for address in addresses.tolist():
            for other, by in dangers:
                if (who := by.get(address, program)) != program:
                    whose = "several programs" if who == SEVERAL else f"program {who}"
                    raise Race(f"the {kind} of program {program} meets the {other} of {whose} at the same address")
            if mine.setdefault(address, program) != program:
                mine[address] = SEVERAL

    def _inside(self, kind: str, addresses: np.ndarray, size: int, program: Program) -> None:
        good = np.zeros(addresses.shape, bool)
        for start, stop in self.spans:
            good |= (addresses >= start) & (addresses + size <= stop)
        if not good.all():
            outside = f"{np.count_nonzero(~good)} of {good.size} active lanes lie outside every tensor argument"
            raise OutOfBounds(f"{kind}: {outside}, in program {program}")


def _active(block: Any, mask: Any) -> np.ndarray:
    """The entries of a block whose lanes are active; without a mask all of them are."""
    if mask is None:
        return block.data.ravel()
    data, active = np.broadcast_arrays(block.data, mask.data)
    return data[active]


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, TensorDescriptor):
            yield argument.base
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


def _one_value_each(pointers: Any, values: Any, mask: Any, program: Program) -> None:
    addresses = _active(pointers, mask)
    _, first, inverse = np.unique(addresses, return_index=True, return_inverse=True)
    if len(first) == len(addresses):
        return
    stored = np.broadcast_to(values.data, pointers.data.shape)
    stored = stored.ravel() if mask is None else stored[np.broadcast_to(mask.data, stored.shape)]
    if not np.array_equal(stored[first][inverse], stored, equal_nan=True):
        raise Race(f"one store of program {program} gives the same address different values")


@functools.cache
def _shuffled(seed: int, grid: Program) -> list[Program]:
    order = np.random.default_rng(seed).permutation(np.prod(grid))
    return [tuple(map(int, np.unravel_index(i, grid))) for i in order]


@contextlib.contextmanager
def checked(order_seed: int | None = None, program: Program | None = None) -> Iterator[None]:
    """Every launch inside the block is checked; `order_seed` shuffles its programs, `program` runs in their place."""
    builder, executor, memory = interpreter.interpreter_builder, interpreter.GridExecutor, _Memory()
    prepare, choose, load, store, rmw, cas = (
        executor._init_args_hst,
        builder.set_grid_idx,
        builder.create_masked_load,
        builder.create_masked_store,
        builder.create_atomic_rmw,
        builder.create_atomic_cas,
    )

    def launched(self: Any, args: Any, kwargs: Any) -> Any:
        on_host = prepare(self, args, kwargs)
        memory.launch([*on_host[0], *on_host[1].values()])
        return on_host

    def chosen(*place: int) -> None:
        if program is not None:
            builder.set_grid_dim(*(max(size, i + 1) for size, i in zip(builder.grid_dim, program, strict=True)))
            place = program
        elif order_seed is not None:
            place = _shuffled(order_seed, builder.grid_dim)[np.ravel_multi_index(place, builder.grid_dim)]
        choose(*place)

    def loaded(pointers: Any, mask: Any, *rest: Any) -> Any:
        memory.touch("load", pointers, mask, builder.grid_idx)
        return load(pointers, mask, *rest)

    def stored(pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        memory.touch("store", pointers, mask, builder.grid_idx)
        _one_value_each(pointers, values, mask, builder.grid_idx)
        return store(pointers, values, mask, *rest)

    def changed(operation: Any, pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        memory.touch("atomic", pointers, mask, builder.grid_idx)
        return rmw(operation, pointers, values, mask, *rest)

    def swapped(pointers: Any, *rest: Any) -> Any:
        memory.touch("atomic", pointers, None, builder.grid_idx)
        return cas(pointers, *rest)

    with (
        mock.patch.object(executor, "_init_args_hst", launched),
        mock.patch.object(builder, "set_grid_idx", chosen),
        mock.patch.object(builder, "create_masked_load", loaded),
        mock.patch.object(builder, "create_masked_store", stored),
        mock.patch.object(builder, "create_atomic_rmw", changed),
        mock.patch.object(builder, "create_atomic_cas", swapped),
    ):
        yield
