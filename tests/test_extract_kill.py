"""SIGKILL at chosen and random points of an extraction, and the same call again: same bytes, at most one shard anew."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from interp.extract import extract
from interp.store import ActivationStore
from interp.tokenfile import TokenFile
from tests.kill_child import SETTINGS
from tests.toy_store import SITES, ToyModel, files_of, token_file

LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 60, 24)]
# One replace each: plan, empty ledger, shard 0, 1, ..., manifest. fsync: file and folder of each, lines of the ledger.
POINTS = [
    "replace:1:before",
    "replace:1:after",
    "replace:3:before",  # between the fsync of shard 0 and its rename
    "replace:3:after",  # between the rename of shard 0 and its line in the ledger
    "replace:5:before",
    "replace:6:after",
    "fsync:5:before",
    "fsync:8:after",
    "fsync:12:before",
    "pwrite:2:before",
    "pwrite:30:after",
    "pwrite:47:before",
    "unlink:1:before",  # the manifest is written, the ledger not yet gone
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, ActivationStore, int]:
    folder = tmp_path_factory.mktemp("reference")
    file, model = token_file(folder / "t", LENGTHS), ToyModel()
    store = extract(model, file, SITES, folder / "s", **SETTINGS)
    assert len(store.manifest["shards"]) >= 6
    return file.path, store, model.passes


def largest_shard(store: ActivationStore) -> int:
    from interp.plan import Plan

    plan = Plan.load(store.path / "plan.json")
    return max(len(plan.batches_of(shard)) for shard in range(len(plan.shard_rows)))


def check(root: Path, points: list[str], reference: tuple[Path, ActivationStore, int]) -> int:
    """Kill at each point, finish, compare; how many runs were killed."""
    tokens, store, batches = reference
    script = Path(__file__).with_name("kill_child.py")
    subprocess.run([sys.executable, str(script), str(root), str(tokens), *points], check=True, timeout=600)
    killed = 0
    for point in points:
        killed += (root / point / "killed").read_text() == "True"
        log = root / point / "log"
        done = log.stat().st_size - 1 if log.exists() else 0  # one pass only looks at shapes
        model = ToyModel()
        finished = extract(model, TokenFile.open(tokens), SITES, root / point / "s", **SETTINGS)
        finished.verify()
        assert files_of(finished.path) == files_of(store.path), point
        assert max(0, done) + model.passes - batches <= largest_shard(store), point
    return killed


def test_killed_at_chosen_points(tmp_path, reference):
    assert check(tmp_path, POINTS, reference) == len(POINTS)


def test_killed_again_and_again(tmp_path, reference):
    """Each call is killed a little later than the one before, until one gets through."""
    tokens, store, batches = reference
    model = ToyModel()
    for allowed in range(1, 2 * batches):
        try:
            extract(_Stops(model, allowed), TokenFile.open(tokens), SITES, tmp_path / "s", **SETTINGS)
        except KeyboardInterrupt:
            assert not list((tmp_path / "s").glob(".*.partial"))
            continue
        break
    assert files_of(tmp_path / "s") == files_of(store.path)


class _Stops(ToyModel):
    """Ctrl-C after some passes."""

    def __init__(self, inner: ToyModel, allowed: int) -> None:
        super().__init__()
        self.inner, self.left = inner, allowed

    def capture(self, tokens, sites, **options):
        if tokens.numel() > 1:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.inner.capture(tokens, sites, **options)


@pytest.mark.slow
def test_killed_at_every_system_call_and_at_random_times(tmp_path, reference):
    every = [f"{kind}:{n}:{side}" for kind, most in (("replace", 12), ("fsync", 32), ("pwrite", 60), ("unlink", 1))
             for n in range(1, most) for side in ("before", "after")]  # fmt: skip
    check(tmp_path / "calls", every, reference)
    times = np.random.default_rng(1).uniform(0.0, 0.25, 200)
    killed = check(tmp_path / "times", [f"time:{t:.9f}:" for t in times], reference)
    assert killed > 50
