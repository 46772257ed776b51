"""extract(): model x tokens -> ActivationStore, planned first, every stage overlapped, resumable after anything.

    tokens -> plan.json -> [assemble | capture | write] -> shards -> manifest.json

Batches are assembled in one thread, run in the caller's, and written, hashed and fsynced in another. The first batch
of a shard waits until the shard before it is durable: a run that is killed anywhere loses at most one shard of forward
passes. Calling `extract` again with the same settings checks what is there, computes what is missing or damaged, and
gives the same bytes as a run never interrupted (on the same hardware and versions; other batch shapes change bf16 rows
in the last bit).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np

from interp import ledger
from interp.batching import default_token_budget, windows_of
from interp.budget import search
from interp.errors import InputError
from interp.extraction import Extraction
from interp.pieces import Piece, refuse_other
from interp.pipeline import Capturing, Runner
from interp.plan import Exclusions, Selector, make_plan
from interp.sealing import digest
from interp.shards import DTYPES, Layout
from interp.sites import Site
from interp.store import ActivationStore, StoreSpec
from interp.tokenfile import TokenFile

_SEARCH_FROM = 256
"""Batches of the default size: some minutes of work."""
StoreDtype = Literal["bfloat16", "float16", "float32", "int8", "float8_e4m3"]
"""Of rows on disk; one-byte formats have a scale per row and an error that the store states (`interp.quantised`)."""


class Settings(TypedDict, total=False):
    """What `extract` and `prepare` take beyond model, tokens, sites and path."""

    docs: Sequence[int] | None
    """Indices of the documents to use; all by default."""
    max_length: int
    """Positions fed at once, the BOS included (512); longer documents become several windows."""
    token_budget: int | Literal["auto"] | None
    """Padded tokens per batch; "auto": what a short search finds fastest, which is the default for long runs on a GPU;
    elsewhere by default what suits the device."""
    store_dtype: StoreDtype
    """Of the rows on disk (bfloat16)."""
    seed: int
    """Of the order of batches (0)."""
    exclude: Exclusions | None
    """Which rows stay out: first positions, special tokens and chat templates by default."""
    rows_per_shard: int | None
    """By default 8 GiB of rows on a GPU, 64 MiB elsewhere."""
    allow_nonfinite: bool
    """Store NaN and infinity instead of raising (False)."""
    append: bool
    """Add rows to a finished store, as a new part of it (False)."""
    piece: Piece | None
    """Compute only these shards of the plan; see `interp.pieces`."""


def extract(
    model: Capturing,
    tokens: TokenFile,
    sites: Sequence[str | Site],
    path: str | Path,
    *,
    announce: Callable[[str], None] | None = None,
    progress: bool | None = None,
    **settings: Unpack[Settings],
) -> ActivationStore:
    """Write the activations at `sites` for `tokens` to `path`, or finish what is there. Settings: see `Settings`.

    `announce` gets the plan in words before anything is written.
    """
    extraction = prepare(model, tokens, sites, path, **settings)
    if announce is not None:
        announce(extraction.describe())
    return extraction.run(progress=progress)


def prepare(
    model: Capturing,
    tokens: TokenFile,
    sites: Sequence[str | Site],
    path: str | Path,
    *,
    docs: Sequence[int] | None = None,
    max_length: int = 512,
    token_budget: int | Literal["auto"] | None = None,
    store_dtype: StoreDtype = "bfloat16",
    seed: int = 0,
    exclude: Exclusions | None = None,
    rows_per_shard: int | None = None,
    allow_nonfinite: bool = False,
    append: bool = False,
    piece: Piece | None = None,
) -> "Extraction":
    """Plan an extraction, or find the one in `path`: what it will write, how long it takes, whether it fits.

    Settings: see `Settings`.
    """
    if store_dtype not in DTYPES:
        raise InputError(f"store_dtype must be one of {', '.join(DTYPES)}, got {store_dtype!r}")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise InputError(f"rows_per_shard must be at least 1, got {rows_per_shard}")
    if append and piece is not None:
        raise InputError(f"append and piece {piece} exclude each other: join the pieces, then merge the two stores")
    refuse_other(Path(path), piece)
    runner, selector, row_shapes, spec = described(
        model, tokens, sites, docs=docs, dtype=store_dtype, max_length=max_length, exclude=exclude, seed=seed
    )
    if isinstance(token_budget, str) and token_budget != "auto":
        raise InputError(f'token_budget must be a number, "auto" or None, got {token_budget!r}')
    asked = {"token_budget": None if token_budget == "auto" else token_budget, "rows_per_shard": rows_per_shard}
    found, tried = ledger.Progress.of(Path(path)), None
    part = found.part(spec, asked, append=append)
    if part < len(found.plans):
        plan = found.plans[part]
    else:
        if again := ledger.overlapping(found.plans, spec, docs, len(tokens)):
            raise InputError(f"{path} holds {again} of these documents already; append others (docs=...)")
        sizes = suited(model, Layout(row_shapes, store_dtype), max_length)
        if token_budget == "auto" or (token_budget is None and _worth_a_search(model, tokens, docs)):
            windows = windows_of(tokens.lengths, max_length=max_length, bos=tokens.bos is not None, docs=docs)
            tried = search(runner, selector, windows, multiple=sizes["multiple"], seed=seed)
            sizes["token_budget"] = tried.token_budget
        sizes |= {name: value for name, value in asked.items() if value is not None}
        plan = make_plan(tokens, spec, selector, row_shapes, docs=docs, **sizes)
    return Extraction(runner, selector, plan, part, found, allow_nonfinite=allow_nonfinite, tried=tried, piece=piece)


def _worth_a_search(model: Capturing, tokens: TokenFile, docs: Sequence[int] | None) -> bool:
    """Whether to look for the best batch size unasked: on a GPU, where a search takes a small part of the run."""
    device = str(getattr(model, "device", "cpu"))
    if not device.startswith("cuda"):
        return False
    count = tokens.n_tokens if docs is None else int(tokens.lengths[np.asarray(docs, np.int64)].sum())
    return count >= _SEARCH_FROM * default_token_budget(device)


class Described(NamedTuple):
    """What rows are and how they are made, whether they go into a store or not."""

    runner: Runner
    selector: Selector
    row_shapes: dict[str, tuple[int, ...]]
    spec: StoreSpec


def described(
    model: Capturing,
    tokens: TokenFile,
    sites: Sequence[str | Site],
    *,
    docs: Sequence[int] | None,
    dtype: str,
    max_length: int,
    exclude: Exclusions | None,
    seed: int | None,
) -> Described:
    """Check what rows are asked for; the model runs over one token, for their shapes."""
    if docs is not None and len(set(docs)) < len(docs):
        raise InputError(f"docs names {len(docs) - len(set(docs))} documents twice")
    wanted = sorted({Site.parse(site) for site in sites})
    if not wanted:
        raise InputError("no site to extract; give at least one, such as 'resid_post.15'")
    runner = Runner(model, wanted, DTYPES[dtype])
    selector = Selector(tokens, exclude or Exclusions())
    row_shapes, compute_dtype = runner.shapes(int(tokens.tokens[0]))
    spec = StoreSpec(
        **_source(model, tokens),
        sites=tuple(map(str, wanted)),
        dtype=dtype,
        compute_dtype=compute_dtype,
        max_length=max_length,
        excluded=selector.exclude.names(),
        docs="all" if docs is None else digest([int(d) for d in docs]),
        seed=seed,
    )
    return Described(runner, selector, row_shapes, spec)


def _source(model: Capturing, tokens: TokenFile) -> dict[str, Any]:
    """What model and token file say of themselves."""
    return {
        "model": getattr(model, "name", type(model).__name__),
        "revision": getattr(model, "revision", None),
        "corpus": tokens.manifest["corpus_digest"],
        "tokens": tokens.digest,
        "tokenizer": tokens.manifest["tokenizer"]["sha256"],
        "bos": tokens.bos,
    }


def suited(model: Capturing, layout: Layout, max_length: int) -> dict[str, int]:
    """Sizes that suit the model's device.

    Shards: 8 GiB on a GPU, 64 MiB elsewhere: a minute or so of work to lose. At the end of each the device waits until
    the last batch is durable, which is why they are not smaller.
    """
    device = str(getattr(model, "device", "cpu"))
    gpu = device.startswith("cuda")
    multiple = 8 if gpu else 1
    return {
        "token_budget": max(default_token_budget(device), max_length + multiple),
        "rows_per_shard": max(1, (8 << 30 if gpu else 64 << 20) // layout.row_bytes),
        "multiple": multiple,
    }
