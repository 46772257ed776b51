"""The manifest that makes finished shards a store, however many machines computed them."""

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.manifest import contents, next_doc, part_file
from interp.plan import Plan
from interp.sealing import write_json


def seal(
    folder: Path,
    plan: Plan,
    number: int,
    manifest: Mapping[str, Any] | None,
    finished: Mapping[int, dict[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write the manifest with part `number`, all of whose shards are `finished`: from here on the store is whole.

    `facts` are those of the machine that computed them.
    """
    known = manifest or {"parts": [], "shards": []}
    entries = dict(enumerate(known["shards"])) | dict(finished)
    others = [part for place, part in enumerate(known["parts"]) if place != number]
    part = {
        "plan": part_file(number),
        "spec": asdict(plan.spec),
        "rows": plan.rows,
        "shards": len(plan.shard_rows),
        "first_doc": next_doc(others[:number], str(plan.spec.tokens)),
        "file_documents": facts["file_documents"],
        "documents": len(np.unique(plan.buckets.windows.doc)),
        "tokens": plan.n_tokens,
        "excluded": plan.excluded,
        "padding_waste": round(plan.buckets.waste, 6),
        "splits": len(plan.splits),
        "versions": facts["versions"],
    }
    parts = [*others[:number], part, *others[number:]]
    shards = [entry for _, entry in sorted(entries.items())]
    write_json(folder / "manifest.json", contents(plan.row_shapes, plan.layout.dtype, parts, shards))


def joined(plan: Plan, computed: Iterable[tuple[Iterable[int], Plan]]) -> Plan:
    """`plan` with the batches that were run: (shards, the plan they were computed by), which may have cut batches."""
    cut = [(shards, own) for shards, own in computed if own.splits != plan.splits]
    if not cut:
        return plan
    ends = {shard: plan.buckets.ends[_slice(plan, shard)] for shard in range(len(plan.shard_rows))}
    splits = list(plan.splits)
    for shards, own in cut:
        ends |= {shard: own.buckets.ends[_slice(own, shard)] for shard in shards}
        splits += [split for split in own.splits if split not in splits]
    buckets = replace(plan.buckets, ends=np.concatenate([ends[shard] for shard in sorted(ends)]))
    return replace(plan, buckets=buckets, splits=tuple(splits))


def _slice(plan: Plan, shard: int) -> slice:
    batches = plan.batches_of(shard)
    return slice(batches.start, batches.stop)


def facts_here(file_documents: int) -> dict[str, Any]:
    """What the manifest states beside the plan: documents of the token file, and versions of what computes here."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("midlens", "torch", "transformers", "numpy", "safetensors"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"file_documents": file_documents, "versions": found}
