"""Models whose layers lie in several places: loaded by a map, every site, edit and generation as of the whole model.

Here there is one device. What a map moves is seen twice: with real numbers and weights on disk, which accelerate's
hooks fetch for each call; and on torch's fake tensors, which compute no numbers but know devices ("lazy", the one kind
that this build of torch can fake) and refuse to mix them.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from interp.compat import all_sites
from interp.errors import InputError
from interp.extract import extract
from interp.loading import load_hf
from interp.model import HookedModel
from interp.model_folder import check_size
from interp.placement import below
from interp.sites import Point, Site
from interp.steering.closed_forms import add
from interp.taps import DERIVED
from tests.tiny_models import random_tokens, tiny
from tests.toy_store import token_file

accelerate = pytest.importorskip("accelerate")
T = 11
BASES = {"llama": "model", "gemma2": "model", "gpt2": "transformer"}
FAMILIES = tuple(BASES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, folder in folders.items():
        tiny(name, vocab_size=97).save_pretrained(folder)
    return folders


def halves(model: HookedModel, first: Any, second: Any) -> dict[str, Any]:
    """A map in two: the upper half of the layers and the head on `second`, all else on `first`."""
    body, base = model.anatomy.body(model.hf), model.anatomy.base
    places = {f"{base}.{name}": first for name, _ in body.named_children() if name != model.anatomy.layers}
    middle = model.cfg.n_layers // 2
    layers = {f"{base}.{model.anatomy.layers}.{i}": first if i < middle else second for i in range(model.cfg.n_layers)}
    tied = model.hf.config.tie_word_embeddings
    return {**places, **layers, model.anatomy.head: first if tied else second}


def doubled(x: torch.Tensor, where: Any) -> torch.Tensor:
    places = where.positions.reshape(*where.positions.shape, *[1] * (x.ndim - 2))
    return (1.1 * x + 0.05 * places).to(x.dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_loaded_by_a_map_is_the_whole_model(saved, name: str, tmp_path: Path):
    whole = HookedModel.load(saved[name], dtype="float32")
    places = halves(whole, "cpu", "disk")
    model = HookedModel.load(saved[name], dtype="float32", device_map=places, offload_folder=tmp_path)
    assert model.hf.hf_device_map == places and model.device == torch.device("cpu")
    assert any(p.is_meta for p in model.hf.parameters()) and not all(p.is_meta for p in model.hf.parameters())
    tokens, sites = random_tokens(whole.hf, 2, T), all_sites(whole)
    with torch.no_grad():
        (logits, found), (expected, right) = model.run_recorded(tokens, sites), whole.run_recorded(tokens, sites)
        assert logits is not None and expected is not None and torch.equal(logits, expected)
        assert all(torch.equal(found[site], right[site]) for site in sites)
        for site in [s for s in sites if s.point not in DERIVED and s.layer in (None, whole.cfg.n_layers - 1)]:
            with model.edited({site: doubled}), whole.edited({site: doubled}):
                assert torch.equal(model(tokens), whole(tokens)), site
    edits = {Site.parse("resid_post.1"): doubled}
    assert torch.equal(
        model.generate(tokens, edits=edits, max_new_tokens=4), whole.generate(tokens, edits=edits, max_new_tokens=4)
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("places", ["map", "auto"])
def test_a_part_of_a_model_is_loaded_by_a_map(saved, name: str, places: str, tmp_path: Path):
    whole = HookedModel.load(saved[name], dtype="float32")
    site = Site(Point.MLP_OUT, whole.cfg.n_layers // 2)
    chosen: dict[str, Any] = {"device_map": halves(whole, "cpu", "disk"), "offload_folder": tmp_path}
    if places == "auto":
        chosen = {"device_map": "auto", "max_memory": {"cpu": 40_000}, "offload_folder": tmp_path}
    model = HookedModel.load(saved[name], upto=site, dtype="float32", **chosen)
    assert model.loaded_layers == whole.cfg.n_layers // 2 + 1 and any(p.is_meta for p in model.hf.parameters())
    tokens = random_tokens(whole.hf, 2, T)
    with torch.no_grad():
        assert torch.equal(model.capture(tokens, [site])[site], whole.capture(tokens, [site])[site])
    stored = [
        extract(m, token_file(tmp_path / f"t{i}", [5, 30, 12], seed=1), [site], tmp_path / f"s{i}", progress=False)
        for i, m in enumerate((model, whole))
    ]
    assert len(stored[0]) > 30
    assert torch.equal(*(store.rows(site, 0, len(store)) for store in stored))


class Moving(accelerate.hooks.AlignDevicesHook):
    """accelerate's hook as `device_map` attaches it, on a module that is in its place already."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def on_two_devices(name: str) -> HookedModel:
    """A fake model on lazy:0 and lazy:1, its final norm back on lazy:0; to be called inside a fake mode."""
    hf: Any = tiny(name)
    places = halves(HookedModel.wrap(hf), "lazy:0", "lazy:1")
    for prefix, place in places.items():
        for module in hf.get_submodule(prefix).modules():
            for owned in (module._parameters, module._buffers):
                for key, held in list(owned.items()):
                    if held is not None:
                        there: Any = torch.empty(held.shape, dtype=held.dtype, device=place)
                        owned[key] = nn.Parameter(there) if isinstance(held, nn.Parameter) else there
        accelerate.hooks.add_hook_to_module(hf.get_submodule(prefix), Moving(torch.device(place)))
    accelerate.hooks.add_hook_to_module(hf, Moving(torch.device("lazy:0"), io_same_device=True))
    return HookedModel.wrap(hf)


