"""The search for a token budget: it finds the best of a known cost, minds memory, and binds the run that resumes."""

import json
import sys

import pytest
import torch

from interp import budget
from interp.batching import group, windows_of
from interp.budget import Search, Trial, sample, search, typical
from interp.errors import InputError
from interp.extract import _worth_a_search, extract, prepare
from interp.plan import Exclusions, Selector
from tests.toy_store import SITES, ToyModel, files_of, token_file

LENGTHS = [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40, 300, 120] * 30


class Costs:
    """A runner in its own time: a batch of n padded tokens takes `seconds(n)`, and more than `memory` do not fit."""

    def __init__(self, seconds, memory: int = 1 << 60) -> None:
        self.seconds, self.memory, self.now, self.held = seconds, memory, 0.0, 0
        self.sizes: list[int] = []

    def begin(self, capacity: int) -> None:
        self.capacity = capacity

    def near(self, ready):
        return ready

    def run(self, ready):
        n = ready.batch.tokens.numel()
        assert n <= self.capacity
        if n > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(n)
        self.held += 1
        return self

    def wait(self) -> None:
        self.now += self.seconds(self.sizes[-1])

    def release(self) -> None:
        self.held -= 1

    def clock(self) -> float:
        return self.now


def found(tmp_path, costs: Costs, **options) -> Search:
    file = token_file(tmp_path / "t", LENGTHS)
    windows = windows_of(file.lengths, max_length=256)
    result = search(costs, Selector(file, Exclusions()), windows, clock=costs.clock, **options)
    assert costs.held == 0
    return result


def test_larger_batches_win_while_they_pay(tmp_path):
    result = found(tmp_path, Costs(lambda n: 0.1 + n / 1e6))
    rates = {trial.token_budget: trial.tokens_per_second for trial in result.trials}
    assert list(rates) == [256 << i for i in range(len(rates))]
    assert result.token_budget >= 4096 and rates[result.token_budget] * budget.GAIN >= max(rates.values())


def test_past_the_best_it_stops_after_two_doublings(tmp_path):
    result = found(tmp_path, Costs(lambda n: 0.01 + n / 10_000 * (1 if n <= 1024 else 3)))
    assert result.token_budget == 1024
    assert [trial.token_budget for trial in result.trials] == [256, 512, 1024, 2048, 4096]


def test_a_gain_within_the_noise_is_no_reason_for_more_memory(tmp_path):
    assert found(tmp_path, Costs(lambda n: 1e-6 + n / 1000)).token_budget == 256


def test_out_of_memory_ends_the_search(tmp_path):
    result = found(tmp_path, Costs(lambda n: 0.05 + n / 10_000, memory=1100))
    assert result.token_budget == 1024
    assert result.trials[-1] == Trial(2048, None)
    assert str(result).endswith("2,048: out of memory")
    nothing_fits = found(tmp_path, Costs(lambda n: 1.0, memory=10))
    assert nothing_fits == Search(256, (Trial(256, None),))


def test_other_errors_are_not_taken_for_want_of_memory(tmp_path):
    class Broken(Costs):
        def run(self, ready):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        found(tmp_path, Broken(lambda n: 1.0))


def test_patience_bounds_what_a_slow_machine_spends(tmp_path):
    costs = Costs(lambda n: n / 50)
    result = found(tmp_path, costs)
    assert [trial.token_budget for trial in result.trials] == [256]
    assert len(costs.sizes) == 4 and costs.now > budget.PATIENCE  # one to warm up, and one round of three


def test_one_slow_round_does_not_decide(tmp_path):
    def seconds(n):
        spike = 30.0 if len(costs.sizes) == 3 else 0.0  # once, in the first round of the smallest budget
        return 1e-6 + n / 1e6 + spike

    costs = Costs(seconds)
    assert found(tmp_path, Costs(lambda n: 1e-6 + n / 1e6)).token_budget == 256
    budget_then = found(tmp_path, costs)
    assert costs.now > 30
    assert budget_then.trials[0].tokens_per_second is not None


