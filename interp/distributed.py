"""Where an extraction is computed and where its store goes: here, in pieces, on a Ray cluster, to a URL.

`extract_anywhere` is what `midlens extract` calls, `combine` what `midlens store merge` calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from interp.cache import cache_dir
from interp.errors import InputError
from interp.extract import prepare
from interp.from_text import (
    ExtractConfig,
    extract_piece,
    extract_settings,
    extract_text,
    open_text,
    token_folder,
)
from interp.joining import join
from interp.pieces import Piece, held_by
from interp.ray_engine import RayOptions, extract_on_ray
from interp.remote import Remote, as_local, as_url
from interp.remote_extract import extract_to
from interp.sealing import digest
from interp.store import ActivationStore

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class WhereConfig:
    """Options of where an extraction is computed."""

    part: str | None = None
    """Only piece i/n, such as 2/4, into OUT.pieces/: for array jobs; `midlens store merge` makes the store of all."""
    engine: Engine = "local"
    """local: this process. ray: the workers of a Ray cluster (that of RAY_ADDRESS, or one on this machine)."""
    workers: int | None = None
    """Of the Ray engine; by default one for each GPU, without GPUs as many as the CPUs allow."""
    worker_cpus: float = 1.0
    """CPUs of each worker, or a fraction of one."""


def extract_anywhere(
    config: ExtractConfig,
    out: Path,
    where: WhereConfig,
    *,
    announce: Callable[[str], None] | None = None,
    progress: bool | None = None,
) -> ActivationStore | Path:
    """The store, or the folder of the piece that was asked for."""
    piece = None if where.part is None else Piece.parse(where.part)
    url, shown = as_url(out), {"announce": announce, "progress": progress}
    if where.engine not in ("local", "ray"):
        raise InputError(f"engine must be local or ray, got {where.engine!r}")
    if piece is not None and where.engine == "ray":
        raise InputError("a piece is computed by one machine: give --part or --engine ray, not both")
    if config.tp_plan is not None and (where.engine == "ray" or url is not None):
        raise InputError(
            "with tp_plan the first process of torchrun writes to a folder: leave --engine ray out, give a path, and "
            "copy the finished store"
        )
    if url is not None:
        if piece is not None or where.engine == "ray":
            raise InputError(
                f"{url}: pieces and the Ray engine write to a folder that all machines see; give a path, and copy the "
                "finished store"
            )
        return _to_url(config, url, shown)
    out = as_local(out)
    if piece is not None:
        return extract_piece(config, piece, out, **shown)
    if where.engine == "local":
        return extract_text(config, out, **shown)
    options = RayOptions(workers=where.workers, cpus=where.worker_cpus)
    load = partial(open_text, config, token_folder(config, out.absolute()))
    sites = config.parsed_sites()
    return extract_on_ray(load, sites, out, options=options, **shown, **extract_settings(config))


def _to_url(config: ExtractConfig, url: str, shown: dict[str, Any]) -> ActivationStore:
    remote, sites = Remote(url), config.parsed_sites()
    remote.sizes()  # no credentials or no bucket: said before a model is loaded
    model, tokens = open_text(config, config.tokens or cache_dir() / "tokens" / digest(url)[:24])
    settings = extract_settings(config)
    return extract_to(remote, lambda spool: prepare(model, tokens, sites, spool, **settings), **shown)


def combine(paths: Sequence[Path], out: Path) -> ActivationStore:
    """Pieces of one extraction joined, or finished stores merged, into a new store at `out`."""
    if far := [url for path in (*paths, out) if (url := as_url(path))]:
        raise InputError(f"stores are merged on a local disk, not at {far[0]}")
    held = [held_by(path) for path in paths]
    if any(held) and not all(held):
        raise InputError(f"{paths[held.index(None)]} is no piece of an extraction, and others are; merge one kind")
    return join(paths, out) if any(held) else ActivationStore.merge(paths, out)
