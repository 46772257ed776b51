"""What a fuzz target is, and the one place that runs one: an input gives a value or one of the errors it may raise.

@target("piece", "json")
def _(folder: Path) -> Prepared: ...       fixed files are written once; `parse` gets the bytes of the changed one
"""

import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing.guard import Breach, guarded
from fuzzing.mutate import DEEP, HUGE, Kind

from interp.errors import InputError


class Prepared(NamedTuple):
    """A target ready to run."""

    parse: Callable[[bytes], Any]
    """Reads one input and uses what it got; everything it raises but the target's own errors is a finding."""
    seeds: Sequence[bytes]
    """Valid inputs, each of which must give a value."""
    file: Path | None = None
    """Where each input is written before `parse`."""


@dataclass(frozen=True)
class Target:
    """One parser: how to set it up, the kind of its inputs, and the errors it documents."""

    name: str
    kind: Kind
    group: str
    """The module of this folder that has it."""
    setup: Callable[[Path], Prepared]
    errors: tuple[type[BaseException], ...] = (InputError,)
    repairs: bool = False
    """Whether reading cuts off a last line that a kill left half-written: the one thing that may then be written."""


TARGETS: dict[str, Target] = {}


def target(
    name: str, kind: Kind, *errors: type[BaseException], repairs: bool = False
) -> Callable[[Callable[[Path], Prepared]], None]:
    """Register the decorated setup; `errors` are documented ones beside `InputError`."""

    def register(setup: Callable[[Path], Prepared]) -> None:
        assert name not in TARGETS, name
        group = setup.__module__.rpartition(".")[2]
        TARGETS[name] = Target(name, kind, group, setup, (InputError, *errors), repairs)

    return register


class Runner:
    """A target in a temporary folder of its own."""

    def __init__(self, of: Target, folder: Path | None = None) -> None:
        self.target, self._close = of, ExitStack()
        if folder is None:
            memory = Path("/dev/shm")
            where = str(memory) if memory.is_dir() else None
            folder = Path(self._close.enter_context(tempfile.TemporaryDirectory(prefix="midlens-fuzz-", dir=where)))
        self.parse, self.seeds, self.file = of.setup(folder)
        for seed in self.seeds:  # lazy imports and compilations happen here, and a seed that is refused shows at once
            self._write(seed)
            self.parse(seed)

    def close(self) -> None:
        """Remove the folder."""
        self._close.close()

    def run(self, data: bytes) -> str:
        """`value` or `refused`; anything else is raised."""
        self._write(data)
        try:
            with guarded(repairs=self.target.repairs):
                self.parse(data)
        except self.target.errors as error:
            if isinstance(error, InputError):
                assert str(error).strip(), "an InputError without a text"
            return "refused"
        return "value"

    def finding(self, data: bytes) -> str | None:
        """The kind of a failure (`TypeError in interp/plan.py:load`), None where the contract holds."""
        try:
            self.run(data)
        except (Exception, Breach, RecursionError, MemoryError) as error:
            return signature(error)
        return None

    def _write(self, data: bytes) -> None:
        if self.file is not None:
            self.file.write_bytes(data)


def extremes(kind: Kind) -> list[bytes]:
    """Inputs that every format of a kind meets: nothing, nesting, long numbers, other encodings, other formats."""
    plain = [b"", b"\x00", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"PK\x03\x04", b"\x80\x04N.", b"GGUF"]
    if kind in ("json", "jsonl"):
        deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
        return [*plain, DEEP, deep, HUGE, b"null", b"[]", b"{}", b"1", b'""', b"NaN", b'"\\ud800"', b'{"":[]}', b"[[]]"]
    if kind == "safetensors":
        heads = (b"{}", DEEP, HUGE, b"null", b"[]", b'{"a":1}', b'{"__metadata__":{"midlens":"[[["}}')
        return [*plain, *(len(head).to_bytes(8, "little") + head for head in heads), (2**63).to_bytes(8, "little")]
    return [*plain, HUGE, "٣".encode(), b"\xed\xa0\x80"]


def signature(error: BaseException) -> str:
    """The type of an error and the innermost function of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(f"/{package}/" in f.filename for package in ("interp", "saes", "midlens"))]
    ours = [f for f in ours if "site-packages" not in f.filename]
    if not ours:
        return f"{type(error).__name__} in the target itself: {error!s:.120}"
    last = ours[-1]
    module = next(last.filename[last.filename.rindex(f"/{p}/") + 1 :] for p in ("interp", "saes", "midlens")
                  if f"/{p}/" in last.filename)  # fmt: skip
    return f"{type(error).__name__} in {module}:{last.name}"
