"""`midlens store info PATH` and `midlens store verify PATH`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from midlens.console import Command, finish, say


@dataclass(frozen=True)
class Store(Command):
    """Describe an activation store, or compare every shard with its checksum (status 1 if one is damaged)."""

    example: ClassVar[str] = "midlens store verify runs/store"
    figures: ClassVar[str] = "rows, sites, shards, damage (what is wrong, or null)"

    action: Annotated[Literal["info", "verify"], tyro.conf.Positional]
    """`info` prints what the store holds and from what; `verify` reads every byte."""
    path: Annotated[Path, tyro.conf.Positional]
    """An activation store."""

    def run(self) -> int:
        """Print; 1 if something is damaged."""
        from interp.store import ActivationStore, Damaged
        from interp.store_info import describe_store

        try:
            store = ActivationStore.open(self.path)
            if self.action == "info":
                say(describe_store(store))
            else:
                store.verify()
        except Damaged as error:
            say(f"FAILED: {error}")
            return finish(figures={"damage": str(error)}, status=1)
        shards = len(store.manifest["shards"])
        if self.action == "verify":
            say(f"passed: {shards} shards, {len(store):,} rows, every sha256 as written")
        sites = list(map(str, store.sites))
        return finish(figures={"rows": len(store), "sites": sites, "shards": shards, "damage": None})
