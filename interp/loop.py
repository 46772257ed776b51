"""What every trainer shares: checkpoints, bit-exact resume, metrics as JSON lines, progress.

    folder/run.json                     the settings; a run is only continued under the same ones
    folder/metrics.jsonl                one line per `log_every` steps; no clock in it, so equal runs write equal bytes
    folder/checkpoints/step-0000050.safetensors    state after 50 steps, and of which run, in the file's header

A run is a function of (settings, seed, step): `train` asks for the batches from step s on, and after a kill it
continues from the newest whole checkpoint as if nothing had happened; metrics written after that checkpoint are cut
off and written again. `Course` is one run without the asking, for those who feed several from one stream. Nothing is
moved to the host except at logging steps. A non-finite metric ends the run before a checkpoint could hold it.
"""

import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from interp.errors import InputError
from interp.progress import bar
from interp.sealing import NOT_JSON, differences, digest, disk_error, read_json, sync, write_json
from interp.tensorfile import read_tensors, write_tensors
from interp.trackers import Guarded, Tracker

B = TypeVar("B", contravariant=True)
KEPT = 2  # checkpoints


@runtime_checkable
class Trainee(Protocol[B]):
    """What is trained: it owns its state and knows how to put it into a file."""

    def step(self, batch: B) -> None:
        """Learn from one batch; no value leaves the device."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures since the last call (may wait for the device)."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, except what a step recomputes."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from the state that `tensors` returned."""
        ...


class NotFinite(InputError):
    """A metric became NaN or infinite between step `after`, the last known to be sound, and step `until`."""

    def __init__(self, message: str, *, after: int, until: int) -> None:
        super().__init__(message)
        self.after, self.until = after, until


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a run is and how often it reports and saves."""

    steps: int
    log_every: int = 10
    checkpoint_every: int = 500
    """Rounded up to a multiple of `log_every`, so that no metric is half accumulated in a checkpoint."""

    def logs(self, step: int) -> bool:
        """Whether metrics are due after this many steps."""
        return step % self.log_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after this many steps."""
        return step % (math.ceil(self.checkpoint_every / self.log_every) * self.log_every) == 0 or step == self.steps


class Course(Generic[B]):
    """One run, driven from outside: each `advance` is a step and whatever is due after it.

    It begins where the newest checkpoint in `folder` stands: `step` steps are done, and the next batch it wants is
    batch `step`, counted from 0. Several courses can be fed from one stream of batches, each from its own place on.
    """

    def __init__(
        self,
        trainee: Trainee[B],
        pace: Pace,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        tracker: Tracker | None = None,
        files: "RunFiles | None" = None,
    ) -> None:
        """Claim `folder` under `settings`, which must hold everything that decides the result, and resume."""
        self.trainee, self.pace, self.folder = trainee, pace, folder
        self.files = files or RunFiles()
        self.files.claim(folder, settings)
        self.step = self.files.resume(folder, trainee)
        self._metrics = self.files.metrics(folder, self.step)
        self._tracker = None if tracker is None or self._metrics is None else Guarded(tracker)

    @property
    def done(self) -> bool:
        """Whether every step is done."""
        return self.step >= self.pace.steps

    def advance(self, batch: B) -> None:
        """Learn from batch `step`; write metrics and checkpoint if they are due."""
        assert not self.done, f"all {self.pace.steps} steps of {self.folder} are done"
        self.trainee.step(batch)
        self.step += 1
        if self.pace.logs(self.step):
            self._log()
        if self.pace.saves(self.step):
            if self._metrics is not None:
                self._metrics.sync()
            self.files.save(self.folder, self.step, self.trainee)

    def _log(self) -> None:
        values = self.trainee.metrics()
        sound = (self.step - 1) // self.pace.log_every * self.pace.log_every
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise NotFinite(
                f"{', '.join(bad)} became NaN or infinite in steps {sound + 1} to {self.step}",
                after=sound,
                until=self.step,
            )
        line = {"step": self.step, **values}
        if self._metrics is not None:
            self._metrics.write(line)
        if self._tracker is not None:
            self._tracker(line)


