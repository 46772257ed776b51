"""One extraction in n pieces, each computed wherever and whenever there is a machine for it.

    piece i of n:   shards [(i - 1) S / n], ..., [i S / n] - 1   of the S shards of one plan

A piece is a folder with the whole plan, its own shards, `ledger.jsonl` as in any unfinished store, and `piece.json`,
which says which piece it is. Batches and shards are those of the plan, so the pieces joined are, byte for byte, the
store that one machine would have written (equal plan, hardware and versions). There may be more pieces than shards:
some are then empty.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.sealing import read_json, write_json
from interp.typed import read_object

FILE = "piece.json"


@dataclass(frozen=True)
class Piece:
    """Piece `index` (from 1) of `count`."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise InputError(
                f"piece {self} does not exist: pieces are written i/n with 1 <= i <= n, such as 1/4, 2/4, 3/4 and 4/4"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Piece":
        """Read `i/n`."""
        if not (found := re.fullmatch(r"(-?\d{1,18})/(-?\d{1,18})", text.strip())):
            raise InputError(f"a piece is written i/n, such as 2/4 for the second of four; got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def shards(self, total: int) -> range:
        """Its shards, of `total`."""
        return range((self.index - 1) * total // self.count, self.index * total // self.count)

    def folder(self, out: Path) -> Path:
        """Where it stands beside the store `out` that it becomes a piece of."""
        return out.with_name(out.name + ".pieces") / f"{self.index:05}-of-{self.count:05}"

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Say in `folder` which piece it is, and the facts that the manifest will state."""
        content = {"piece": self.index, "of": self.count, **facts}
        if not (folder / FILE).exists() or read_json(folder / FILE, "piece") != content:
            write_json(folder / FILE, content)


def refuse_other(folder: Path, piece: Piece | None) -> None:
    """An error if `folder` holds another piece, or a piece where a whole store is meant (or the other way round)."""
    held = f"piece {found}" if (found := held_by(folder)) else "a whole store" if _holds_plan(folder) else None
    asked = "a whole store" if piece is None else f"piece {piece}"
    if held is not None and held != asked:
        raise InputError(f"{folder} holds {held}, and {asked} is asked for: give another path")


def held_by(folder: Path) -> Piece | None:
    """The piece that a folder says it holds."""
    if not (folder / FILE).exists():
        return None
    content = read_object(folder / FILE, "piece")
    index, count = content.get("piece"), content.get("of")
    if type(index) is not int or type(count) is not int:
        raise InputError(f"{folder / FILE} is damaged: piece and of are {[index, count]}, expected whole numbers")
    return Piece(index, count)


def _holds_plan(folder: Path) -> bool:
    return (folder / "plan.json").exists() and ((folder / "manifest.json").exists() or any(folder.glob("shard-*")))
