"""What `midlens train` and `midlens sweep` share: rows from a store, or streamed from a model without one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.extract import StoreDtype
from interp.from_text import ExtractConfig, Split
from interp.placement import PLACING, PlacingConfig
from interp.sites import Site
from midlens.console import Planned, say

if TYPE_CHECKING:
    from interp.model import HookedModel
    from saes.outline import OutlinedRows


@dataclass(frozen=True, kw_only=True)
class RowsOptions(PlacingConfig, Planned):
    """Where the rows come from: `store`, or `model` and `corpus`."""

    out: Path
    """Where results go."""
    store: Path | None = None
    """An activation store, see `midlens extract`. Without it, rows are streamed from a model."""
    site: tuple[str, ...] = ()
    """The site to train on, e.g. resid_post.15; may be left out where the store holds one, or the preset has its own.
    Several sites: a crosscoder over them."""
    site_out: str | None = None
    """The site to write, e.g. mlp_out.15: trains transcoders from `site` to it."""
    model: str | None = None
    """Without a store, the model to stream from: a preset, a hub id, a local folder or a GGUF file."""
    corpus: str = "builtin"
    """Of a stream: `builtin`, a .txt / .jsonl / .parquet file, a folder of .txt, or `hf:NAME[:SPLIT]`."""
    split: Split = "train"
    """Of a stream: which side of the fixed split by document."""
    max_tokens: int | None = None
    """Of a stream: stop after this many tokens of the corpus."""
    max_length: int = 512
    """Of a stream: positions fed at once, the BOS included."""
    prepend_bos: bool | None = None
    """Of a stream: put a BOS in front of every window; by default what the preset says, else no."""
    model_dtype: str | None = None
    """Of a stream: precision of the model; by default bfloat16 where the hardware has it."""
    row_dtype: StoreDtype = "bfloat16"
    """Of a stream: precision of the rows in its buffer."""
    buffer_gib: float = 2.0
    """Of a stream: memory of the shuffle buffer, in GiB; half of it is the mixing horizon."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one. With a device map: where the SAE is trained."""
    track: str | None = None
    """Send metrics to wandb:PROJECT, trackio:PROJECT or tensorboard:FOLDER as well."""

    def chosen_device(self) -> str:
        """The device asked for, or a GPU where there is one."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def rows(self, batch_size: int, seed: int, *, model: "HookedModel | None" = None) -> tuple[Any, Any]:
        """The rows and the site or sites to train on. A stream says how it mixes; `model` saves it from loading one."""
        from interp.errors import InputError
        from interp.store import ActivationStore

        named = [str(site) for site in Site.parse_all(self.site)]
        if self.store is None:
            if self.model is None:
                raise InputError("say where the rows come from: --store, or --model (and --corpus) to stream them")
            return self._stream(batch_size, seed, model)
        store = ActivationStore.open(self.store, checked=True)
        if not named and len(store.sites) > 1:
            raise InputError(f"{self.store} holds {', '.join(map(str, store.sites))}; say which with --site")
        named = named or [str(site) for site in store.sites]
        return store, named[0] if len(named) == 1 else named

    def outlined_rows(self) -> "OutlinedRows":
        """What `rows` would give, without a weight of the model."""
        from saes.outline import rows_outline

        if self.store is None and self.model is None:
            self.rows(1, 0)  # says what is lacking
        return rows_outline(self.store, self.site, self.site_out, self._text, self.out)

    def _text(self) -> ExtractConfig:
        """The options of a stream; without a site, the preset's own."""
        assert self.model is not None
        config = ExtractConfig(
            model=self.model,
            sites=tuple(str(site) for site in Site.parse_all(self.site)),
            corpus=self.corpus,
            split=self.split,
            max_tokens=self.max_tokens,
            max_length=self.max_length,
            prepend_bos=self.prepend_bos,
            dtype=self.model_dtype,
            store_dtype=self.row_dtype,
            device=None if self.device_map else self.chosen_device(),
            **{name: getattr(self, name) for name in PLACING},
        )
        return replace(config, sites=tuple(map(str, config.parsed_sites())))

    def _stream(self, batch_size: int, seed: int, model: Any) -> tuple[Any, Any]:
        from interp.from_text import stream_text
        from interp.mixing import mixing

        config = self._text()
        named = list(config.sites)
        config = replace(config, sites=(*named, *([self.site_out] if self.site_out else [])))
        folder = self.out.with_name(self.out.name + ".tokens")
        stream = stream_text(config, folder, buffer_bytes=round(self.buffer_gib * 2**30), model=model)
        say(stream.describe())
        if (size := min(batch_size, len(stream))) > 1:  # how rows of one batch are mixed
            say(mixing(stream, size, seed=seed).describe())
        return stream, named[0] if len(named) == 1 else named
