"""The whole run on tiny random models with a tiny SAE: whole, again, killed; judges at an endpoint are paid once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import InputError
from interp.model import HookedModel
from saes.config import SAEConfig
from saes.primitives.options import PrimitivesConfig
from saes.primitives.pipeline import figures, run_primitives
from saes.sae import SAE
from tests.chat_endpoint import ChatServer, serving
from tests.tiny_models import tiny

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def server() -> Iterator[Any]:
    with serving(ChatServer(lambda body: server.says)) as server:
        server.says = "joy"
        yield server


def asked(server: Any) -> list[str]:
    return [json.dumps(body, sort_keys=True) for body in server.seen]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, smollm2: HookedModel) -> Path:
    """A tiny Llama and a tiny Gemma 2 with SmolLM2's tokenizer, and an SAE for either."""
    root = tmp_path_factory.mktemp("models")
    for family in ("llama", "gemma2"):
        tiny(family, vocab_size=len(smollm2.tokenizer)).save_pretrained(root / family)
        smollm2.tokenizer.save_pretrained(root / family)
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(64, 48, generator=g), dim=1)
    config = SAEConfig(d_in=48, d_sae=64, architecture="topk", k=4, metadata={"hook_name": SITE})
    SAE.of_weights(config, W_enc=rows.T, W_dec=rows, b_enc=torch.zeros(64), b_dec=torch.zeros(48)).save(root / "sae")
    return root


def options(folders: Path, family: str, out: Path, server: Any) -> dict[str, Any]:
    return {
        "model": str(folders / family), "sae": str(folders / "sae"), "out": out, "emotions": ("joy",), "decoys": 0,
        "judges": ("a", "b"), "endpoint": server.url, "budget": 0.01, "seeds": 1,
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_run_is_the_same_on_either_family_and_nothing_is_asked_twice(
    folders: Path, tmp_path: Path, server: Any, family: str
):
    config = PrimitivesConfig(**options(folders, family, tmp_path / "run", server))
    lines: list[str] = []
    path = run_primitives(config, say=lines.append)
    assert "<html" in path.read_text()[:2000]
    found = figures(config.out)
    assert found["emotions"] == 1 and any("cut to the budget: trials: 3 of 24" in line for line in lines)
    assert len(server.seen) == len(set(asked(server))) > 0
    count, kept = len(server.seen), (config.out / "coverage.json").read_bytes()
    run_primitives(config)
    assert len(server.seen) == count and (config.out / "coverage.json").read_bytes() == kept
    with pytest.raises(InputError, match=r"holds a run with other options \(seeds: 1 there, 3 asked for\)"):
        run_primitives(PrimitivesConfig(**options(folders, family, config.out, server) | {"seeds": 3}))


def test_nonsense_is_a_miss_and_counted(folders: Path, tmp_path: Path, server: Any):
    server.says = "I would rather not say."
    config = PrimitivesConfig(**options(folders, "llama", tmp_path / "run", server))
    run_primitives(config)
    cells = json.loads((config.out / "coverage.json").read_text())["cells"]
    for condition in cells[0]["conditions"]:
        assert condition["hits"] == 0 and condition["failures"] == condition["answers"] > 0


def test_a_kill_between_answers_pays_none_twice(folders: Path, tmp_path: Path, server: Any):
    given = options(folders, "llama", tmp_path / "run", server)
    code = "import sys\nfrom pathlib import Path\nfrom saes.primitives.options import PrimitivesConfig\n"
    code += "from saes.primitives.pipeline import run_primitives\n"
    code += f"run_primitives(PrimitivesConfig(**{ {**given, 'out': None}!r} | {{'out': Path(sys.argv[1])}}))\n"
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", code, str(given["out"])], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(server.seen) < 20 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    before = len(server.seen)
    answers = len(list((given["out"] / "answers").rglob("*.json")))
    assert 0 < answers <= before
    run_primitives(PrimitivesConfig(**given))
    repeated = len(server.seen) - len(set(asked(server)))
    assert repeated <= before - answers  # only what was under way when it was killed
