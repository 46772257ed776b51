"""From names to a store: load only the layers needed, tokenise a corpus, extract. What `midlens extract` does.

out/             the activation store
out.tokens/      its token file (elsewhere with `tokens`), which `doc` and `position` of the rows refer to

`stream_text` goes from the same names to an `interp.stream.ActivationStream`, without a store.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from interp.corpus import Corpus, read_corpus, split
from interp.errors import InputError
from interp.extract import Settings, StoreDtype, extract, prepare
from interp.loading import parse_dtype
from interp.model import HookedModel
from interp.pieces import Piece
from interp.placement import PlacingConfig
from interp.plan import Exclusions
from interp.presets import PRESETS
from interp.sealing import in_turn
from interp.sharded import together
from interp.sites import Site
from interp.store import ActivationStore
from interp.stream import BUFFER_BYTES, ActivationStream
from interp.tokenfile import TokenFile, tokenize

Made = TypeVar("Made")
Split = Literal["all", "train", "held-out"]


@dataclass(frozen=True)
class ExtractConfig(PlacingConfig):
    """Options of one extraction."""

    model: str = "smollm2-135m"
    """A preset, a hub id, a local folder or a GGUF file."""
    sites: tuple[str, ...] = ()
    """Where to read, e.g. resid_post.15 mlp_out.15; a preset has a site of its own."""
    corpus: str = "builtin"
    """`builtin`, a .txt / .jsonl / .parquet file, a folder of .txt, or `hf:NAME[:SPLIT]`."""
    split: Split = "all"
    """Which side of the fixed split by document."""
    max_tokens: int | None = None
    """Stop after this many tokens (the last document stays whole)."""
    max_length: int = 512
    """Positions fed at once, the BOS included; longer documents are cut into windows."""
    token_budget: int | Literal["auto"] | None = None
    """Padded tokens per batch; auto: what a short search finds fastest; by default what suits the device."""
    prepend_bos: bool | None = None
    """Put a BOS in front of every window; by default what the preset says, else no."""
    dtype: str | None = None
    """Precision of the model: float32, bfloat16, float16; by default bfloat16 where the hardware has it."""
    store_dtype: StoreDtype = "bfloat16"
    """Precision on disk; int8 and float8_e4m3 take half of bfloat16's bytes, at an error that `store info` states."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""
    tp_plan: Literal["auto"] | None = None
    """auto: cut each layer across the processes of `torchrun --nproc-per-node N -m midlens extract ...`; one writes."""
    compile: bool = False
    """Compile each block of the model (torch.compile; on a CPU this needs a C++ compiler)."""
    seed: int = 0
    """Of the order in which batches are run."""
    keep_first: bool = False
    """Keep position 0 of every window, which is massive in most models."""
    keep_special: bool = False
    """Keep rows of special tokens."""
    keep_template: bool = False
    """Keep rows that a chat template wrote."""
    append: bool = False
    """Add to a finished store instead of refusing other settings."""
    tokens: Path | None = None
    """Folder of the token file; by default the store's name with `.tokens` behind it."""

    def parsed_sites(self) -> list[Site]:
        """The sites asked for, or the preset's own."""
        if self.sites:
            return [Site.parse(site) for site in self.sites]
        if self.model in PRESETS:
            return [PRESETS[self.model].site]
        raise InputError(
            f"say where to read in {self.model!r}: sites, such as resid_post.15 (only presets have a default)"
        )


def extract_text(
    config: ExtractConfig, out: Path, *, announce: Callable[[str], None] | None = None, progress: bool | None = None
) -> ActivationStore:
    """Load, tokenise, extract; calling again goes on. `announce` gets the plan in words.

    Of processes that share the model (`tp_plan`) the first writes the store, and all return it."""
    sites, settings = config.parsed_sites(), extract_settings(config)
    model, tokens = open_text(config, token_folder(config, out))

    def work(model: Any) -> ActivationStore:
        return extract(model, tokens, sites, out, announce=announce, progress=progress, **settings)

    return _shared(config, model, work) or ActivationStore.open(out)


def extract_piece(
    config: ExtractConfig,
    piece: Piece,
    out: Path,
    *,
    announce: Callable[[str], None] | None = None,
    progress: bool | None = None,
) -> Path:
    """`extract_text`, but one piece of it only, into the folder returned, beside `out`; `interp.joining` joins them."""
    sites, folder = config.parsed_sites(), piece.folder(out)
    model, tokens = open_text(config, token_folder(config, out))
    settings: Settings = {**extract_settings(config), "piece": piece}

    def work(model: Any) -> None:
        extraction = prepare(model, tokens, sites, folder, **settings)
        if announce is not None:
            announce(extraction.describe())
        extraction.fill(progress=progress)

    _shared(config, model, work)
    return folder


def _shared(config: ExtractConfig, model: HookedModel, work: Callable[[Any], Made]) -> Made | None:
    """`work(model)`, by the first of the processes that share the model."""
    return work(model) if config.tp_plan is None else together(model, work)


def extract_settings(config: ExtractConfig) -> Settings:
    """Those of the options that `extract` takes."""
    return {
        "max_length": config.max_length,
        "token_budget": config.token_budget,
        "store_dtype": config.store_dtype,
        "seed": config.seed,
        "exclude": exclusions(config),
        "append": config.append,
    }


def token_folder(config: ExtractConfig, out: Path) -> Path:
    """Where the token file of the store `out` lies."""
    return config.tokens or out.with_name(out.name + ".tokens")


def stream_text(
    config: ExtractConfig,
    folder: Path,
    *,
    buffer_bytes: int = BUFFER_BYTES,
    model: HookedModel | None = None,
) -> ActivationStream:
    """Load, tokenise into `folder`, and stream instead of storing; `model` is used if it is loaded already."""
    if config.token_budget == "auto":
        raise InputError(
            'a stream takes no token_budget="auto" (its batches depend on it in every epoch): give a number'
        )
    model, tokens = open_text(config, folder, model=model)
    return ActivationStream(
        model,
        tokens,
        config.parsed_sites(),
        max_length=config.max_length,
        token_budget=config.token_budget,
        dtype=config.store_dtype,
        exclude=exclusions(config),
        buffer_bytes=buffer_bytes,
    )


def open_text(
    config: ExtractConfig, folder: Path, *, model: HookedModel | None = None
) -> tuple[HookedModel, TokenFile]:
    """The model, up to the last site unless it is given, and the token file of the corpus, made if it is not there."""
    corpus = read_text(config)
    if model is None:
        last = max(config.parsed_sites())
        dtype = parse_dtype(config.dtype)
        where = {"device": config.device, "compile": config.compile, "tp_plan": config.tp_plan, **config.placing()}
        model = HookedModel.load(config.model, upto=last, dtype=dtype, **where)
    bos = config.prepend_bos
    if bos is None:
        bos = model.preset.prepend_bos if model.preset is not None else False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(folder.parent):  # pieces of one extraction share a token file
        tokens = tokenize(corpus, model.tokenizer, folder, prepend_bos=bos, max_tokens=config.max_tokens)
    return model, tokens


def read_text(config: ExtractConfig) -> Corpus:
    """The corpus, or the side of it that was asked for."""
    corpus = read_corpus(config.corpus)
    if config.split == "all":
        return corpus
    return dict(zip(("train", "held-out"), split(corpus), strict=True))[config.split]


def exclusions(config: ExtractConfig) -> Exclusions:
    """Which rows stay out of the store."""
    return Exclusions(not config.keep_first, not config.keep_special, not config.keep_template)
