"""Steering vectors of other libraries: the files they write, the logits they make, and back again.

`fixtures/steering_vectors` was written and run by repeng and steering-vectors themselves; see its generator.
"""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Site
from interp.steering.edits import AffineEdit
from interp.steering.steering import Steering, steered
from interp.steering.vectors import (
    read_control_vector,
    steering_from_pt,
    steering_from_steering_vector,
    steering_from_vectors,
    steering_vector_of,
    vectors_of,
    write_control_vector,
)
from tests.steering.steering_cases import affine, draw
from tests.wrapped_models import wrapped

HERE = Path(__file__).parents[1] / "fixtures" / "steering_vectors"
FAMILIES = ("llama", "gpt2", "gpt_neox")
KINDS = ("decoder_block", "self_attn", "mlp")
COEFFICIENT = 1.5


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(HERE / "expected.safetensors")


def logits(model: HookedModel, steering: Steering, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), steered(model, steering):
        return model(tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_control_vector_of_repeng_steers_as_in_repeng(family: str, expected):
    model = wrapped(family)
    steering = read_control_vector(HERE / "repeng.gguf").at(COEFFICIENT)
    assert [str(site) for site in steering.edits] == ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    found = logits(model, steering, expected["tokens"])
    torch.testing.assert_close(found, expected[f"repeng/{family}"], rtol=1e-4, atol=1e-4)
    one_below = {Site.parse(f"resid_pre.{s.layer}"): e for s, e in steering.edits.items()}
    wrong = logits(model, Steering(one_below), expected["tokens"])
    assert not torch.allclose(wrong, expected[f"repeng/{family}"], atol=0.1)


def test_a_control_vector_written_here_is_repengs_file(tmp_path: Path):
    from gguf import GGUFReader

    steering = read_control_vector(HERE / "repeng.gguf", model=wrapped("llama"))
    write_control_vector(steering, tmp_path / "v.gguf", model_hint="llama")
    assert (tmp_path / "v.gguf").read_bytes() == (HERE / "repeng.gguf").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["v.gguf"]
    write_control_vector(steering.at(-2), tmp_path / "v.gguf", model_hint="llama")
    reader = GGUFReader(tmp_path / "v.gguf")
    again = {int(tensor.name.split(".")[1]): torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    for site, edit in steering.edits.items():
        assert isinstance(edit, AffineEdit) and edit.delta is not None and site.layer is not None
        torch.testing.assert_close(again[site.layer], -2 * edit.delta)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_steering_vector_steers_as_in_its_own_package(family: str, kind: str, expected):
    model = wrapped(family)
    fields = {"layer_activations": {i: expected[f"vector/{i}"] for i in (0, 2)}, "layer_type": kind}
    steering = steering_from_steering_vector(fields, model=model)
    found = logits(model, steering.at(COEFFICIENT), expected["tokens"])
    torch.testing.assert_close(found, expected[f"{kind}/{family}"], rtol=1e-4, atol=1e-4)
    again = steering_vector_of(steering)
    assert again["layer_type"] == kind and again["layer_activations"].keys() == fields["layer_activations"].keys()
    for layer, v in again["layer_activations"].items():
        assert torch.equal(v, fields["layer_activations"][layer])


class Evil:
    """Runs code when a pickle of it is read."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def pickled(path: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> Path:
    """A file of torch.save with an object of that package's class; the class exists only while it is written."""
    module = types.ModuleType("steering_vectors.steering_vector")
    cls = type("SteeringVector", (), {"__module__": module.__name__})
    vars(module)["SteeringVector"] = cls
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
        context.setitem(sys.modules, module.__name__, module)
        thing = cls()
        vars(thing).update(fields)
        torch.save(thing, path)
    return path


def test_a_file_of_torch_save_is_read_for_its_tensors_alone(tmp_path: Path, expected, monkeypatch):
    model, activations = wrapped("llama"), {i: expected[f"vector/{i}"] for i in (0, 2)}
    path = pickled(tmp_path / "v.pt", monkeypatch, layer_activations=activations, layer_type="mlp")
    torch.save({"layer_activations": activations, "layer_type": "mlp"}, tmp_path / "d.pt")
    for one in (path, tmp_path / "d.pt"):
        found = logits(model, steering_from_pt(one, model=model).at(COEFFICIENT), expected["tokens"])
        torch.testing.assert_close(found, expected["mlp/llama"], rtol=1e-4, atol=1e-4)
    assert "steering_vectors" not in sys.modules
    evil = pickled(tmp_path / "e.pt", monkeypatch, layer_activations={0: Evil()}, layer_type="mlp")
    torch.save(Evil(), tmp_path / "f.pt")
    (tmp_path / "g.pt").write_bytes(b"not a file of torch")
    torch.save([torch.ones(3)], tmp_path / "h.pt")
    for one, text in (
        (evil, "is no file of tensors and a SteeringVector that torch.save wrote, so it is not read"),
        (tmp_path / "f.pt", "so it is not read"),
        (tmp_path / "g.pt", "so it is not read"),
        (tmp_path / "h.pt", "holds a list, expected a SteeringVector"),
        (tmp_path / "i.pt", "is not there"),
    ):
        with pytest.raises(InputError, match=text):
            steering_from_pt(one, model=model)


def test_vectors_say_what_they_cannot_say(tmp_path: Path):
    v = draw(1, 48)
    steering = steering_from_vectors({1: v}, source="by hand")
    assert steering.provenance == {"source": "by hand"}
    assert torch.equal(vectors_of(steering.at(3))[Site.parse("resid_post.1")], 3 * v)
    reading = Steering({Site.parse("resid_post.1"): affine(1)})
    with pytest.raises(InputError, match=r"reads the activations \(AffineEdit\), which a vector cannot"):
        vectors_of(reading)
    silent = AffineEdit(draw(1, 48, 2), torch.zeros(48, 2), draw(2, 2), v, 0.5)  # reads nothing: adds β (δ − U c)
    found = vectors_of(Steering({Site.parse("resid_post.1"): silent}))[Site.parse("resid_post.1")]
    torch.testing.assert_close(found, 0.5 * (v - silent.U @ silent.c))
    with pytest.raises(InputError, match="knows no scopes: it steers every token, this steering 'generated' only"):
        vectors_of(Steering(steering.edits, "generated"))
    with pytest.raises(InputError, match="cannot steer the output of block 0"):
        write_control_vector(steering_from_vectors({0: v}), tmp_path / "v.gguf", model_hint="llama")
    with pytest.raises(InputError, match="hook_mlp_out: a control vector is added to resid_post only"):
        write_control_vector(steering_from_vectors({"mlp_out.1": v}), tmp_path / "v.gguf", model_hint="llama")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="a SteeringVector is of one kind of layer"):
        steering_vector_of(steering_from_vectors({"mlp_out.1": v, "attn_out.1": v}))


def test_files_and_vectors_that_do_not_fit_are_refused(tmp_path: Path):
    from gguf import GGUFWriter

    def write(architecture: str, name: str) -> Path:
        writer = GGUFWriter(tmp_path / "w.gguf", architecture)
        writer.add_string("controlvector.model_hint", "llama")
        writer.add_tensor(name, draw(0, 20).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "w.gguf"

    with pytest.raises(InputError, match="a GGUF file of the architecture 'llama', expected 'controlvector'"):
        read_control_vector(write("llama", "direction.1"))
    with pytest.raises(InputError, match=r"tensor .token_embd. of float32: expected direction\.LAYER"):
        read_control_vector(write("controlvector", "token_embd"))
    path = write("controlvector", "direction.1")
    with pytest.raises(InputError, match="made for a llama model, not for GPT2LMHeadModel, a gpt2"):
        read_control_vector(path, model=wrapped("gpt2"))
    with pytest.raises(InputError, match="is for a width of 20; LlamaForCausalLM has 48 there"):
        read_control_vector(path, model=wrapped("llama"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="no whole GGUF file"):
        read_control_vector(path)
    with pytest.raises(InputError, match="is not there; expected a GGUF control vector"):
        read_control_vector(tmp_path / "none.gguf")
    v, llama = draw(1, 48), wrapped("llama")
    for fields, text in (
        ({"layer_activations": {0: v}, "layer_type": "input_layernorm"}, "'input_layernorm' is no site here: expected"),
        ({"layer_activations": {}}, "no SteeringVector: expected layer_activations"),
        ({"layer_activations": {7: v}}, "the model has 3 layers"),
    ):
        with pytest.raises(InputError, match=text):
            steering_from_steering_vector(fields, model=llama)
    for kind in ("self_attn", "mlp"):
        with pytest.raises(InputError, match=f"'{kind}' is in front of a norm in gemma2"):
            steering_from_steering_vector({"layer_activations": {1: v}, "layer_type": kind}, model=wrapped("gemma2"))
