"""Attacks on activation stores, their plans, ledgers and pieces, on token files, and on stores behind URLs."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile_samples import Attack, Open, canary, sparse
from tests.toy_store import SITES, ToyModel, token_file

HUGE = 10**15
DEEP = "[" * 100_000 + "]" * 100_000
NAMES = {
    "up and out": "../../pwned.safetensors",
    "an absolute path": "/etc/passwd",
    "a subfolder": "sub/shard-00000.safetensors",
    "the folder itself": ".",
    "a NUL": "shard\0.safetensors",
    "no text": 7,
    "nothing": None,
    "a list": ["shard-00000.safetensors"],
    "the name of another shard": "shard-00001.safetensors",
    "4 MB long": "x" * (1 << 22),
}


def store_in(folder: Path, **options: Any) -> Path:
    """A good store of three shards in `folder/store`, made from `folder/tokens`."""
    from interp.extract import extract

    tokens = token_file(folder / "tokens", [5, 9, 3, 12])
    settings = {"token_budget": 16, "rows_per_shard": 10, "progress": False, **options}
    extract(ToyModel(), tokens, SITES, folder / "store", **settings)
    return folder / "store"


def used(store: Any) -> None:
    """What a reader asks of a store first."""
    from interp.store_info import describe_store

    assert describe_store(store)
    for site in store.sites:
        store.rows(site, 0, min(3, len(store)))
    next(store.batches(store.sites, 4, seed=0))
    store.keys(0, min(5, len(store)))


def _open(path: Path) -> Open:
    from interp.store import ActivationStore

    return lambda: used(ActivationStore.open(path))


def _resumed(folder: Path) -> Open:
    """The same extraction again, as after a crash."""

    def again() -> None:
        from interp.extract import extract
        from interp.tokenfile import TokenFile

        settings: dict[str, Any] = {"token_budget": 16, "rows_per_shard": 10, "progress": False}
        extract(ToyModel(), TokenFile.open(folder / "tokens"), SITES, folder / "store", **settings)

    return again


def changed_json(path: Path, change: Callable[[Any], Any]) -> None:
    """The file with a value changed in place, or with what `change` returns."""
    value = json.loads(path.read_text())
    found = change(value)
    path.write_text(json.dumps(value if found is None else found))


def _manifest(change: Callable[[Any], Any]) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = store_in(folder)
        changed_json(path / "manifest.json", change)
        return _open(path)

    return prepare


def _set(*where: str | int, to: Any) -> Callable[[Any], None]:
    """Change one value inside a nest."""

    def change(value: Any) -> None:
        for step in where[:-1]:
            value = value[step]
        if to is _GONE:
            del value[where[-1]]
        else:
            value[where[-1]] = to

    return change


_GONE = object()
SITE = "blocks.1.hook_resid_post"
MANIFESTS: dict[str, Callable[[Any], Any]] = {
    **{f"a shard named {name}": _set("shards", 0, "name", to=value) for name, value in NAMES.items()},
    **{f"a plan named {name}": _set("parts", 0, "plan", to=value) for name, value in NAMES.items()},
    "10**15 rows": _set("shards", 0, "rows", to=HUGE),
    "-5 rows": _set("shards", 0, "rows", to=-5),
    "no rows": _set("shards", 0, "rows", to=0),
    "rows as text": _set("shards", 0, "rows", to="10"),
    "rows as a fraction": _set("shards", 0, "rows", to=9.5),
    "rows as NaN": _set("shards", 0, "rows", to=float("nan")),
    "rows true": _set("shards", 0, "rows", to=True),
    "more rows than bytes": _set("shards", 0, "rows", to=100),
    "fewer rows than there are": _set("shards", 0, "rows", to=1),
    "10**15 bytes": _set("shards", 0, "bytes", to=HUGE),
    "-1 bytes": _set("shards", 0, "bytes", to=-1),
    "no checksums": _set("shards", 0, "sha256", to=_GONE),
    "checksums that are a list": _set("shards", 0, "sha256", to=[1]),
    "checksums of other tensors": _set("shards", 0, "sha256", "evil", to="0" * 64),
    "a checksum that is none": _set("shards", 0, "sha256", "header", to="x"),
    "a shard that is a number": _set("shards", 0, to=3),
    "shards that are no list": _set("shards", to={"a": 1}),
    "no shards": _set("shards", to=[]),
    "a shard twice": lambda m: m["shards"].append(m["shards"][0]),
    "no parts": _set("parts", to=[]),
    "a part that is a number": _set("parts", 0, to=3),
    "10**15 shards in a part": _set("parts", 0, "shards", to=HUGE),
    "-1 shards in a part": _set("parts", 0, "shards", to=-1),
    "documents from 10**30 on": _set("parts", 0, "first_doc", to=10**30),
    "documents from -1 on": _set("parts", 0, "first_doc", to=-1),
    "no spec": _set("parts", 0, "spec", to=_GONE),
    "a spec that is a list": _set("parts", 0, "spec", to=[]),
    "a spec with an unknown field": _set("parts", 0, "spec", "evil", to=1),
    "a spec nested": _set("parts", 0, "spec", "model", to={"a": {}}),
    "left out without numbers": _set("parts", 0, "excluded", to={"first_position": "all"}),
    "padding as text": _set("parts", 0, "padding_waste", to="much"),
    "versions that are a list": _set("parts", 0, "versions", to=[1]),
    "an unknown dtype": _set("dtype", to="float1024"),
    "a dtype of objects": _set("dtype", to="object"),
    "a dtype that is a list": _set("dtype", to=["float32"]),
    "an unknown site": lambda m: m["row_shapes"].update({"blocks.0.hook_evil": [6]}),
    "a site that leads out": lambda m: m["row_shapes"].update({"../../evil": [6]}),
    "a site of layer 10**5000": lambda m: m["row_shapes"].update({f"blocks.{'9' * 5000}.hook_resid_post": [6]}),
    "another site than stored": _set("row_shapes", to={"blocks.7.hook_resid_post": [6]}),
    "no sites": _set("row_shapes", to={}),
    "sites that are a list": _set("row_shapes", to=[SITE]),
    "a width of 10**12": _set("row_shapes", SITE, to=[10**12]),
    "a width of -6": _set("row_shapes", SITE, to=[-6]),
    "a width of 0": _set("row_shapes", SITE, to=[0]),
    "widths that multiply to 2**124": _set("row_shapes", SITE, to=[2**31] * 4),
    "a width of another shape, same size": _set("row_shapes", SITE, to=[2, 3]),
    "a width as text": _set("row_shapes", SITE, to=["6"]),
    "errors that are a list": _set("error", to=[1]),
    "another format": _set("format", to="midlens-evil"),
    "version 99": _set("version", to=99),
    "a version that is a list": _set("version", to=[1]),
    "a list": lambda _: [],
    "a number": lambda _: 3,
    "null inside": _set("parts", to=None),
}


def _file(name: str, content: str | bytes) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        path = store_in(folder)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return _open(path)

    return prepare


def _sparse_manifest(folder: Path) -> Open:
    path = store_in(folder)
    sparse(path / "manifest.json", 1 << 36, b'{"format": "')
    return _open(path)


def _shard(header: Callable[[dict[str, Any]], Any], *, length: int | None = None) -> Callable[[Path], Open]:
    """A shard whose header was changed, of the old size, with a manifest that agrees."""

    def prepare(folder: Path) -> Open:
        path = store_in(folder)
        shard = path / "shard-00000.safetensors"
        content = shard.read_bytes()
        size = int.from_bytes(content[:8], "little")
        value = json.loads(content[8 : 8 + size])
        found = header(value)
        text = json.dumps(value if found is None else found).encode() if not isinstance(found, bytes) else found
        text += b" " * max(0, size - len(text))
        whole = struct.pack("<Q", len(text) if length is None else length) + text + content[8 + size :]
        shard.write_bytes(whole)
        changed_json(path / "manifest.json", _set("shards", 0, "bytes", to=len(whole)))
        return _open(path)

    return prepare


SHARDS: dict[str, Callable[[Path], Open]] = {
    "header longer than the file": _shard(lambda h: None, length=1 << 40),
    "header of 2**63": _shard(lambda h: None, length=1 << 63),
    "header of no bytes": _shard(lambda h: None, length=0),
    "header is a list": _shard(lambda h: []),
    "header nested 100,000 deep": _shard(lambda h: DEEP.encode()),
    "metadata is a list": _shard(_set("__metadata__", to=[])),
    "offsets beyond the end": _shard(_set(SITE, "data_offsets", to=[0, 10**12])),
    "offsets negative": _shard(_set(SITE, "data_offsets", to=[-240, 0])),
    "offsets the wrong way round": _shard(_set(SITE, "data_offsets", to=[240, 0])),
    "offsets as text": _shard(_set(SITE, "data_offsets", to="0-8")),
    "offsets missing": _shard(_set(SITE, "data_offsets", to=_GONE)),
    "an unknown dtype": _shard(_set(SITE, "dtype", to="O")),
    "a dtype of another size": _shard(_set(SITE, "dtype", to="F16")),
    "a shape of 2**200": _shard(_set(SITE, "shape", to=[2**100, 2**100])),
    "a shape of zeros and 2**62": _shard(_set(SITE, "shape", to=[0, 2**62])),
    "a shape that is negative": _shard(_set(SITE, "shape", to=[-1, -6])),
    "a tensor missing": _shard(_set(SITE, to=_GONE)),
    "a tensor that is a number": _shard(_set(SITE, to=5)),
}


def _plan(change: Callable[[Any], Any]) -> Callable[[Path], Open]:
    """A plan that lies, met when the extraction is called again."""

    def prepare(folder: Path) -> Open:
        changed_json(store_in(folder) / "plan.json", change)
        return _resumed(folder)

    return prepare


PLANS: dict[str, Callable[[Any], Any]] = {
    "a list": lambda _: [],
    "windows of negative length": _set("length", 0, to=-5),
    "windows of 2**70": _set("length", 0, to=2**70),
    "windows of different counts": _set("doc", to=[0]),
    "windows as text": _set("start", 0, to="x"),
    "windows nested": _set("doc", 0, to=[[1]]),
    "batches that end beyond the windows": _set("batch_windows", to=[HUGE]),
    "batches that fall": lambda p: p["batch_windows"].reverse(),
    "no batches": _set("batch_windows", to=[]),
    "shards of 10**15 rows as text": _set("shard_rows", 0, to="1000000000000000"),
    "shards of -1 rows": _set("shard_rows", 0, to=-1),
    "a token budget of 10**30": _set("token_budget", to=10**30),
    "a token budget of 0": _set("token_budget", to=0),
    "a multiple of 0": _set("multiple", to=0),
    "an unknown site": _set("row_shapes", to={"evil": [6]}),
    "rows of negative width": _set("row_shapes", SITE, to=[-6]),
    "spec missing": _set("spec", to=_GONE),
    "an unknown dtype": _set("spec", "dtype", to="evil"),
    "splits that are numbers": _set("splits", to=[1]),
    "left out as text": _set("excluded", to={"first_position": "x"}),
}


def _pieces(change: Callable[[Path], object]) -> Callable[[Path], Open]:
    """Two pieces of an extraction, one of them changed, to be joined."""

    def prepare(folder: Path) -> Open:
        from interp.extract import prepare as planned
        from interp.joining import join
        from interp.pieces import Piece

        tokens, folders = token_file(folder / "tokens", [5, 9, 3, 12]), []
        for index in (1, 2):
            piece = Piece(index, 2)
            folders.append(piece.folder(folder / "store"))
            settings: dict[str, Any] = {"token_budget": 16, "rows_per_shard": 10, "piece": piece}
            planned(ToyModel(), tokens, SITES, folders[-1], **settings).fill(progress=False)
        change(folders[1])
        return lambda: join(folders, folder / "joined")

    return prepare


def _ledger(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def changed(piece: Path) -> None:
        lines = [json.loads(line) for line in (piece / "ledger.jsonl").read_text().splitlines()]
        change(lines[-1])
        (piece / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return changed


def _moved_shard(piece: Path) -> None:
    """A shard beside the piece, under a path that would lead beside the joined store as well."""
    entry: dict[str, Any] = {}
    _ledger(lambda e: entry.update(e))(piece)
    shutil.copy(piece / entry["name"], piece.parent.parent / "evil.safetensors")
    _ledger(lambda e: e.update(name="../../evil.safetensors"))(piece)


PIECES: dict[str, Callable[[Path], object]] = {
    "a ledger that names a shard outside": _moved_shard,
    "a ledger with an absolute name": _ledger(lambda e: e.update(name="/etc/passwd")),
    "a ledger of negative rows": _ledger(lambda e: e.update(rows=-1)),
    "a ledger whose shard is a list": _ledger(lambda e: e.update(shard=[0])),
    "a ledger of NULs": lambda piece: (piece / "ledger.jsonl").write_bytes(b"\0" * 100_000),
    "a ledger nested 100,000 deep": lambda piece: (piece / "ledger.jsonl").write_text(DEEP + "\n"),
    "piece 1 of 10**15": lambda piece: changed_json(piece / "piece.json", _set("of", to=HUGE)),
    "piece -1": lambda piece: changed_json(piece / "piece.json", _set("piece", to=-1)),
    "piece as text": lambda piece: changed_json(piece / "piece.json", _set("piece", to="2")),
    "no versions": lambda piece: changed_json(piece / "piece.json", _set("versions", to=_GONE)),
    "a piece that is a list": lambda piece: (piece / "piece.json").write_text("[]"),
    "a plan that is a pickle": lambda piece: (piece / "plan.json").write_bytes(canary(piece)),
}


def _merge(folder: Path) -> Open:
    """A store whose plan is a file outside: a merge would copy it."""
    from interp.store import ActivationStore

    (folder / "secret").write_text("secret")
    store = store_in(folder)
    changed_json(store / "manifest.json", _set("parts", 0, "plan", to="../secret"))
    return lambda: ActivationStore.merge([store], folder / "merged")


def _remote(change: Callable[[Any], Any]) -> Callable[[Path], Open]:
    """The store behind a URL of fsspec's memory."""

    def prepare(folder: Path) -> Open:
        import fsspec

        from interp.store import ActivationStore

        path = store_in(folder)
        changed_json(path / "manifest.json", change)
        fs = fsspec.filesystem("memory")
        root = f"/hostile-{os.getpid()}"
        if fs.exists(root):
            fs.rm(root, recursive=True)
        for file in path.iterdir():
            fs.pipe_file(f"{root}/{file.name}", file.read_bytes())
        return lambda: used(ActivationStore.open(f"memory:/{root}"))

    return prepare


