"""docs/reliability.md: the figures of fuzzing are those of the last run, and that run covers every target."""

import json
from pathlib import Path

from fuzzing.report import table
from fuzzing.targets import TARGETS

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "results" / "fuzz.json").read_text())


def test_the_run_covers_every_target_and_leaves_no_failure():
    assert RECORD["targets"].keys() == TARGETS.keys()
    assert not {name: facts["findings"] for name, facts in RECORD["targets"].items() if facts["findings"]}


def test_the_page_has_the_table_of_the_run():
    assert table(RECORD) in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_another_run_has_another_table():
    first = next(iter(RECORD["targets"]))
    changed = {**RECORD["targets"], first: {**RECORD["targets"][first], "executions": 1}}
    assert table({"targets": changed}) != table(RECORD)
