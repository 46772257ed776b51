"""`benchmarks/linear.py`: slopes of known laws, sizes that double, and one measured run of a toy model."""

import numpy as np
import pytest

from benchmarks import linear
from tests.toy_store import SITES, ToyModel, token_file


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_slope_of_a_power_law_is_its_power(power):
    tokens = [1000 * 2**i for i in range(6)]
    found = linear.slope(tokens, [3.0 * n**power for n in tokens])
    assert [found[name] for name in ("slope", "low", "high")] == pytest.approx([power] * 3)


def test_the_interval_holds_the_true_slope_as_often_as_it_says():
    """Multiplicative noise, 400 times: within four standard errors of 95 per cent."""
    generator, tokens = np.random.default_rng(0), [1000.0 * 2**i for i in range(6)] * 2
    held = 0
    for _ in range(400):
        found = linear.slope(tokens, [n * np.exp(generator.normal(0, 0.2)) for n in tokens])
        held += found["low"] <= 1 <= found["high"]
    assert abs(held / 400 - 0.95) < 4 * (0.95 * 0.05 / 400) ** 0.5


def test_sizes_double_up_to_the_largest():
    assert linear.sizes(2_000_000, 6) == [62_500, 125_000, 250_000, 500_000, 1_000_000, 2_000_000]


def test_one_run_is_planned_run_and_deleted(tmp_path):
    file = token_file(tmp_path / "tokens", [5, 9, 12, 7])
    runs = [linear.one(ToyModel(), file, SITES[0], tmp_path / "store") for _ in range(2)]
    assert not (tmp_path / "store").exists()
    for run in runs:
        assert run["tokens"] == 33 and run["documents"] == 4 and run["rows"] == 29  # first positions stay out
        assert run["bytes"] >= 29 * (6 * 2 + 12) and run["run_seconds"] > 0 < run["plan_seconds"]
        assert set(run["stages"]) >= {"tokens", "forward", "writer", "disk"}
    said = linear.table(runs)
    assert said.splitlines()[2].startswith("| 33 | 4 | 1 |") and linear.slopes(runs) == {}
