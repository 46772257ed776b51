"""Several finished stores copied into one: their parts one behind the other, renumbered, verified at the end.

What is copied is whole shards and plans; only names, part numbers and `first_doc` change. `ActivationStore.merge` is
the entry.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from interp.errors import InputError
from interp.sealing import differences, partial_name, publish, sync, write_json
from interp.store import ActivationStore, model_side, next_doc, part_file, shard_file


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
    manifest = {**stores[0].manifest, "parts": [], "shards": []}
    for store in stores:
        for part in store.manifest["parts"]:
            plan = part_file(len(manifest["parts"]))
            shutil.copyfile(store.path / part["plan"], partial / plan)
            first_doc = next_doc(manifest["parts"], part["spec"]["tokens"])
            manifest["parts"].append({**part, "plan": plan, "first_doc": first_doc})
        for entry in store.manifest["shards"]:
            name = shard_file(len(manifest["shards"]))
            shutil.copyfile(store.path / entry["name"], partial / name)
            manifest["shards"].append({**entry, "name": name})
    manifest["rows"] = sum(entry["rows"] for entry in manifest["shards"])
    for path in partial.iterdir():
        sync(path)
    write_json(partial / "manifest.json", manifest)
    publish(partial, out)
    merged = ActivationStore.open(out)
    merged.verify()
    return merged
