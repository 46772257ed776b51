"""`load_sae`: a trained SAE from a folder, a file, a hub repository or a preset, whatever tool made it.

    load_sae("runs/sae")                                                      a folder
    load_sae("google/gemma-scope-9b-it-res:layer_20/width_131k/average_l0_81")  a folder of a hub repository
    load_sae("gemma-scope-9b-it-l20-131k")                                    a preset, see `saes.presets`

The layout is told by the files present. Of a hub repository only the files a layout needs are fetched, pickles among
them only with `trust_pickle`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

import torch

from interp.errors import InputError
from saes.interop.dictionary_learning import read as read_dictionary_learning
from saes.interop.files import Origin
from saes.interop.gemma_scope import read as read_gemma_scope
from saes.interop.gemma_scope_2 import read as read_gemma_scope_2
from saes.interop.goodfire import found as goodfire_found
from saes.interop.goodfire import read as read_goodfire
from saes.interop.llama_scope import read_llama_scope, read_llamascopium
from saes.interop.saelens import read as read_saelens
from saes.interop.sparsify import read as read_sparsify
from saes.presets import SAE_PRESETS, USED_ON
from saes.sae import SAE

Layout = Literal[
    "saelens",
    "sparsify",
    "gemma_scope",
    "gemma_scope_2",
    "llama_scope",
    "llamascopium",
    "dictionary_learning",
    "goodfire",
]


class _Reader(NamedTuple):
    read: Callable[[Origin], SAE]
    files: tuple[tuple[str, ...], ...]
    """Sets of files; one whole set present tells the layout. Empty: see `_layout_of`."""


_READERS: dict[str, _Reader] = {
    "saelens": _Reader(read_saelens, (("cfg.json", "sae_weights.safetensors"),)),
    "sparsify": _Reader(read_sparsify, (("cfg.json", "sae.safetensors"),)),
    "gemma_scope": _Reader(read_gemma_scope, (("params.npz",),)),
    "gemma_scope_2": _Reader(read_gemma_scope_2, (("params.safetensors",),)),
    "llama_scope": _Reader(read_llama_scope, (("hyperparams.json", "checkpoints/final.safetensors"),)),
    "llamascopium": _Reader(read_llamascopium, (("config.json", "sae_weights.safetensors"),)),
    "dictionary_learning": _Reader(
        read_dictionary_learning, (("config.json", "ae.safetensors"), ("config.json", "ae.pt"))
    ),
    "goodfire": _Reader(read_goodfire, ()),
}
_PICKLES = (".pt", ".pth")
_SUFFIXES = (".npz", ".safetensors", *_PICKLES)


def load_sae(
    source: str | Path,
    *,
    layout: Layout | str | None = None,
    part: str | None = None,
    trust_pickle: bool = False,
    revision: str | None = None,
    device: str | torch.device = "cpu",
) -> SAE:
    """Read a trained SAE.

    `part` is a path inside `source`, for folders and repositories that hold several; a hub name may carry it behind a
    colon. `revision` is a branch, tag or commit of a hub repository. A pickle is refused without `trust_pickle`. An SAE
    loaded by a preset's name carries the model it is used on in its metadata, beside the one it was trained on.
    """
    if layout is not None and layout not in _READERS:
        raise InputError(f"layout is one of {', '.join(_READERS)}, got {layout!r}")
    origin = _origin(source, part, trust_pickle=trust_pickle, revision=revision)
    preset = None if Path(source).exists() else SAE_PRESETS.get(str(source))
    chosen = layout or (_layout_of(origin) if preset is None else preset.layout)
    sae = _READERS[chosen].read(origin).to(device)
    if preset is not None:
        sae.config = dataclasses.replace(sae.config, metadata={**sae.config.metadata, USED_ON: preset.model})
    return sae


def _origin(source: str | Path, part: str | None, *, trust_pickle: bool, revision: str | None) -> Origin:
    """Local path, preset or hub name, in this order."""
    path = Path(source)
    if path.exists():
        path = path / (part or "")
        if path.is_file():
            folder = _folder_of(file := path.absolute())
            return Origin(folder, str(path), trust_pickle, file.relative_to(folder).as_posix())
        if not path.is_dir():
            raise InputError(f"{Path(source)} holds no {part}; there are {_listing(Path(source))}")
        return Origin(path, str(path), trust_pickle)
    name = str(source)
    if name in SAE_PRESETS:
        name = SAE_PRESETS[name].source
    repository, _, inside = name.partition(":")
    pieces = [*repository.split("/"), *(inside.split("/") if inside else []), *(part.split("/") if part else [])]
    if len(pieces) < 2 or path.is_absolute() or not all(pieces) or {".", "..", "~"} & set(pieces):
        raise InputError(
            f"{name!r} is no file or folder here, no preset ({', '.join(SAE_PRESETS)}), and no hub repository's name "
            "(organisation/name, or organisation/name:folder)"
        )
    return _fetched("/".join(pieces[:2]), "/".join(pieces[2:]), trust_pickle=trust_pickle, revision=revision)


def _fetched(repository: str, inside: str, *, trust_pickle: bool, revision: str | None) -> Origin:
    """The files a layout may need, downloaded into the hub's cache (or found there without network)."""
    from huggingface_hub import snapshot_download

    names = _files()
    if own := next((name for name in names if f"/{inside}".endswith(f"/{name}")), None):
        inside = str(PurePosixPath(inside).parents[own.count("/")])
    file = inside if PurePosixPath(inside).suffix in _SUFFIXES else None
    if file and PurePosixPath(file).suffix in _PICKLES and not trust_pickle:
        raise InputError(
            f"{repository}:{file} is a pickle, and opening a pickle can run any program hidden in it. If you trust "
            "whoever made it, pass trust_pickle=True, --trust-pickle (it is then opened for tensors only, weights_only)"
        )
    folder = str(PurePosixPath(file).parent) if file else inside
    names += [f"{repository.split('/')[1]}{suffix}" for suffix in _PICKLES]
    wanted = {str(PurePosixPath(folder, name)) for name in names if trust_pickle or not name.endswith(_PICKLES)}
    configs = {name for name in wanted if name.endswith(".json")}
    above = {str(PurePosixPath(folder).parent / "config.json")} if folder not in ("", ".") else set()
    try:
        root = snapshot_download(
            repository, revision=revision, allow_patterns=sorted({file} | configs if file else wanted | above)
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{repository!r} is no file or folder here, and could not be fetched from the hub: {first}"
        ) from None
    name = f"{repository}:{inside}" if inside else repository
    return Origin(Path(root) / folder, name, trust_pickle, PurePosixPath(file).name if file else None)


