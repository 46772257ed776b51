"""`interp.loop` with a trainee that is a single number: resume, metrics, damage, settings."""

import json
import resource

import pytest
import torch

from interp.errors import InputError
from interp.loop import Course, Metrics, NotFinite, Pace, checkpoints, save_checkpoint, train
from interp.sealing import write_json
from interp.tensorfile import read_tensors, write_tensors


class Counter:
    """Its state is a running hash of the batches it saw."""

    def __init__(self, *, die_at: int | None = None, nan_at: int | None = None) -> None:
        self.value, self.since, self.die_at, self.nan_at = torch.zeros((), dtype=torch.int64), 0, die_at, nan_at

    def step(self, batch: int) -> None:
        if batch == self.die_at:
            raise KeyboardInterrupt
        self.value = (self.value * 31 + batch) % 1_000_003
        self.since += 1
        self.bad = batch == self.nan_at

    def metrics(self) -> dict[str, float]:
        since, self.since = self.since, 0
        return {"value": float("nan") if self.bad else float(self.value), "steps": since}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"value": self.value}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        self.value = tensors["value"]


def run(folder, counter: Counter, *, steps: int = 100, seed: int = 0, tracker=None) -> Counter:
    def batches(first):
        return iter(range(first, 10**9))

    train(
        counter, batches, pace(steps), folder, settings={"seed": seed, "steps": steps}, label="count", tracker=tracker
    )
    return counter


def pace(steps: int) -> Pace:
    return Pace(steps=steps, log_every=4, checkpoint_every=10)


def names(folder):
    return [path.name for path in checkpoints(folder)]


@pytest.mark.parametrize("die_at", [0, 3, 12, 50, 52, 97, 99])
def test_interrupted_anywhere_and_continued_is_uninterrupted(tmp_path, die_at):
    whole = run(tmp_path / "whole", Counter())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Counter(die_at=die_at))
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a line the kill cut in half
    (tmp_path / "cut" / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "cut" / "checkpoints" / ".step-000000096.safetensors.partial").write_bytes(b"half")
    again = run(tmp_path / "cut", Counter())
    assert torch.equal(again.value, whole.value)
    for name in ("metrics.jsonl", "run.json", *(f"checkpoints/{n}" for n in names(tmp_path / "whole"))):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()) == names(tmp_path / "whole")


def test_checkpoints_fall_on_logged_steps_and_two_are_kept(tmp_path):
    run(tmp_path, Counter(), steps=50)
    assert names(tmp_path) == ["step-000000048.safetensors", "step-000000050.safetensors"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(4, 49, 4), 50]


def test_a_finished_run_asks_for_no_batch(tmp_path):
    first = run(tmp_path, Counter(), steps=8)
    again = run(tmp_path, Counter(die_at=8), steps=8)
    assert torch.equal(first.value, again.value)


def test_other_settings_are_refused(tmp_path):
    run(tmp_path, Counter(), steps=8)
    with pytest.raises(InputError, match=r"run with other settings \(seed: 0 there, 1 asked for\); continue it"):
        run(tmp_path, Counter(), steps=8, seed=1)


def test_a_nan_ends_the_run_before_it_reaches_a_checkpoint(tmp_path):
    with pytest.raises(NotFinite, match="value became NaN or infinite in steps 25 to 28") as caught:
        run(tmp_path, Counter(nan_at=27))
    assert (caught.value.after, caught.value.until) == (24, 28)
    assert names(tmp_path) == ["step-000000012.safetensors", "step-000000024.safetensors"]
    assert torch.equal(run(tmp_path, Counter()).value, run(tmp_path / "whole", Counter()).value)


def course(folder, counter: Counter, *, steps: int) -> Course:
    return Course(counter, pace(steps), folder, settings={"seed": 0, "steps": steps})


def test_many_courses_from_one_stream_each_end_as_if_trained_alone(tmp_path):
    """Of three, one is killed at step 31 and one at step 70: continued, they stand at 24, 60 and 100."""
    ends = {"a": 100, "b": 100, "c": 55}
    for name, steps in ends.items():
        run(tmp_path / "alone" / name, Counter(), steps=steps)
    for name, die_at in (("a", 31), ("b", 70)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "swept" / name, Counter(die_at=die_at))
    courses = {name: course(tmp_path / "swept" / name, Counter(), steps=steps) for name, steps in ends.items()}
    assert {name: c.step for name, c in courses.items()} == {"a": 24, "b": 60, "c": 0}
    for number in range(100):
        for c in courses.values():
            if c.step == number and not c.done:
                c.advance(number)
    assert all(c.done for c in courses.values())
    whole = {p.relative_to(tmp_path / "alone"): p.read_bytes() for p in (tmp_path / "alone").rglob("*.*")}
    assert len(whole) == 3 * 4
    assert {p.relative_to(tmp_path / "swept"): p.read_bytes() for p in (tmp_path / "swept").rglob("*.*")} == whole


def test_a_course_takes_no_batch_beyond_its_end(tmp_path):
    done = course(tmp_path, run(tmp_path, Counter(), steps=8), steps=8)
    assert done.done and done.step == 8
    with pytest.raises(AssertionError, match=r"all 8 steps of .* are done"):
        done.advance(8)


