"""Without a GPU the kernels run in Triton's interpreter; the variable must be set before any kernel is imported."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="module", autouse=True)
def quick_interpreter():
    """Where a test runs it."""
    if "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from tests.kernels.quick import quick

    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        yield
