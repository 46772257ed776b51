"""Stores behind URLs: the bytes of a local store, resumed, verified, and what happens when storage fails or is slow."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from interp.errors import InputError
from interp.extract import extract, prepare
from interp.extraction import SPOOLED
from interp.remote import Remote, as_local, as_url
from interp.remote_extract import extract_to, spool_of
from interp.store import ActivationStore, Damaged, StoreSpec
from tests.toy_store import SITES, ToyModel, files_of, token_file

fsspec = pytest.importorskip("fsspec")
LENGTHS = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40, 33, 21, 8, 50]
SMALL = {"max_length": 16, "token_budget": 32, "rows_per_shard": 50}
URL = "memory://bucket/store"


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens") / "t", LENGTHS)


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    store = extract(ToyModel(), file, SITES, tmp_path_factory.mktemp("whole") / "s", progress=False, **SMALL)
    assert len(store.manifest["shards"]) >= 6
    return store


def run(file, remote: Remote | None = None, model: ToyModel | None = None, **settings) -> ActivationStore:
    one = model or ToyModel()
    options = {**SMALL, **settings}
    return extract_to(
        remote or Remote(URL, waits=(0.0,) * 4),
        lambda spool: prepare(one, file, SITES, spool, **options),
        progress=False,
    )


def files_at(remote: Remote) -> dict[str, bytes]:
    return {name: remote.read(name) for name in sorted(remote.sizes())}


def test_the_files_are_those_of_a_local_store(file, whole):
    store = run(file)
    assert files_at(Remote(URL)) == files_of(whole.path)
    assert not spool_of(URL).exists()
    store.verify()
    for site in SITES:
        assert np.array_equal(store.gather([site], np.arange(len(store))).token, whole.keys(0, len(whole)).token)
        assert store.rows(site, 3, 90).equal(whole.rows(site, 3, 90))
    for mine, other in zip(store.batches(SITES, 32, seed=1, workers=3), whole.batches(SITES, 32, seed=1), strict=True):
        assert all(mine.acts[site].equal(other.acts[site]) for site in mine.acts)
        assert mine.doc.equal(other.doc)
    model = ToyModel()
    run(file, model=model)
    assert model.passes == 0


def test_a_url_survives_being_a_path(file, whole):
    run(file)
    assert len(ActivationStore.open(Path(URL))) == len(whole)
    assert as_url(Path("s3://b/x/y")) == as_url("s3://b/x/y/") == "s3://b/x/y"
    assert as_url("/a/b") is as_url("a:b/c") is as_url("file:///a/b") is None
    assert as_local("file:///a/b") == as_local(Path("file:///a/b")) == Path("/a/b")


def test_a_file_url_is_the_local_path(whole):
    store = ActivationStore.open(f"file://{whole.path}")
    assert type(store) is ActivationStore and store.path == whole.path


def test_expectations_and_other_settings_are_refused(file):
    run(file)
    with pytest.raises(InputError, match=r"memory://bucket/store was made with other settings: seed: 0 there, 1 asked"):
        ActivationStore.open(URL, expect=StoreSpec(seed=1))
    with pytest.raises(InputError, match=r"holds a store made with other settings \(seed: 0 there, 1 asked for\)"):
        run(file, seed=1)


def test_rows_are_added_to_a_store_behind_a_url(file, tmp_path):
    first, second = {"docs": [0, 1, 3, 5]}, {"docs": [7, 8, 9, 10], "append": True}
    local = extract(ToyModel(), file, SITES, tmp_path / "l", progress=False, **SMALL, **first)
    local = extract(ToyModel(), file, SITES, tmp_path / "l", progress=False, **SMALL, **second)
    run(file, **first)
    model = ToyModel()
    run(file, model=model, **second)
    assert files_at(Remote(URL)) == files_of(local.path)
    assert model.passes == len(json.loads((local.path / "plan-00001.json").read_text())["batch_windows"])


class Stops(ToyModel):
    """Ctrl-C after some passes."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.allowed = allowed

    def capture(self, tokens, sites, **options):
        if self.passes >= self.allowed and tokens.numel() > 1:
            raise KeyboardInterrupt
        return super().capture(tokens, sites, **options)


@pytest.mark.parametrize("same_machine", [True, False])
@pytest.mark.parametrize("allowed", [1, 4, 7, 9])
def test_an_interrupted_run_goes_on_here_or_elsewhere(file, whole, tmp_path, monkeypatch, allowed, same_machine):
    first = Stops(allowed)
    with pytest.raises(KeyboardInterrupt):
        run(file, model=first)
    with pytest.raises(InputError, match=r"holds no manifest.json, so it is no finished activation store"):
        ActivationStore.open(URL)
    if not same_machine:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    second = ToyModel()
    run(file, model=second)
    assert files_at(Remote(URL)) == files_of(whole.path)
    again = first.passes + second.passes - len(json.loads((whole.path / "plan.json").read_text())["batch_windows"])
    assert again <= 3 * (1 if same_machine else SPOOLED)  # a shard has at most three batches


def test_damage_is_found_and_only_that_is_computed_again(file, whole, clean):
    store = run(file)
    key = "/bucket/store/shard-00002.safetensors"
    content = bytearray(clean.cat_file(key))
    content[-1] ^= 1
    clean.pipe_file(key, bytes(content))
    ActivationStore.open(URL)
    with pytest.raises(Damaged, match=r"shard-00002.safetensors is damaged: the sha256 of its .* is not the one"):
        ActivationStore.open(URL).verify()
    with pytest.raises(Damaged, match=r"shard-00002.safetensors is damaged"):
        ActivationStore.open(URL).rows("resid_post.1", 0, len(store))
    clean.pipe_file(key, bytes(content[:-1]))
    with pytest.raises(Damaged, match=r"shard-00002.safetensors holds [\d,]+ bytes instead of"):
        ActivationStore.open(URL)
    model = ToyModel()
    run(file, model=model).verify()
    assert 1 <= model.passes <= 3
    assert files_at(Remote(URL)) == files_of(whole.path)


