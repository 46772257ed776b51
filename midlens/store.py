"""`midlens store info PATH` and `midlens store verify PATH`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from midlens.console import say


@dataclass(frozen=True)
class Store:
    """Describe an activation store, or compare every shard with its checksum (status 1 if one is damaged)."""

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
                return 0
            store.verify()
        except Damaged as error:
            say(f"FAILED: {error}")
            return 1
        say(f"passed: {len(store.manifest['shards'])} shards, {len(store):,} rows, every sha256 as written")
        return 0
