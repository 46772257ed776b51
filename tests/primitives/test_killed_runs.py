"""A run that is killed in any of its stages and called again ends as one that never was, and asks nothing twice."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from interp.sealing import digest
from tests.chat_endpoint import ChatServer, serving
from tests.primitives.tiny_runs import SITE, digested, save_model

pytestmark = pytest.mark.slow  # twelve runs of a tiny model beside an undisturbed one
STAGES = ("text", "sae", "site", "catalogue", "search", "report")
TRAINED = {
    "sae": None, "site": SITE, "emotions": ["joy", "awe"], "decoys": 0, "judges": ["a", "b"], "budget": 600.0,
    "seeds": 1, "stories": 4, "train_tokens": 2_000, "held_out_tokens": 500, "corpus": None, "expansion": 2, "k": 4,
    "epochs": 3.0,
}  # fmt: skip


class Runs(NamedTuple):
    """A warm process that runs what it is told to, the endpoint, and an undisturbed run with its log."""

    process: subprocess.Popen
    server: Any
    whole: Path

    def run(self, folder: Path, point: str = "") -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{folder} {point}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("killed")
    with serving(ChatServer(digested)) as server:
        given = TRAINED | {"model": str(save_model(root / "llama")), "endpoint": server.url}
        script = Path(__file__).with_name("kill_primitives.py")
        command = [sys.executable, str(script), json.dumps(given)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, text=True, env=env, **pipes) as process:
            made = Runs(process, server, root / "whole")
            assert made.run(made.whole) == 0
            yield made
            assert process.stdin is not None
            process.stdin.close()


def points_of(log: Path) -> dict[str, list[str]]:
    """By stage: for each function called in it, the first, middle and last call, before and after."""
    found: dict[str, list[str]] = {stage: [] for stage in STAGES}
    calls: dict[str, int] = {}
    places: dict[tuple[str, str], list[int]] = {}
    for line in log.read_text().splitlines():
        stage, _, name = line.rpartition(" ")
        calls[name] = calls.get(name, 0) + 1
        places.setdefault((stage, name), []).append(calls[name])
    for (stage, name), numbers in places.items():
        chosen = sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})
        found.setdefault(stage, []).extend(f"{name} {n} {side}" for n in chosen for side in ("before", "after"))
    return found


def without_seconds(page: str) -> str:
    """The page without what it says of the time taken."""
    kept, found = re.subn(r"<h3>Seconds</h3><dl>.*?</dl>", "", page)
    assert found == 1
    return kept


def answered(folder: Path) -> set[str]:
    """Requests whose answers are kept."""
    return {digest(json.loads(path.read_text())["request"]) for path in (folder / "answers").rglob("*.json")}


def killed_and_finished(runs: Runs, folder: Path, points: list[str]) -> None:
    for point in points:
        assert runs.run(folder, point) == -signal.SIGKILL, point
        before, held = len(runs.server.seen), answered(folder)
        yet = {digest(body) for body in runs.server.seen[before:]}
        assert not yet & held
    before, held = len(runs.server.seen), answered(folder)
    assert runs.run(folder) == 0
    asked = [digest(body) for body in runs.server.seen[before:]]
    assert not set(asked) & held and len(set(asked)) == len(asked), "nothing answered is asked again"
    for name in ("catalogue.json", "untrained.json", "coverage.json"):
        assert (folder / name).read_bytes() == (runs.whole / name).read_bytes(), (name, points)
    pages = [without_seconds((one / "report.html").read_text()) for one in (folder, runs.whole)]
    assert pages[0] == pages[1], points


def test_the_undisturbed_run_has_something_to_lose(runs: Runs):
    """Every stage writes, the search finds a recipe, and nothing was asked twice."""
    points = points_of(runs.whole.with_suffix(".log"))
    assert all(points[stage] for stage in STAGES)
    cells = json.loads((runs.whole / "coverage.json").read_text())["cells"]
    assert [cell["emotion"] for cell in cells] == ["awe", "joy"] and any(cell["chosen"] for cell in cells)
    assert len(answered(runs.whole)) > 100
    for name in ("saes.fitting.step", "saes.primitives.catalogue.contrast_scores"):
        assert any(name in point for some in points.values() for point in some)


def test_the_comparison_sees_a_difference(runs: Runs, tmp_path: Path):
    page = (runs.whole / "report.html").read_text()
    assert without_seconds(page) != without_seconds(page.replace("joy", "glee", 1))


@pytest.mark.parametrize("place", ["middle", "last"])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_once_in_each_stage(runs: Runs, tmp_path: Path, stage: str, place: str):
    points = points_of(runs.whole.with_suffix(".log"))[stage]
    killed_and_finished(runs, tmp_path / "run", [points[len(points) // 2 if place == "middle" else -1]])
