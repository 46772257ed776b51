"""Every parser under bad input: the committed findings, what every format meets, and mutations of valid files.

For arbitrary input a parser gives a valid value or an `InputError` (or what its target documents); nothing is executed,
nothing written. The same targets are run under coverage guidance by `make fuzz`; what that found lies in
tests/fixtures/fuzz and is replayed here.
"""

import os
import subprocess
from pathlib import Path
from random import Random

import pytest
from fuzzing.guard import Breach, guarded
from fuzzing.mutate import KINDS, mutated
from fuzzing.report import CORPUS
from fuzzing.targets import TARGETS, Runner, extremes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = {"command_line": 4, "corpus_parquet": 20, "sudoku_model": 15, "attention_result": 25, "store_verified": 20}
"""How many random inputs slower targets get here; all others `USUAL`."""
USUAL = 40


@pytest.fixture(scope="module", params=list(TARGETS))
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    made = Runner(TARGETS[request.param], tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def test_valid_inputs_are_read(runner: Runner):
    assert runner.seeds and all(runner.run(seed) == "value" for seed in runner.seeds)


def test_findings_stay_fixed(runner: Runner):
    kept = sorted((CORPUS / runner.target.name).glob("*"))
    failed = {path.name: found for path in kept if (found := runner.finding(path.read_bytes()))}
    assert not failed


def test_what_every_format_meets(runner: Runner):
    failed = {data[:40]: found for data in extremes(runner.target.kind) if (found := runner.finding(data))}
    assert not failed


def test_mutations_of_valid_inputs(runner: Runner):
    @settings(max_examples=FEW.get(runner.target.name, USUAL), derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(seed=st.sampled_from(list(runner.seeds)), number=st.integers(0, 2**32))
    def holds(seed: bytes, number: int):
        data = mutated(seed, runner.target.kind, Random(number))
        assert runner.finding(data) is None, data[:2000]

    holds()


def test_arbitrary_bytes(runner: Runner):
    @settings(max_examples=FEW.get(runner.target.name, USUAL) // 4, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)))
    def holds(data: bytes):
        assert runner.finding(data) is None

    holds()


def test_the_corpus_is_of_known_targets_small_and_without_pickles():
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= TARGETS.keys()
    assert files and sum(path.stat().st_size for path in files) < 500_000
    heads = [path.read_bytes()[:64] for path in files if path.parent.name.endswith("_pickle")]
    assert all(len(head) < 16 for head in heads)  # what is left of a pickle or archive that is none


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_are_a_function_of_the_seed_and_differ(kind):
    data = b'{"a": [1, {"b": null}]}\n{"c": "d"}\n'
    if kind == "safetensors":
        head = b'{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   '
        data = len(head).to_bytes(8, "little") + head + b"ab"
    made = [mutated(data, kind, Random(i)) for i in range(60)]
    assert made == [mutated(data, kind, Random(i)) for i in range(60)]
    assert len(set(made)) > 40 and sum(one != data for one in made) > 50


def test_the_guard_sees_writes_executions_and_connections(tmp_path: Path):
    def connect():
        import socket

        with socket.socket() as one:
            one.connect(("127.0.0.1", 1))

    for act in (
        lambda: (tmp_path / "a").write_text("x"),
        lambda: (tmp_path / "b").mkdir(),
        lambda: os.system("true"),
        lambda: subprocess.run(["true"]),
        connect,
    ):
        with pytest.raises(Breach), guarded():
            act()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_text("x")  # outside, all is as ever
    with guarded():
        assert (tmp_path / "a").read_text() == "x"


def test_a_planted_fault_is_found(tmp_path: Path):
    from fuzzing.registry import Prepared, Target

    def setup(folder: Path) -> Prepared:
        return Prepared(lambda data: int(data), [b"1"])

    made = Runner(Target("planted", "text", "here", setup), tmp_path)
    assert made.finding(b"12") is None and "ValueError" in str(made.finding(b"a"))
