"""Hostile input: every attack of the tables is refused in words, runs nothing, writes nowhere and takes no memory."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from interp import weights
from interp.errors import InputError
from interp.loading import load_hf
from tests import hostile_files, hostile_models, hostile_saes, hostile_stores
from tests.hostile_samples import GROWTH, Attack, Canary, canary, tried
from tests.tiny_folder import tiny_folder

ATTACKS = [*hostile_models.ATTACKS, *hostile_stores.ATTACKS, *hostile_saes.ATTACKS, *hostile_files.ATTACKS]
CPU: dict[str, Any] = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


WIDE = {"SAE config", "control vector", *(attack.target for attack in hostile_files.ATTACKS)}
"""Tables that try the same things on many readers: one in four is enough for every day, the rest are slow tests."""


def _marked() -> list[Any]:
    wide = [attack for attack in ATTACKS if attack.target in WIDE]
    seldom = {attack.id for number, attack in enumerate(wide) if number % 4}
    return [pytest.param(one, id=one.id, marks=[pytest.mark.slow] if one.id in seldom else []) for one in ATTACKS]


@pytest.mark.parametrize("attack", _marked())
def test_the_attack_is_refused(attack: Attack, tmp_path):
    found = tried(attack, tmp_path)
    assert found.refused, found.said
    assert not found.escaped
    assert found.growth < GROWTH
    assert 20 < len(found.said) < 3000 and "Traceback" not in found.said


def test_what_the_tables_rest_on_would_show_an_attack_that_works(tmp_path):
    """The canary runs when opened without care, and files written beside the folder are noticed."""
    import pickle

    cases = {
        "opened": lambda folder: lambda: None,
        "ran": lambda folder: lambda: pickle.loads(canary(folder)),
        "wrote": lambda folder: lambda: (folder.parent / "beside").write_text("x"),
        "grew": lambda folder: lambda: torch.ones(GROWTH // 2).sum(),
    }
    found = {}
    for name, prepare in cases.items():
        (tmp_path / name).mkdir()
        found[name] = tried(Attack("nothing", name, prepare), tmp_path / name)
    assert not any(outcome.refused or outcome.held for outcome in found.values())
    assert found["ran"].escaped and found["wrote"].escaped and found["grew"].growth > GROWTH
    assert isinstance(Canary(tmp_path), Canary) and not found["opened"].escaped


def test_attacks_have_names_of_their_own():
    assert len({attack.id for attack in ATTACKS}) == len(ATTACKS)


@pytest.fixture
def pickled(tmp_path):
    """A model folder whose weights are an honest pickle, and its tensors."""
    tiny_folder(tmp_path)
    model = tmp_path / "model"
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")
    return model, state


def test_pickled_weights_that_are_trusted_are_opened_for_tensors_only(pickled):
    model, state = pickled
    with pytest.raises(InputError, match=r"pickle can run any program.*trust_pickle=True"):
        load_hf(model, **CPU)
    held = load_hf(model, trust_pickle=True, **CPU).hf.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in state.items())
    (model / "pytorch_model.bin").write_bytes(canary(model))
    with pytest.raises(InputError, match="could not be loaded"):
        load_hf(model, trust_pickle=True, **CPU)
    assert not (model / "pwned").exists()


def test_of_the_hub_pickles_are_not_even_fetched_unless_trusted(pickled, monkeypatch):
    model, _ = pickled
    asked: list[str] = []

    def snapshot(hub_id, patterns, revision):
        asked.extend(patterns)
        return str(model)

    monkeypatch.setattr(weights, "snapshot", snapshot)
    with pytest.raises(InputError, match="pickles"):
        load_hf("owner/name", **CPU)
    assert not any(".bin" in pattern for pattern in asked)
    load_hf("owner/name", trust_pickle=True, **CPU)
    assert any(".bin" in pattern for pattern in asked)


@pytest.mark.parametrize("kept", ["pytorch_model.bin", "model.safetensors", None])
def test_trusted_pickles_are_fetched_only_where_there_are_no_safetensors(pickled, tmp_path, monkeypatch, kept):
    """A hub repository in a folder, with its weights in both formats or in one; the patterns choose what is copied."""
    import shutil
    from fnmatch import fnmatch

    from safetensors.torch import save_file

    model, state = pickled
    repository, cache = tmp_path / "hub", tmp_path / "snapshots" / "0123"
    shutil.copytree(model, repository)
    save_file(state, repository / "model.safetensors", {"format": "pt"})
    for name in ("pytorch_model.bin", "model.safetensors"):
        if kept not in (name, None):
            (repository / name).unlink()
    cache.mkdir(parents=True)

    def snapshot(hub_id, patterns, revision):
        for file in repository.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in patterns):
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(weights, "snapshot", snapshot)
    found = load_hf("owner/name", trust_pickle=True, **CPU).hf.state_dict()
    assert all(torch.equal(found[name], x) for name, x in state.items())
    fetched = {file.name for file in cache.iterdir()} & {"pytorch_model.bin", "model.safetensors"}
    assert fetched == {kept or "model.safetensors"}


@pytest.mark.parametrize("name", ["code in an unknown model type", "code in the tokenizer"])
def test_code_of_a_hub_model_never_runs_and_nobody_is_asked(tmp_path, monkeypatch, name):
    import builtins

    hostile_models.CHANGES[name](hostile_models.model_in(tmp_path))
    monkeypatch.setattr(weights, "snapshot", lambda *_: str(tmp_path / "model"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # what transformers asks at a terminal
    with pytest.raises(InputError, match="never run here"):
        load_hf("owner/name", **CPU)
    assert not (tmp_path / "model" / "pwned").exists()


def test_names_in_files_cannot_command_a_terminal(tmp_path, capsys):
    from midlens.__main__ import main

    store = hostile_stores.store_in(tmp_path)
    evil = "\x1b]0;owned\x07\x1b[2J\u202egnp\x9b31m"

    def rename(manifest):
        manifest["parts"][0]["spec"]["model"] = evil

    hostile_stores.changed_json(store / "manifest.json", rename)
    assert main(["store", "info", str(store)]) == 0
    said = capsys.readouterr().out
    assert "owned" in said and "\ufffd" in said and not set(said) & set("\x1b\x07\u202e\x9b")
    assert main(["store", "info", str(tmp_path / evil)]) == 2
    said = capsys.readouterr().err
    assert "gnp" in said and not set(said) & set("\x1b\x07\u202e\x9b")
