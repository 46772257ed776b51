"""Who writes a folder, a disk that fails, files that are whole or absent, and a clock that is set: one rule each."""

import errno
import json
import os
import platform
import re
import resource
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from interp.errors import InputError
from interp.extract import extract
from interp.gguf_cache import _remove_abandoned
from interp.progress import bar
from interp.sealing import WRITER, disk_error, in_turn, only_writer
from interp.sites import Site
from interp.store import ActivationStore, Damaged
from interp.tensorfile import read_tensors, write_tensors
from saes.discover import DiscoverConfig, discover
from saes.recipe import TrainConfig
from saes.sae import SAE
from saes.train import fit
from tests.rows import SITE, MemoryRows, sparse_mixture
from tests.toy_store import SITES, ToyModel, token_file


def refusal(folder) -> str:
    with pytest.raises(InputError) as caught, only_writer(folder):
        pass
    return str(caught.value)


def test_a_second_writer_is_told_who_is_first(tmp_path):
    with only_writer(tmp_path):
        said = refusal(tmp_path)
    wanted = rf"another process is writing .* \(process {os.getpid()} on {re.escape(platform.node())}, since \d{{4}}-"
    assert re.search(wanted, said)
    assert not list(tmp_path.iterdir())
    with only_writer(tmp_path):
        pass


@pytest.mark.parametrize(
    "note",
    [
        {"pid": 2**22 + 1, "started": "5"},  # no such process
        {"pid": os.getpid(), "started": "5"},  # its number belongs to another by now
        {"pid": [], "started": None},
        None,
    ],
)
def test_a_note_of_a_dead_owner_is_not_believed(tmp_path, note):
    with only_writer(tmp_path):
        stale = {**note, "host": platform.node(), "since": "2001"} if note else "{"
        (tmp_path / WRITER).write_text(json.dumps(stale) if note else "{")
        said = refusal(tmp_path)
    assert "another process is writing" in said and "(process" not in said


def test_an_owner_on_another_machine_is_named_by_its_note(tmp_path):
    with only_writer(tmp_path):
        (tmp_path / WRITER).write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "2026", "started": "1"}))
        assert "(process 7 on elsewhere, since 2026)" in refusal(tmp_path)


def test_a_killed_owner_holds_nobody_up(tmp_path):
    child = os.fork()
    if child == 0:
        with only_writer(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / WRITER).exists()
    with only_writer(tmp_path):
        assert f"process {os.getpid()} on" in refusal(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_lock_holds_without_a_note(tmp_path):
    (tmp_path / WRITER).mkdir()
    with only_writer(tmp_path):
        assert "another process is writing" in refusal(tmp_path)


def test_a_second_discovery_is_refused_before_it_loads_anything(tmp_path):
    config = DiscoverConfig(model="no such model", out=tmp_path / "run")
    config.out.mkdir()
    with only_writer(config.out), pytest.raises(InputError, match=r"another process is writing .* \(process"):
        discover(config)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_failing_disk_is_said_in_words(tmp_path, number):
    error = OSError(number, os.strerror(number), str(tmp_path / "x"))
    with pytest.raises(InputError) as caught, only_writer(tmp_path):
        raise error
    for part in (str(tmp_path / "x"), os.strerror(number), "run the same command again"):
        assert part in str(caught.value)
    assert caught.value.__cause__ is error


def test_other_errors_are_left_as_they_are(tmp_path):
    error = OSError("can't load the tokenizer")
    assert disk_error(error, tmp_path) is error
    with pytest.raises(OSError, match="tokenizer") as caught, only_writer(tmp_path):
        raise error
    assert caught.value is error and caught.value.__cause__ is None


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool]  # fmt: skip


def test_our_tensor_files_are_what_safetensors_reads(tmp_path):
    """All types in one file, odd shapes, and a name that is no ASCII; the same bytes whatever the order given."""
    tensors = {f"{dtype} é": (torch.randn(3, 5) * 9).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "turned": torch.randn(3, 4).T}
    write_tensors(tmp_path / "a.safetensors", tensors, {"step": 3})
    write_tensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())), {"step": 3})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    for found in (load_file(tmp_path / "a.safetensors"), read_tensors(tmp_path / "a.safetensors", "file")[0]):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[n], x) and found[n].dtype == x.dtype for n, x in tensors.items())