def _layout_of(origin: Origin) -> Layout:
    """The layout whose files are there."""
    there = {
        layout: files
        for layout in reversed(get_args(Layout))
        for files in reversed(_READERS[layout].files)
        if all((origin.folder / name).is_file() for name in files) and origin.file in (None, *files)
    }
    if len({files[-1] for files in there.values()}) > 1:
        found = "; ".join(f"{layout}: {' + '.join(files)}" for layout, files in reversed(there.items()))
        raise InputError(f"{origin.name} holds files of several layouts ({found}): name the file, or give layout=")
    if there:
        return list(there)[-1]
    if origin.file and origin.file.endswith((*_PICKLES, ".safetensors")):
        return "goodfire"
    if origin.folder.is_dir() and origin.file is None and len(goodfire_found(origin)) == 1:
        return "goodfire"
    known = "; ".join(f"{name}: {' + '.join(reader.files[0])}" for name, reader in _READERS.items() if reader.files)
    pickles = "" if origin.trust_pickle else " (pickles are fetched only with trust_pickle=True)"
    raise InputError(
        f"{origin.name} has no layout known here{pickles}. Known are {known}; goodfire: one .pth file. "
        f"There are {_listing(origin.folder)}; if one of these is the SAE, name it (part=...)"
    )


def _folder_of(file: Path) -> Path:
    """The folder that holds the settings for a file: its own, or the one above a layout's folder of checkpoints."""
    for settings, weights in (files for reader in _READERS.values() for files in reader.files if len(files) == 2):
        inner = PurePosixPath(weights).parent
        root = file.parent.parent
        if inner.parts and root / inner == file.parent and (root / settings).is_file():
            return root
    return file.parent


def _files() -> list[str]:
    """The names that tell layouts."""
    return [name for reader in _READERS.values() for files in reader.files for name in files]


def _listing(folder: Path) -> str:
    """The first entries of a folder, for an error text."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "no files"
