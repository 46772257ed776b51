"""An activation store behind a URL: read like a local one, each shard fetched whole when it is first needed.

Shuffled batches read all shards anyway, so the first epoch is the transfer and later ones are local. Shards lie in the
cache folder (`interp.cache`), under a name made of the URL and its manifest; each is compared with
its sha256 as it arrives. The disk has to have room for the shards that are used.
"""

import json
import os
import shutil
import threading
from typing import Any

from interp.cache import cache_dir
from interp.errors import InputError
from interp.manifest import known_format
from interp.remote import Remote
from interp.sealing import MOST_JSON, NOT_JSON, digest, write_json
from interp.shards import Shard, damage
from interp.store import ActivationStore


class RemoteStore(ActivationStore):
    """`store.path` is the folder of the cache; `store.remote.url` says where it comes from."""

    def __init__(self, remote: Remote, manifest: dict[str, Any]) -> None:
        super().__init__(cache_dir() / "stores" / digest([remote.url, manifest])[:24], manifest)
        self.remote = remote
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "source.json", {"url": remote.url})
        self._fetching = threading.Lock()

    def wrong_sizes(self) -> list[str]:
        """Shards that are missing at the URL, or of another size."""
        sizes = self.remote.sizes()
        return [
            f"{entry['name']} is missing"
            if (size := sizes.get(entry["name"])) is None
            else f"{entry['name']} holds {size:,} bytes instead of {entry['bytes']:,}"
            for entry in self.manifest["shards"]
            if sizes.get(entry["name"]) != entry["bytes"]
        ]

    def verify(self) -> None:
        """Fetch every shard and compare it with its sha256; the error names each damaged one."""
        self._refuse([found for entry in self.manifest["shards"] if (found := self._fetch(entry))])

    def shard(self, index: int) -> Shard:
        """Shard `index`, fetched if it is not in the cache."""
        if index not in self._open:
            entry = self.manifest["shards"][index]
            with self._fetching:
                if damage(self.path, entry, contents=False) is not None and (found := self._fetch(entry)):
                    self._refuse([found])
        return super().shard(index)

    def _fetch(self, entry: dict[str, Any]) -> str | None:
        """Fetch a shard; what is wrong with it, or None, and then it is in the cache."""
        partial = self.path / f".{os.getpid()}-{threading.get_ident()}.partial"
        partial.mkdir(exist_ok=True)
        try:
            self.remote.get(entry["name"], partial / entry["name"])
            if (found := damage(partial, entry)) is None:
                os.replace(partial / entry["name"], self.path / entry["name"])
            return found
        except InputError as error:
            return str(error)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def open_remote(url: str) -> RemoteStore:
    """The store at a URL."""
    remote = Remote(url)
    if (size := remote.sizes().get("manifest.json")) is None:
        raise InputError(f"{url} holds no manifest.json, so it is no finished activation store")
    if size > MOST_JSON:
        raise InputError(f"{url}/manifest.json holds {size:,} bytes, more than any activation store has there")
    try:
        manifest = json.loads(remote.read("manifest.json"))
    except NOT_JSON as error:
        raise InputError(f"{url}/manifest.json is damaged, it is not JSON ({error})") from None
    return RemoteStore(remote, known_format(manifest, url))
