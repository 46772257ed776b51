"""Files of `data/`, found from a clone (`data/` beside the packages) and from an installed wheel (`interp/data/`)."""

from pathlib import Path

from interp.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def data_path(name: str) -> Path:
    """The path of one file of `data/`, such as `"parity_prompts.txt"`."""
    folders = [_PACKAGE / "data"]
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        folders.append(_PACKAGE.parent / "data")
    for folder in folders:
        if (path := folder / name).is_file():
            return path
    places = " or ".join(str(folder) for folder in folders)
    raise InputError(
        f"the data file {name!r} is missing: expected it in {places}. It comes with the package; reinstall midlens, or "
        "restore the file in your clone"
    )
