"""Targets that are files of token files, plans and activation stores."""

import json
import shutil
from pathlib import Path

import numpy as np
from fuzzing.mutate import written
from fuzzing.registry import Prepared, target
from toy_store import SITES, ToyModel, token_file

from interp.extract import extract
from interp.store import ActivationStore


def _store(folder: Path) -> Path:
    tokens = token_file(folder / "tokens", [5, 9, 3, 12])
    extract(ToyModel(), tokens, SITES, folder / "store", token_budget=16, rows_per_shard=10, progress=False)
    return folder / "store"


def _used(store: ActivationStore) -> None:
    """What a reader of a store asks of it first."""
    n = len(store)
    assert store._facts() and store.row_bytes > 0 and n >= 0
    for site in store.sites:
        assert len(store.rows(site, 0, min(n, 3))) == min(n, 3)
    if n:
        assert len(next(store.batches(store.sites, 4, seed=0)).token) == min(4, n)
        store.keys(0, n)


def _of_store(name: str, kind: str, file: str, *, verify: bool = False) -> None:
    @target(name, kind)  # type: ignore[arg-type]
    def _(folder: Path) -> Prepared:
        path = _store(folder)

        def parse(_: bytes) -> None:
            store = ActivationStore.open(path)
            if verify:
                store.verify()
            _used(store)

        return Prepared(parse, [(path / file).read_bytes()], path / file)


_of_store("store_manifest", "json", "manifest.json")
_of_store("store_verified", "json", "manifest.json", verify=True)


@target("shard", "safetensors")
def _(folder: Path) -> Prepared:
    from interp.shards import KEYS, Shard

    path = _store(folder) / "shard-00000.safetensors"

    def parse(_: bytes) -> None:
        shard = Shard(path)
        for name in (*KEYS, "blocks.1.hook_resid_post", "blocks.0.attn.hook_z"):
            assert shard[name].shape == shard.array(name).shape

    return Prepared(parse, [path.read_bytes()], path)


@target("shard_damage", "safetensors")
def _(folder: Path) -> Prepared:
    from interp.shards import damage

    store = _store(folder)
    entry = json.loads((store / "manifest.json").read_text())["shards"][0]
    path = store / entry["name"]

    def parse(data: bytes) -> None:
        found = damage(store, {**entry, "bytes": len(data)})
        assert found is None or entry["name"] in found

    return Prepared(parse, [path.read_bytes()], path)


@target("plan", "json")
def _(folder: Path) -> Prepared:
    from interp.plan import Plan

    path = _store(folder) / "plan.json"

    def parse(_: bytes) -> None:
        plan = Plan.load(path)
        assert plan.rows >= 0 and plan.n_tokens >= 0 and plan.layout.row_bytes > 0
        assert all(plan.batches_of(shard) for shard in range(len(plan.shard_rows)))
        if len(plan.buckets):
            plan.halved(0)

    return Prepared(parse, [path.read_bytes()], path)


@target("ledger", "jsonl")
def _(folder: Path) -> Prepared:
    from interp.ledger import Progress

    store = _store(folder)
    entries = json.loads((store / "manifest.json").read_text())["shards"]
    (store / "manifest.json").unlink()
    lines = [written({"shard": number, **entry}) for number, entry in enumerate(entries)]

    def parse(_: bytes) -> None:
        progress = Progress.of(store)
        found = progress.finished(range(len(entries)))
        assert all(found[n]["name"] == entries[n]["name"] for n in found)

    return Prepared(parse, [b"\n".join(lines) + b"\n"], store / "ledger.jsonl")


@target("piece_file", "json")
def _(folder: Path) -> Prepared:
    from interp.pieces import FILE, held_by, refuse_other

    def parse(_: bytes) -> None:
        piece = held_by(folder)
        assert piece is not None and piece.index >= 1
        refuse_other(folder, piece)

    return Prepared(parse, [written({"piece": 2, "of": 4, "rows": 10})], folder / FILE)


def _of_tokens(name: str, kind: str, file: str) -> None:
    @target(name, kind)  # type: ignore[arg-type]
    def _(folder: Path) -> Prepared:
        from interp.tokenfile import TokenFile

        path = token_file(folder / "tokens", [5, 9, 3]).path
        (path / "template.bin").write_bytes(b"")

        def parse(_: bytes) -> None:
            tokens = TokenFile.open(path)
            assert len(tokens.ids) == len(tokens.lengths) == len(tokens)
            assert sum(len(tokens[i]) for i in range(len(tokens))) == tokens.n_tokens
            assert tokens.bos is None or tokens.bos >= 0
            assert isinstance(tokens.digest, str) and np.asarray(tokens.special_ids, np.int64).ndim == 1

        return Prepared(parse, [(path / file).read_bytes()], path / file)


_of_tokens("tokens_manifest", "json", "manifest.json")
_of_tokens("tokens_offsets", "bytes", "offsets.npy")
_of_tokens("tokens_docs", "jsonl", "docs.jsonl")


@target("weights_index", "json")
def _(folder: Path) -> Prepared:
    from interp.weights import read_index

    index = {
        "metadata": {"total_size": 10},
        "weight_map": {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"},
    }

    def parse(_: bytes) -> None:
        assert all(isinstance(x, str) for pair in read_index(folder).items() for x in pair)

    return Prepared(parse, [written(index)], folder / "model.safetensors.index.json")


@target("gguf_header", "bytes")
def _(folder: Path) -> Prepared:
    from gguf import GGUFWriter

    from interp.gguf_header import read_header

    path = folder / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.name", "toy")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_bool("flag", True)
    writer.add_array("tokens", ["a", "bc"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("w", np.zeros((2, 3), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()

    def parse(_: bytes) -> None:
        header = read_header(path)
        assert isinstance(header.quantisation, str) and all(isinstance(key, str) for key in header.fields)

    return Prepared(parse, [path.read_bytes()], path)


@target("remote_manifest", "json")
def _(folder: Path) -> Prepared:
    """A store behind a URL: what `memory://` holds is copied to a folder of this machine and opened."""
    from interp.store import known_format

    path = _store(folder)
    kept = (path / "manifest.json").read_bytes()
    shutil.rmtree(path)

    def parse(data: bytes) -> None:
        from interp.sealing import read_json

        known_format(read_json(folder / "manifest.json", "activation store"), "x")

    return Prepared(parse, [kept], folder / "manifest.json")
