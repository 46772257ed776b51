"""Extraction on a real local Ray cluster: the bytes of one machine, workers killed, driver killed, nothing twice."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interp.errors import InputError
from interp.extract import extract
from interp.ray_engine import RayOptions, extract_on_ray
from tests.ray_toys import Load
from tests.toy_store import SITES, ToyModel, files_of, token_file

LENGTHS = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40, 33, 21, 8, 50]
SMALL = {"max_length": 16, "token_budget": 32, "rows_per_shard": 50, "progress": False}
TWO = RayOptions(workers=2)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    ray = pytest.importorskip("ray")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens") / "t", LENGTHS)


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    store = extract(ToyModel(), file, SITES, tmp_path_factory.mktemp("whole") / "s", **SMALL)
    assert len(store.manifest["shards"]) >= 6
    return store


def batches(whole) -> int:
    return len(json.loads((whole.path / "plan.json").read_text())["batch_windows"])


def passes(root: Path) -> int:
    """Of all workers. Each `prepare` looks at one token, and planning times one batch."""
    return (root / "log").stat().st_size


@pytest.mark.slow
def test_two_workers_write_the_store_of_one_machine(cluster, file, whole, tmp_path):
    said: list[str] = []
    store = extract_on_ray(Load(file.path, tmp_path), SITES, tmp_path / "s", options=TWO, announce=said.append, **SMALL)
    assert files_of(store.path) == files_of(whole.path)
    shards = len(whole.manifest["shards"])
    assert f"{shards} to compute, up to {-(-shards // 2)} a worker; 0 are there already" in said[0]
    assert "workers     2 of 1 CPUs and 0 GPUs" in said[0]
    done = passes(tmp_path)
    again = extract_on_ray(Load(file.path, tmp_path), SITES, tmp_path / "s", options=TWO, **SMALL)
    assert passes(tmp_path) == done + 1  # one token, for the shapes
    assert files_of(again.path) == files_of(whole.path)


@pytest.mark.slow
def test_only_a_damaged_shard_is_computed_again(cluster, file, whole, tmp_path):
    store = extract_on_ray(Load(file.path, tmp_path), SITES, tmp_path / "s", options=TWO, **SMALL)
    (store.path / "shard-00002.safetensors").unlink()
    done = passes(tmp_path)
    extract_on_ray(Load(file.path, tmp_path), SITES, tmp_path / "s", options=TWO, **SMALL)
    assert files_of(store.path) == files_of(whole.path)
    assert passes(tmp_path) - done <= 6  # two looks at one token, one batch timed, at most three of the shard


@pytest.mark.slow
@pytest.mark.parametrize("after", [6, 12])
def test_a_killed_worker_costs_its_shard(cluster, file, whole, tmp_path, after):
    load = Load(file.path, tmp_path, kill_after=after)
    store = extract_on_ray(load, SITES, tmp_path / "s", options=TWO, **SMALL)
    assert len(list(tmp_path.glob("killed-*"))) == 1
    assert files_of(store.path) == files_of(whole.path)
    # Three workers and planning look at one token each, planning runs a batch, and a shard has at most three batches.
    assert passes(tmp_path) <= batches(whole) + 5 + 1 + 3


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_ends_the_run(cluster, file, tmp_path):
    load = Load(file.path, tmp_path, kill_after=6, kills=99)
    with pytest.raises(InputError, match=r"3 workers died while they .*What is finished is kept"):
        extract_on_ray(load, SITES, tmp_path / "s", options=TWO, **SMALL)


@pytest.mark.slow
def test_an_error_in_a_worker_is_told_as_it_was(cluster, file, tmp_path):
    load = Load(file.path, tmp_path, fail="shapes do not match")
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        extract_on_ray(load, SITES, tmp_path / "s", options=TWO, **SMALL)
    with pytest.raises(InputError, match=r"has 2 CPUs and 0 GPUs, room for 2 workers of 1 CPUs .*; 3 are asked"):
        extract_on_ray(load, SITES, tmp_path / "s", options=RayOptions(workers=3), **SMALL)


DRIVER = """
import sys
from pathlib import Path
from interp.ray_engine import RayOptions, extract_on_ray
from tests.ray_toys import Load
from tests.test_ray_engine import SITES, SMALL
root = Path(sys.argv[2])
extract_on_ray(Load(Path(sys.argv[1]), root, wait=0.3), SITES, root / "s", options=RayOptions(workers=2), **SMALL)
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on(cluster, file, whole, tmp_path):
    env = {**os.environ, "RAY_ADDRESS": cluster.get_runtime_context().gcs_address}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(file.path), str(tmp_path)], env=env)
    ledger, deadline = tmp_path / "s" / "ledger.jsonl", time.monotonic() + 180
    while not (ledger.exists() and ledger.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    kept = ledger.read_text().count("\n")
    assert 2 <= kept < len(whole.manifest["shards"])
    said: list[str] = []
    store = extract_on_ray(Load(file.path, tmp_path), SITES, tmp_path / "s", options=TWO, announce=said.append, **SMALL)
    assert f"{kept} are there already" in said[0]
    assert files_of(store.path) == files_of(whole.path)


def test_without_ray_the_error_names_the_extra(monkeypatch, file, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs the package ray: pip install 'midlens\[ray\]'"):
        extract_on_ray(Load(file.path, tmp_path), SITES, tmp_path / "s", **SMALL)


def test_workers_that_make_no_sense():
    with pytest.raises(InputError, match="expected at least 1 worker of more than 0 CPUs, got 0 of 1 CPUs"):
        RayOptions(workers=0)
    with pytest.raises(InputError, match="got None of 0 CPUs"):
        RayOptions(cpus=0)
