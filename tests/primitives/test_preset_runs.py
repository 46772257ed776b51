"""`midlens primitives --model llama-3.1-8b-instruct --sae llama_scope:l15r_32x` and its Gemma 2 counterpart, whole, as
users type them: in a process of its own, with small random weights where the hub's cache would have the large ones."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from interp.model import HookedModel
from interp.sites import Site
from saes.primitives.dictionary import SiteFacts
from saes.primitives.recipes import load_recipes
from tests.chat_endpoint import ChatServer, serving
from tests.primitives.tiny_runs import D, digested, word_tokenizer
from tests.tiny_models import tiny

pytestmark = pytest.mark.slow  # a process each, models of 17 and 22 blocks
F = 96
ROOT = Path(__file__).resolve().parents[2]
COMMIT = 40 * "a"
CHAT = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<assistant> "


class Family(NamedTuple):
    """What is typed, what stands for what the hub has, and what is expected."""

    model: str
    sae: str
    tiny: dict[str, Any]
    hub_model: str
    hub_sae: str
    inside: str
    site: str
    write: Callable[[Path, float], None]
    shape: str
    source: str


def rows() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(5)), dim=1)


def llama_scope(folder: Path, norm: float) -> None:
    """JumpReLU with one threshold, about 2 in the scaled input's units, rows of length 1, in bfloat16 as published."""
    (folder / "checkpoints").mkdir(parents=True)
    w = rows().to(torch.bfloat16)
    tensors = {"encoder.weight": w, "encoder.bias": torch.zeros(F), "decoder.weight": w.T.contiguous(),
               "decoder.bias": torch.zeros(D)}  # fmt: skip
    save_file({name: t.to(torch.bfloat16) for name, t in tensors.items()}, folder / "checkpoints" / "final.safetensors")
    about = {
        "d_model": D, "d_sae": F, "expansion_factor": F / D, "use_decoder_bias": True, "top_k": 50,
        "act_fn": "jumprelu", "jump_relu_threshold": 2 * norm / D**0.5, "use_glu_encoder": False,
        "apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "sparsity_include_decoder_norm": True, "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(about))


def gemma_scope(folder: Path, norm: float) -> None:
    """JumpReLU of raw activations, a threshold for each feature."""
    folder.mkdir(parents=True)
    w = rows().numpy()
    np.savez(folder / "params.npz", W_enc=w.T, W_dec=w, b_enc=np.zeros(F, np.float32), b_dec=np.zeros(D, np.float32),
             threshold=np.full(F, 2 * norm / D**0.5, np.float32))  # fmt: skip


FAMILIES = {
    "llama": Family(
        "llama-3.1-8b-instruct", "llama_scope:l15r_32x", {"num_hidden_layers": 17}, "meta-llama/Llama-3.1-8B-Instruct",
        "fnlp/Llama3_1-8B-Base-LXR-32x", "Llama3_1-8B-Base-L15R-32x", "blocks.15.hook_resid_post", llama_scope,
        "32 layers of width 4,096", "Llama3_1-8B-Base-L15R-32x",
    ),
    "gemma2": Family(
        "gemma-2-9b-it", "gemma_scope:layer_20/width_131k/average_l0_81",
        {"num_hidden_layers": 22, "layer_types": ["sliding_attention", "full_attention"] * 11}, "google/gemma-2-9b-it",
        "google/gemma-scope-9b-it-res", "layer_20/width_131k/average_l0_81", "blocks.20.hook_resid_post", gemma_scope,
        "42 layers of width 3,584", "layer_20/width_131k/average_l0_81",
    ),
}  # fmt: skip


def cached(home: Path, repository: str) -> Path:
    """The folder in which the hub's cache keeps a repository's files."""
    at = home / "hub" / f"models--{repository.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text(COMMIT)
    return at / "snapshots" / COMMIT


@pytest.mark.parametrize("name", FAMILIES)
def test_the_command_for_the_large_model_runs_whole(name: str, tmp_path: Path):
    one, home, out = FAMILIES[name], tmp_path / "home", tmp_path / "run"
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    hf, folder = tiny(name, vocab_size=len(tokenizer), **one.tiny), cached(home, one.hub_model)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    site = Site.parse(one.site)
    with torch.no_grad():
        x = HookedModel.wrap(hf, tokenizer).capture(torch.arange(3, 83)[None], [site])[site][0, 1:]
    norm = float(x.norm(dim=1).mean())
    one.write(cached(home, one.hub_sae) / one.inside, norm)
    command = [sys.executable, "-m", "midlens", "primitives", "--model", one.model, "--sae", one.sae, "--out", str(out),
               "--emotions", "joy", "awe", "--judges", "a", "b", "--decoys", "200", "--seeds", "1", "--budget", "0.02",
               "--dtype", "float32"]  # fmt: skip
    env = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    with serving(ChatServer(digested)) as server:
        done = subprocess.run([*command, "--endpoint", server.url], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert server.seen and len({json.dumps(body, sort_keys=True) for body in server.seen}) == len(server.seen)
    lines = done.stdout.splitlines()
    assert one.shape in lines[0] and "131,072 features" in lines[1] and lines[-1] == str(out / "report.html")
    facts = json.loads((out / "catalogue.json").read_text())["facts"]
    assert (facts["site"], facts["features"]) == (one.site, F)
    at_site = SiteFacts.load(out / "site.safetensors")
    assert 0.2 < at_site.l0 < F / 4 and 0.3 < at_site.mean_norm / norm < 3
    html = (out / "report.html").read_text()
    assert one.hub_model.split("/")[-1] in html and one.source in html and one.site in html
    cells = {cell["emotion"]: cell for cell in json.loads((out / "coverage.json").read_text())["cells"]}
    recipes = load_recipes(out)
    assert recipes.keys() == {emotion for emotion, cell in cells.items() if cell["chosen"]}
    assert all(spec.site == one.site and spec.n_features == F for spec in recipes.values())
    assert all(sample["text"] for cell in cells.values() for sample in cell["samples"][:1])