def test_windows_longer_than_the_smallest_budget(tmp_path):
    file = token_file(tmp_path / "u", [700, 20])
    windows = windows_of(file.lengths, max_length=700)
    costs = Costs(lambda n: 1.0 + n / 1e6)
    result = search(costs, Selector(file, Exclusions()), windows, multiple=8, clock=costs.clock)
    assert result.trials[0].token_budget == 704
    with pytest.raises(InputError, match="no window to find a token budget for"):
        search(costs, Selector(file, Exclusions()), windows.take(slice(0, 0)))


def test_typical_batches_are_short_middling_and_long():
    windows = windows_of(LENGTHS, max_length=256)
    buckets = group(windows, token_budget=512)
    longest = [int(buckets.windows.length[slice(*buckets.span(i))].max()) for i in typical(buckets)]
    ordered = sorted(longest)
    every = sorted(int(n) for n in buckets.windows.length)
    assert len(longest) == 3 and every[0] < ordered[0] < ordered[1] <= ordered[2]
    some = sample(windows, 2_000, seed=1)
    assert 2_000 <= int(some.length.sum()) < 2_000 + 256
    pairs = list(zip(windows.doc.tolist(), windows.start.tolist(), strict=True))
    assert set(zip(some.doc.tolist(), some.start.tolist(), strict=True)) <= set(pairs)


def test_the_plan_keeps_what_was_found(tmp_path, monkeypatch):
    file = token_file(tmp_path / "t", LENGTHS)
    asked = []
    result = Search(192, (Trial(96, 5.0), Trial(192, 9.0)))
    monkeypatch.setattr(sys.modules["interp.extract"], "search", lambda *a, **k: asked.append(1) or result)
    settings = {"max_length": 64, "rows_per_shard": 400}
    extraction = prepare(ToyModel(), file, SITES, tmp_path / "s", token_budget="auto", **settings)
    assert extraction.plan.token_budget == 192
    assert "tried       96: 5 tok/s, 192: 9 tok/s" in extraction.describe()
    store = extraction.run(progress=False)
    assert json.loads((store.path / "plan.json").read_text())["token_budget"] == 192
    same = extract(ToyModel(), file, SITES, tmp_path / "n", token_budget=192, progress=False, **settings)
    assert files_of(same.path) == files_of(store.path)
    again = ToyModel()
    extract(again, file, SITES, tmp_path / "s", token_budget="auto", progress=False, **settings)
    assert again.passes == 0 and asked == [1]  # resumed by the plan, without another search


def test_memory_runs_out_while_searching_and_while_running(tmp_path):
    class Small(ToyModel):
        def capture(self, tokens, sites, **options):
            if tokens.numel() > 600:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().capture(tokens, sites, **options)

    file = token_file(tmp_path / "t", LENGTHS)
    model = Small()
    extraction = prepare(model, file, SITES, tmp_path / "s", token_budget="auto", max_length=64)
    assert extraction.plan.token_budget <= 512 < model.passes * 600
    searched = model.passes
    store = extraction.run(progress=False)
    store.verify()
    assert model.passes - searched == len(extraction.plan.buckets)
    halved = prepare(model, file, SITES, tmp_path / "h", token_budget=1024, max_length=64)
    halved.run(progress=False).verify()
    assert halved.plan.splits


def test_only_long_runs_on_a_gpu_search_unasked(tmp_path):
    file = token_file(tmp_path / "t", [100])
    model = ToyModel()
    assert not _worth_a_search(model, file, None)
    model.device = torch.device("cuda", 0)
    assert not _worth_a_search(model, file, None)
    file.n_tokens = 256 * 16_384
    assert _worth_a_search(model, file, None)
    assert not _worth_a_search(model, file, [0])
    model.device = torch.device("cpu")
    assert not _worth_a_search(model, file, None)


def test_another_word_is_refused(tmp_path):
    from inspect import unwrap

    with pytest.raises(InputError, match="token_budget must be a number, \"auto\" or None, got 'large'"):
        unwrap(prepare)(ToyModel(), token_file(tmp_path / "t", [9]), SITES, tmp_path / "s", token_budget="large")
