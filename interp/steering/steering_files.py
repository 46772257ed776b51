"""A `Steering` on disk: a folder with its tensors and a JSON file that seals it.

    edits.safetensors    "SITE/NAME" -> tensor, for every tensor of every edit, in the precision it has
    steering.json        format, version, method, scope, sites {SITE: facts of its edit}, provenance, sha256 of tensors

The tensors are written first and the JSON last, each under a temporary name and renamed, and the digest ties the two
together: a folder is a whole steering or it is refused. Reading executes nothing; pickles (`.pt`, `.bin`) are refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.errors import InputError
from interp.sealing import read_json, write_json
from interp.sites import Site
from interp.steering.composition import edit_of_facts
from interp.tensorfile import read_tensors, tensors_digest, write_tensors

if TYPE_CHECKING:
    from interp.steering.steering import Steering

TENSORS, FACTS = "edits.safetensors", "steering.json"
_FORMAT, _VERSION = "midlens steering", 1
_KEYS = {"format", "version", "method", "scope", "sites", "provenance", "tensors"}
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz")


def save_steering(steering: "Steering", folder: Path) -> None:
    """Write the folder, new or in the place of a steering that is in it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a steering is saved as a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TENSORS).exists():
        raise InputError(f"{folder} holds something else; save the steering in a folder of its own")
    tensors = {  # copies: sites may share tensors, which the format has no place for
        f"{site}/{name}": x.detach().cpu().clone()
        for site, edit in steering.edits.items()
        for name, x in edit.tensors().items()
    }
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "method": steering.method,
        "scope": steering.scope,
        "sites": {str(site): edit.facts() for site, edit in steering.edits.items()},
        "provenance": dict(steering.provenance),
        "tensors": tensors_digest(tensors),
    }
    try:
        json.dumps(content)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the provenance cannot be written as JSON: {error}; use plain numbers, texts, lists"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, tensors)
    write_json(folder / FACTS, content)


def load_steering(folder: Path) -> "Steering":
    """Read a folder; says what is wrong with one that is no whole steering."""
    from interp.steering.steering import Steering

    refuse_pickle(folder, "a steering")
    if not folder.is_dir():
        raise InputError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}: expected the folder of a saved steering "
            f"({FACTS} and {TENSORS}). Control vectors are read by interp.steering.vectors"
        )
    content = _checked(read_json(folder / FACTS, "steering"), folder / FACTS)
    tensors, _ = read_tensors(folder / TENSORS, "steering")
    if tensors_digest(tensors) != content["tensors"]:
        raise InputError(
            f"{folder / TENSORS} does not belong to {FACTS} beside it (another sha256): a save was interrupted, or "
            "files of two steerings were mixed; save it again"
        )
    by_site = _by_site(tensors, content["sites"], folder)
    edits = {Site.parse(site): edit_of_facts(facts, by_site[site]) for site, facts in content["sites"].items()}
    return Steering(edits, content["scope"], content["provenance"], content["method"])


def _checked(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{path} is no steering: its format is not {_FORMAT!r}")
    if content.get("version") != _VERSION:
        raise InputError(f"{path} is of version {content.get('version')!r}; this program reads version {_VERSION}")
    if wrong := sorted(set(content) ^ _KEYS):
        raise InputError(
            f"{path}: {', '.join(wrong)} {'are' if len(wrong) > 1 else 'is'} missing or unknown; expected exactly "
            f"{', '.join(sorted(_KEYS))}"
        )
    wanted = {"sites": dict, "provenance": dict, "method": str, "scope": str, "tensors": str}
    if wrong := [name for name, kind in wanted.items() if not isinstance(content[name], kind)]:
        raise InputError(
            f"{path}: {wrong[0]} is a {type(content[wrong[0]]).__name__}, expected {wanted[wrong[0]].__name__}"
        )
    return content


def _by_site(tensors: Mapping[str, Tensor], sites: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {site: {} for site in sites}
    for name, x in tensors.items():
        site, slash, rest = name.partition("/")
        if not slash or site not in found:
            raise InputError(f"{folder / TENSORS} holds {name!r}, which belongs to no site of {FACTS}")
        found[site][rest] = x
    return found


def refuse_pickle(path: Path, what: str) -> None:
    """Refuse files whose reading can run code."""
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{path} is a pickle, or may hold one: reading it could run any code, so {what} is never read from such a "
            "file. interp.steering.vectors reads the files of the steering-vectors package, their tensors alone"
        )
