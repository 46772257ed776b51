"""What docs/licences.md says of the packages midlens asks for, from their installed metadata.

.venv/bin/python tests/licences.py      prints the table
"""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LONG = {
    "Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD",
    "ISC License (ISCL)": "ISC", "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip


def asked() -> dict[str, list[str]]:
    """Direct dependencies, and which extras ask for each ("" is the default set-up)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, list[str]] = {}
    for extra, lines in groups.items():
        for line in lines:
            found.setdefault(Requirement(line).name, []).append(extra)
    return dict(sorted(found.items()))


def licence(name: str) -> str | None:
    """The licence in a distribution's metadata, in short; `None` if it is not installed."""
    try:
        about = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if expression := about.get("License-Expression"):
        return expression
    classified = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    if names := [LONG.get(c, c) for c in classified if c != "OSI Approved"]:
        return " / ".join(names)
    lines = (about.get("License") or "").strip().splitlines()
    return LONG.get(lines[0].strip(), lines[0].strip()) if lines else "not stated in its metadata"


def rows() -> dict[str, str]:
    """Package -> its line of the table, of those that are installed."""
    found = {}
    for name, extras in asked().items():
        if (held := licence(name)) is not None:
            found[name] = f"| {name} | {held} | {', '.join(e or 'default' for e in extras)} |"
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(rows().values()) + "\n")
