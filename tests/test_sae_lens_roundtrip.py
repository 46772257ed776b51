"""An SAE saved here is sae_lens's own, and the other way round: outputs, k, hook name and provenance."""

import pytest
import torch

from saes.sae import SAE, SAEConfig
from tests.test_sae import weights

pytestmark = pytest.mark.filterwarnings("ignore")  # sae_lens's imports warn
sae_lens = pytest.importorskip("sae_lens")
METADATA = {"model_name": "smollm2-135m", "hook_name": "blocks.15.hook_resid_post", "own": {"corpus": "abc"}}


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("loader", ["load_from_disk", "load_from_pretrained"])
def test_ours_in_sae_lens(tmp_path, subtract, loader):
    config = SAEConfig(d_in=6, d_sae=20, k=3, apply_b_dec_to_input=subtract, metadata=METADATA)
    ours = SAE.of_weights(config, **weights(6, 20))
    ours.save(tmp_path)
    theirs = getattr(sae_lens.SAE, loader)(str(tmp_path))
    x = torch.randn(50, 6)
    torch.testing.assert_close(theirs.encode(x), ours.encode(x).dense())
    torch.testing.assert_close(theirs(x), ours(x))
    assert theirs.cfg.architecture() == "topk" and theirs.cfg.k == 3
    assert theirs.cfg.metadata.hook_name == "blocks.15.hook_resid_post"
    assert theirs.cfg.metadata.model_name == "smollm2-135m" and theirs.cfg.metadata.own == {"corpus": "abc"}


def test_ours_through_sae_lens_and_back(tmp_path):
    ours = SAE.of_weights(SAEConfig(d_in=6, d_sae=20, k=3, metadata=METADATA), **weights(6, 20))
    ours.save(tmp_path / "a")
    sae_lens.SAE.load_from_disk(str(tmp_path / "a")).save_model(str(tmp_path / "b"))
    again = SAE.load(tmp_path / "b")
    x = torch.randn(50, 6)
    assert torch.equal(again(x), ours(x))
    assert METADATA.items() <= dict(again.config.metadata).items()


@pytest.mark.parametrize("rescale", [True, False])
def test_theirs_here(tmp_path, rescale):
    config = sae_lens.TopKSAEConfig(d_in=6, d_sae=20, k=3, rescale_acts_by_decoder_norm=rescale)
    config.metadata.hook_name = "blocks.7.hook_resid_post"
    theirs = sae_lens.TopKSAE(config)
    theirs.load_state_dict(weights(6, 20))  # decoder rows far from unit norm
    theirs.save_model(str(tmp_path))
    ours = SAE.load(tmp_path)
    x = torch.randn(50, 6)
    if rescale:  # the codes are those of SAELens, which divides by the norms when decoding
        torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(ours.encode(x).dense(), theirs.encode(x))
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.config.k == 3 and ours.config.metadata["hook_name"] == "blocks.7.hook_resid_post"


def test_a_training_checkpoint_of_theirs_here(tmp_path):
    config = sae_lens.TopKTrainingSAEConfig(d_in=6, d_sae=20, k=3)  # rescales by decoder norm, by default
    theirs = sae_lens.TopKTrainingSAE(config)
    theirs.load_state_dict(weights(6, 20))
    theirs.save_model(str(tmp_path))
    x = torch.randn(50, 6)
    torch.testing.assert_close(SAE.load(tmp_path)(x), theirs(x))
    theirs.save_inference_model(str(tmp_path / "inference"))
    torch.testing.assert_close(SAE.load(tmp_path / "inference")(x), theirs(x))