def test_the_source_of_batches_is_closed_however_the_run_ends(tmp_path):
    closed = []

    def batches(first):
        try:
            yield from range(first, 100)
        finally:
            closed.append(first)

    for name, counter in (("a", Counter()), ("b", Counter(die_at=5))):
        try:
            train(counter, batches, pace(20), tmp_path / name, settings={}, label="count")
        except KeyboardInterrupt as error:
            kept = error  # its traceback keeps the frames alive
        assert closed == [0], name
        closed.clear()
    del kept


def test_the_tracker_gets_every_line_and_the_cut_ones_again(tmp_path):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Counter(die_at=21), steps=24, tracker=seen.append)
    assert [line["step"] for line in seen] == [4, 8, 12, 16, 20]
    run(tmp_path, Counter(), steps=24, tracker=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seen[:3] + seen[5:] == lines  # the checkpoint is of step 12
    assert seen[3:5] == seen[5:7]


def test_a_tracker_that_fails_costs_one_warning(tmp_path, caplog):
    seen = []

    def moody(line):
        if line["step"] in (8, 16):
            raise ConnectionError("the service is gone")
        seen.append(line["step"])

    run(tmp_path / "a", Counter(), steps=24, tracker=moody)
    run(tmp_path / "b", Counter(), steps=24)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    assert seen == [4, 12, 20, 24]
    (record,) = caplog.records
    assert record.getMessage() == (
        "metrics of step 8 did not reach the tracker (ConnectionError: the service is gone); training goes on and "
        "metrics.jsonl holds every line"
    )


def test_a_damaged_checkpoint_says_how_to_go_on(tmp_path):
    run(tmp_path, Counter(), steps=24)
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"000024.safetensors is damaged .*delete it to continue from step-000000012"):
        run(tmp_path, Counter(), steps=24)
    newest.unlink()
    assert torch.equal(run(tmp_path, Counter(), steps=24).value, run(tmp_path / "whole", Counter(), steps=24).value)


def test_metrics_are_cut_at_the_checkpoint(tmp_path):
    log = Metrics(tmp_path / "m.jsonl", after=0)
    for step in (1, 2, 3):
        log.write({"step": step})
    Metrics(tmp_path / "m.jsonl", after=2).write({"step": 3, "again": True})
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_tensor_files_are_deterministic_and_notice_every_flipped_byte(tmp_path):
    tensors = {"b": torch.arange(5), "a": torch.randn(2, 3).bfloat16(), "s": torch.tensor(1.5)}
    write_tensors(tmp_path / "t", tensors, {"step": 3, "x": [1]})
    write_tensors(tmp_path / "u", dict(reversed(tensors.items())), {"step": 3, "x": [1]})
    whole = (tmp_path / "t").read_bytes()
    assert whole == (tmp_path / "u").read_bytes()
    found, facts = read_tensors(tmp_path / "t", "thing")
    assert facts == {"step": 3, "x": [1]} and all(torch.equal(found[n], tensors[n]) for n in tensors)
    unnoticed = []
    for place in range(len(whole)):
        (tmp_path / "t").write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            same, facts = read_tensors(tmp_path / "t", "thing")
        except InputError:
            continue
        if not all(torch.equal(same[n], tensors[n]) for n in tensors):
            unnoticed.append(place)
    assert not unnoticed


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_is_missing(tmp_path):
    run(tmp_path, Counter(), steps=12)
    before = names(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))  # the kernel refuses to write beyond 50 bytes
    try:
        with pytest.raises(
            InputError, match=r"the disk under .* is full .* What was written before is whole\. Make room"
        ):
            save_checkpoint(tmp_path, 13, {"value": torch.zeros(100)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == before
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_full_disk_under_metrics_and_json_says_so_too(tmp_path):
    log = Metrics(tmp_path / "metrics.jsonl", after=0)
    log.write({"step": 1})
    write_json(tmp_path / "facts.json", {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(InputError, match=r"the disk under .* is full .* is whole\. Make room"):
            log.write({"step": 2, "text": "x" * 50})
        with pytest.raises(InputError, match=r"the disk under .* is full .* is whole\. Make room"):
            write_json(tmp_path / "facts.json", {"step": 2, "text": "x" * 50})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((tmp_path / "facts.json").read_text()) == {"step": 1}
    assert names(tmp_path) == [] and not list(tmp_path.glob(".*"))
    Metrics(tmp_path / "metrics.jsonl", after=2).write({"step": 2})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    """Copied in, newer than the run's own: without it the run goes on from what is its own, to the same end."""
    whole = run(tmp_path / "whole", Counter())
    run(tmp_path / "other", Counter(), steps=96, seed=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Counter(die_at=50))
    foreign = tmp_path / "cut/checkpoints/step-000000096.safetensors"
    foreign.write_bytes((tmp_path / "other/checkpoints" / foreign.name).read_bytes())
    expected = r"step-000000096\S+ is of another run than \S+run\.json describes; delete it to continue from step-0+48"
    with pytest.raises(InputError, match=expected):
        run(tmp_path / "cut", Counter())
    foreign.unlink()
    assert torch.equal(run(tmp_path / "cut", Counter()).value, whole.value)
