"""Options of a study of surgery, checked as soon as they are written down."""

from dataclasses import dataclass
from typing import Literal, get_args

from interp.attention.survey_config import parse_head
from interp.errors import InputError

Way = Literal["position", "position-key-centred", "kernel"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class SurgeryConfig:
    """Options of a study."""

    heads: tuple[str, ...] = ()
    """Operate on these heads together, such as 5.1 7.0 (layer.head); by default on all."""
    planes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of routing planes to keep, beside every filtering mode."""
    modes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of filtering modes to keep, beside every routing plane."""
    ways: tuple[Way, ...] = WAYS
    """position: on q and k as attention compares them; position-key-centred: the same after a constant is taken from
    the keys, which changes the split and not the model; kernel: on the weights."""
    per_head: bool = False
    """Also remove routing, and filtering, from each single head in turn: two runs of the text per head and way."""
    corpus: str = "builtin"
    """`builtin`, a .txt / .jsonl / .parquet file, a folder of .txt, or `hf:NAME[:SPLIT]`."""
    max_tokens: int = 4096
    """Held-out positions fed."""
    calibration: int = 8192
    """Positions of the training half behind the bases."""
    max_length: int = 256
    """Positions of each window; only documents that long are used."""
    dtype: str | None = "float32"
    """Precision of the model."""
    device: str | None = None
    """cpu, cuda, ...; by default a GPU where there is one."""
    seed: int = 0
    """Of the bootstrap over documents."""

    def __post_init__(self) -> None:
        if not self.ways or set(self.ways) - set(WAYS):
            raise InputError(f"ways {' '.join(self.ways) or '(none)'}: expected some of {', '.join(WAYS)}")
        if min((*self.planes, *self.modes), default=0) < 0:
            raise InputError(f"planes and modes to keep are 0 or more, got {self.planes} and {self.modes}")
        for head in self.heads:
            parse_head(head)
