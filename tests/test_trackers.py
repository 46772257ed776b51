"""Trackers: read back by TensorBoard itself, and from W&B (offline) and trackio run in processes of their own."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from interp.errors import InputError
from interp.trackers import OpenTracker, open_tracker

ROOT = Path(__file__).resolve().parents[1]


def line(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "l0": 32.0}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(p.step, p.value) for p in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def only(folder: Path) -> Path:
    """The one folder in a folder."""
    (found,) = folder.iterdir()
    return found


def test_tensorboard_reads_every_point_and_forgets_what_a_killed_run_sent_too_much(tmp_path):
    """The first run is killed (never closed) after step 50, its last checkpoint was of step 30."""
    spec, config = f"tensorboard:{tmp_path / 'tb'}", {"k": 32, "architecture": "topk"}
    killed = open_tracker(spec, name="a", config=config)
    for step in (10, 20, 30, 40, 50):
        killed(line(step) | {"loss": 7.0})
    with open_tracker(spec, name="a", config=config) as tracker:
        for step in (40, 50, 60):
            tracker(line(step))
    found = points(only(tmp_path / "tb"))
    assert found.keys() == {"loss", "l0"}
    assert [step for step, _ in found["loss"]] == [10, 20, 30, 40, 50, 60]
    assert [v for _, v in found["loss"]] == pytest.approx([7.0, 7.0, 7.0, 1 / 40, 1 / 50, 1 / 60])
    killed.close()


def test_tensorboard_shows_the_config_and_keeps_runs_apart(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, k in (("a", 16), ("b", 32), ("a", 32)):
        before = set(tmp_path.iterdir())
        with open_tracker(f"tensorboard:{tmp_path}", name=name, config={"k": k}) as tracker:
            tracker(line(10))
            (folder,) = set(tmp_path.iterdir()) - before
            assert folder.name.startswith(f"{name}-")
            assert points(folder)["l0"] == [(10, 32.0)]  # on disk before the run has ended
        found = EventAccumulator(str(folder))
        found.Reload()
        (event,) = found.Tensors("config/text_summary")
        assert json.loads(event.tensor_proto.string_val[0].decode().strip("`json\n")) == {"k": k}
    with open_tracker(f"tensorboard:{tmp_path / 'unnamed'}") as tracker:
        tracker(line(10))
    assert points(tmp_path / "unnamed")["l0"] == [(10, 32.0)]


CHILD = """
import json, sys
from interp.trackers import open_tracker
spec = sys.argv[1]
def line(step):
    return {"step": step, "loss": 1 / step, "l0": 32.0}
with open_tracker(spec, name="a", config={"k": 16}) as a, open_tracker(spec, name="b", config={"k": 32}) as b:
    for step in (10, 20, 30):
        a(line(step))
        b(line(step))
try:
    with open_tracker(spec, name="a", config={"k": 16}) as again:
        for step in (20, 30, 40):
            again(line(step))
        raise RuntimeError("diverged")
except RuntimeError:
    pass
"""


def child(*arguments: str, **variables: str) -> str:
    path = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    found = subprocess.run([sys.executable, "-W", "error", *arguments], env=env, capture_output=True, timeout=120)
    assert found.returncode == 0, found.stderr.decode()
    return found.stdout.decode()


def history(steps: list[int]) -> list[dict]:
    return [{"_step": step, "loss": 1 / step, "l0": 32.0} for step in steps]


def test_wandb_holds_two_runs_at_once_and_the_continued_one_under_its_old_id(tmp_path):
    own = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    assert child("-c", CHILD, "wandb:sweep", **own) == ""
    runs = json.loads(child(str(ROOT / "tests" / "wandb_file.py"), str(tmp_path)))
    assert {run["project"] for run in runs} == {"sweep"}
    firsts = [run for run in runs if run["name"] == "a"]
    assert len(runs) == 3 and len(firsts) == 2 and firsts[0]["id"] == firsts[1]["id"]
    (other,) = [run for run in runs if run["name"] == "b"]
    assert other["config"] == {"k": 32} and other["history"] == history([10, 20, 30]) and other["exit"] == 0
    assert other["id"] != firsts[0]["id"] and {run["config"]["k"] for run in firsts} == {16}
    ends = sorted((run["exit"], [step["_step"] for step in run["history"]]) for run in firsts)
    assert ends == [(0, [10, 20, 30]), (1, [20, 30, 40])]  # offline it cannot know what it was sent before


def test_trackio_holds_two_runs_at_once_and_no_line_twice(tmp_path):
    own = {"TRACKIO_DIR": str(tmp_path), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert child("-c", CHILD, "trackio:sweep", **own) == ""  # what it prints does not reach standard output
    read = """
import json
from trackio.sqlite_storage import SQLiteStorage as S
names = S.get_runs("sweep")
print(json.dumps({name: [S.get_run_config("sweep", name)["k"], S.get_logs("sweep", name)] for name in names}))
"""
    found = json.loads(child("-c", read, **own))
    assert sorted(name.rsplit("-", 1)[0] for name in found) == ["a", "b"]
    for name, (k, logs) in found.items():
        steps = [10, 20, 30, 40] if name.startswith("a") else [10, 20, 30]
        assert k == (16 if name.startswith("a") else 32)
        assert [(log["step"], log["loss"], log["l0"]) for log in logs] == [(s, 1 / s, 32.0) for s in steps]


@pytest.mark.parametrize("spec", ["wandb:p", "trackio:p", "tensorboard:t"])
@pytest.mark.parametrize("empty", [False, True], ids=["missing", "a folder of its name"])
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, spec, empty):
    package = spec.split(":")[0]
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package) if empty else None)
    expected = (
        rf"^{package} is not installed; install it with: pip install 'midlens\[track\]' \(or pip install {package}\)"
    )
    with pytest.raises(InputError, match=expected):
        open_tracker(spec)


@pytest.mark.parametrize("spec", ["mlflow:x", "wandb", "wandb:", "tensorboard", ":", ""])
def test_an_unknown_tracker_is_refused_with_the_choices(spec):
    with pytest.raises(InputError, match="wandb:PROJECT, trackio:PROJECT or tensorboard:FOLDER, got"):
        open_tracker(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "wandb:p",
            r"W&B did not open a run in project 'p' \(no key\); log in with `wandb login`, or set WANDB",
        ),
        ("trackio:p", r"trackio did not open a run in project 'p' \(no key\)"),
    ],
)
def test_a_service_that_does_not_open_is_an_error_before_the_training(monkeypatch, spec, message):
    def init(**_):
        raise RuntimeError("no key")

    fake = types.SimpleNamespace(init=init, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, spec.split(":")[0], fake)
    with pytest.raises(InputError, match=message):
        open_tracker(spec)


def test_lines_the_service_knows_are_not_sent_twice():
    sent = []
    tracker = OpenTracker(lambda step, values: sent.append((step, values)), lambda failed: None, first=31)
    for step in (20, 30, 40):
        tracker(line(step))
    assert sent == [(40, {"loss": 1 / 40, "l0": 32.0})]


def test_closing_never_raises(caplog):
    def finish(failed):
        raise OSError("the service is gone")

    with OpenTracker(lambda step, values: None, finish):
        pass
    (record,) = caplog.records
    assert record.getMessage() == "the tracker did not close (OSError: the service is gone)"
