"""What can go wrong while extracting: memory, disk, numbers, damage, a second writer. Nothing is lost by any of it."""

import errno
import json
import os

import pytest
import torch

from interp.errors import InputError
from interp.extract import extract, prepare
from interp.sealing import only_writer
from interp.store import ActivationStore
from tests.toy_store import SITES, ToyModel, files_of, token_file

LENGTHS = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40, 33, 21]
SMALL = {"max_length": 16, "token_budget": 64, "rows_per_shard": 40, "progress": False}


@pytest.fixture
def file(tmp_path):
    return token_file(tmp_path / "t", LENGTHS)


@pytest.fixture
def whole(file, tmp_path):
    return extract(ToyModel(), file, SITES, tmp_path / "whole", **SMALL)


class Fails(ToyModel):
    """Raises on batches that `condition` picks."""

    def __init__(self, condition, error) -> None:
        super().__init__()
        self.condition, self.error = condition, error

    def capture(self, tokens, sites, **options):
        if tokens.shape != (1, 1) and self.condition(self, tokens):
            raise self.error
        return super().capture(tokens, sites, **options)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_cut_and_recorded(file, whole, tmp_path, error):
    model = Fails(lambda _, tokens: tokens.numel() > 24, error)
    store = extract(model, file, SITES, tmp_path / "s", **SMALL)
    store.verify()
    assert max(b * t for b, t in model.shapes) <= 24
    keys, expected = store.keys(0, len(store)), whole.keys(0, len(whole))
    assert torch.equal(keys.doc, expected.doc) and torch.equal(keys.position, expected.position)
    for site in SITES:
        assert torch.equal(store.rows(site, 0, len(store)), whole.rows(site, 0, len(whole)))
    plan, before = (json.loads((s.path / "plan.json").read_text()) for s in (store, whole))
    assert plan["splits"] and set(before["batch_windows"]) < set(plan["batch_windows"])
    assert {n: plan[n] for n in ("doc", "start", "length", "shard_rows", "shard_windows")} == {
        n: before[n] for n in ("doc", "start", "length", "shard_rows", "shard_windows")
    }
    assert store.manifest["parts"][0]["splits"] == len(plan["splits"])


def test_a_split_is_kept_by_the_run_that_resumes(file, tmp_path):
    memory = RuntimeError("out of memory")

    class Dies(Fails):
        def capture(self, tokens, sites, **options):
            if self.passes > 4:
                raise KeyboardInterrupt
            return super().capture(tokens, sites, **options)

    with pytest.raises(KeyboardInterrupt):
        extract(Dies(lambda _, x: x.numel() > 24, memory), file, SITES, tmp_path / "s", **SMALL)
    straight = extract(Fails(lambda _, x: x.numel() > 24, memory), file, SITES, tmp_path / "r", **SMALL)
    ample = ToyModel()  # has room for the larger batches, and yet runs those of the plan
    assert files_of(extract(ample, file, SITES, tmp_path / "s", **SMALL).path) == files_of(straight.path)
    assert max(b * t for b, t in ample.shapes) <= 24


def test_one_window_too_many_is_a_clear_error(file, tmp_path):
    model = Fails(lambda _, tokens: tokens.shape[1] >= 14, RuntimeError("CUDA out of memory"))
    with pytest.raises(InputError, match=r"out of memory on a single window of 1\d tokens .*smaller max_length"):
        extract(model, file, SITES, tmp_path / "s", **SMALL)
    extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL).verify()


def test_other_errors_are_not_taken_for_want_of_memory(file, tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not match"):
        extract(Fails(lambda *_: True, RuntimeError("shapes do not match")), file, SITES, tmp_path / "s", **SMALL)


@pytest.mark.parametrize("call", [2, 20, 45])
def test_a_full_disk(file, whole, tmp_path, monkeypatch, call):
    real, calls = os.pwrite, [0]

    def full(*args):
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        InputError, match=r"the disk under .* is full .* MiB more are needed and .* free.* are kept"
    ) as caught:
        extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL)
    monkeypatch.undo()
    assert not list((tmp_path / "s").glob(".*.partial"))  # its space is given back
    kept = len(list((tmp_path / "s").glob("shard-*")))
    assert f"All {kept} finished shards are kept" in str(caught.value)
    model = ToyModel()
    assert files_of(extract(model, file, SITES, tmp_path / "s", **SMALL).path) == files_of(whole.path)
    assert kept == 0 or model.passes < len(batches_of(whole))


