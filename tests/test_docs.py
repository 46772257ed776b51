"""The documentation: what it names exists, and it builds without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs").rglob("*.md"))
FOLDERS = ("interp/", "saes/", "midlens/", "kernels/", "tests/", "benchmarks/", "data/", "notebooks/")


def missing(text: str) -> list[str]:
    """Paths of the repository that a guide names in code spans and that do not exist."""
    spans = re.findall(r"`([^`\n]+)`", text)
    named = [word for span in spans for word in span.split() if word.startswith(FOLDERS) and "*" not in word]
    return [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_a_guide_names_exists(guide: Path):
    assert not missing(guide.read_text())


def test_a_path_that_does_not_exist_is_found():
    assert missing("see `interp/sites.py` and `interp/no_such_file.py`") == ["interp/no_such_file.py"]


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path):
    mkdocs = Path(sys.executable).parent / "mkdocs"
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [str(mkdocs), "build", "--strict", "--site-dir", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True)
    assert ran.returncode == 0 and "WARNING" not in ran.stderr, ran.stderr
    page = (tmp_path / "reference/interp/store/index.html").read_text()
    assert "ActivationStore" in page and "class" in page
