"""Triton's interpreter, made quicker."""

import os
import sys

import pytest


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
