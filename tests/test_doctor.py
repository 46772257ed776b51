"""`midlens doctor` finds planted faults: hidden, blocked, missing and old packages, a cache that cannot be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interp import doctor
from interp.doctor import Requirement, examine, requirements
from midlens.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def at(path: Path, name: str) -> Path:
    """A package of this name that does nothing, in a folder of its own."""
    (path / name).mkdir(parents=True)
    (path / name / "__init__.py").write_text("")
    return path


def whats(problems) -> str:
    return "\n".join(problem.what for problem in problems)


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]):
    """This one is, as the tests run on it; what is printed and what is returned as JSON agree."""
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)["figures"]
    assert figures["problems"] == [] and "no problem found" in err
    assert figures["found at"]["interp"] == str(ROOT / "interp")
    assert figures["installed"]["torch"] == __import__("torch").__version__
    assert {"llama-3.1-8b", "smollm2-135m", "llama-scope-l15r-32x"} <= figures["presets"].keys()


@pytest.mark.parametrize("name", ["saes", "interp"])
def test_another_package_of_the_name_that_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    planted = at(tmp_path / "elsewhere", name)
    monkeypatch.syspath_prepend(str(planted))
    (problem,) = examine().problems
    assert f"another {name} at {planted / name} wins over this one at {ROOT / name}" == problem.what
    assert str(planted) in problem.remedy


def test_one_that_loses_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(at(tmp_path / "behind", "saes"))])
    assert not examine().problems


def test_a_package_called_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder without `__init__.py`, as in the clone, hides nothing."""
    (tmp_path / "plain" / "kernels").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "plain"))
    assert not examine().problems
    monkeypatch.syspath_prepend(str(at(tmp_path / "package", "kernels")))
    (problem,) = examine().problems
    assert "top-level package `kernels`" in problem.what and str(tmp_path / "package") in problem.what


def test_a_blocked_and_a_hidden_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.syspath_prepend(str(at(tmp_path / "here", "tqdm")))
    monkeypatch.setattr(doctor, "requirements", lambda: [Requirement("plotly", ">=6", ""), Requirement("tqdm", "", "")])
    found = examine()
    assert "plotly" in found.problems[0].what and "importing plotly is blocked" in found.problems[0].what
    assert f"{tmp_path / 'here' / 'tqdm' / '__init__.py'} hides it" in found.problems[1].what
    assert "PYTHONPATH" in found.problems[1].remedy and len(found.problems) == 2
    assert "PROBLEM: " in found.text() and "remedy: " in found.text() and "no problem found" not in found.text()


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch):
    """Of the core a problem, of an extra a fact with what installs it."""
    asked = [
        Requirement("midlens-no-such-thing", ">=1", ""),
        Requirement("midlens-nor-this", ">=2", "ray"),
        Requirement("tqdm", ">=9999", ""),
    ]
    monkeypatch.setattr(doctor, "requirements", lambda: asked)
    found = examine()
    assert [problem.remedy for problem in found.problems] == [
        "pip install 'midlens-no-such-thing>=1'",
        "pip install 'tqdm>=9999'",
    ]
    assert found.facts["installed"]["midlens-nor-this"] == "not installed, for extra ray: pip install 'midlens[ray]'"


def test_requirements_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {line.split(">")[0] for line in project["dependencies"]}
    assert {asked.name for asked in requirements() if not asked.extra} == core


def test_what_the_cache_holds_and_one_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (tmp_path / "midlens/models/abc-v2").mkdir(parents=True)
    (tmp_path / "midlens/models/abc-v2/model.safetensors").write_bytes(bytes(3 << 20))
    weights = tmp_path / "huggingface/hub/models--google--gemma-2-9b/snapshots/1/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    facts = examine().facts
    assert facts["cache"]["abc-v2"] == "converted GGUF, 3.0 MiB" and "google/gemma-2-9b" in facts["cache"]
    assert facts["presets"]["gemma-2-9b"] == "at hand"
    assert "not at hand" in str(facts["presets"]["gemma-2-9b-it"])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert f"the cache {tmp_path / 'file' / 'midlens'} cannot be written" in whats(examine().problems)


def test_it_loads_no_model_library_and_reaches_no_network(tmp_path: Path):
    """In a process of its own, with a planted package in front and sockets that refuse; status 1."""
    planted = at(tmp_path, "kernels")
    code = (
        "import socket, sys\n"
        "def refused(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused\n"
        "from midlens.__main__ import main\n"
        "status = main(['doctor'])\n"
        "heavy = {'transformers', 'sae_lens', 'transformer_lens', 'plotly', 'pandas', 'sklearn', 'ray'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    paths = os.pathsep.join([str(planted), str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 1 and done.stderr == "[]\n", done.stderr
    assert "PROBLEM: a top-level package `kernels`" in done.stdout