class Flaky:
    """A file system of which every `period`-th call of `verb` raises."""

    def __init__(self, inner, verb: str, *, period: int, error: Exception) -> None:
        self.inner, self.verb, self.period, self.error, self.calls = inner, verb, period, error, 0

    def __getattr__(self, name):
        found = getattr(self.inner, name)
        if name != self.verb:
            return found

        def call(*args, **options):
            self.calls += 1
            if self.calls % self.period == 0:
                raise self.error
            return found(*args, **options)

        return call


@pytest.mark.parametrize("verb", ["put_file", "pipe_file", "ls", "cat_file", "size"])
@pytest.mark.parametrize("period", [2, 3])
def test_faults_that_pass_are_tried_again(file, whole, clean, monkeypatch, verb, period):
    flaky = Flaky(clean, verb, period=period, error=ConnectionResetError("reset by peer"))
    slept: list[float] = []
    monkeypatch.setattr("interp.remote.time.sleep", slept.append)
    run(file, Remote(URL, fs=flaky))
    assert files_at(Remote(URL)) == files_of(whole.path)
    assert len(slept) == flaky.calls // period
    assert set(slept) <= {0.5}  # the second try succeeds


def test_giving_up_says_what_is_kept_and_the_next_run_goes_on(file, whole, clean, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("interp.remote.time.sleep", slept.append)
    calls = [0]

    class Gone(Flaky):
        def __getattr__(self, name):
            found = getattr(self.inner, name)

            def call(*args, **options):
                calls[0] += 1
                if calls[0] > 4:
                    raise OSError("the network is unreachable")
                return found(*args, **options)

            return call if name == "put_file" else found

    model = ToyModel()
    said = (
        r"cannot write memory://bucket/store/shard-\d+.safetensors, 5 tries failed: OSError: the network is "
        r"unreachable. 3 shards are at memory://bucket/store and [1-4] finished ones in .*all are kept, run the same"
    )
    with pytest.raises(InputError, match=said):
        run(file, Remote(URL, fs=Gone(clean, "put_file", period=1, error=OSError())), model)
    assert slept == [0.5, 1.0, 2.0, 4.0]
    second = ToyModel()
    run(file, model=second)
    assert files_at(Remote(URL)) == files_of(whole.path)
    again = model.passes + second.passes - len(json.loads((whole.path / "plan.json").read_text())["batch_windows"])
    assert again <= 3


@pytest.mark.parametrize("error", [PermissionError("access denied"), FileNotFoundError("no such bucket")])
def test_faults_that_do_not_pass_end_the_run_at_once(file, clean, monkeypatch, error):
    monkeypatch.setattr("interp.remote.time.sleep", lambda _: pytest.fail("tried again"))
    flaky = Flaky(clean, "put_file", period=1, error=error)
    with pytest.raises(InputError, match=rf"cannot write {URL}/plan.json: {type(error).__name__}: {error}"):
        run(file, Remote(URL, fs=flaky))
    assert flaky.calls == 1


def test_slow_storage_holds_up_the_model_and_not_the_disk(file, whole, clean):
    """At no time do more shards lie in the spool than it is allowed, and the store is the same."""
    most, go = [0], threading.Event()

    class Slow(Flaky):
        def __getattr__(self, name):
            found = getattr(self.inner, name)

            def call(*args, **options):
                go.wait(0.05)
                most[0] = max(most[0], len(list(spool_of(URL).glob("shard-*"))))
                return found(*args, **options)

            return call if name == "put_file" else found

    run(file, Remote(URL, fs=Slow(clean, "put_file", period=0, error=OSError())))
    assert 1 <= most[0] <= SPOOLED
    assert files_at(Remote(URL)) == files_of(whole.path)


def test_where_objects_are_not_put_whole_they_are_moved_into_place(file, whole, tmp_path):
    class Watched(Flaky):
        def __getattr__(self, name):
            if name == "put_file":
                return lambda source, key: (put.append(os.path.basename(key)), self.inner.put_file(source, key))
            return getattr(self.inner, name)

    put: list[str] = []
    fs = Watched(fsspec.filesystem("file"), "", period=0, error=OSError())
    remote = Remote(f"sftp://{tmp_path}/s", fs=fs)
    remote.root = str(tmp_path / "s")
    for name in ("plan.json", "shard-00000.safetensors"):
        remote.put(whole.path / name, name)
    assert put == [".plan.json.partial", ".shard-00000.safetensors.partial"]
    assert sorted(remote.sizes()) == ["plan.json", "shard-00000.safetensors"]
    assert files_of(tmp_path / "s")["plan.json"] == files_of(whole.path)["plan.json"]


def test_a_folder_of_something_else_is_refused(file, clean):
    clean.pipe_file("/bucket/store/thesis.tex", b"")
    with pytest.raises(InputError, match=r"is no activation store and not empty \(it holds 'thesis.tex'\)"):
        run(file)


def test_unknown_schemes_and_missing_packages(monkeypatch):
    with pytest.raises(InputError, match=r"^floppy://a: fsspec cannot use 'floppy' \("):
        Remote("floppy://a")
    fsspec.register_implementation("tape", "no_such_package.Fs", clobber=True, errtxt="Install x")
    with pytest.raises(
        InputError, match=r"^tape://a needs a package that is missing \(Install x\); for s3: pip install"
    ):
        Remote("tape://a")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(InputError, match=r"needs the package fsspec: pip install 'midlens\[remote\]'"):
        Remote("s3://a/b")