@pytest.mark.parametrize(("name", "gradients"), [("llama", False), ("llama", True), ("gemma2", False), ("gpt2", True)])
def test_sites_edits_and_steering_of_two_devices(name: str, gradients: bool):
    from torch._subclasses import FakeTensorMode

    first, second = torch.device("lazy:0"), torch.device("lazy:1")
    steered = add(torch.ones(48), torch.zeros(48))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(gradients):
        model = on_two_devices(name)
        assert model.device == first
        tokens, middle = torch.ones(2, T, dtype=torch.long, device=first), model.cfg.n_layers // 2
        with pytest.raises(RuntimeError, match="same device"):  # the fake devices do not mix
            torch.ones(2, device=first) + torch.ones(2, device=second)
        logits, found = model.run_recorded(tokens, all_sites(model))
        assert logits is not None and logits.device == first
        for site, x in found.items():
            entering = site.point in (Point.EMBED, Point.LN_FINAL) or site == Site(Point.RESID_PRE, middle)
            below = site.layer is not None and site.layer < middle
            assert x.device == (first if entering or below else second), site
        for site in [s for s in all_sites(model) if s.point not in DERIVED and s.layer in (None, middle)]:
            with model.edited({site: doubled}):
                assert model(tokens).device == first, site
        with model.edited({Site.parse(f"resid_post.{middle}"): lambda x, where: steered(x)}):
            assert model(tokens).device == first


def test_what_does_not_go_together_is_refused(saved, monkeypatch):
    def refusal(**options: Any) -> str:
        with pytest.raises(InputError) as error:
            load_hf(saved["llama"], **options)
        return str(error.value)

    assert "leave device out" in refusal(device_map="auto", device="cpu")
    assert "give device='cuda:1'" in refusal(device_map="cuda:1") and "balanced_low_0" in refusal(device_map="all")
    assert "expected auto" in refusal(device_map={}) and "expected auto" in refusal(device_map=3)
    assert "puts lm_head at 1.5: expected a device" in refusal(device_map={"": "cpu", "lm_head": 1.5})
    assert "either device_map (layers on several devices) or tp_plan" in refusal(device_map="auto", tp_plan="auto")
    alone = refusal(max_memory={"cpu": "1GiB"}, offload_folder="x")
    assert "max_memory and offload_folder is for a device_map: give device_map='auto'" in alone and "both" not in alone
    assert "unknown options ['max_memroy']" in refusal(device_map="auto", max_memroy={})
    with pytest.raises(InputError, match="shares the embedding's weights: put it where the embedding is"):
        load_hf(saved["gemma2"], device_map={"": "cpu", "lm_head": "disk"})
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert "torchrun --nproc-per-node" in refusal(tp_plan="auto")
    assert "max_memory and tp_plan" in refusal(tp_plan="auto", max_memory={0: 1})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install accelerate" in refusal(device_map="auto")


