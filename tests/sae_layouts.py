"""The committed SAEs of other tools, laid out as those tools do; pickles and npz archives are written here."""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

FIXTURES = Path(__file__).parent / "fixtures" / "sae_layouts"
CASES = sorted(path.parent.relative_to(FIXTURES).as_posix() for path in FIXTURES.rglob("expected.safetensors"))
PICKLED = {
    "dictionary_learning": "ae.pt",
    "gemma_scope": "params.npz",
    "goodfire": "Llama-3.1-8B-Instruct-SAE-l19.pth",
}


def place(case: str, folder: Path) -> Path:
    """A copy of one case in `folder`, as the tool that made it would have left it."""
    target = folder / case
    shutil.copytree(FIXTURES / case, target)
    (target / "expected.safetensors").unlink()
    if (run := FIXTURES / case / ".." / "config.json").is_file():  # of sparsify: one for all hookpoints
        shutil.copy(run, target.parent)
    kept = target / "pickled.safetensors"
    if kept.is_file():
        tensors, name = load_file(kept), PICKLED[case.split("/")[0]]
        kept.unlink()
        if name.endswith(".npz"):
            np.savez(target / name, **{key: tensor.numpy() for key, tensor in tensors.items()})
        else:
            torch.save(tensors, target / name)
    return target


def expected(case: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, and the tool's own dense codes and reconstructions of them."""
    held = load_file(FIXTURES / case / "expected.safetensors")
    return held["x"], held["codes"], held["out"]
