"""What is finished of a store under construction: the ledger, the parts, and which shards can be trusted.

    ledger.jsonl    one line per shard finished since the manifest was written; appended and fsynced after the shard got
                    its name. The manifest takes the entries over and the ledger is deleted.

A shard counts as finished when manifest or ledger know it and its bytes have the sha256 written there. Everything else
is computed (again). A line cut off by a crash is ignored, so the shard it speaks of is computed again: one shard, at
most.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.manifest import known_format, model_side, part_file, wrong_entry
from interp.plan import Plan
from interp.sealing import NOT_JSON, WRITER, differences, read_json, sync, write_sealed
from interp.shards import damage
from interp.store import StoreSpec

_LEDGER = "ledger.jsonl"
_SENT = "sent.jsonl"
"""The same of shards that are no longer in this folder (`interp.remote_extract`)."""


@dataclass(frozen=True)
class Progress:
    """What a folder holds, read once."""

    folder: Path
    manifest: dict[str, Any] | None
    entries: dict[int, dict[str, Any]]
    """What manifest and ledger say of each shard, by its number; not yet compared with the bytes."""
    plans: tuple[Plan, ...]
    elsewhere: frozenset[int] = frozenset()
    """Shards that were sent away whole, and are not to be looked for here."""

    @classmethod
    def of(cls, folder: Path) -> "Progress":
        """Read manifest, ledger and plans of a folder, which may be empty or missing."""
        plans: list[Plan] = []
        while (path := folder / part_file(len(plans))).exists():
            plans.append(Plan.load(path))
        if folder.exists() and not plans and (strange := [p.name for p in folder.iterdir() if not _ours(p)]):
            raise InputError(
                f"{folder} is no activation store and not empty (it holds {strange[0]!r}); give a new path"
            )
        manifest = None
        if (folder / "manifest.json").exists():
            manifest = known_format(read_json(folder / "manifest.json", "activation store"), str(folder))
        entries = dict(enumerate(manifest["shards"])) if manifest else {}
        sent = _read(folder / _SENT)
        return cls(folder, manifest, entries | _read(folder / _LEDGER) | sent, tuple(plans), frozenset(sent))

    def finished(self, shards: range) -> dict[int, dict[str, Any]]:
        """The entries of those `shards` whose bytes are what their entry says."""
        return {n: e for n in shards if (e := self.entries.get(n)) and self._is_whole(n, e)}

    def _is_whole(self, number: int, entry: dict[str, Any]) -> bool:
        return number in self.elsewhere or damage(self.folder, entry) is None

    def part(self, spec: StoreSpec, shape: dict[str, int | None], *, append: bool) -> int:
        """The number of the part made, or to be made, with these settings; a store with other settings is refused.

        Entries of `shape` (token_budget, rows_per_shard) that are None take whatever the existing plan has.
        """
        asked = asdict(spec)
        for number, plan in enumerate(self.plans):
            own = {name: getattr(plan, name) for name, value in shape.items() if value is not None}
            found, wanted = asdict(plan.spec) | own, asked | {name: shape[name] for name in own}
            if not (difference := differences(found, wanted)):
                return number
            if not append and number == len(self.plans) - 1:
                raise InputError(
                    f"{self.folder} holds a store made with other settings ({difference}). Give another path, delete "
                    "the folder, or pass append=True to add these rows behind the others"
                )
        if self.plans and (self.manifest is None or len(self.manifest["parts"]) < len(self.plans)):
            raise InputError(
                f"the last extraction into {self.folder} was not finished: finish it, with its own settings, before "
                "appending to it"
            )
        if self.manifest is not None:
            self._appendable(spec)
        return len(self.plans)

    def _appendable(self, spec: StoreSpec) -> None:
        assert self.manifest is not None
        shared = {name: value for name, value in model_side(self.manifest).items() if name != "row_shapes"}
        asked = {name: json.loads(json.dumps(value)) for name, value in asdict(spec).items() if name in shared}
        if difference := differences(shared, asked):
            raise InputError(f"{self.folder} cannot be appended to, the rows would be of another kind: {difference}")

    def first_shard(self, part: int) -> int:
        """The number of the first shard of a part."""
        return sum(len(plan.shard_rows) for plan in self.plans[:part])


def _ours(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def _read(path: Path) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except NOT_JSON:
            continue
        if isinstance(entry, dict) and _is_entry(entry):
            entries[entry.pop("shard")] = entry
    return entries


def _is_entry(found: dict[str, Any]) -> bool:
    """Whether a line says of a shard what is to be known of it; its file is named, never a path."""
    known = found.keys() - {"error"} == {"shard", "name", "rows", "bytes", "sha256"}
    return known and type(found["shard"]) is int and wrong_entry(found, found["shard"]) is None


def rewrite(folder: Path, entries: dict[int, dict[str, Any]], *, elsewhere: bool = False) -> None:
    """Start the ledger with these entries, without what a crash or damage left in it."""
    lines = (json.dumps({"shard": number, **entry}) + "\n" for number, entry in sorted(entries.items()))
    write_sealed(folder / (_SENT if elsewhere else _LEDGER), "".join(lines))


def record(folder: Path, number: int, entry: dict[str, Any], *, elsewhere: bool = False) -> None:
    """Add a finished shard."""
    path = folder / (_SENT if elsewhere else _LEDGER)
    with open(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o644)) as file:
        file.write(json.dumps({"shard": number, **entry}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def close(folder: Path) -> None:
    """The manifest is written: the ledger has no more to say, and leftovers of killed runs go too."""
    (folder / _LEDGER).unlink(missing_ok=True)
    clean(folder)
    sync(folder)


def clean(folder: Path) -> None:
    """Remove temporary files of runs that were killed, and folders of workers."""
    for path in folder.glob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # whoever still writes there finds its folder gone
        elif path.name != WRITER:
            path.unlink()


def overlapping(plans: Sequence[Plan], spec: StoreSpec, docs: Sequence[int] | None, total: int) -> int:
    """How many of the documents to append the store holds already (of the same token file)."""
    held: set[int] = set()
    for plan in plans:
        if plan.spec.tokens == spec.tokens:
            held |= set(plan.buckets.windows.doc.tolist())
    return len(held & set(range(total) if docs is None else docs))
