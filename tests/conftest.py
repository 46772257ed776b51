"""What the tests share: no network, Triton's interpreter where there is no GPU, one SmolLM2 per test process."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported


@pytest.fixture(scope="session")
def smollm2_hf():
    """SmolLM2-135M-Instruct, float32 on CPU, as `interp.loading.Loaded`. Shared: leave it unchanged."""
    from interp.loading import load_hf

    return load_hf("smollm2-135m", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def smollm2():
    """The same as a `HookedModel`. Shared: leave it unchanged."""
    from interp.model import HookedModel

    return HookedModel.load("smollm2-135m", dtype="float32", device="cpu")
