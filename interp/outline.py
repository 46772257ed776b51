"""What a run would do, without its weights: the model as shapes alone, the text tokenised, the plan made, nothing kept.

    Sketch.of("smollm2-135m").cfg                        the architecture, from the config
    extraction_outline(ExtractConfig(...), out)          {"model": ..., "rows": ..., "disk": ..., "time": ...}

A sketch answers `capture` with tensors on the meta device, so that `interp.extract.prepare` makes of it the very plan
it would make of the model. Text whose token file is not there yet is tokenised into a temporary folder. Times are

    2 FLOP / rate        FLOP by `interp.bench.flops`; rate: this model's matrix products, measured here for a moment

in other words at half the rate of products alone: an estimate, not a measurement.
"""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.anatomy import ModelSpec
from interp.errors import InputError
from interp.extraction import Extraction
from interp.from_text import ExtractConfig, exclusions, read_text
from interp.loading import parse_device, parse_dtype, sketch_hf
from interp.model import HookedModel
from interp.plan import Plan
from interp.precision import default_dtype
from interp.presets import Preset
from interp.sites import Site

BASIS = "at half the rate of this model's matrix products, measured here for a moment"
_SLOWER = 2.0


@dataclass(frozen=True)
class Sketch:
    """A model without numbers: what `interp.extract.prepare` asks of one."""

    name: str
    revision: str | None
    preset: Preset | None
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    meta: HookedModel

    @classmethod
    def of(cls, name: str, *, dtype: str | None = None, device: str | None = None) -> "Sketch":
        """From the config alone; no weight is read."""
        where = parse_device(device)
        number_type = parse_dtype(dtype) or default_dtype(where)
        loaded = sketch_hf(name, dtype=number_type)
        meta = HookedModel.wrap(loaded.hf, loaded.tokenizer)
        return cls(name, loaded.revision, loaded.preset, loaded.tokenizer, where, number_type, meta)

    @property
    def cfg(self) -> ModelSpec:
        """The numbers of the architecture."""
        return self.meta.cfg

    def capture(
        self, tokens: Int[Tensor, "b t"], sites: Iterable[Site], *, lengths: Int[Tensor, " b"] | None = None
    ) -> dict[Site, Float[Tensor, "b ..."]]:
        """Shapes and precisions of what the model would give; on the meta device."""
        return self.meta.capture(tokens, list(sites), lengths=lengths)

    def weight_bytes(self, upto: Site | None = None) -> int:
        """Of the whole model, or of what a run up to a site needs."""
        from interp.loading import layers_needed

        blocks = self.meta.anatomy.blocks(self.meta.hf)
        left_out: list[Tensor] = []
        if upto is not None:
            left_out = [p for block in blocks[layers_needed(upto, self.cfg.n_layers) :] for p in block.parameters()]
        numbers = sum(p.numel() for p in self.meta.hf.parameters()) - sum(p.numel() for p in left_out)
        return numbers * self.dtype.itemsize

    def seconds(self, site: Site, lengths: Iterable[int]) -> float:
        """Of a run over sequences of these lengths up to a site; see the module's docstring."""
        from interp.bench.ceilings import matmul_rate
        from interp.bench.flops import products, sequence_flops

        rate = matmul_rate(products(self.cfg), 256, self.dtype, self.device, 0.02)
        counts: dict[int, int] = {}
        for length in lengths:
            counts[int(length)] = counts.get(int(length), 0) + 1
        return _SLOWER * sum(n * sequence_flops(self.cfg, site, length) for length, n in counts.items()) / rate

    def described(self, upto: Site | None = None) -> str:
        """A line: name, layers, width, weights in memory."""
        spec = self.cfg
        return (
            f"{self.name}: {spec.n_layers} layers of width {spec.d_model}, {str(self.dtype).removeprefix('torch.')} on "
            f"{self.device}; {size(self.weight_bytes(upto))} of weights{'' if upto is None else f' up to {upto}'}"
        )


def extraction_outline(config: ExtractConfig, out: Path, *, sketch: Sketch | None = None) -> dict[str, object]:
    """What `interp.from_text.extract_text` would do for these options."""
    sites = config.parsed_sites()
    sketch = sketch or Sketch.of(config.model, dtype=config.dtype, device=config.device)
    folder = config.tokens or out.with_name(out.name + ".tokens")
    known = folder.exists()
    with tempfile.TemporaryDirectory() as scratch:
        extraction = _prepared(config, sketch, out, folder if known else Path(scratch) / "tokens")
        plan, missing = extraction.plan, extraction.missing
        windows = [length for shard in missing for length in _lengths(plan, shard)]
        seconds = sketch.seconds(max(sites), windows) if windows else 0.0
    searched = " (auto: a search first, which may change batches)" if config.token_budget == "auto" else ""
    return {
        "model": sketch.described(max(sites)),
        "sites": ", ".join(plan.row_shapes),
        "tokens": f"{plan.n_tokens:,} in {len(plan.buckets.windows):,} windows; {_there(folder, known)}",
        "batches": f"{len(plan.buckets):,} of up to {plan.token_budget:,} tokens{searched}",
        "rows": plan.rows,
        "shards": f"{len(plan.shard_rows):,}, of which {len(plan.shard_rows) - len(missing):,} are there already",
        "bytes": extraction.bytes_left,
        "disk": f"{size(extraction.bytes_left)} to write under {out}; {size(free(out))} free",
        "memory": f"about {size(sketch.weight_bytes(max(sites)) + int(plan.shard_rows.max()) * plan.layout.row_bytes)}",
        "seconds": round(seconds, 1),
        "basis": BASIS,
    }


def _prepared(config: ExtractConfig, sketch: Sketch, out: Path, folder: Path) -> Extraction:
    """The extraction into `out`, planned, of the token file in `folder`, which is made if it is not there."""
    from interp.extract import prepare
    from interp.tokenfile import tokenize

    bos = config.prepend_bos
    if bos is None:
        bos = sketch.preset.prepend_bos if sketch.preset is not None else False
    tokens = tokenize(read_text(config), sketch.tokenizer, folder, prepend_bos=bos, max_tokens=config.max_tokens)
    return prepare(
        sketch,
        tokens,
        config.parsed_sites(),
        out,
        max_length=config.max_length,
        token_budget=None if config.token_budget == "auto" else config.token_budget,
        store_dtype=config.store_dtype,
        seed=config.seed,
        exclude=exclusions(config),
        append=config.append,
    )


def _lengths(plan: Plan, shard: int) -> list[int]:
    """Of the windows that a shard is made of."""
    first = int(plan.shard_windows[shard - 1]) if shard else 0
    return plan.buckets.windows.length[first : int(plan.shard_windows[shard])].tolist()


def _there(path: Path, known: bool) -> str:
    return f"{path} is there and is reused" if known else f"to be written to {path}"


def free(path: Path) -> int:
    """Bytes free where a path is or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def folder_state(out: Path, *names: str) -> str:
    """Which of the files that a command makes in its folder are there."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; expected a folder, or a new name")
    found = [name for name in names if (out / name).exists()]
    return f"{out}: {', '.join(found)} there already" if found else f"{out}: nothing there yet"
