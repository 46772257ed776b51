"""The README's promises: its Python blocks run as they stand, its commands exist, the files it names are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SHELL = re.findall(r"```(?:bash|sh|console)\n(.*?)```", TEXT, flags=re.DOTALL)


def test_there_is_something_to_check():
    assert len(BLOCKS) >= 3 and SHELL


def test_python_blocks_run(tmp_path: Path):
    """In order and in one process, as a reader who types them one after another; each block ends in its own check."""
    code = "\n".join(BLOCKS)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def commands() -> dict[str, set[str]]:
    """The options that README's shell blocks give to each command, of one word or two."""
    found: dict[str, set[str]] = {}
    for line in re.findall(r"^\s*(?:\$ )?midlens ([^#\n]+)", "\n".join(SHELL), flags=re.MULTILINE):
        group = r"(?:attention|steer|store|sudoku) \w+|\w+"
        name = re.match(group, line)
        assert name, line
        found.setdefault(name[0], set()).update(re.findall(r"(?<=\s)--[a-z][a-z-]*", line))
    return found


@pytest.mark.parametrize(("command", "options"), sorted(commands().items()))
def test_commands_and_their_options_exist(command: str, options: set[str]):
    done = subprocess.run([sys.executable, "-m", "midlens", *command.split(), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not options - set(re.findall(r"--[a-z][a-z-]*", done.stdout))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(SHELL) + " ".join(re.findall(r"`(make [a-z-]+)`", TEXT))))
    assert {"demo", "test"} <= targets
    missing = {t for t in targets if not re.search(rf"^{re.escape(t)}:", makefile, flags=re.MULTILINE)}
    assert not missing


def test_files_named_in_links_and_code_exist():
    links = {link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link}
    scripts = set(re.findall(r"\b(?:benchmarks|notebooks)/[\w./]+\.py", TEXT))
    missing = {name for name in links | scripts if not (ROOT / name).exists()}
    assert not missing
