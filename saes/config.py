"""`SAEConfig`: what an SAE is, under SAELens's names. Its form in `cfg.json` is in `saes.cfg_json`.

One record covers four encoders and three kinds of dictionary:

    autoencoder     reads and writes one site
    transcoder      `d_out` given: reads one site, predicts another; with `skip`, plus a linear map of its input
    crosscoder      `sources` given: reads and writes several sites at once, laid side by side (`d_in` is their sum)

How an SAE was trained (BatchTopK, Matryoshka, ...) is not part of it: those encode like JumpReLU once trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from interp.errors import InputError

Architecture = Literal["standard", "topk", "jumprelu", "gated"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Shape and conventions of an SAE; `metadata` says where it comes from (model_name, hook_name, ...)."""

    d_in: int
    """Width of the activations read; for a crosscoder, of all sources together."""
    d_sae: int
    """Number of features."""
    architecture: Architecture = "topk"
    """How the encoder decides: `standard` is ReLU; see `saes.activations`."""
    k: int | None = None
    """Active features per token; of `topk` alone."""
    d_out: int | None = None
    """Width of the activations written; given, the SAE is a transcoder."""
    skip: bool = False
    """Whether a transcoder adds a linear map of its input."""
    sources: tuple[int, ...] = ()
    """Of a crosscoder: the widths of the activations laid side by side in its input."""
    dtype: Dtype = "float32"
    """Type of the parameters, in memory and on disk."""
    apply_b_dec_to_input: bool = True
    """Whether the decoder's bias is subtracted before encoding; never in a transcoder."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Provenance: any JSON value per key; kept through saving and loading, by SAELens as well."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise InputError(f"architecture {self.architecture!r:.80} is not known; known: {listed(Architecture)}")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"dtype {self.dtype!r:.80} is not known; known: {listed(Dtype)}")
        if min(self.d_in, self.d_sae, self.width_out) < 1:
            raise InputError(
                f"d_in, d_sae and d_out must be positive, got d_in={self.d_in}, d_sae={self.d_sae}, d_out={self.d_out}"
            )
        self._check_k()
        self._check_kind()

    def _check_k(self) -> None:
        if self.architecture != "topk":
            if self.k is not None:
                raise InputError(f"k={self.k} was given, but a {self.architecture} SAE has no k; only topk has")
        elif self.k is None:
            raise InputError("a topk SAE needs k, the active features per token")
        elif not 1 <= self.k <= self.d_sae:
            raise InputError(
                f"k={self.k} active features do not fit an SAE of d_sae={self.d_sae} features; "
                f"choose k between 1 and {self.d_sae}"
            )

    def _check_kind(self) -> None:
        if self.skip and not self.is_transcoder:
            raise InputError("skip=True needs d_out: only a transcoder has a skip connection")
        if self.is_transcoder and self.apply_b_dec_to_input:
            raise InputError(
                "apply_b_dec_to_input must be False in a transcoder: its decoder's bias belongs to another site"
            )
        if self.sources and (self.is_transcoder or sum(self.sources) != self.d_in or min(self.sources) < 1):
            raise InputError(
                f"sources={self.sources} are the widths of a crosscoder's inputs: their sum must be d_in={self.d_in}, "
                f"and d_out is not given beside them (got {self.d_out})"
            )

    @property
    def is_transcoder(self) -> bool:
        """Whether what is written is another site than what is read."""
        return self.d_out is not None

    @property
    def width_out(self) -> int:
        """Width of the activations written."""
        return self.d_in if self.d_out is None else self.d_out

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of such an SAE under SAELens's name, and its shape."""
        d, f, out = self.d_in, self.d_sae, self.width_out
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, f), "W_dec": (f, out), "b_dec": (out,)}
        if self.architecture == "gated":
            shapes |= {"b_gate": (f,), "b_mag": (f,), "r_mag": (f,)}
        else:
            shapes["b_enc"] = (f,)
        if self.architecture == "jumprelu":
            shapes["threshold"] = (f,)
        if self.skip:
            shapes["W_skip"] = (out, d)
        return shapes


def listed(choice: Any) -> str:
    """The values of a Literal, for an error text."""
    return ", ".join(map(repr, get_args(choice)))
