"""Soft-capped attention: eager on CPUs and with gradients, FlexAttention on GPUs without, always with the cap."""

import shutil

import pytest
import torch

from interp.attention_choice import attention_for
from interp.errors import InputError
from tests.tiny_models import random_tokens, tiny
from tests.wrapped_models import wrapped

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "grad", "own", "during"),
    [
        (CUDA, False, "eager", "flex_attention"),
        (CUDA, True, "eager", "eager"),
        (CPU, False, "eager", "eager"),
        (CUDA, False, "flash_attention_2", "flash_attention_2"),
        (CPU, False, "flex_attention", "flex_attention"),
    ],
)
def test_the_choice_and_that_it_is_given_back(device, grad, own, during):
    hf = tiny("gemma2")
    hf.config._attn_implementation = own
    with torch.set_grad_enabled(grad), pytest.raises(KeyError), attention_for(wrapped("gemma2").cfg, hf, device):
        assert hf.config._attn_implementation == during
        raise KeyError
    assert hf.config._attn_implementation == own


def test_models_without_a_cap_keep_what_they_have():
    hf = tiny("llama", attn_implementation="sdpa")
    with torch.no_grad(), attention_for(wrapped("llama").cfg, hf, CUDA):
        assert hf.config._attn_implementation == "sdpa"
    with pytest.raises(InputError, match="'sdpa' would drop the soft-cap of gemma2"):
        hf = tiny("gemma2")
        hf.config._attn_implementation = "sdpa"
        with attention_for(wrapped("gemma2").cfg, hf, CUDA):
            pass


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention on CPUs compiles C++")
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="on an AVX2 CPU the model gave NaN through torch 2.13's compiled FlexAttention; cause not known",
)
def test_flex_attention_keeps_cap_window_and_scale():
    """The choice made for GPUs, run here: window 5 of 24 positions, a cap of 2 that bends every score."""
    hf = tiny("gemma2")
    tokens = random_tokens(hf, 2, 24)
    with torch.no_grad():
        expected = hf(tokens, use_cache=False).logits
        with attention_for(wrapped("gemma2").cfg, hf, CUDA):
            found = hf(tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
