"""A model cut across two processes: at every site the same as the whole one, read, edited, differentiated, stored."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from interp.extract import extract
from interp.model import HookedModel
from interp.sharded import together
from interp.sites import Site
from interp.store import ActivationStore
from tests.tensor_parallel_child import PART, part, work
from tests.tiny_models import tiny
from tests.toy_store import token_file

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ["llama", "gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gpt_neox"))]


def torchrun(folder: Path, *, plan: str = "auto") -> subprocess.CompletedProcess[str]:
    """Two processes of the child."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(ROOT / "tests/tensor_parallel_child.py"), str(folder), plan],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory) -> tuple[Path, HookedModel, dict[str, Tensor], list[dict[str, Tensor]]]:
    """The folder, the whole model, what it gives, and what each of two processes gave."""
    folder = tmp_path_factory.mktemp(request.param)
    # An odd width, so that the slices of the MLP are of different lengths (41 and 40).
    changes = {"intermediate_size": 81} if request.param == "llama" else {}
    tiny(request.param, **changes).save_pretrained(folder / "model")
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = HookedModel.load(folder / "model", dtype="float32")
    whole.hf.requires_grad_(False)
    return folder, whole, work(whole, folder), [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def test_every_process_has_what_the_whole_model_has(both):
    _, _, right, found = both
    assert right.keys() == found[0].keys() == found[1].keys() and len(right) > 70
    for name, expected in right.items():
        for rank in range(2):
            assert found[rank][name].shape == expected.shape, name
            torch.testing.assert_close(
                found[rank][name], expected, rtol=2e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
        assert torch.equal(found[0][name], found[1][name]), name


def test_the_edits_change_something_and_each_something_else(both):
    """Otherwise their agreement would say nothing."""
    _, _, right, _ = both
    names = [name for name in right if name.startswith("edit")]
    for i, name in enumerate(names):
        assert (right[name] - right["logits"]).abs().max() > 1e-3, name
        for other in names[:i]:
            if {name, other} != {"edit blocks.1.hook_resid_pre", "edit blocks.0.hook_resid_post"}:
                assert not torch.equal(right[name], right[other]), (name, other)


def test_one_store_is_written_by_all_together(both, tmp_path: Path):
    folder, whole, _, _ = both
    tokens = token_file(tmp_path / "tokens", [5, 30, 12], seed=1)
    expected = extract(whole, tokens, ["z.1", "resid_post.1"], tmp_path / "s", store_dtype="float32", progress=False)
    store = ActivationStore.open(folder / "store")
    store.verify()
    assert len(store) == len(expected) > 30
    for site in ("z.1", "resid_post.1"):
        torch.testing.assert_close(
            store.rows(site, 0, len(store)), expected.rows(site, 0, len(store)), rtol=2e-5, atol=2e-5
        )


def test_a_plan_that_cuts_the_stream_is_refused(tmp_path: Path):
    tiny("llama").save_pretrained(tmp_path / "model")
    done = torchrun(tmp_path, plan="sequence")
    assert done.returncode != 0
    assert "cut in the styles sequence_parallel, under which sites would show slices" in done.stderr


def test_a_single_process_needs_no_others():
    assert together("model", lambda model: model.upper()) == "MODEL"


@pytest.mark.parametrize("name", ["part", "named"])
def test_a_part_of_a_model_is_cut_as_the_whole(both, name: str):
    """By the family's plan, and by one with names of the whole model, its head among them."""
    folder, whole, _, _ = both
    right, found = part(whole), [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)]
    assert right.keys() == found[0].keys() == found[1].keys() and len(right) == 6
    assert (right[f"act {Site.parse(PART)}"] - right["edit z.0"]).abs().max() > 1e-3
    for site, expected in right.items():
        assert torch.equal(found[0][site], found[1][site]), site
        torch.testing.assert_close(found[0][site], expected, rtol=2e-5, atol=2e-5, msg=lambda m, s=site: f"{s}: {m}")
