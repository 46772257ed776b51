"""Linearising layers: exactness where it is exact, calculus where it is not; allocation."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attention.allocation import allocated_widths
from interp.attention.linearise import (
    Linearised,
    document_losses,
    first_order,
    linearise_sweep,
    linearised_logits,
    mean_operators,
)
from interp.attention.sd_attention import masked_softmax
from interp.attention.sd_data import Windows, windows
from interp.attention.sd_model import Twin, TwinConfig
from interp.corpus import Corpus, Document
from interp.errors import InputError


@pytest.fixture
def data() -> Windows:
    rng = np.random.default_rng(0)
    texts = ["".join(chr(c) for c in rng.integers(97, 123, size=n)) for n in (12, 40, 5, 24)]
    return windows(Corpus(tuple(Document(str(i), text) for i, text in enumerate(texts)), "toy"), 12, once=True)


def twin(kind: str, *, norm: bool = False) -> Twin:
    shape = TwinConfig(kinds=(kind,) * 3, width=16, heads=2, head_widths=(8,) * 3, n_ctx=12, norm=norm)  # pyright: ignore
    model = Twin(shape, seed=1).double()
    for p in model.parameters():
        p.data *= 2
    return model


def tokens(model: Twin, n: int = 12) -> Tensor:
    return torch.randint(0, 256, (3, n), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["standard", "sd_token", "sd_kernel", "elu"])
def test_nothing_linearised_is_the_model(kind: str) -> None:
    model = twin(kind, norm=kind == "standard")
    for change in (Linearised(), Linearised(mode="taylor")):
        torch.testing.assert_close(linearised_logits(model, tokens(model), change), model(tokens(model), torch.float64))


def test_taylor_changes_nothing_in_token_space() -> None:
    """By construction: there is no nonlinearity between scores and operator. Standard attention does change."""
    for kind, same in (("sd_token", True), ("standard", False), ("sd_kernel", False)):
        model = twin(kind)
        change = Linearised(layers=3, mode="taylor")
        found, plain = linearised_logits(model, tokens(model), change), model(tokens(model), torch.float64)
        assert torch.allclose(found, plain, rtol=1e-9, atol=1e-11) == same


def test_first_order_is_the_derivative_at_zero_scores() -> None:
    scores = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    zero = torch.zeros_like(scores)
    value, slope = torch.autograd.functional.jvp(masked_softmax, zero, scores)
    assert isinstance(value, Tensor) and isinstance(slope, Tensor)
    torch.testing.assert_close(first_order(scores), value + slope, rtol=1e-12, atol=1e-14)
    for eps in (1e-2, 1e-3):
        assert (first_order(eps * scores) - masked_softmax(eps * scores)).abs().max() < 5 * eps**2
    torch.testing.assert_close(first_order(scores).sum(-1), torch.ones(2, 7, dtype=torch.float64))


def test_mean_operator_makes_the_layer_linear(data: Windows) -> None:
    """Under `mean` what attention adds is linear in what it reads; before, it is not."""
    model = twin("sd_token")
    means = mean_operators(model, data)
    attention = model.layers()[0].attention
    change = Linearised(layers=1, means=means)
    x, y = (torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (4, 5))

    def added(z: Tensor) -> Tensor:
        return attention.applied(change.operator(attention, 0, z), z)

    torch.testing.assert_close(added(2 * x - 3 * y), 2 * added(x) - 3 * added(y), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(attention(2 * x, torch.float64), 2 * attention(x, torch.float64), rtol=1e-2)


def test_mean_operators_are_means_over_full_windows(data: Windows) -> None:
    """One window of each document that has a full one, so that a long document does not decide alone."""
    model = twin("standard")
    full = data.spread(9)
    assert data.documents[full].tolist() == [0, 1, 3] and data.full[full].all() and len(data) == 8
    x = model.attention_inputs(data.batch(full)[0])[2]
    expected = model.layers()[2].attention.operator(x).mean(0)
    torch.testing.assert_close(mean_operators(model, data, batch=2)[2], expected.detach())
    assert mean_operators(model, data)[0].triu(1).abs().max() == 0


def test_mean_of_equal_windows_changes_nothing() -> None:
    """Calibrated on the very text that is measured, one window: the mean is the operator itself."""
    one = windows(Corpus((Document("0", "abcdefghijkl"),), "one"), 12, once=True)
    model = twin("sd_token")
    change = Linearised(layers=3, means=mean_operators(model, one))
    given = one.batch(torch.tensor([0]))[0]
    torch.testing.assert_close(linearised_logits(model, given, change), model(given, torch.float64))
    other = tokens(model)
    assert not torch.allclose(linearised_logits(model, other, change), model(other, torch.float64), rtol=1e-3)


def test_losses_per_document(data: Windows) -> None:
    """Against a loop over bytes, through the plain forward pass; windows may come in any number per batch."""
    model = twin("sd_token")
    sums, counts = document_losses(model, data, batch=3)
    assert counts.tolist() == [12, 40, 5, 24]
    expected = np.zeros(4)
    for number in range(len(data)):
        given, targets = data.batch(torch.tensor([number]))
        logp = model(given, torch.float64).detach().log_softmax(-1)[0]
        for position, target in enumerate(targets[0].tolist()):
            if target >= 0:
                expected[int(data.documents[number])] -= float(logp[position, target])
    np.testing.assert_allclose(sums, expected, rtol=1e-5)


def test_sweep(data: Windows) -> None:
    model = twin("standard", norm=True).float()
    means = mean_operators(model, data)
    found = linearise_sweep(model, data, means)
    assert [(row["mode"], row["layers"]) for row in found] == [
        (mode, n) for mode in ("mean", "taylor", "zero") for n in (1, 2, 3)
    ]
    plain, counts = document_losses(model, data)
    for row in found:
        sums, _ = document_losses(model, data, Linearised(layers=row["layers"], mode=row["mode"], means=means))
        np.testing.assert_allclose(row["perplexity"], np.exp(sums.sum() / counts.sum()), rtol=1e-6)
        np.testing.assert_allclose(row["ratio"], np.exp((sums - plain).sum() / counts.sum()), rtol=1e-6)
        assert row["low"] <= row["ratio"] <= row["high"]


def test_zero_leaves_attention_out(data: Windows) -> None:
    """The same as a model whose first output matrices are zero."""
    model, cut = twin("sd_token"), twin("sd_token")
    for block in cut.layers()[:2]:
        block.attention.w_o.data.zero_()
    found = linearised_logits(model, tokens(model), Linearised(layers=2, mode="zero"))
    torch.testing.assert_close(found, cut(tokens(model), torch.float64))


def test_refusals(data: Windows) -> None:
    with pytest.raises(InputError, match="mode must be one of mean, taylor, zero, got 'one'"):
        bad = Linearised()
        object.__setattr__(bad, "mode", "one")  # past the type checker of the tests
        bad.__post_init__()
    with pytest.raises(InputError, match="a mean operator for each of the 2 layers, got 0"):
        Linearised(layers=2)
    with pytest.raises(InputError, match="layers must be 0 or more, got -1"):
        Linearised(layers=-1)
    with pytest.raises(InputError, match="the model has 3 layers, 4 were to be linearised"):
        linearised_logits(twin("standard"), tokens(twin("standard")), Linearised(layers=4, mode="taylor"))
    with pytest.raises(InputError, match="elu attention has none"):
        linearised_logits(twin("elu"), tokens(twin("elu")), Linearised(layers=1, mode="taylor"))
    short = dataclasses.replace(data, tokens=data.tokens[:0], targets=data.targets[:0], documents=data.documents[:0])
    with pytest.raises(InputError, match="no window is full"):
        mean_operators(twin("standard"), short)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (4, 4, 12, 32, 8)),
        ({"margin": 2.0}, (4, 8, 24, 32, 12)),
        ({"multiple": 2}, (2, 4, 12, 32, 6)),
        ({"monotone": True}, (4, 4, 12, 32, 32)),
    ],
)
def test_allocation(options: dict[str, float], expected: tuple[int, ...]) -> None:
    """Half the rank (a plane counts two), rounded up, within bounds."""
    assert allocated_widths((2.0, 7.9, 23.1, 80.0, 11.0), 32, **options) == expected  # pyright: ignore


def test_allocation_refusals() -> None:
    with pytest.raises(InputError, match="multiple must be even and at most the full width, got 3 and 32"):
        allocated_widths((2.0,), 32, multiple=3)
    for ranks in ((), (float("nan"),), (-1.0,)):
        with pytest.raises(InputError, match="one rank per layer, finite and not negative"):
            allocated_widths(ranks, 32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
