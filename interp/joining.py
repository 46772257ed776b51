"""The pieces of one extraction joined into the store that one machine would have written.

Shards and plan are linked (copied where they lie on another disk), everything is compared with its checksum, and the
manifest is written last. `join` is the entry; what makes a piece is `interp.pieces`.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from interp import ledger
from interp.errors import InputError
from interp.finishing import joined, seal
from interp.manifest import part_file
from interp.pieces import FILE, Piece, held_by
from interp.plan import Plan
from interp.sealing import differences, partial_name, publish, read_json, sync
from interp.shards import damage
from interp.store import ActivationStore


@dataclass(frozen=True)
class _Held:
    """A finished piece."""

    folder: Path
    piece: Piece
    facts: dict[str, Any]
    plan: Plan
    entries: dict[int, dict[str, Any]]

    @property
    def shards(self) -> range:
        return self.piece.shards(len(self.plan.shard_rows))


def join(folders: Sequence[Path], out: Path) -> ActivationStore:
    """Join all pieces of one plan into a new store at `out`, and verify it."""
    if out.exists():
        raise InputError(f"{out} exists already; joining pieces writes a new store")
    pieces = _complete([_read(folder) for folder in folders])
    for piece in pieces[1:]:
        _same(pieces[0], piece)
    for piece in pieces:
        _finished(piece)
    partial = partial_name(out)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    entries: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for shard in piece.shards:
            entries[shard] = piece.entries[shard]
            link(piece.folder / entries[shard]["name"], partial / entries[shard]["name"])
    least_cut = min((piece.plan for piece in pieces), key=lambda plan: len(plan.splits))
    plan = joined(least_cut, [(piece.shards, piece.plan) for piece in pieces])
    plan.save(partial / part_file(0))
    seal(partial, plan, 0, None, entries, pieces[0].facts)
    publish(partial, out)
    store = ActivationStore.open(out)
    store.verify()
    return store


def link(source: Path, target: Path) -> None:
    """`target` becomes another name of `source`, or a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def _read(folder: Path) -> _Held:
    piece = held_by(folder)
    if piece is None:
        raise InputError(f"{folder} is no piece of an extraction (it holds no {FILE})")
    found = ledger.Progress.of(folder)
    if not found.plans:
        raise InputError(f"{folder} holds no plan; run piece {piece} again")
    facts = read_json(folder / FILE, "piece")
    if not isinstance(facts.get("versions"), dict) or type(facts.get("file_documents")) is not int:
        raise InputError(f"{folder / FILE} does not say by which versions it was computed; run piece {piece} again")
    return _Held(folder, piece, facts, found.plans[0], found.entries)


def _complete(pieces: Sequence[_Held]) -> list[_Held]:
    """The pieces in order; an error unless each of them is there once."""
    if not pieces:
        raise InputError("no piece to join; name the folders of all of them")
    counts = {held.piece.count for held in pieces}
    if len(counts) > 1:
        names = ", ".join(f"{held.folder} is {held.piece}" for held in pieces)
        raise InputError(f"these are pieces of different divisions: {names}")
    by_index: dict[int, _Held] = {}
    for held in pieces:
        if (other := by_index.setdefault(held.piece.index, held)) is not held:
            raise InputError(f"piece {held.piece} is there twice: {other.folder} and {held.folder}")
    count = counts.pop()
    if len(by_index) < count:
        missing = islice((str(Piece(index, count)) for index in range(1, count + 1) if index not in by_index), 9)
        raise InputError(f"{count - len(by_index)} of {count} pieces are missing: {', '.join(missing)}")
    return [by_index[index] for index in sorted(by_index)]


def _same(first: _Held, other: _Held) -> None:
    """An error unless both are of one plan, computed by the same versions."""
    said = f"{first.folder} and {other.folder} are not pieces of one extraction"
    if difference := differences(vars(first.plan.spec), vars(other.plan.spec)):
        raise InputError(f"{said}: {difference}")
    sizes = [{name: getattr(held.plan, name) for name in ("token_budget", "rows_per_shard")} for held in (first, other)]
    if difference := differences(*sizes):
        raise InputError(f"{said} ({difference}): give every piece the same token_budget and rows_per_shard")
    if not np.array_equal(first.plan.shard_windows, other.plan.shard_windows):
        raise InputError(f"{said}: their shards differ")
    if difference := differences(first.facts["versions"], other.facts["versions"]):
        raise InputError(f"{said}, other versions computed them: {difference}")


def _finished(held: _Held) -> None:
    """An error unless every shard of the piece is there and whole."""
    known = {shard: held.entries.get(shard) for shard in held.shards}
    if missing := [str(shard) for shard, entry in known.items() if entry is None]:
        raise InputError(
            f"piece {held.piece} in {held.folder} is not finished, {len(missing)} of its {len(known)} shards are "
            f"missing ({', '.join(missing[:9])}): run it again, it goes on where it stopped"
        )
    if wrong := [found for entry in known.values() if entry and (found := damage(held.folder, entry))]:
        raise InputError(f"{held.folder}: {'; '.join(wrong)}. Run piece {held.piece} again, it recomputes only that")