class RunFiles:
    """How a run keeps itself in its folder; another kind is for runs of several processes."""

    def claim(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin a run, or recognise it."""
        claim(folder, settings)

    def resume(self, folder: Path, trainee: Trainee[Any]) -> int:
        """Restore the newest checkpoint; the number of steps it holds, 0 without one."""
        return _resume(trainee, folder)

    def metrics(self, folder: Path, after: int) -> "Metrics | None":
        """Where lines of metrics go; None where another process writes them."""
        return Metrics(folder / "metrics.jsonl", after=after)

    def save(self, folder: Path, step: int, trainee: Trainee[Any]) -> None:
        """Write the state after `step` steps, then drop all but the last two checkpoints."""
        save_checkpoint(folder, step, trainee.tensors())


def train(
    trainee: Trainee[B],
    batches: Callable[[int], Iterator[B]],
    pace: Pace,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    label: str,
    unit: str = "step",
    units_per_step: int = 1,
    tracker: Tracker | None = None,
    show: bool | None = None,
) -> None:
    """Run `trainee` to `pace.steps`, from the newest checkpoint in `folder` if there is one.

    `batches(s)` yields the batches from step s on, counted from 0; the iterator is closed however the run ends.
    `settings` must hold everything that decides the result. `tracker` gets every line of metrics;
    `show` is the progress bar's.
    """
    course = Course(trainee, pace, folder, settings=settings, tracker=tracker)
    source = iter(()) if course.done else batches(course.step)
    try:
        done = course.step * units_per_step
        with bar(pace.steps * units_per_step, label, unit=unit, done=done, show=show) as progress:
            while not course.done:
                course.advance(next(source))
                progress.update(units_per_step)
    finally:
        if isinstance(source, Generator):
            source.close()


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Begin a run in `folder`, or recognise it as one begun under the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    if not (folder / "run.json").exists():
        write_json(folder / "run.json", settings)
    elif different := differences(read_json(folder / "run.json", "training run"), settings):
        raise InputError(
            f"{folder} holds a run with other settings ({different}); "
            "continue it with its own settings, or give this run another folder"
        )


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the state after `step` steps, then drop all but the last two checkpoints."""
    home = folder / "checkpoints"
    home.mkdir(exist_ok=True)
    write_tensors(home / f"step-{step:09d}.safetensors", tensors, {"step": step, "run": _run(folder)})
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()


def _run(folder: Path) -> str | None:
    """What tells the run in a folder from others, as its checkpoints name it; None where none was begun."""
    settings = folder / "run.json"
    return digest(read_json(settings, "training run")) if settings.exists() else None


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; what a kill left half-written has another name."""
    return sorted((folder / "checkpoints").glob("step-*.safetensors"))


def _resume(trainee: Trainee[Any], folder: Path) -> int:
    """Restore the newest checkpoint; the number of steps it holds, 0 without one."""
    for partial in (folder / "checkpoints").glob(".step-*.partial"):
        partial.unlink()
    if not (found := checkpoints(folder)):
        return 0
    try:
        tensors, facts = read_tensors(found[-1], "checkpoint")
    except InputError as error:
        raise InputError(f"{error}; {without(found)}") from None
    if not isinstance(facts, dict) or type(facts.get("step")) is not int or facts["step"] < 0:
        raise InputError(f"{found[-1]} is no checkpoint: its header names no step; {without(found)}")
    if facts.get("run") != _run(folder):
        raise of_another_run(found, folder)
    trainee.restore(tensors)
    return facts["step"]


def of_another_run(found: Sequence[Path], folder: Path) -> InputError:
    """What to raise for the last of these checkpoints, which was not written by the run in `folder`."""
    return InputError(f"{found[-1]} is of another run than {folder / 'run.json'} describes; {without(found)}")


def without(found: Sequence[Path]) -> str:
    """What to do about the last of these checkpoints, if it cannot be used."""
    return f"delete it to {f'continue from {found[-2].name}' if len(found) > 1 else 'start again'}"


def metrics_of(line: bytes, place: str) -> dict[str, Any]:
    """One line of a file of metrics: an object with its step."""
    try:
        found = json.loads(line.decode())
    except NOT_JSON as error:
        found = error
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        raise InputError(f"{place}: expected metrics of a step, got {found!r:.80}; remove the line")
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without a last one that a kill cut off; none without the file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return [metrics_of(line, f"{path}, line {number}") for number, line in enumerate(whole, 1)]


class Metrics:
    """A file of JSON lines that only grows, apart from the cut when a run is resumed."""

    def __init__(self, path: Path, *, after: int) -> None:
        """Keep the lines up to step `after`; later ones (and a half-written last one) will be written again."""
        self.path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = []
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n") and metrics_of(line, f"{path}, line {number}")["step"] <= after:
                kept.append(line)
        if kept != lines:
            with path.open("r+b") as file:
                file.truncate(sum(map(len, kept)))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        text = json.dumps(line) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(text)
        except OSError as error:
            raise disk_error(error, self.path.parent, needed=len(text)) from error

    def sync(self) -> None:
        """Make the lines durable, before a checkpoint that relies on them."""
        sync(self.path)