def batches_of(store):
    return json.loads((store.path / "plan.json").read_text())["batch_windows"]


def test_a_disk_too_small_is_refused_before_the_first_row(file, tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1000))
    model = ToyModel()
    with pytest.raises(InputError, match=r"needs 0\.0 MiB and 0\.0 MiB are free: make room"):
        extract(model, file, SITES, tmp_path / "s", **SMALL)
    assert model.passes == 0
    assert not list((tmp_path / "s").iterdir())


class Poisoned(ToyModel):
    """NaN at one token id."""

    def __init__(self, token: int, value: float = float("nan")) -> None:
        super().__init__()
        self.table[token] = value


def test_nan_names_batch_documents_and_site(file, tmp_path):
    token = int(file[11][20])
    with pytest.raises(
        InputError, match=r"batch \d+, site blocks.0.attn.hook_z: \d+ of \d+ rows hold NaN or inf.*'doc-"
    ):
        extract(Poisoned(token), file, SITES, tmp_path / "s", **SMALL)
    for shard in (tmp_path / "s").glob("shard-*"):
        assert shard.stat().st_size  # finished shards stay
    extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL).verify()
    kept = extract(Poisoned(token), file, SITES, tmp_path / "k", allow_nonfinite=True, **SMALL)
    assert kept.rows("resid_post.1", 0, len(kept)).isnan().any()


def test_overflow_in_the_dtype_on_disk_is_noticed(file, tmp_path):
    large = Poisoned(int(file[11][20]), 1e5)
    with pytest.raises(InputError, match="float16 overflows at 65,504"):
        extract(large, file, SITES, tmp_path / "s", store_dtype="float16", **SMALL)
    extract(large, file, SITES, tmp_path / "b", **SMALL)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_only_the_damaged_shard_is_computed_again(file, whole, tmp_path, damage):
    before = files_of(whole.path)
    shard = whole.path / "shard-00002.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    else:
        content[len(content) // 2] ^= 1
        shard.write_bytes(content if damage == "flip" else content[:-9])
    with pytest.raises(InputError, match=r"shard-00002.*it recomputes only what is damaged"):
        ActivationStore.open(whole.path).verify()
    model = ToyModel()
    extract(model, file, SITES, whole.path, **SMALL).verify()
    assert files_of(whole.path) == before
    plan = json.loads(before["plan.json"])
    first, stop = plan["shard_windows"][1:3]
    assert model.passes == sum(first < end <= stop for end in plan["batch_windows"])


@pytest.mark.parametrize("line", ['{"shard": 2, "na', "", "nonsense", "[]", '{"shard": 0}'])
def test_a_torn_ledger_costs_one_shard(file, whole, tmp_path, line):
    with pytest.raises(KeyboardInterrupt):
        extract(Fails(lambda model, _: model.passes == 6, KeyboardInterrupt()), file, SITES, tmp_path / "s", **SMALL)
    ledger = tmp_path / "s" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    assert len(lines) >= 2
    ledger.write_text("\n".join([*lines[:-1], line]))
    assert files_of(extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL).path) == files_of(whole.path)


def test_a_second_writer_is_refused(file, tmp_path):
    (tmp_path / "s").mkdir()
    with only_writer(tmp_path / "s"), pytest.raises(InputError, match="another process is writing"):
        extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL)


def test_a_store_that_changed_since_it_was_planned_is_refused(file, tmp_path):
    settings = {name: value for name, value in SMALL.items() if name != "progress"}
    planned = prepare(ToyModel(), file, SITES, tmp_path / "s", **settings)
    extract(ToyModel(), file, SITES, tmp_path / "s", **SMALL)
    with pytest.raises(InputError, match="has changed since this extraction was planned"):
        planned.run(progress=False)
