"""`SAEConfig`: what an SAE is, under SAELens's names, and its form in `cfg.json` (SAELens v6).

Keys always written, because `sae_lens` falls back silently where one is missing: without `metadata.sae_lens_version`
the file counts as one of before version 6 and loses its hook name and provenance, without `architecture` it becomes
`standard`, without `k` it gets 100.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

from interp.errors import InputError

Architecture = Literal["topk"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
FORMAT = "6.54.12"  # the SAELens version whose format is written
# What SAELens writes beside the inference keys when it saves an SAE still in training; none changes the outputs.
_TRAINING_KEYS = ("decoder_init_norm", "use_sparse_activations", "aux_loss_coefficient")


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Shape and conventions of an SAE; `metadata` says where it comes from (model_name, hook_name, ...)."""

    d_in: int
    """Width of the activations read and written."""
    d_sae: int
    """Number of features."""
    k: int
    """Active features per token."""
    architecture: Architecture = "topk"
    dtype: Dtype = "float32"
    """Type of the parameters, in memory and on disk."""
    apply_b_dec_to_input: bool = True
    """Whether the decoder's bias is subtracted before encoding."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Provenance: any JSON value per key; kept through saving and loading, by SAELens as well."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise InputError(f"architecture {self.architecture!r} is not known; known: {_listed(Architecture)}")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"dtype {self.dtype!r} is not known; known: {_listed(Dtype)}")
        if min(self.d_in, self.d_sae) < 1:
            raise InputError(f"d_in and d_sae must be positive, got d_in={self.d_in}, d_sae={self.d_sae}")
        if not 1 <= self.k <= self.d_sae:
            raise InputError(
                f"k={self.k} active features do not fit an SAE of d_sae={self.d_sae} features; "
                f"choose k between 1 and {self.d_sae}"
            )

    def to_cfg(self) -> dict[str, Any]:
        """The content of `cfg.json`."""
        return {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "k": self.k,
            "dtype": self.dtype,
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "rescale_acts_by_decoder_norm": False,
            "metadata": {
                **self.metadata,
                "sae_lens_version": self.metadata.get("sae_lens_version") or FORMAT,
                "midlens_version": _version(),
            },
        }

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any], source: str) -> "SAEConfig":
        """Read `cfg.json` of version 6, ours or SAELens's; a key that might change the outputs is never skipped.

        `rescale_acts_by_decoder_norm` is no field here: whoever loads the weights folds it into them.
        """
        rest = dict(cfg)
        metadata = dict(rest.pop("metadata", None) or {})
        if not metadata.get("sae_lens_version"):
            raise InputError(
                f"{source} has no metadata.sae_lens_version, so it is no SAELens version 6 file; "
                "load it once with sae_lens and save it again"
            )
        foreign = "midlens_version" not in metadata
        _refuse_conventions(rest, source)
        known = {name: rest.pop(name) for name in cls.__dataclass_fields__ if name in rest}
        for name in ("device", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm"):
            rest.pop(name, None)
        if foreign:
            metadata |= {name: rest.pop(name) for name in _TRAINING_KEYS if name in rest}
        if missing := [name for name in ("architecture", "d_in", "d_sae", "k") if name not in known]:
            raise InputError(f"{source} lacks {', '.join(missing)}; an SAE cannot be rebuilt without")
        if rest:
            raise InputError(
                f"{source} has unknown keys: {', '.join(sorted(rest))}; was it written by a newer version?"
            )
        return cls(**known, metadata=metadata)


def _refuse_conventions(cfg: Mapping[str, Any], source: str) -> None:
    """Conventions that change the outputs and that are not implemented here."""
    allowed = {
        "architecture": get_args(Architecture),
        # an average norm is folded into the weights when SAELens finishes training; at inference it does nothing
        "normalize_activations": ("none", "expected_average_only_in"),
        "reshape_activations": ("none",),
    }
    for name, values in allowed.items():
        if (value := cfg.get(name, values[0])) not in values:
            raise InputError(f"{source}: {name} is {value!r}, but only {', '.join(map(repr, values))} can be loaded")


def _version() -> str:
    try:
        return version("midlens")
    except PackageNotFoundError:  # run from a clone that was never installed
        return "unknown"


def _listed(choice: Any) -> str:
    return ", ".join(map(repr, get_args(choice)))