def test_a_plan_of_which_a_part_of_a_model_has_nothing_is_refused():
    held = ["", "layers.0.mlp.down_proj", "layers.0.mlp.down_proj.weight"]
    plan = {"lm_head": "colwise_rep", "model.layers.*.mlp.down_proj": "rowwise"}
    assert below({"tp_plan": plan}, "model.", held) == {"tp_plan": {"layers.*.mlp.down_proj": "rowwise"}}
    with pytest.raises(
        InputError, match=r"names gpt_neox.layers.*, lm_head, and the part .* \(model.layers.0.mlp.down_proj\)"
    ):
        below({"tp_plan": {"gpt_neox.layers.*.mlp.dense": "rowwise", "lm_head": "colwise_rep"}}, "model.", held)


def left_out(folder: Path, model: HookedModel, *names: str, **options: Any) -> str:
    """What is said of a map without some of its modules."""
    places = {name: place for name, place in halves(model, "cpu", "disk").items() if name not in names}
    with pytest.raises(InputError) as error:
        load_hf(folder, device_map=places, **options)
    return str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_map_that_leaves_modules_out_is_refused_and_they_are_named(saved, name: str, tmp_path: Path):
    whole, base = HookedModel.load(saved[name], dtype="float32"), BASES[name]
    layers, norm = f"{base}.{whole.anatomy.layers}", f"{base}.{whole.anatomy.norm}"
    told = left_out(saved[name], whole, f"{layers}.1", norm)
    assert f"leaves out 2 of the model's modules: {layers}.1, {norm}. Give each a device, 'cpu' or 'disk'" in told
    assert "device_map='auto'" in told and "does not have" not in told
    misspelt = {**halves(whole, "cpu", "cpu"), f"{base}.layer.1": "cpu"}
    del misspelt[f"{layers}.1"]
    with pytest.raises(InputError, match=rf"{layers}.1.* names what the model does not have: {base}.layer.1$"):
        load_hf(saved[name], device_map=misspelt)
    every = [place for place in halves(whole, "cpu", "cpu") if place.startswith(layers)]
    assert f"leaves out 1 of the model's modules: {layers}. Give" in left_out(saved[name], whole, *every)
    # What holds no tensor may be left out, and with `upto` what is not loaded; nothing else.
    lower = {"upto": "resid_post.0", "offload_folder": tmp_path}
    assert f"1 of the model's modules: {layers}.0. Give" in left_out(saved[name], whole, f"{layers}.0", **lower)
    places = {place: "cpu" for place in halves(whole, 0, 0) if place != f"{base}.rotary_emb"}
    assert load_hf(saved[name], device_map=places).hf is not None
    for place in (f"{layers}.1", norm, whole.anatomy.head):
        places.pop(place, None)
    assert load_hf(saved[name], device_map=places, upto="resid_post.0").n_layers == whole.cfg.n_layers


def test_weights_beyond_this_machines_memory_are_refused_only_where_they_go_there(tmp_path: Path):
    """Its parts may lie on other devices or on disk; a config that asks for far more than its files hold never may."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    empty = nn.Linear(2, 2, device="meta")
    with pytest.raises(InputError, match="GiB, and this machine has"):
        check_size(empty, 5 * memory, tmp_path)
    check_size(empty, 5 * memory, tmp_path, in_parts=True)
    with pytest.raises(InputError, match="do the two belong together"):
        check_size(nn.Linear(2**20, 2**20, device="meta"), 2**20, tmp_path, in_parts=True)