def test_a_killed_write_leaves_one_leftover_of_a_known_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("interp.tensorfile.publish", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == [".a.safetensors.partial"]
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_clock_that_is_set_back_makes_no_time_negative(monkeypatch, capsys):
    hours = iter(range(10**6))
    monkeypatch.setattr("tqdm.std.time", lambda: 1e9 - 3600 * next(hours))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(hours))
    with bar(100, "work") as meter:
        for _ in range(10):
            meter.update(10)
            assert meter.format_dict["elapsed"] >= 0
    assert not re.search(r"[\[<, ]-\d", capsys.readouterr().err)


def test_a_checked_store_refuses_a_flipped_bit_that_a_plain_one_hands_out(tmp_path):
    sizes = {"max_length": 16, "token_budget": 64, "rows_per_shard": 40, "progress": False}
    whole = extract(ToyModel(), token_file(tmp_path / "t", [20] * 12), SITES, tmp_path / "s", **sizes)
    rows = whole.rows(SITES[0], 0, len(whole)).clone()
    shard = whole.path / whole.manifest["shards"][1]["name"]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # in the last row of the last site
    content[len(content) // 2] ^= 64
    shard.write_bytes(content)
    plain, checked = (ActivationStore.open(whole.path, checked=c) for c in (False, True))
    first = whole.manifest["shards"][0]["rows"]
    assert not torch.equal(plain.rows(SITES[0], 0, len(plain)), rows)
    assert torch.equal(checked.rows(SITES[0], 0, first), rows[:first])  # of a shard that is whole
    with pytest.raises(Damaged, match=shard.name):
        checked.rows(SITES[0], 0, len(checked))
    with pytest.raises(Damaged, match=shard.name):
        next(checked.batches([SITES[0]], len(checked), seed=0))


def test_the_sae_that_training_returns_is_the_one_it_saved(tmp_path):
    """Its provenance too (saving adds the versions): a page made of either is the same."""
    config = TrainConfig(d_sae=8, k=2, batch_size=16, tokens=32, sample=16)
    trained = fit(MemoryRows(sparse_mixture(64)[0]), config, tmp_path, site=SITE)
    loaded = SAE.load(tmp_path).config.metadata
    assert {name: loaded[name] for name in trained.config.metadata} == trained.config.metadata


def test_a_store_may_have_more_shards_than_a_process_may_have_files(tmp_path):
    sizes = {"max_length": 16, "token_budget": 16, "rows_per_shard": 1, "progress": False}
    store = extract(ToyModel(), token_file(tmp_path / "t", [10] * 60), SITES, tmp_path / "s", **sizes)
    assert len(store.manifest["shards"]) == 60
    limits, used = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    try:
        batch = next(ActivationStore.open(store.path).batches([SITES[0]], len(store), seed=0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert batch.acts[Site.parse(SITES[0])].shape[0] == len(store)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
def test_want_of_memory_or_files_is_not_taken_for_a_damaged_shard(tmp_path, monkeypatch, number):
    sizes = {"max_length": 16, "token_budget": 64, "rows_per_shard": 40, "progress": False}
    store = extract(ToyModel(), token_file(tmp_path / "t", [20] * 3), SITES, tmp_path / "s", **sizes)

    def none(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("interp.shards._read_header", none)
    with pytest.raises(OSError, match=os.strerror(number)):
        store.rows(SITES[0], 0, 1)


def test_a_clock_set_forward_takes_no_folder_from_one_who_writes_it(tmp_path):
    partial = tmp_path / ".model-x"
    partial.mkdir()
    os.utime(partial, (time.time() - 7200,) * 2)  # by the clock, nobody has touched it for two hours
    with in_turn(partial):
        _remove_abandoned(tmp_path / "model")
        assert partial.exists()
    _remove_abandoned(tmp_path / "model")
    assert not partial.exists()
