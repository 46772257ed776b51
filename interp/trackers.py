"""Metrics beyond the JSON lines: one callback that gets every line, and three services that can stand behind it.

    tracker = open_tracker("tensorboard:runs/tb", name="topk-32", config={...})
    tracker({"step": 10, "loss": 0.3, ...})

    wandb:PROJECT        Weights & Biases; its own variables decide the rest (WANDB_MODE=offline, WANDB_DIR, ...)
    trackio:PROJECT      trackio; local unless its own variables name a Space or a server
    tensorboard:FOLDER   event files in FOLDER/NAME-DIGEST, the digest telling runs of different config apart

A run that is continued after a kill sends the lines since its last checkpoint again, equal to the first time. W&B and
trackio find the run of the same name and config again, and what they know already is not sent twice (except to W&B
offline, which cannot look); TensorBoard is told to forget its later points. The services are imported when they are
opened. Whatever they do later, the run goes on and `metrics.jsonl` is complete.
"""

import contextlib
import contextvars
import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from interp.errors import InputError
from interp.sealing import digest

Tracker = Callable[[Mapping[str, float]], None]
"""Gets each line of metrics, `step` included."""

_log = logging.getLogger(__name__)


class Guarded:
    """A tracker whose failures do not reach the run: the first is logged, and it is tried again at the next line."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.failed = tracker, False

    def __call__(self, line: Mapping[str, float]) -> None:
        try:
            self.tracker(line)
        except Exception as error:
            if not self.failed:
                _log.warning(
                    "metrics of step %d did not reach the tracker (%s: %s); training goes on and metrics.jsonl holds "
                    "every line",
                    line["step"],
                    type(error).__name__,
                    error,
                )
            self.failed = True


class OpenTracker:
    """A run open at a service. Leaving it as a context closes it there, as failed if an exception passes through."""

    def __init__(
        self, send: Callable[[int, dict[str, float]], Any], finish: Callable[[bool], Any], *, first: int = 0
    ) -> None:
        """`first`: the first step the service does not know yet."""
        self._send, self._finish, self._first = send, finish, first

    def __call__(self, line: Mapping[str, float]) -> None:
        step = int(line["step"])
        if step >= self._first:
            self._send(step, {name: value for name, value in line.items() if name != "step"})

    def close(self, *, failed: bool = False) -> None:
        """End the run at the service; a failure of the service is logged, not raised."""
        try:
            self._finish(failed)
        except Exception as error:
            _log.warning("the tracker did not close (%s: %s)", type(error).__name__, error)

    def __enter__(self) -> "OpenTracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


def open_tracker(spec: str, *, name: str | None = None, config: Mapping[str, Any] | None = None) -> OpenTracker:
    """Open `wandb:PROJECT`, `trackio:PROJECT` or `tensorboard:FOLDER` for one run.

    `name` tells the runs of a project apart and `config` is shown beside them; a run of equal name and config is
    continued. `config` must go into JSON.
    """
    kind, _, where = spec.partition(":")
    if kind not in _SERVICES or not where:
        raise InputError(f"a tracker is wandb:PROJECT, trackio:PROJECT or tensorboard:FOLDER, got {spec!r}")
    return _SERVICES[kind](where, name, json.loads(json.dumps(config or {})))


def _installed(module: str, *, has: str) -> Any:
    """A module of the extra; a folder of the same name in the working directory is not taken for it."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        found = None
    if not hasattr(found, has):
        package = module.split(".")[0]
        raise InputError(
            f"{package} is not installed; install it with: pip install 'midlens[track]' (or pip install {package})"
        )
    return found


def _named(name: str, config: dict[str, Any]) -> str:
    """A name that runs of different config do not share."""
    return f"{name}-{digest([name, config])[:8]}"


def _wandb(project: str, name: str | None, config: dict[str, Any]) -> OpenTracker:
    wandb = _installed("wandb", has="init")
    identity = digest([name, config])[:16]
    try:
        run = wandb.init(
            project=project,
            name=name,
            config=config,
            id=identity,
            resume="allow",
            reinit="create_new",  # several runs may be open at once
            settings=wandb.Settings(console="off"),
        )
    except Exception as error:
        raise InputError(
            f"W&B did not open a run in project {project!r} ({error}); log in with `wandb login`, or set "
            "WANDB_MODE=offline to upload it later"
        ) from error
    return OpenTracker(
        lambda step, values: run.log(values, step=step),
        lambda failed: run.finish(exit_code=1 if failed else 0),
        first=run.step,
    )


def _trackio(project: str, name: str | None, config: dict[str, Any]) -> OpenTracker:
    trackio = _installed("trackio", has="init")
    name = _named(name or "run", config)  # it finds a run again by name alone

    def begin() -> Any:
        return trackio.init(
            project=project, name=name, config=config, resume="allow", auto_log_gpu=False, auto_log_cpu=False
        )

    def finish(failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            run.finish()

    try:
        # It prints, and standard output belongs to results. It also ends the run that is open in the current context:
        # an empty one lets several be open at once.
        with contextlib.redirect_stdout(sys.stderr):
            run = contextvars.Context().run(begin)
    except Exception as error:
        raise InputError(f"trackio did not open a run in project {project!r} ({error})") from error
    return OpenTracker(lambda step, values: run.log(values, step=step), finish, first=getattr(run, "_next_step", 0))


def _tensorboard(folder: str, name: str | None, config: dict[str, Any]) -> OpenTracker:
    _installed("tensorboard", has="__version__")
    writers = _installed("torch.utils.tensorboard", has="SummaryWriter")
    path = Path(folder, _named(name, config)) if name else Path(folder)
    opened: list[Any] = []

    def send(step: int, values: dict[str, float]) -> None:
        if not opened:  # the first line says from where on earlier points are to be forgotten
            known = any(path.glob("events.out.tfevents.*"))
            opened.append(writers.SummaryWriter(str(path), purge_step=step if known else None))
            if not known:
                opened[0].add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```", 0)
        for tag, value in values.items():
            opened[0].add_scalar(tag, value, step)
        opened[0].flush()  # a kill must not cost points from before the checkpoint: they are not sent again

    def finish(failed: bool) -> None:
        for writer in opened:
            writer.close()

    return OpenTracker(send, finish)


_SERVICES: dict[str, Callable[[str, str | None, dict[str, Any]], OpenTracker]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
}
