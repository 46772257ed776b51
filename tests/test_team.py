"""Training by several processes: the same curve as by one, checkpoints for any number of them, export, bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import InputError
from saes.sae import SAE
from saes.team import ALONE, Team, team
from saes.train import fit
from tests.rows import SITE, MemoryRows, sparse_mixture
from tests.team_child import CASES, config, run

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("loss", "aux", "penalty", "l0", "dead_fraction", "massive", "threshold")


def torchrun(processes: int, folder: Path, parallel: str, *cases: str, steps: int | None = None) -> Any:
    """Train in that many processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    child = [str(ROOT / "tests/team_child.py"), str(folder), parallel, *cases]
    more = {"OMP_NUM_THREADS": "1", **({} if steps is None else {"STEPS": str(steps)})}
    done = subprocess.run([*command, *child], env={**os.environ, **more}, capture_output=True, text=True, timeout=300)
    assert steps is not None or done.returncode == 0, done.stderr[-3000:]
    return done


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for case in CASES:
        run(folder, None, case)
    return folder


@pytest.fixture(scope="module", params=["data", "dictionary"])
def together(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torchrun(2, folder, request.param)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(alone: Path, together: Path, case: str):
    one, two = curve(alone / case), curve(together / case)
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(5, 45, 5))
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() and a["tokens"] == b["tokens"]
        for name in FIGURES:
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=2e-4, abs=2e-6), (a["step"], name)
    assert two[-1]["loss"] < 0.8 * two[0]["loss"]
    ours, theirs = SAE.load(alone / case), SAE.load(together / case)
    assert theirs.config.d_sae == 96 and theirs.config.k == ours.config.k
    x = sparse_mixture(50, seed=3)[0]
    torch.testing.assert_close(theirs(x), ours(x), rtol=2e-3, atol=2e-3)


def test_some_features_were_dead_and_revived(alone: Path):
    """Otherwise the auxiliary loss of a team would not have been tried."""
    for case in ("topk", "batchtopk"):
        assert any(line["aux"] > 0 and line["dead_fraction"] > 6 / 96 for line in curve(alone / case))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_another_division(alone: Path, tmp_path: Path):
    assert torchrun(2, tmp_path, "dictionary", "topk", steps=23).returncode
    held = sorted(path.name for path in (tmp_path / "topk/training/checkpoints").iterdir())
    assert held == ["step-000000010", "step-000000020"]
    files = list((tmp_path / "topk/training/checkpoints").rglob("*.*"))
    assert files and all(path.suffix in (".safetensors", ".json") for path in files), files
    settings = tmp_path / "topk/training/checkpoints" / held[-1] / "run.json"
    own = settings.read_text()
    settings.write_text(own.replace('"seed": 0', '"seed": 1'))
    assert "step-000000020 is of another run" in torchrun(1, tmp_path, "dictionary", "topk", steps=40).stderr
    settings.write_text(own)
    assert torchrun(1, tmp_path, "dictionary", "topk", steps=33).returncode
    assert torchrun(2, tmp_path, "data", "topk", steps=36).returncode
    torchrun(3, tmp_path, "dictionary", "topk")
    for a, b in zip(curve(alone / "topk"), curve(tmp_path / "topk"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-4) and a["step"] == b["step"]
    assert not (tmp_path / "topk/training/checkpoints").exists()


@pytest.mark.filterwarnings("ignore")  # sae_lens's imports warn
def test_the_result_is_an_ordinary_sae_for_saelens(together: Path):
    import sae_lens

    sae, x = SAE.load(together / "jumprelu"), sparse_mixture(40, seed=3)[0]
    theirs = sae_lens.SAE.load_from_disk(str(together / "jumprelu"))
    torch.testing.assert_close(theirs.decode(theirs.encode(x)), sae(x), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_divided_is_refused(monkeypatch, tmp_path: Path):
    with pytest.raises(InputError, match="96 features does not divide into 5 processes; take a width"):
        Team("dictionary", 0, 5).features(96)
    rows = MemoryRows(sparse_mixture(60, seed=3)[0])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    team.cache_clear()
    with pytest.raises(InputError, match=r"parallel='data' needs processes.* `torchrun --nproc-per-node N"):
        fit(rows, config("topk"), tmp_path / "a", site=SITE, parallel="data")
    with pytest.raises(InputError, match="parallel is one of 'data', 'dictionary', got 'both'"):
        team("both")
    assert team(None) is ALONE
    team.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started, but it isn't said what they divide"):
        fit(rows, config("topk"), tmp_path / "a", site=SITE)
    team.cache_clear()
    assert not (tmp_path / "a").exists()
