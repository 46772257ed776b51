"""The kernels of `interp.sudoku.kernels`, compiled where numba is installed and plain Python where it is not.

numba keeps what it compiled in `__pycache__`, or in the user's cache where that cannot be written. It notices a changed
file, but not a changed kernel of another file that it has compiled in; so the name under which it caches carries a
digest of all of them.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from interp.sudoku.board import Rules
from interp.sudoku.kernels import puzzles, random, search, traces

MODULES: tuple[ModuleType, ...] = (random, search, puzzles, traces)


def numba() -> Any:
    """The package, or None where it is missing."""
    try:
        import numba
    except ImportError:
        return None
    return numba


class Kernels:
    """The kernels by name, and arrays of the kind they take: NumPy's where compiled, else lists, which Python indexes
    faster."""

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.call = SimpleNamespace(**(_compiled() if compiled else _functions()))

    def zeros(self, size: int) -> Any:
        return np.zeros(size, np.int64) if self.compiled else [0] * size

    def given(self, array: np.ndarray) -> Any:
        flat = np.array(array, np.int64).ravel()
        return flat if self.compiled else flat.tolist()

    def tables(self, rules: Rules) -> tuple[int, Any, Any]:
        """n, cells of the units, units of the cells."""
        return rules.n, self.given(rules.units), self.given(rules.units_of)


def kernels() -> Kernels:
    """Compiled if numba is there."""
    return _kernels(numba() is not None)


@lru_cache
def _kernels(compiled: bool) -> Kernels:
    return Kernels(compiled)


def _functions() -> dict[str, Callable[..., Any]]:
    found = {}
    for module in MODULES:
        found |= {
            k: f for k, f in vars(module).items() if isinstance(f, FunctionType) and f.__module__ == module.__name__
        }
    return found


def _compiled() -> dict[str, Any]:
    """The functions again, each calling the compiled others."""
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in MODULES)
    mark = hashlib.sha256(sources).hexdigest()[:12]
    shared: dict[str, Any] = {"__builtins__": __builtins__, "__name__": __name__}
    for module in MODULES:
        shared |= {name: value for name, value in vars(module).items() if isinstance(value, int)}
    functions = _functions()
    for name, function in functions.items():
        copy = FunctionType(function.__code__, shared, name)
        copy.__qualname__ = f"{name}-{mark}"
        shared[name] = numba().njit(nogil=True, cache=True)(copy)
    return {name: shared[name] for name in functions}
