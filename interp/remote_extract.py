"""Extraction to a URL: shards are written to a local spool, sent while the next are computed, and removed there.

    spool:   plan, ledger, up to `interp.extraction.SPOOLED` shards
    URL:     plan.json, shard-k, entry-k.json (what the ledger says of shard k) ..., manifest.json; then no entries

Whoever calls again, on whatever machine, goes on: a shard is finished if its entry is at the URL and the shard has the
size written there. Shards that a killed run left whole in the spool are sent, not computed. At the end the URL holds
the files of a local store, byte for byte.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp import ledger
from interp.background import Background
from interp.cache import cache_dir
from interp.errors import InputError
from interp.extraction import SPOOLED, Entry, Extraction
from interp.manifest import known_format, part_file, wrong_entry
from interp.remote import Remote
from interp.sealing import NOT_JSON, digest, only_writer, read_json, write_sealed
from interp.store import ActivationStore

_ENTRY = "entry-{:05}.json"


def spool_of(url: str) -> Path:
    """Where the shards of a URL are written before they are sent."""
    return cache_dir() / "spool" / digest(url)[:24]


def extract_to(
    remote: Remote,
    prepare: Callable[[Path], Extraction],
    *,
    announce: Callable[[str], None] | None = None,
    progress: bool | None = None,
) -> ActivationStore:
    """Run the extraction that `prepare` plans for a local folder, with its store at `remote`."""
    spool = spool_of(remote.url)
    spool.mkdir(parents=True, exist_ok=True)
    with only_writer(spool):
        _pull(remote, spool)
    extraction = prepare(spool)
    if announce is not None:
        announce(f"{extraction.describe()}\nto          {remote.url}, by way of {spool}")
    sender = _Sender(remote, spool, extraction)
    try:
        with sender.thread:
            for number in sorted(extraction.finished):
                sender.keep(number, extraction.finished[number])
            extraction.keep = sender.keep
            extraction.fill(progress=progress)
    except InputError as error:
        left = len(list(spool.glob("shard-*")))
        raise InputError(
            f"{error}. {sender.sent} shards are at {remote.url} and {left} finished ones in {spool}: all are kept, run "
            "the same command again to go on"
        ) from error
    _publish(remote, spool)
    shutil.rmtree(spool, ignore_errors=True)
    return ActivationStore.open(remote.url)


class _Sender:
    """Sends shards in a thread of its own, one after the other; the spool holds few."""

    def __init__(self, remote: Remote, spool: Path, extraction: Extraction) -> None:
        self.remote, self.spool, self.extraction = remote, spool, extraction
        self.there = set(ledger.Progress.of(spool).elsewhere)
        self.thread = Background("send", depth=SPOOLED - 2)
        self.sent = len(self.there)
        self._plan = b""

    def keep(self, number: int, entry: Entry) -> None:
        """Send a shard unless it is there; waits while too many are on their way."""
        if number not in self.there:
            self.thread.do(lambda: self._send(number, entry))

    def _send(self, number: int, entry: Entry) -> None:
        plan = self.spool / part_file(self.extraction.part)
        if (content := plan.read_bytes()) != self._plan:
            self.remote.put(plan, plan.name)
            self._plan = content
        self.remote.put(self.spool / entry["name"], entry["name"])
        self.remote.write(_ENTRY.format(number), json.dumps({"shard": number, **entry}).encode())
        ledger.record(self.spool, number, entry, elsewhere=True)
        (self.spool / entry["name"]).unlink()
        self.sent += 1


def _pull(remote: Remote, spool: Path) -> None:
    """Plans, manifest and entries of what is at the URL, into the spool, which has the shards only."""
    sizes = remote.sizes()
    if strange := [name for name in sizes if not _ours(name)]:
        raise InputError(f"{remote.url} is no activation store and not empty (it holds {strange[0]!r}); give a new URL")
    for name in sizes:
        if name.startswith("plan") or name == "manifest.json":
            write_sealed(spool / name, remote.read(name))
    entries: dict[int, dict[str, Any]] = {}
    if "manifest.json" in sizes:
        held = known_format(read_json(spool / "manifest.json", "activation store"), remote.url)
        entries = dict(enumerate(held["shards"]))
    for name in sizes:
        if name.startswith("entry-"):
            entry = _entry(remote, name)
            entries[entry.pop("shard")] = entry
    there = {number: entry for number, entry in entries.items() if sizes.get(entry["name"]) == entry["bytes"]}
    if there or any(spool.glob("plan*.json")):  # an empty folder stays one
        ledger.rewrite(spool, there, elsewhere=True)


def _entry(remote: Remote, name: str) -> dict[str, Any]:
    """What an object says of a shard that was sent."""
    entry: dict[str, Any] = {}
    try:
        entry = json.loads(remote.read(name))
        number = entry["shard"]
        wrong = wrong_entry(entry, number) if name == _ENTRY.format(number) else f"it speaks of shard {number!r:.40}"
    except (KeyError, TypeError, *NOT_JSON) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise InputError(f"{remote.url}/{name} is damaged ({wrong}); remove it, and its shard is computed again")
    return entry


def _ours(name: str) -> bool:
    return name.startswith(("plan", "shard-", "entry-", ".")) or name == "manifest.json"


def _publish(remote: Remote, spool: Path) -> None:
    """The manifest, after all that it speaks of; then what only an unfinished store needs goes."""
    for path in sorted(spool.glob("plan*.json")):
        remote.put(path, path.name)
    remote.put(spool / "manifest.json", "manifest.json")
    for name in remote.sizes():
        if name.startswith("entry-"):
            remote.remove(name)
