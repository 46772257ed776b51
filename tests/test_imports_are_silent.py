"""Importing a module does nothing: no output, nothing heavy loaded; and the core runs on a bare machine."""

import importlib.metadata
import json
import re
import subprocess
import sys
import textwrap

import pytest

from tests.core_modules import CORE
from tests.test_floors import FLOORS, modules

# What the core may import (DESIGN: it runs on a machine that has just these).
ALLOWED = {"torch", "numpy", "scipy", "safetensors", "transformers", "jaxtyping", "tqdm", "triton"}
ALL = [name for package in FLOORS for name, _ in modules(package) if not name.endswith("__main__")]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600
    )


def test_every_module_imports_in_silence():
    """Each module in an interpreter that has loaded only torch and numpy so far: forks of one process, one a module."""
    done = run(f"""
        import importlib, json, os, sys
        import numpy, torch
        failed = []
        for name in {ALL!r}:
            child = os.fork()
            if child == 0:
                importlib.import_module(name)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status:
                failed.append(name)
        sys.exit(f"failed: {{failed}}" if failed else 0)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_the_packages_load_nothing_heavy():
    """After `import interp, saes` no third-party package but torch, numpy and what those two bring is loaded."""
    count = """
        import sys
        {first}
        print(__import__("json").dumps(sorted({{m.split(".")[0] for m in sys.modules}})))
    """
    bare = set(
        json.loads(run(count.format(first="import torch, numpy.random, jaxtyping, tqdm, safetensors.torch")).stdout)
    )
    ours = set(json.loads(run(count.format(first="import interp, saes, midlens_kernels, midlens")).stdout))
    extra = {m for m in ours - bare - set(FLOORS) - set(sys.stdlib_module_names) if not m.startswith("_")}
    assert not extra, extra
    assert "transformers" not in ours


def third_parties() -> set[str]:
    """Top-level import names of every installed distribution that the core must do without."""
    names = set(importlib.metadata.packages_distributions())
    needed = {"torch", "transformers", "scipy", "numpy", "safetensors", "jaxtyping", "tqdm", "triton"}
    closure, frontier = set(), set(needed)
    while frontier:
        name = frontier.pop()
        if name in closure:
            continue
        closure.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        frontier |= {
            re.split(r"[\s<>=!~;\[(]", r)[0].lower().replace("_", "-") for r in requires if "extra ==" not in r
        }
    of = importlib.metadata.packages_distributions()
    allowed = {top for top, dists in of.items() if any(d.lower().replace("_", "-") in closure for d in dists)}
    return {n for n in names - allowed - ALLOWED - set(FLOORS) if n.isidentifier() and n not in sys.stdlib_module_names}


@pytest.mark.parametrize("what", ["import", "use"])
def test_the_core_runs_with_all_else_blocked(what: str, tmp_path):
    """A tiny model is captured to a store and an SAE trained on it while every other package is made unimportable."""
    blocked = sorted(third_parties())
    assert {"plotly", "pandas", "sklearn", "transformer_lens", "sae_lens", "tyro", "gguf", "datasets"} <= set(blocked)
    use = textwrap.dedent(f"""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from interp.model import HookedModel
        from interp.sites import Site
        config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                             num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)
        model = HookedModel.wrap(LlamaForCausalLM(config).eval())
        site = Site.parse("blocks.1.hook_resid_post")
        with torch.no_grad():
            x = model.capture(torch.arange(24).reshape(2, 12), [site])[site]
        from saes.sae import SAE, SAEConfig
        sae = SAE(SAEConfig(d_in=16, d_sae=32, k=4))
        sae.save({str(tmp_path / "sae")!r})
        assert SAE.load({str(tmp_path / "sae")!r})(x.reshape(-1, 16)).shape == (24, 16)
    """)
    head = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    body = "".join(f"import {name}\n" for name in CORE) if what == "import" else use
    done = run(head + body)
    assert done.returncode == 0, done.stderr[-2000:]
