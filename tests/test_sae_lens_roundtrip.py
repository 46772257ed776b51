"""An SAE saved here is sae_lens's own, and the other way round, live: every architecture that sae_lens has."""

import json

import pytest
import torch
from torch import Tensor

from interp.errors import InputError
from saes.interop import load_sae, to_saelens
from saes.sae import SAE, SAEConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # sae_lens's imports warn
sae_lens = pytest.importorskip("sae_lens")
METADATA = {"model_name": "smollm2-135m", "hook_name": "blocks.15.hook_resid_post", "own": {"corpus": "abc"}}
D, F, OUT = 6, 20, 4

TRANSCODER = {"d_out": OUT, "apply_b_dec_to_input": False}
OURS = {
    "standard": {"architecture": "standard"},
    "standard-plain": {"architecture": "standard", "apply_b_dec_to_input": False},
    "topk": {"architecture": "topk", "k": 3},
    "topk-plain": {"architecture": "topk", "k": 3, "apply_b_dec_to_input": False},
    "jumprelu": {"architecture": "jumprelu"},
    "jumprelu-plain": {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    "gated": {"architecture": "gated"},
    "transcoder": {"architecture": "standard"} | TRANSCODER,
    "skip_transcoder": {"architecture": "standard", "skip": True} | TRANSCODER,
    "jumprelu_transcoder": {"architecture": "jumprelu"} | TRANSCODER,
    "jumprelu_skip_transcoder": {"architecture": "jumprelu", "skip": True} | TRANSCODER,
}


def random_sae(**settings) -> SAE:
    """Decoder rows far from units, biases and thresholds that matter."""
    config = SAEConfig(d_in=D, d_sae=F, metadata=METADATA, **settings)
    g = torch.Generator().manual_seed(len(str(settings)))
    weights = {name: torch.randn(*shape, generator=g) for name, shape in config.shapes().items()}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    return SAE.of_weights(config, **weights)


def randomise(module: torch.nn.Module) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=g)
            parameter.copy_(values.abs() if "threshold" in name else values)


def tokens() -> Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(9)) * 3


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the token's largest entry."""
    assert ((found - wanted).abs() / wanted.abs().amax(dim=1, keepdim=True).clamp(min=1e-3)).max() < 1e-5


def agree(ours: SAE, theirs) -> None:
    x = tokens()
    codes, theirs_codes = ours.encode(x).dense(), theirs.encode(x)
    assert torch.equal(codes > 0, theirs_codes > 0) and 0 < (codes > 0).float().mean() < 1
    close(codes, theirs_codes)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("name", OURS)
def test_ours_in_sae_lens_and_back(tmp_path, name):
    ours = random_sae(**OURS[name])
    ours.save(tmp_path / "a")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "a"))
    agree(ours, theirs)
    assert theirs.cfg.architecture() == name.removesuffix("-plain")
    assert theirs.cfg.metadata.hook_name == "blocks.15.hook_resid_post"
    assert theirs.cfg.metadata.model_name == "smollm2-135m" and theirs.cfg.metadata.own == {"corpus": "abc"}
    theirs.save_model(str(tmp_path / "b"))
    for again in (SAE.load(tmp_path / "b"), load_sae(tmp_path / "b")):
        assert torch.equal(again(tokens()), ours(tokens()))
        assert METADATA.items() <= dict(again.config.metadata).items()
        assert {**again.config.__dict__, "metadata": 0} == {**ours.config.__dict__, "metadata": 0}


@pytest.mark.parametrize("name", OURS)
def test_live_objects(name):
    ours = random_sae(**OURS[name])
    theirs = to_saelens(ours)
    assert theirs.cfg.architecture() == name.removesuffix("-plain")
    assert theirs.cfg.metadata.hook_name == METADATA["hook_name"] and theirs.cfg.metadata.own == METADATA["own"]
    agree(ours, theirs)
    with torch.no_grad():
        theirs.W_dec.zero_()
    assert ours.W_dec.abs().min() > 0  # it has weights of its own


def test_what_sae_lens_has_no_class_for_is_refused_as_a_live_object(tmp_path):
    for settings in ({"architecture": "topk", "k": 3}, {"architecture": "gated"}):
        sae = random_sae(**settings, **TRANSCODER)
        with pytest.raises(InputError, match=f"no {settings['architecture']} transcoder, only ReLU and JumpReLU"):
            to_saelens(sae)
        sae.save(tmp_path / settings["architecture"])
        assert torch.equal(load_sae(tmp_path / settings["architecture"])(tokens()), sae(tokens()))
    crosscoder = random_sae(architecture="topk", k=3, sources=(2, 4))
    with pytest.raises(InputError, match="sae_lens has no crosscoders"):
        to_saelens(crosscoder)


