"""Timing, peak memory and the facts about a run that its numbers mean nothing without."""

import ctypes
import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]


class Measured(NamedTuple):
    """One call: wall-clock seconds, processor seconds of all threads, rise of memory (None: cannot be known here)."""

    seconds: float
    cpu_seconds: float
    rss_rise: int | None
    """Of resident memory; Linux."""
    cuda_peak: int | None = None
    """Most bytes allocated on the GPU at any time of the call, the model and what else was there included."""


def measure(call: Callable[[], Any], *, device: torch.device | str = "cpu") -> Measured:
    """Time `call`. What came before is settled first: garbage collected, dirty pages of other writers on disk.

    Freed memory is given back to the system, so that the rise counts all that the call itself held. On a GPU the call
    is over when the device is done.
    """
    where = torch.device(device)
    _give_back()
    os.sync()
    if where.type == "cuda":
        torch.cuda.synchronize(where)
        torch.cuda.reset_peak_memory_stats(where)
    before = _reset_peak()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    call()
    settle(where)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - begun_cpu
    rise = None if before is None else _status("VmHWM") - before
    return Measured(
        seconds, cpu_seconds, rise, torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None
    )


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def environment(packages: Sequence[str], *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Hardware, versions, commit, date, arguments and how busy the machine is."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_gpu(torch.device(device)),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: _version(name) for name in packages},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
    }


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that can still be taken on a device: of a GPU, or of the machine (of this process's group if it has a
    limit). None where the system does not say."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        held = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - held))


def held_memory(device: torch.device | str) -> int | None:
    """Bytes held now: allocated on the GPU, or resident; freed memory is given back first. None: cannot be known."""
    _give_back()
    where = torch.device(device)
    return torch.cuda.memory_allocated(where) if where.type == "cuda" else _reset_peak()


def peak_during(call: Callable[[], Any], device: torch.device | str) -> int | None:
    """The most bytes held at any time of `call`, what was held before included; as `held_memory`."""
    where, known = torch.device(device), held_memory(device) is not None
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    call()
    settle(where)
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    return _status("VmHWM") if known else None


def _give_back() -> None:
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> int | None:
    """Resident bytes now, with the kernel's peak set back to them (proc(5), clear_refs 5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    facts = torch.cuda.get_device_properties(device)
    return {"gpu": facts.name, "gpu_memory": facts.total_memory, "cuda": torch.version.cuda}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    if not (ROOT / "pyproject.toml").is_file():  # installed: a repository found upwards would be somebody else's
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
