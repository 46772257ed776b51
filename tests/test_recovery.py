"""Every architecture finds a planted sparse dictionary; what it starts from does not hold it.

Activations are sums of two out of 24 random directions in 24 dimensions, with weights between 1 and 2. Measured is, for
each planted direction, the largest cosine with a decoder row; a decoder that was not trained reaches 0.4 on average.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from saes.recipe import TrainConfig
from saes.sae import SAE
from saes.train import fit
from tests.sae_rows import Sites

D, F, ACTIVE, TRAINED, STEPS = 24, 24, 2, 2048, 130
BOUND = 0.75
ONE, TWO = "resid_post.3", "mlp_out.3"


def planted(d: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of rows, and two dictionaries.

    The seed is not that of the runs: their first weights are drawn in the same way.
    """
    g = torch.Generator().manual_seed(5)
    first, second = (torch.nn.functional.normalize(torch.randn(F, d, generator=g), dim=1) for _ in range(2))
    n = TRAINED + 1000
    chosen = torch.rand(n, F, generator=g).topk(ACTIVE).indices
    return torch.zeros(n, F).scatter(1, chosen, 1 + torch.rand(n, ACTIVE, generator=g)), first, second


def recovered(decoder: Tensor, directions: Tensor) -> float:
    """Mean over planted directions of the largest cosine with a decoder row."""
    rows = torch.nn.functional.normalize(decoder, dim=1)
    return (directions @ rows.T).amax(1).mean().item()


COMMON = {"d_sae": F, "k": ACTIVE, "lr": 3e-2, "batch_size": 128, "log_every": 50, "dead_after_tokens": 2000}
RECIPES: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {},
    "matryoshka_batchtopk": {"groups": (0.25, 0.75)},
    "standard": {"sparsity": 0.3, "sparsity_warmup": 0.5},
    "p-annealing": {"architecture": "standard", "sparsity": 0.2, "p_end": 0.5, "sparsity_warmup": 0.4},
    "gated": {"sparsity": 0.4, "sparsity_warmup": 0.5},
    "step": {"architecture": "jumprelu", "penalty": "step", "sparsity": 0.03, "bandwidth": 0.5, "sparsity_warmup": 0.5},
    "target": {"architecture": "jumprelu", "sparsity": 0.1, "bandwidth": 1.0, "sparsity_warmup": 0.5},
    "tanh": {
        "architecture": "jumprelu",
        "penalty": "tanh",
        "sparsity": 0.03,
        "tanh_scale": 1.0,
        "sparsity_warmup": 0.5,
    },
}


def trained(name: str, rows: Sites, path: Any, sites: dict[str, Any], **over: Any) -> SAE:
    options = {"tokens": 128 * STEPS, "architecture": name, **COMMON, **RECIPES[name], **over}
    return fit(rows, TrainConfig(**options), path, **sites)


@pytest.mark.parametrize("name", list(RECIPES))
def test_an_sae_finds_the_planted_dictionary(name, tmp_path):
    """And fires as often as was asked, where the recipe says how often."""
    codes, directions, _ = planted()
    x = codes @ directions + 0.5
    sae = trained(name, Sites({ONE: x[:TRAINED]}), tmp_path, {"site": ONE})
    assert recovered(sae.W_dec, directions) > BOUND
    if name in ("topk", "batchtopk", "matryoshka_batchtopk", "target"):
        l0 = sae.encode(x[TRAINED:]).offsets.diff().double().mean().item()
        assert l0 == pytest.approx(ACTIVE, rel=0.3)


def test_without_training_there_is_nothing_to_find(tmp_path):
    codes, directions, _ = planted()
    rows = Sites({ONE: (codes @ directions + 0.5)[:TRAINED]})
    start = trained("topk", rows, tmp_path, {"site": ONE}, tokens=128, lr=1e-9)
    assert recovered(start.W_dec, directions) < 0.45


@pytest.mark.parametrize(("name", "decoder_norm"), [("batchtopk", "free"), ("standard", "weighted")])
def test_a_transcoder_finds_what_each_feature_writes(name, decoder_norm, tmp_path):
    codes, reads, writes = planted()
    rows = Sites({ONE: (codes @ reads + 0.5)[:TRAINED], TWO: (codes @ writes - 1)[:TRAINED]})
    sae = trained(name, rows, tmp_path, {"site": ONE, "site_out": TWO}, decoder_norm=decoder_norm)
    assert recovered(sae.W_dec, writes) > BOUND


@pytest.mark.parametrize("name", ["standard", "gated"])
def test_a_crosscoder_finds_both_dictionaries(name, tmp_path):
    """One feature per planted code, with its direction in either source, though one is 30 times larger."""
    codes, first, second = planted()
    rows = Sites({ONE: (codes @ first + 0.5)[:TRAINED], TWO: (30 * codes @ second - 30)[:TRAINED]})
    sae = trained(name, rows, tmp_path, {"site": [ONE, TWO]})
    here, there = (
        torch.nn.functional.normalize(part, dim=1) @ d.T
        for part, d in zip(sae.split(sae.W_dec), (first, second), strict=True)
    )
    assert torch.minimum(here, there).amax(0).mean() > BOUND


def test_a_skip_transcoder_explains_what_neither_features_nor_a_linear_map_do_alone(tmp_path):
    """The target is a linear map of the input plus a direction for each code that is on, however strongly."""
    codes, reads, writes = planted(d=16)
    x = codes @ reads + 0.5
    linear = torch.randn(16, 16, generator=torch.Generator().manual_seed(9)) / 2
    y = x @ linear + 2 * (codes > 0).float() @ writes
    rows = Sites({ONE: x[:TRAINED], TWO: y[:TRAINED]})
    held_x, held_y = x[TRAINED:], y[TRAINED:]
    missed = {}
    for skip in (True, False):
        sae = trained("topk", rows, tmp_path / str(skip), {"site": ONE, "site_out": TWO}, skip=skip)
        missed[skip] = (held_y - sae(held_x)).square().sum().item()
    one = torch.ones(len(x), 1)
    affine = torch.linalg.lstsq(torch.cat([x, one], dim=1)[:TRAINED], y[:TRAINED]).solution
    best_linear = (held_y - torch.cat([x, one], dim=1)[TRAINED:] @ affine).square().sum().item()
    assert missed[True] < 0.5 * min(missed[False], best_linear)