def test_without_sae_lens_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    with pytest.raises(InputError, match="pip install sae-lens"):
        to_saelens(random_sae(architecture="standard"))


THEIRS = {
    "standard": ("StandardSAE", {}),
    "topk": ("TopKSAE", {"k": 3}),
    "topk-rescaled": ("TopKSAE", {"k": 3, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("JumpReLUSAE", {}),
    "gated": ("GatedSAE", {}),
}


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("name", THEIRS)
def test_theirs_here(tmp_path, name, subtract):
    kind, settings = THEIRS[name]
    config = getattr(sae_lens, f"{kind}Config")(d_in=D, d_sae=F, apply_b_dec_to_input=subtract, **settings)
    config.metadata.hook_name = "blocks.7.hook_resid_post"
    theirs = getattr(sae_lens, kind)(config)
    randomise(theirs)  # decoder rows far from unit norm
    theirs.save_model(str(tmp_path))
    ours = load_sae(tmp_path)
    if name == "topk-rescaled":  # the codes are those of SAELens, which divides by the norms when decoding
        torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(F))
    agree(ours, theirs)
    assert ours.config.architecture == theirs.cfg.architecture()
    assert ours.config.metadata["hook_name"] == "blocks.7.hook_resid_post"


TRAINED = {
    "StandardTrainingSAE": {},
    "GatedTrainingSAE": {},
    "JumpReLUTrainingSAE": {},
    "TopKTrainingSAE": {"k": 3},
    "BatchTopKTrainingSAE": {"k": 3},
    "MatryoshkaBatchTopKTrainingSAE": {"k": 3, "matryoshka_widths": [5, F]},
}


@pytest.mark.parametrize(
    ("kind", "rescale"), [(kind, rescale) for kind in TRAINED for rescale in (True, False) if rescale or "TopK" in kind]
)
def test_those_still_in_training_and_as_saved_for_inference(tmp_path, kind, rescale):
    settings = TRAINED[kind] | ({"rescale_acts_by_decoder_norm": rescale} if "TopK" in kind else {})
    theirs = getattr(sae_lens, kind)(getattr(sae_lens, f"{kind}Config")(d_in=D, d_sae=F, **settings))
    randomise(theirs)
    if hasattr(theirs, "topk_threshold"):
        theirs.topk_threshold.fill_(1.5)
    theirs.save_model(str(tmp_path / "training"))
    theirs.save_inference_model(str(tmp_path / "inference"))
    finished = sae_lens.SAE.load_from_disk(str(tmp_path / "inference"))
    for folder in ("training", "inference"):
        ours = load_sae(tmp_path / folder)
        close(ours(tokens()), finished(tokens()))
        assert torch.equal(ours.encode(tokens()).dense() > 0, finished.encode(tokens()) > 0)
    config = load_sae(tmp_path / "training").config
    assert config.architecture == finished.cfg.architecture()
    if "Batch" in kind:
        assert config.metadata["training_architecture"] == theirs.cfg.architecture() and config.metadata["k"] == 3
        cfg = json.loads((tmp_path / "training" / "cfg.json").read_text())
        assert config.metadata["topk_threshold_lr"] == cfg["topk_threshold_lr"]


def test_a_batchtopk_checkpoint_without_its_threshold(tmp_path):
    from safetensors.torch import load, save_file

    theirs = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=3))
    theirs.save_model(str(tmp_path))
    weights = load((tmp_path / "sae_weights.safetensors").read_bytes())
    del weights["topk_threshold"]
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(InputError, match="holds no topk_threshold"):
        load_sae(tmp_path)


def test_an_attention_sae_of_theirs_reads_heads_side_by_side(tmp_path):
    """They flatten z themselves (`hook_z`); rows of a store are flat already."""
    theirs = sae_lens.StandardSAE.from_dict(
        sae_lens.StandardSAEConfig(d_in=D, d_sae=F, reshape_activations="hook_z").to_dict()
    )
    randomise(theirs)
    theirs.cfg.metadata.hook_name = "blocks.3.attn.hook_z"
    theirs.save_model(str(tmp_path))
    assert json.loads((tmp_path / "cfg.json").read_text())["reshape_activations"] == "hook_z"
    ours, x = load_sae(tmp_path), tokens()
    heads = x.view(1, 50, 2, 3)  # one text of 50 tokens, two heads of width three
    close(ours.encode(x).dense(), theirs.encode(heads)[0])
    close(ours(x), theirs(heads)[0].flatten(1))
    assert ours.config.metadata["hook_name"] == "blocks.3.attn.hook_z"
