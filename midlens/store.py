"""`midlens store info PATH`, `midlens store verify PATH` and `midlens store merge PATHS... --out PATH`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from interp.errors import InputError
from midlens.console import Command, finish, say

if TYPE_CHECKING:
    from interp.store import ActivationStore


@dataclass(frozen=True)
class Store(Command):
    """Describe an activation store, compare every shard with its checksum (status 1 if one is damaged), or merge."""

    example: ClassVar[str] = "midlens store verify runs/store"
    figures: ClassVar[str] = "rows, sites, shards, damage (what is wrong, or null)"

    action: Annotated[Literal["info", "verify", "merge"], tyro.conf.Positional]
    """`info` prints what the store holds and from what; `verify` reads every byte; `merge` joins pieces, or stores."""
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """An activation store, or its URL; for `merge`, all pieces of an extraction, or several stores."""
    out: Path | None = None
    """The new store that `merge` writes."""

    def run(self) -> int:
        """Print; 1 if something is damaged."""
        from interp.distributed import combine
        from interp.store import ActivationStore, Damaged
        from interp.store_info import describe_store

        self._check()
        try:
            if self.out is not None:
                store = combine(self.paths, self.out)
                return finish(self.out, figures=_figures(store))
            store = ActivationStore.open(self.paths[0])
            if self.action == "info":
                say(describe_store(store))
            else:
                store.verify()
        except Damaged as error:
            say(f"FAILED: {error}")
            return finish(figures={"damage": str(error)}, status=1)
        if self.action == "verify":
            say(f"passed: {len(store.manifest['shards'])} shards, {len(store):,} rows, every sha256 as written")
        return finish(figures=_figures(store))

    def _check(self) -> None:
        if (self.action == "merge") != (self.out is not None):
            raise InputError("store merge needs --out, the store to write; info and verify take none")
        if self.action != "merge" and len(self.paths) != 1:
            raise InputError(f"store {self.action} takes one path, got {len(self.paths)}")


def _figures(store: "ActivationStore") -> dict[str, object]:
    sites, shards = list(map(str, store.sites)), len(store.manifest["shards"])
    return {"rows": len(store), "sites": sites, "shards": shards, "damage": None}