def _tokens(change: Callable[[Path], object]) -> Callable[[Path], Open]:
    def prepare(folder: Path) -> Open:
        from interp.tokenfile import TokenFile

        token_file(folder / "tokens", [5, 9, 3, 12])
        change(folder / "tokens")

        def read() -> None:
            found = TokenFile.open(folder / "tokens")
            assert [found[i] for i in range(len(found))] and found.ids and found.special_ids is not None

        return read

    return prepare


def _npy(header: str, body: bytes = b"") -> Callable[[Path], object]:
    text = header.encode() + b"\n"
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body
    return lambda path: (path / "offsets.npy").write_bytes(raw)


def _token_manifest(*where: str | int, to: Any) -> Callable[[Path], object]:
    return lambda path: changed_json(path / "manifest.json", _set(*where, to=to))


TOKENS: dict[str, Callable[[Path], object]] = {
    "a manifest that is a list": lambda path: (path / "manifest.json").write_text("[]"),
    "10**15 tokens": _token_manifest("n_tokens", to=HUGE),
    "-1 tokens": _token_manifest("n_tokens", to=-1),
    "tokens as text": _token_manifest("n_tokens", to="29"),
    "10**12 documents": _token_manifest("n_documents", to=10**12),
    "documents as NaN": _token_manifest("n_documents", to=float("nan")),
    "a dtype of objects": _token_manifest("dtype", to="O"),
    "an unknown dtype": _token_manifest("dtype", to="evil"),
    "a structured dtype": _token_manifest("dtype", to="i4,O"),
    "a tokenizer that is a text": _token_manifest("tokenizer", to="evil"),
    "a vocabulary of 10**15": _token_manifest("tokenizer", "vocabulary", to=HUGE),
    "special ids of -1": _token_manifest("tokenizer", "special_ids", to=[-1]),
    "a BOS that is a text": _token_manifest("bos", to="x"),
    "a template that is not there": _token_manifest("template", to=True),
    "no digest": _token_manifest("digest", to=_GONE),
    "offsets that are a pickle": lambda path: np.save(path / "offsets.npy", np.array([{}], dtype=object)),
    "offsets that are a bare pickle": lambda path: (path / "offsets.npy").write_bytes(canary(path)),
    "offsets of 10**15 claimed": _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,)}"),
    "offsets with code in the header": _npy("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}"),
    "offsets of objects claimed": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\0" * 8),
    "offsets nested deep": _npy("(" * 5000),
    "offsets that fall": lambda path: np.save(path / "offsets.npy", np.array([0, 20, 5, 17, 29])),
    "offsets beyond the tokens": lambda path: np.save(path / "offsets.npy", np.array([0, 5, 14, 17, HUGE])),
    "offsets negative": lambda path: np.save(path / "offsets.npy", np.array([-5, 5, 14, 17, 29])),
    "offsets as fractions": lambda path: np.save(path / "offsets.npy", np.array([0.0, 5.0, 14.0, 17.0, 29.0])),
    "offsets in two axes": lambda path: np.save(path / "offsets.npy", np.zeros((5, 5), np.int64)),
    "offsets empty": lambda path: (path / "offsets.npy").write_bytes(b""),
    "names that are numbers": lambda path: (path / "docs.jsonl").write_text("1\n" * 4),
    "names missing": lambda path: (path / "docs.jsonl").write_text('{"tokens": 5}\n' * 4),
    "names cut short": lambda path: (path / "docs.jsonl").write_text('{"id": "a"'),
}

ATTACKS = [
    *(Attack("store manifest", name, _manifest(change)) for name, change in MANIFESTS.items()),
    Attack("store manifest", "nested 100,000 deep", _file("manifest.json", DEEP)),
    Attack("store manifest", "a number of 5,000 digits", _file("manifest.json", '{"rows": ' + "9" * 5000 + "}")),
    Attack("store manifest", "a pickle", _file("manifest.json", b"\x80\x04.")),
    Attack("store manifest", "a sparse file of 64 GiB", _sparse_manifest),
    Attack("store manifest", "a plan outside, merged", _merge),
    *(Attack("store shard", name, prepare) for name, prepare in SHARDS.items()),
    *(Attack("store plan", name, _plan(change)) for name, change in PLANS.items()),
    *(Attack("store pieces", name, _pieces(change)) for name, change in PIECES.items()),
    *(
        Attack("store behind a URL", f"a shard named {name}", _remote(_set("shards", 0, "name", to=value)))
        for name, value in NAMES.items()
    ),
    *(Attack("token file", name, _tokens(change)) for name, change in TOKENS.items()),
]
