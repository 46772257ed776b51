"""Options of a survey, checked as soon as they are written down."""

from collections.abc import Mapping
from dataclasses import dataclass

from interp.errors import InputError


@dataclass(frozen=True)
class SurveyConfig:
    """Options of a survey."""

    layers: tuple[int, ...] | None = None
    """Only these layers; by default all."""
    fold_norm: bool = True
    """Fold the norm's gain (and a LayerNorm's centring) into the kernel."""
    biases: bool = False
    """Take the biases of queries and keys into the kernel, as one more dimension."""
    draws: int = 20
    """Random orientations per head behind the matched null."""
    rope: bool = True
    """Measure the four sectors of rotary kernels."""
    offsets: int = 128
    """Offsets between query and key, from 0 on, behind the sectors."""
    operating: bool = True
    """Measure q k^T on text; runs the model."""
    behaviour: bool = True
    """Score heads as previous-token, duplicate-token, induction heads and sinks; runs the model."""
    corpus: str = "builtin"
    """Text that is fed: `builtin`, a .txt / .jsonl / .parquet file, a folder of .txt, or `hf:NAME[:SPLIT]`."""
    max_tokens: int = 4096
    """Positions fed."""
    max_length: int = 512
    """Positions of each window; only documents that long are used, so that all windows allow the same ranks."""
    prepend_bos: bool | None = None
    """Begin each window with a BOS; by default what the preset says, else what the tokenizer does by itself."""
    skip_first: bool = False
    """Leave position 0 of each window out of the operating interaction."""
    heads: tuple[str, ...] = ()
    """Heads whose spectra the page shows, such as 5.1 (layer 5, head 1); by default those that route most and least."""
    dtype: str | None = "float32"
    """Precision in which weights are loaded and the model runs; bfloat16 halves the memory of large models."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""
    seed: int = 0
    """Of the nulls and of the random tokens behind behaviour."""

    def __post_init__(self) -> None:
        if self.layers is not None and not self.layers:
            raise InputError("no layer was chosen, so no head; leave `layers` out for all of them")
        for name, least in (("draws", 2), ("offsets", 1), ("max_tokens", 2), ("max_length", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for head in self.heads:
            parse_head(head)

    def chosen_layers(self, n_layers: int) -> list[int]:
        """The layers asked for, of a model of `n_layers`."""
        chosen = list(range(n_layers)) if self.layers is None else sorted(set(self.layers))
        if outside := [layer for layer in chosen if not 0 <= layer < n_layers]:
            raise InputError(f"layer {outside[0]} does not exist: the model has {n_layers} layers, 0 to {n_layers - 1}")
        return chosen

    def check_heads(self, shape: Mapping[str, int], name: str) -> None:
        """Refuse heads to draw that will not be there."""
        layers = self.chosen_layers(shape["layers"])
        for layer, head in map(parse_head, self.heads):
            if layer not in layers or head >= shape["heads"]:
                raise InputError(
                    f"head {layer}.{head} is not among those measured in {name}: layers {layers[0]} to {layers[-1]}, "
                    f"heads 0 to {shape['heads'] - 1}"
                )


def parse_head(name: str) -> tuple[int, int]:
    """`5.1` is head 1 of layer 5."""
    layer, dot, head = name.partition(".")
    if not (dot and all(part.isdecimal() and len(part) < 10 for part in (layer, head))):
        raise InputError(f"{name!r} is no head; expected LAYER.HEAD, such as 5.1")
    return int(layer), int(head)
