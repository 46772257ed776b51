"""The fault harness on a few rounds: all survives, planted mistakes are found, and the page states its figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults

ROOT = Path(__file__).resolve().parents[1]
linux_with_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="system calls are intercepted in C, on Linux"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("faults")
    child = str(Path(__file__).with_name("faults_child.py"))
    ran = subprocess.run([sys.executable, child, str(home)], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((home / "found.json").read_text())


@linux_with_compiler
def test_nothing_is_lost(found):
    rows = found["rows"]
    assert {row["job"] for row in rows} == {"extract", "extract in pieces", "train"}
    assert not [line for row in rows for line in row["lost"]]
    assert sum(row["injected"] for row in rows) == sum(row["survived"] for row in rows) > 20


@linux_with_compiler
def test_planted_mistakes_are_found(found):
    assert any("did not finish" in line for line in found["planted"]["written under the final name"])
    assert any("sealed and done again" in line for line in found["planted"]["finished shards are forgotten"])
    assert found["planted"]["no lock"]


@linux_with_compiler
def test_a_process_killed_while_it_drew_a_bar_stops_no_other(found):
    """tqdm's own lock is one for all forks."""
    assert found["bar"] == "done"


@linux_with_compiler
@pytest.mark.slow
def test_the_pipeline_too(tmp_path):
    """Sweep, discovery and report, by the script itself."""
    out = tmp_path / "faults.json"
    script = [sys.executable, str(ROOT / "benchmarks/faults.py"), "--rounds", "6", "--seed", "2", "--out", str(out)]
    ran = subprocess.run(
        [*script, "--jobs", "sweep", "discover", "report"], capture_output=True, text=True, timeout=1200
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    rows = json.loads(out.read_text())["rows"]
    assert sum(row["injected"] for row in rows) == sum(row["survived"] for row in rows) > 50


def test_the_page_states_what_was_measured():
    measured = json.loads(faults.DEFAULT.read_text())
    assert faults.table(measured["rows"]) in (ROOT / "docs/reliability.md").read_text()
    assert not sum(row["lost"] for row in measured["rows"])
    assert sum(row["injected"] for row in measured["rows"]) == sum(row["survived"] for row in measured["rows"])
