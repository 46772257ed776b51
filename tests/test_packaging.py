"""The wheel holds every package and the data files; these are found from a clone and from an installed wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from interp.resources import data_path

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(p.name for p in (ROOT / "data").iterdir() if p.is_file())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    code = f"import hatchling.build as b; print(b.build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("midlens-*.whl"))


def test_the_wheel_is_whole(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "interp", "saes", "midlens"], cwd=ROOT, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= names
    assert "midlens_kernels/__init__.py" in names and not any(n.startswith(("kernels/", "tests/")) for n in names)
    assert {f"interp/data/{name}" for name in NAMES} <= names


def test_data_files_from_a_clone():
    assert NAMES
    for name in NAMES:
        assert data_path(name) == ROOT / "data" / name


def test_data_files_and_command_line_from_an_installed_wheel(wheel: Path, tmp_path: Path):
    """The wheel unpacked as pip would, imported from a folder where no clone is in sight."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        f"import sys; clone = ('', {str(ROOT)!r}, {str(ROOT / 'kernels')!r})\n"
        f"sys.path = [{str(site)!r}] + [p for p in sys.path if p not in clone]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__name__.lower() + str(f).lower()]\n"
        "import interp, midlens_kernels\nfrom interp.resources import data_path\n"
        f"assert interp.__file__.startswith({str(site)!r}), interp.__file__\n"
        f"for name in {NAMES!r}: assert str(data_path(name)).startswith({str(site)!r}) and data_path(name).is_file()\n"
        "from midlens.__main__ import main\nmain(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "discover" in done.stdout and "parity" in done.stdout


def test_no_benchmark_hides_a_package():
    """Python puts a script's folder first on its path: `kernels` there would be taken for Hugging Face's package."""
    from importlib.metadata import packages_distributions

    taken = {"kernels", *sys.stdlib_module_names, *packages_distributions()}
    assert not taken & {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
