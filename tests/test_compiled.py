"""Compiled blocks: the same values, one compilation for all blocks and shapes, and nothing hidden from hooks."""

import shutil

import pytest
import torch
from torch import nn

from interp.bridge import structural_copy
from interp.compiled import compile_blocks
from interp.errors import InputError
from interp.extract import extract
from interp.model import HookedModel
from interp.sites import Site
from tests.tiny_models import random_tokens, tiny
from tests.toy_store import token_file

SHAPES = [(2, 12), (3, 20), (5, 33), (2, 7), (4, 50)]


class Counted:
    """A backend that runs what dynamo traced as it is, and counts graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(family: str, backend) -> tuple[HookedModel, HookedModel]:
    eager, compiled = HookedModel.wrap(tiny(family)), HookedModel.wrap(tiny(family))
    compile_blocks(compiled.anatomy, compiled.hf, backend=backend)
    return eager, compiled


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_graph_serves_all_blocks_and_shapes(family):
    backend = Counted()
    eager, compiled = pair(family, backend)
    sites = ["resid_pre.1", "resid_post.2", "embed", "ln_final"]
    with torch.inference_mode():
        for b, t in SHAPES:
            tokens = random_tokens(eager.hf, b, t)
            a, c = (model.capture(tokens, sites) for model in (eager, compiled))
            for site in a:
                torch.testing.assert_close(c[site], a[site], rtol=1e-5, atol=1e-5)
        assert backend.graphs == 1
        compiled.capture(random_tokens(eager.hf, 1, 9), sites)  # a batch of one: torch makes a constant of the 1
        compiled.capture(random_tokens(eager.hf, 1, 21), sites)
    assert backend.graphs == 2


def test_nothing_inside_a_compiled_block_is_hidden():
    backend = Counted()
    eager, compiled = pair("llama", backend)
    tokens = random_tokens(eager.hf, 2, 12)
    shift = torch.randn(16)
    with torch.inference_mode():
        compiled.capture(tokens, ["resid_post.2"])  # traced before anyone looks inside
        assert backend.graphs == 1
        sites = [site for site in ("z.1", "pattern.0", "mlp_post.2", "resid_mid.1", "rot_k.2", "ln1.0", "resid_post.2")]
        a, c = (model.capture(tokens, sites) for model in (eager, compiled))
        for site in a:
            torch.testing.assert_close(c[site], a[site], rtol=1e-5, atol=1e-5)
        edits = {Site.parse("z.1[2]"): lambda x, where: x + shift}
        logits = []
        for model in (eager, compiled):
            with model.edited(edits):
                logits.append(model(tokens))
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits[1], compiled(tokens), rtol=1e-3, atol=1e-3)
        seen = []
        handle = compiled.anatomy.blocks(compiled.hf)[1].mlp.register_forward_hook(lambda *_: seen.append(1))
        compiled(tokens)
        handle.remove()
        compiled(tokens)
    assert seen == [1] and backend.graphs == 1


def test_gradients_run_eager():
    backend = Counted()
    _, compiled = pair("llama", backend)
    compiled(random_tokens(compiled.hf, 2, 6)).sum().backward()
    assert backend.graphs == 0
    assert all(p.grad is not None for p in compiled.anatomy.blocks(compiled.hf)[0].parameters())


def test_a_copy_is_eager_and_its_own():
    backend = Counted()
    _, compiled = pair("llama", backend)
    tokens = random_tokens(compiled.hf, 2, 6)
    twin = HookedModel.wrap(structural_copy(compiled.hf))
    seen: list[nn.Module] = []
    block = twin.anatomy.blocks(twin.hf)[0]
    block.mlp.register_forward_hook(lambda module, *_: seen.append(module))
    with torch.inference_mode():
        torch.testing.assert_close(twin(tokens), compiled(tokens), rtol=1e-5, atol=1e-5)
    assert seen == [block.mlp]


def test_compiling_twice_is_refused():
    _, compiled = pair("llama", Counted())
    with pytest.raises(InputError, match="blocks are compiled already"):
        compile_blocks(compiled.anatomy, compiled.hf)


def test_loading_compiles_on_request(tmp_path, monkeypatch):
    backend = Counted()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, **{**options, "backend": backend}))
    tiny("llama").save_pretrained(tmp_path / "m")
    file = token_file(tmp_path / "t", [20, 31, 7, 18])
    stores = []
    for compile in (False, True):
        model = HookedModel.load(tmp_path / "m", upto="resid_post.1", dtype="float32", device="cpu", compile=compile)
        settings = {"store_dtype": "float32", "max_length": 16, "token_budget": 32, "progress": False}
        stores.append(extract(model, file, ["resid_post.1"], tmp_path / f"s{compile}", **settings))
    a, b = (store.rows("resid_post.1", 0, len(store)) for store in stores)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert backend.graphs >= 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on CPUs")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_real_compiler_gives_the_same_values(family):
    eager, compiled = pair(family, "inductor")
    with torch.inference_mode():
        for b, t in SHAPES[:3]:
            tokens = random_tokens(eager.hf, b, t)
            a, c = (model.capture(tokens, ["resid_post.2"]) for model in (eager, compiled))
            for site in a:
                torch.testing.assert_close(c[site], a[site], rtol=1e-4, atol=1e-4)
