"""A Sudoku model is an ordinary GPT-2 for everything else here: capture, edits, attention kernels, extraction."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp.attention.heads import kernel
from interp.errors import InputError
from interp.extract import extract
from interp.sites import Site
from interp.sudoku.model import SudokuModel, SudokuModelConfig, build_model, load_model, save_model
from interp.sudoku.naming import text_of
from interp.tensorfile import write_tensors
from interp.tokenfile import tokenize

CONFIG = SudokuModelConfig(n=4, d_model=32, n_layers=2, n_heads=4, d_mlp=64, n_ctx=18)


@pytest.fixture(scope="module")
def model() -> SudokuModel:
    return SudokuModel.of(build_model(CONFIG, seed=3).double(), CONFIG)


def sequences(b: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 64, size=(b, 18)))


def plain(model: SudokuModel, tokens: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    """The model in plain tensor algebra: streams after each block, logits, attention patterns."""
    w = dict(model.hooked.hf.named_parameters())

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    t = tokens.shape[1]
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:t]
    streams, patterns = [], []
    for i in range(CONFIG.n_layers):
        at = f"transformer.h.{i}"
        h = norm(x, f"{at}.ln_1") @ w[f"{at}.attn.c_attn.weight"] + w[f"{at}.attn.c_attn.bias"]
        q, k, v = (part.unflatten(-1, (4, 8)) for part in h.split(32, dim=-1))
        scores = torch.einsum("bthe,bshe->bhts", q, k) / 8**0.5
        pattern = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        z = torch.einsum("bhts,bshe->bthe", pattern, v).flatten(2)
        x = x + z @ w[f"{at}.attn.c_proj.weight"] + w[f"{at}.attn.c_proj.bias"]
        h = norm(x, f"{at}.ln_2") @ w[f"{at}.mlp.c_fc.weight"] + w[f"{at}.mlp.c_fc.bias"]
        h = h / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + h @ w[f"{at}.mlp.c_proj.weight"] + w[f"{at}.mlp.c_proj.bias"]
        streams.append(x)
        patterns.append(pattern)
    return streams, norm(x, "transformer.ln_f") @ w["lm_head.weight"].T, patterns


@torch.no_grad()
def test_capture_and_patterns_are_those_of_the_equations(model: SudokuModel):
    tokens = sequences()
    streams, logits, patterns = plain(model, tokens)
    assert (model.hooked(tokens) - logits).abs().max() < 1e-12
    for layer in range(2):
        sites = [Site.parse(f"resid_post.{layer}"), Site.parse(f"pattern.{layer}")]
        found = model.hooked.capture(tokens, sites)
        assert (found[sites[0]] - streams[layer]).abs().max() < 1e-12
        assert (found[sites[1]] - patterns[layer]).abs().max() < 1e-6  # softmax in float32


@torch.no_grad()
def test_an_edit_of_the_stream_moves_the_logits_and_leaves(model: SudokuModel):
    tokens, site = sequences(), Site.parse("resid_post.1")
    clean, direction = model.hooked(tokens), torch.linspace(-1, 1, 32, dtype=torch.float64)
    with model.hooked.edited({site: lambda x, where: x + direction}):
        edited = model.hooked(tokens)
    hf = model.hooked.hf
    expected = hf.lm_head(hf.transformer.ln_f(plain(model, tokens)[0][1] + direction))
    assert (edited - expected).abs().max() < 1e-12 and (edited - clean).abs().max() > 0.1
    assert torch.equal(model.hooked(tokens), clean)


@torch.no_grad()
def test_the_kernel_of_a_head_gives_its_scores(model: SudokuModel):
    """x_i^T M x_j of interp.attention, with x what ln_1 puts out, is the captured score."""
    tokens = sequences()
    sites = [Site.parse("resid_pre.1"), Site.parse("attn_scores.1")]
    found = model.hooked.capture(tokens, sites)
    heads = kernel(model.hooked, 1, fold_norm=False, biases=True)
    x = model.hooked.hf.transformer.h[1].ln_1(found[sites[0]])
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    scores = torch.einsum("btd,hde,hce,bsc->bhts", x, heads.left, heads.right, x)
    seen = torch.ones(18, 18, dtype=torch.bool).tril()
    assert (scores - found[sites[1]])[..., seen].abs().max() < 1e-10


def test_extraction_fills_a_store(model: SudokuModel, tmp_path: Path):
    tokens = sequences(7)
    site = Site.parse("resid_post.0")
    documents = [
        SimpleNamespace(id=str(i), text=text_of(model.vocabulary, row.tolist())) for i, row in enumerate(tokens)
    ]
    file = tokenize(documents, model.hooked.tokenizer, tmp_path / "tokens")
    assert all((file[i] == row.numpy()).all() for i, row in enumerate(tokens))
    store = extract(model.hooked, file, [site], tmp_path / "store", store_dtype="float32", progress=False)
    assert len(store) == 7 * 17  # position 0 is left out
    streams = plain(model, tokens)[0][0]
    (batch,) = store.batches([site], len(store), seed=0)
    rows = streams[batch.doc, batch.position].float()
    assert (batch.acts[site] - rows).abs().max() < 1e-5


def test_saved_and_loaded(model: SudokuModel, tmp_path: Path):
    hf = build_model(CONFIG, seed=3)
    save_model(hf, CONFIG, tmp_path / "m")
    loaded = load_model(tmp_path / "m", device="cpu")
    assert loaded.config == CONFIG and loaded.vocabulary.size == 69 and loaded.rules.n == 4
    assert torch.equal(loaded.hooked(sequences()), hf(sequences()).logits)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "gpt2"
    from transformers import GPT2LMHeadModel

    assert torch.equal(GPT2LMHeadModel.from_pretrained(tmp_path / "m")(sequences()).logits, hf(sequences()).logits)


def test_weights_are_a_function_of_the_seed_and_leave_the_global_one():
    state = torch.random.get_rng_state()
    first, again, other = (build_model(CONFIG, seed=seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.data_ptr() != build_model(CONFIG, seed=1).transformer.wte.weight.data_ptr()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 5}, "no board of side 5"),
        ({"d_model": 30}, "d_model=30: expected a multiple of n_heads=4"),
        ({"n_layers": 0}, "n_layers=0: expected 1 or more"),
        ({"n_ctx": 17}, "n_ctx=17: expected at least 18, the 16 cells"),
    ],
)
def test_shapes_that_cannot_be(changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        SudokuModelConfig(**{**CONFIG.to_json(), **changes})


def test_folders_that_hold_no_model(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no model\.safetensors, so it is no finished Sudoku model"):
        load_model(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds a training run that is not finished"):
        load_model(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(InputError, match="not those of a Sudoku model"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="expected \\['d_mlp', 'd_model'"):
        SudokuModelConfig.from_json({"n": 4})
