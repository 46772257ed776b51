"""Several finished stores copied into one: their parts one behind the other, renumbered, verified at the end.

What is copied is whole shards and plans; only names, part numbers and `first_doc` change. `ActivationStore.merge` is
the entry.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.manifest import contents, model_side, next_doc, part_file, shard_file
from interp.sealing import differences, partial_name, publish, sync, write_json
from interp.store import ActivationStore


def merge(stores: Sequence[ActivationStore], out: Path) -> ActivationStore:
    """Copy `stores` into a new one at `out`, and verify it."""
    if not stores:
        raise InputError("merge needs at least one store")
    if out.exists():
        raise InputError(f"{out} exists already; merge writes a new store")
    for store in stores[1:]:
        if difference := differences(model_side(stores[0].manifest), model_side(store.manifest)):
            raise InputError(f"{stores[0].path} and {store.path} cannot be merged: {difference}")
    specs = [spec for store in stores for spec in store.specs]
    if len(set(specs)) < len(specs):
        raise InputError("two of the stores to merge hold the same rows, which would stand in the result twice")
    partial = partial_name(out)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parts: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    for store in stores:
        for part in store.manifest["parts"]:
            plan = part_file(len(parts))
            shutil.copyfile(store.path / part["plan"], partial / plan)
            first_doc = next_doc(parts, part["spec"]["tokens"])
            parts.append({**part, "plan": plan, "first_doc": first_doc})
        for entry in store.manifest["shards"]:
            name = shard_file(len(shards))
            shutil.copyfile(store.path / entry["name"], partial / name)
            shards.append({**entry, "name": name})
    for path in partial.iterdir():
        sync(path)
    first = stores[0].manifest
    write_json(partial / "manifest.json", contents(first["row_shapes"], first["dtype"], parts, shards))
    publish(partial, out)
    merged = ActivationStore.open(out)
    merged.verify()
    return merged
