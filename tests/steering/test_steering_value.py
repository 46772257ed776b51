"""The `Steering` value: strengths, composition, files, and which model it is for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.anatomy import module_at
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from interp.steering.composition import SequenceEdit, compose
from interp.steering.edits import AffineEdit, DiagonalEdit
from interp.steering.fingerprint import fingerprint, identity
from interp.steering.steering import Steering, steered
from tests.steering.steering_cases import affine, draw, every_kind, padded, ragged, steering_for
from tests.tiny_models import tiny
from tests.wrapped_models import wrapped

RESID, ATTN = Site.parse("resid_post.1"), Site.parse("attn_out.2")
DOUBLE = torch.float64


def small(model: HookedModel | None = None) -> Steering:
    """One of every kind of edit, and a sequence."""
    edits = every_kind()
    given = {
        Site.parse("resid_pre.0"): edits["affine"],
        RESID: edits["diagonal"],
        ATTN: edits["clamp"],
        Site.parse("mlp_out.0"): edits["gated"],
        Site.parse("resid_post.2"): compose(edits["gated"], edits["affine"]).at(0.5),
    }
    if model is None:
        return Steering(given)
    return Steering.of(
        model, given, scope="prompt", method="midsteer", sites={str(RESID): {"n_source": 40, "rho": None}}
    )


# ---------------------------------------------------------------- composition


@pytest.mark.parametrize("delta", [(True, True), (True, False), (False, True), (False, False)])
def test_affine_after_affine_is_one_affine_edit_exactly(delta):
    x = draw(0, 6, 9, dtype=DOUBLE)
    first, second = affine(1, r=2, d=9, dtype=DOUBLE), affine(5, r=3, d=9, dtype=DOUBLE).at(-1.7)
    first, second = (
        e if keep else AffineEdit(e.U, e.V, e.c, None, e.beta) for e, keep in zip((first, second), delta, strict=True)
    )
    whole = compose(first, second)
    assert isinstance(whole, AffineEdit) and whole.rank == 5 and whole.beta == 1
    assert (whole.delta is None) == (not any(delta))
    torch.testing.assert_close(whole(x), second(first(x)), rtol=1e-12, atol=1e-12)
    (a, b), (a1, b1), (a2, b2) = whole.dense(), first.dense(), second.dense()
    torch.testing.assert_close(a, a2 @ a1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b, a2 @ b1 + b2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.at(0.3)(x), x + 0.3 * (second(first(x)) - x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(compose(second, first)(x), whole(x), atol=1e-3)  # they do not commute


def test_three_in_a_row_associate():
    x, (a, b, c) = draw(0, 4, 9, dtype=DOUBLE), (affine(i, d=9, dtype=DOUBLE) for i in (1, 5, 9))
    torch.testing.assert_close(compose(compose(a, b), c)(x), c(b(a(x))), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(compose(a, compose(b, c))(x), c(b(a(x))), rtol=1e-11, atol=1e-11)


def test_other_kinds_follow_each_other_as_they_are():
    x, edits = draw(0, 4, 3, 48), every_kind()
    whole = compose(compose(edits["clamp"], edits["affine"]), edits["gated"])
    assert isinstance(whole, SequenceEdit) and len(whole.parts) == 3
    assert torch.equal(whole(x), edits["gated"](edits["affine"](edits["clamp"](x))))
    torch.testing.assert_close(whole.at(0.25)(x), x + 0.25 * (whole(x) - x))
    assert whole.at(0)(x) is x
    assert whole(x.bfloat16()).dtype == torch.bfloat16 and whole.at(0.5)(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"at strength 0.25 cannot go on"):
        compose(whole.at(0.25), edits["affine"])
    with pytest.raises(InputError, match="widths 48 and 9"):
        compose(edits["affine"], affine(1, d=9))
    with pytest.raises(InputError, match=r"of the widths \[9, 48\]"):
        SequenceEdit((edits["affine"], affine(1, d=9)))


@pytest.mark.parametrize("second", ["affine", "gated"])
def test_then_is_nesting(second: str):
    model = wrapped("gemma2")
    tokens, lengths = padded(ragged(model), "right")
    one = Steering.of(model, {RESID: affine(51), ATTN: affine(31)})
    two = Steering.of(model, {RESID: every_kind()[second], Site.parse("embed"): affine(41)})
    options = {"lengths": lengths, "max_new_tokens": 3, "stop_tokens": ()}
    with torch.no_grad():
        with steered(model, one), steered(model, two):
            expected, text = model(tokens, lengths=lengths), model.generate(tokens, **options)
        with steered(model, one.then(two)):
            found = model(tokens, lengths=lengths)
            assert torch.equal(model.generate(tokens, **options), text)
        with steered(model, two.then(one)):
            other = model(tokens, lengths=lengths)
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    torch.testing.assert_close(found[real], expected[real], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(other[real], expected[real], atol=1e-2)


def test_then_refuses_other_scopes_and_other_models():
    one = Steering.of(wrapped("llama"), {RESID: affine(1)}, scope="prompt", method="midsteer")
    with pytest.raises(InputError, match="scopes 'prompt' and 'all' make no single one; nest them"):
        one.then(small())
    other = Steering.of(HookedModel.wrap(tiny("llama", seed=3)), one.edits, scope="prompt")
    with pytest.raises(InputError, match="two steerings of different models: weights"):
        one.then(other)
    whole = one.then(other, force=True)
    assert whole.method == "midsteer, then custom"
    assert [part["method"] for part in whole.provenance["parts"]] == ["midsteer", "custom"]
    assert whole.provenance["weights"] == one.provenance["weights"]


# ---------------------------------------------------------------- strengths


def test_strengths_of_all_sites_of_some_and_in_proportion():
    steering = Steering({RESID: affine(1).at(0.5), ATTN: affine(5).at(2.0)})
    assert [e.beta for e in steering.at(3).edits.values()] == [3, 3]
    assert [e.beta for e in steering.at({RESID: 1.5}).edits.values()] == [1.5, 2]
    assert [e.beta for e in steering.scaled(2).edits.values()] == [1, 4]
    assert [e.beta for e in steering.edits.values()] == [0.5, 2]
    with pytest.raises(InputError, match=r"strengths for blocks.7.hook_attn_out, but this steers blocks.1"):
        steering.at({Site.parse("attn_out.7"): 1.0})


def test_a_steering_needs_edits_with_numbers():
    with pytest.raises(InputError, match="needs one edit or more"):
        Steering({})
    bad = affine(1)
    bad.U[3, 1] = float("nan")
    with pytest.raises(InputError, match=r"blocks.1.hook_resid_post holds NaN or infinite values in U"):
        Steering({RESID: bad})
    with pytest.raises(InputError, match=r"values in 0\.scale"):
        shift = torch.zeros(48)
        Steering({RESID: compose(DiagonalEdit(shift + float("inf"), shift), affine(1))})


# ---------------------------------------------------------------- files


def test_a_saved_steering_is_read_back_bit_by_bit(tmp_path: Path):
    model = wrapped("llama")
    steering = small(model)
    steering.save(tmp_path / "one")
    again = Steering.load(tmp_path / "one")
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["edits.safetensors", "steering.json"]
    assert (again.scope, again.method, again.provenance) == (steering.scope, steering.method, steering.provenance)
    assert list(again.edits) == list(steering.edits)
    for site, edit in steering.edits.items():
        assert type(again.edits[site]) is type(edit) and again.edits[site].facts() == edit.facts()
        for name, x in edit.tensors().items():
            assert torch.equal(again.edits[site].tensors()[name], x)
    tokens = ragged(model)[0][None]
    with torch.no_grad():
        with steered(model, steering):
            expected = model(tokens)
        with steered(model, again):
            assert torch.equal(model(tokens), expected)
    again.save(tmp_path / "two")
    for name in ("edits.safetensors", "steering.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    steering.at(2).save(tmp_path / "one")  # in the place of the old one
    assert Steering.load(tmp_path / "one").edits[RESID].beta == 2


def _edit_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        content = json.loads((folder / "steering.json").read_text())
        change(content)
        (folder / "steering.json").write_text(json.dumps(content))

    return run


def _tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        tensors = load_file(folder / "edits.safetensors")
        change(tensors)
        save_file(tensors, folder / "edits.safetensors")

    return run


def _flip(folder: Path) -> None:
    path = folder / "edits.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


BROKEN = {
    "no json": (
        lambda folder: (folder / "steering.json").unlink(),
        "holds no steering.json, so it is no finished steer",
    ),
    "no tensors": (lambda folder: (folder / "edits.safetensors").unlink(), "holds no edits.safetensors"),
    "half a json": (lambda folder: (folder / "steering.json").write_text('{"format": "mid'), "it is not JSON"),
    "cut": (lambda folder: (folder / "edits.safetensors").write_bytes(b"\0" * 40), "damaged or cut short"),
    "a bit": (_flip, "edits.safetensors is damaged"),
    "other json": (lambda folder: (folder / "steering.json").write_text("[]"), "its format is not 'midlens steering'"),
    "unknown key": (_edit_json(lambda c: c.update(colour=1)), "colour is missing or unknown; expected exactly format"),
    "lost key": (_edit_json(lambda c: c.pop("scope")), "scope is missing or unknown"),
    "later version": (_edit_json(lambda c: c.update(version=2)), "of version 2; this program reads version 1"),
    "scope": (_edit_json(lambda c: c.update(scope="decode")), "unknown scope 'decode'"),
    "type": (_edit_json(lambda c: c.update(sites=[])), "sites is a list, expected dict"),
    "kind": (_edit_json(lambda c: c["sites"][str(RESID)].update(kind="cubic")), "unknown kind of edit 'cubic'"),
    "site": (_edit_json(lambda c: c["sites"].update(nowhere=c["sites"].pop(str(RESID)))), "belongs to no site|no site"),
    "fact": (_edit_json(lambda c: c["sites"][str(RESID)].pop("beta")), "lacks or has too much of something: 'beta'"),
    "two steerings": (_tensors(lambda t: t.update({f"{RESID}/shift": t[f"{RESID}/shift"] + 1})), "does not belong to"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_its_reason(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    small(wrapped("llama")).save(tmp_path / "s")
    breaking, text = BROKEN[name]
    breaking(tmp_path / "s")
    with pytest.raises(InputError, match=text):
        Steering.load(tmp_path / "s")


def test_tensors_that_no_edit_knows_and_numbers_that_are_none(tmp_path: Path):
    """A folder made by other hands, whole by its own account."""
    from interp.tensorfile import tensors_digest

    for change, text in (
        (lambda t: t.update({f"{RESID}/colour": torch.ones(2)}), "too much of something"),
        (lambda t: t[f"{RESID}/scale"].fill_(float("nan")), "hook_resid_post holds NaN"),
        (lambda t: t.update({"colour": torch.ones(2)}), "holds 'colour', which belongs to no site"),
        (lambda t: t.update({"blocks.2.hook_resid_post/7.U": torch.ones(2)}), "belong to none of its parts: 7.U"),
    ):
        folder = tmp_path / text[:8]
        small(wrapped("llama")).save(folder)
        _tensors(change)(folder)
        digest = tensors_digest(load_file(folder / "edits.safetensors"))
        _edit_json(lambda c, digest=digest: c.update(tensors=digest))(folder)
        with pytest.raises(InputError, match=text):
            Steering.load(folder)


def test_pickles_and_strange_places_are_refused_unread(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (shutil.rmtree, (str(tmp_path),))

    for name in ("steering.pt", "steering.pkl", "pytorch_model.bin"):
        torch.save({"edits": Trap()}, tmp_path / name)
        with pytest.raises(InputError, match=r"is a pickle, or may hold one: reading it could run any code"):
            Steering.load(tmp_path / name)
    assert (tmp_path / "steering.pt").exists()
    with pytest.raises(InputError, match="is not there: expected the folder of a saved steering"):
        Steering.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    for act in (lambda: Steering.load(tmp_path / "file"), lambda: small().save(tmp_path / "file")):
        with pytest.raises(InputError, match="is a file"):
            act()
    with pytest.raises(InputError, match="holds something else; save the steering in a folder of its own"):
        small().save(tmp_path)
    with pytest.raises(InputError, match="provenance cannot be written as JSON"):
        Steering({RESID: affine(1)}, provenance={"x": torch.ones(1)}).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- whose it is


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_the_fingerprint_knows_weights_not_names_dtypes_or_what_lies_above(family: str):
    model = wrapped(family)
    mark = fingerprint(model, blocks=2)
    assert fingerprint(HookedModel.wrap(tiny(family).bfloat16()), blocks=2) == mark
    assert fingerprint(HookedModel.wrap(tiny(family).base_model), blocks=2) == mark  # without its head
    changed: Any = tiny(family)
    anatomy = HookedModel.wrap(changed).anatomy
    with torch.no_grad():
        next(anatomy.blocks(changed)[2].parameters()).mul_(2)
    assert fingerprint(HookedModel.wrap(changed), blocks=2) == mark
    assert fingerprint(HookedModel.wrap(changed)) != fingerprint(model)
    seen = {mark}
    parts = [module_at(anatomy.body(changed), anatomy.embed), *anatomy.blocks(changed)[:2]]
    parts += [changed.transformer.wpe] if family == "gpt2" else []
    parameters = [parameter for part in parts for parameter in part.parameters()]
    for parameter in parameters:
        with torch.no_grad():
            old = parameter.clone()
            parameter.view(-1)[-1] += 0.1
            seen.add(fingerprint(HookedModel.wrap(changed), blocks=2))
            parameter.copy_(old)
    assert len(seen) == 1 + len(parameters)
    assert fingerprint(HookedModel.wrap(changed), blocks=2) == mark


def test_offloaded_weights_have_the_fingerprint_of_those_in_memory():
    from accelerate import cpu_offload

    hf = tiny("gpt2")
    cpu_offload(hf, execution_device=torch.device("cpu"))
    assert next(hf.parameters()).is_meta
    assert fingerprint(HookedModel.wrap(hf)) == fingerprint(wrapped("gpt2"))


def test_another_model_is_refused_unless_forced():
    model = wrapped("llama")
    steering = steering_for(model)
    steering.check(HookedModel.wrap(tiny("llama")))
    other = HookedModel.wrap(tiny("llama", seed=7))
    with pytest.raises(InputError, match=r"made for another model: the weights of LlamaForCausalLM .* pass force=True"):
        steering.check(other)
    with pytest.raises(InputError, match="made for another model"), steered(other, steering):
        pass
    steering.check(other, force=True)
    with pytest.raises(InputError, match="the model has 3 layers"):
        Steering.of(wrapped("gemma2"), {"resid_post.3": affine(1)}).check(model, force=True)
    with pytest.raises(InputError, match=r"gpt_neox has no blocks.1.hook_resid_mid"):
        Steering({Site.parse("resid_mid.1"): affine(1)}).check(wrapped("gpt_neox"))
    with pytest.raises(InputError, match=r"blocks.1.attn.hook_z is for a width of 48; .* has 16 there"):
        Steering({Site.parse("z.1"): affine(1)}).check(model)
    named = Steering({RESID: affine(1)}, provenance={"model": "somebody/else"})
    with pytest.raises(InputError, match=r"somebody/else, not LlamaForCausalLM \(by name: no weights are recorded\)"):
        named.check(model)
    Steering({RESID: affine(1)}).check(model)  # made by hand: nothing is known against it


def test_identity_says_what_the_site_depends_on():
    model = wrapped("llama")
    depth = {text: identity(model, [Site.parse(text)])["weights"]["blocks"] for text in
             ("embed", "resid_pre.0", "resid_pre.2", "attn_out.2", "resid_post.1", "ln_final")}  # fmt: skip
    assert list(depth.values()) == [0, 0, 2, 3, 2, 3]
    assert set(identity(model, [])["versions"]) == {"python", "midlens", "torch", "transformers"}
