"""Edits as values: equations against plain loops, β, dtypes, devices' precision, saving, and what is refused."""

import dataclasses
import json
import math

import jaxtyping
import pytest
import torch

from interp.errors import InputError
from interp.steering.edits import AffineEdit, ClampEdit, DiagonalEdit, GatedEdit, edit_from, kind_of

D, R = 7, 3


def _of(seed: int, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def _edits(dtype: torch.dtype = torch.float64) -> dict:
    r = _of(0, dtype)
    affine = AffineEdit(r(D, R), r(D, R), r(R), r(D), 0.7)
    clamp = ClampEdit(r(R, D), r(D, R), r(R), -r(R).abs(), torch.full((R,), math.inf, dtype=dtype), 0.7)
    return {
        "affine": affine,
        "no delta": AffineEdit(r(D, R), r(D, R), r(R)),
        "diagonal": DiagonalEdit(r(D), r(D), 0.7),
        "clamp": clamp,
        "shifted clamp": dataclasses.replace(clamp, delta=r(D)),
        "hard": GatedEdit(affine, r(D, 2), r(2), "hard"),
        "soft": GatedEdit(clamp, r(D, 2), r(2), "soft"),
        "free": GatedEdit(affine, r(D, R), r(R), "free"),
    }


def _by_hand(name: str, edit, x: torch.Tensor) -> torch.Tensor:
    """One vector, written out coordinate by coordinate."""
    if name in ("affine", "no delta"):
        out = x.clone()
        for i in range(R):
            out = out + edit.beta * (torch.dot(edit.V[:, i], x) - edit.c[i]) * edit.U[:, i]
        return out if edit.delta is None else out + edit.beta * edit.delta
    if name == "diagonal":
        return (1 - edit.beta) * x + edit.beta * (edit.scale * x + edit.shift)
    if name.endswith("clamp"):
        out = x.clone() if edit.delta is None else x + edit.beta * edit.delta
        for i in range(R):
            z = float(torch.dot(edit.V[:, i], x) - edit.c[i])
            held = min(max(z, float(edit.lo[i])), float(edit.hi[i]))
            out = out + edit.beta * (held - z) * edit.directions[i]
        return out
    logits = [float(torch.dot(edit.w[:, i], x) + edit.b[i]) for i in range(edit.w.shape[1])]
    p = [1 / (1 + math.exp(-logit)) for logit in logits]
    if name == "hard":
        return _by_hand("affine", edit.edit, x) if max(logits) > 0 else x
    if name == "soft":
        return x + max(p) * (_by_hand("clamp", edit.edit, x) - x)
    inner = edit.edit
    return x + inner.beta * (sum((p[i] - inner.c[i]) * inner.U[:, i] for i in range(R)) + inner.delta)


@pytest.mark.parametrize("name", _edits())
def test_every_kind_does_what_its_equation_says(name: str):
    edit, x = _edits()[name], _of(1)(4, 5, D)
    for at in (edit.beta, 1.0, -0.5):
        again = edit.at(at)
        assert again.beta == at
        expected = torch.stack([torch.stack([_by_hand(name, again, v) for v in row]) for row in x])
        torch.testing.assert_close(again(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", _edits())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_zero_strength_is_bit_exactly_nothing_and_dtypes_stay(name: str, dtype: torch.dtype):
    edit, x = _edits(torch.float32)[name], _of(1)(2, 3, D).to(dtype)
    assert torch.equal(edit.at(0.0)(x), x)
    out = edit(x)
    assert out.dtype == dtype and not torch.equal(out, x)


def test_the_read_out_of_bfloat16_activations_is_computed_in_float32():
    # a massive activation whose contribution cancels: 4096 * 1 - 4095 = 1; in bfloat16 4095 rounds to 4096
    v = torch.tensor([[1.0], [0.0]])
    edit = AffineEdit(torch.tensor([[0.0], [1.0]]), v, torch.tensor([4095.0]))
    x = torch.tensor([[[4096.0, 0.0]]], dtype=torch.bfloat16)
    assert edit(x)[0, 0].tolist() == [4096.0, 1.0]
    assert float(x[0, 0] @ v[:, 0].bfloat16() - torch.tensor(4095.0).bfloat16()) == 0.0  # what bfloat16 would give


def test_the_dense_form_is_the_same_map():
    edit, x = _edits()["affine"], _of(2)(6, D)
    a, b = edit.dense()
    torch.testing.assert_close(x @ a.T + b, edit(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", _edits())
def test_tensors_and_facts_give_the_edit_back(name: str):
    edit, x = _edits(torch.float32)[name], _of(1)(2, 3, D).float()
    facts = json.loads(json.dumps(edit.facts()))
    tensors = edit.tensors()
    again = edit_from(facts["kind"], tensors, facts)
    assert kind_of(again) == kind_of(edit) and torch.equal(again(x), edit(x))
    with pytest.raises(InputError, match="lacks or has too much"):
        edit_from(facts["kind"], {k: t for k, t in list(tensors.items())[1:]}, facts)


def test_edits_are_values():
    edit = _edits()["affine"]
    with pytest.raises(AttributeError):
        edit.beta = 2.0
    assert edit.at(2.0).U is edit.U and edit.to("cpu") is edit
    assert edit.to(dtype=torch.float32).U.dtype == torch.float32
    gated = _edits()["hard"].to(dtype=torch.float32)
    assert gated.w.dtype == gated.edit.U.dtype == torch.float32


def test_gradients_flow_through_an_edit():
    edit, x = _edits()["affine"], _of(1)(2, D).requires_grad_()
    edit(x).sum().backward()
    torch.testing.assert_close(x.grad, edit.dense()[0].sum(0).expand(2, D))


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    r = _of(0)
    with pytest.raises(InputError, match="V has the shape"):
        AffineEdit(r(D, R), r(D, R + 1), r(R))
    with pytest.raises(InputError, match="beta=nan"):
        AffineEdit(r(D, R), r(D, R), r(R), beta=math.nan)
    with pytest.raises(InputError, match="is above hi"):
        ClampEdit(r(1, D), r(D, 1), r(1), torch.ones(1), torch.zeros(1))
    with pytest.raises(InputError, match="one of hard, soft, free"):
        GatedEdit(_edits()["affine"], r(D, 1), r(1), "sharp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="one per gate"):
        GatedEdit(_edits()["affine"], r(D, 1), r(1), "free")
    with pytest.raises(InputError, match="width 8 came to an edit of width 7"):
        _edits()["affine"](r(2, 8))
    with pytest.raises(InputError, match="affine, diagonal, gated, clamp"):
        edit_from("rotation", {}, {})
    with pytest.raises(InputError, match="is no edit"):
        kind_of(torch.nn.Identity())
