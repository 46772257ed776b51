"""`cfg.json` of SAELens v6: `SAEConfig` to and from the file's keys.

Keys always written, because `sae_lens` falls back silently where one is missing: without `metadata.sae_lens_version`
the file counts as one of before version 6 and loses its hook name and provenance, without `architecture` it becomes
`standard`, without `k` it gets 100. SAELens keeps unknown keys nowhere but in `metadata`, so a crosscoder's widths go
there. It has no TopK or gated transcoder; those are named in its manner and refused by it.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from interp.errors import InputError
from saes.config import Dtype, SAEConfig

FORMAT = "6.54.12"  # the SAELens version whose format is written
SOURCES = "midlens_sources"
# What SAELens writes beside the inference keys when it saves an SAE still in training; none changes the outputs.
_TRAINING_KEYS = ("decoder_init_norm", "use_sparse_activations", "aux_loss_coefficient")
_WHOLE, _FLAG, _TEXT = "a whole number", "true or false", "a text"
_TYPES: dict[str, str] = {
    "architecture": _TEXT,
    "d_in": _WHOLE,
    "d_sae": _WHOLE,
    "d_out": _WHOLE + " or null",
    "k": _WHOLE + " or null",
    "dtype": _TEXT,
    "apply_b_dec_to_input": _FLAG,
    "rescale_acts_by_decoder_norm": _FLAG,
    "metadata": "an object or null",
}
_FIELDS = ("architecture", "d_in", "d_sae", "k", "d_out", "dtype", "apply_b_dec_to_input")
_KINDS = ("", "_transcoder", "_skip_transcoder")
_ARCHITECTURES = {
    f"{base}{kind}".replace("standard_", ""): (base, kind)
    for base in ("standard", "topk", "jumprelu", "gated")
    for kind in _KINDS
}


def to_cfg(config: SAEConfig) -> dict[str, Any]:
    """The content of `cfg.json`."""
    kind = _KINDS[config.is_transcoder + config.skip]
    cfg = {
        "architecture": f"{config.architecture}{kind}".replace("standard_", ""),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": config.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            **config.metadata,
            "sae_lens_version": config.metadata.get("sae_lens_version") or FORMAT,
            "midlens_version": _version(),
        },
    }
    if config.k is not None:
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    if config.is_transcoder:
        cfg["d_out"] = config.d_out
    if config.sources:
        cfg["metadata"][SOURCES] = list(config.sources)
    return cfg


def check_types(cfg: Any, source: str, names: Sequence[str] = tuple(_TYPES)) -> None:
    """Refuse a file that is no object, and settings whose value is of another type than theirs."""
    if not isinstance(cfg, Mapping):
        raise InputError(f"{source} holds {cfg!r:.80}, expected a JSON object of settings")
    for name in (name for name in names if name in cfg):
        value, expected = cfg[name], _TYPES[name]
        sound = {
            _WHOLE: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53,
            _FLAG: isinstance(value, bool),
            _TEXT: isinstance(value, str),
            "an object": isinstance(value, Mapping),
        }[expected.removesuffix(" or null")]
        if not sound and not (value is None and expected.endswith(" or null")):
            raise InputError(f"{source}: {name} is {value!r:.80}, expected {expected}")


def major_version(found: Any, source: str) -> int:
    """The first number of a version of SAELens."""
    if not isinstance(found, str) or not (match := re.match(r"(\d{1,9})(?:\.|$)", found)):
        raise InputError(f"{source}: metadata.sae_lens_version is {found!r:.80}, expected a version such as {FORMAT!r}")
    return int(match[1])


def _sources(metadata: dict[str, Any], source: str) -> tuple[int, ...]:
    """A crosscoder's widths, taken out of the metadata."""
    found = metadata.pop(SOURCES, [])
    if not isinstance(found, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in found):
        raise InputError(
            f"{source}: metadata.{SOURCES} is {found!r:.80}, expected a list of whole numbers (the widths)"
        )
    return tuple(found)


def from_cfg(cfg: Any, source: str) -> SAEConfig:
    """Read `cfg.json` of version 6, ours or SAELens's; a key that might change the outputs is never skipped.

    `rescale_acts_by_decoder_norm` is no field of `SAEConfig`: whoever loads the weights folds it into them.
    """
    check_types(cfg, source)
    rest = dict(cfg)
    metadata = dict(rest.pop("metadata", None) or {})
    made_by = metadata.get("sae_lens_version")
    if not made_by or major_version(made_by, source) < 6:
        said = f"the metadata.sae_lens_version {made_by}" if made_by else "no metadata.sae_lens_version"
        raise InputError(f"{source} has {said}, so it is no SAELens version 6 file; read it with saes.interop.load_sae")
    foreign = "midlens_version" not in metadata
    _refuse_conventions(rest, source)
    known = {name: rest.pop(name) for name in _FIELDS if name in rest}
    for name in ("device", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm"):
        rest.pop(name, None)
    if foreign:
        metadata |= {name: rest.pop(name) for name in _TRAINING_KEYS if name in rest}
    if missing := [name for name in ("architecture", "d_in", "d_sae") if name not in known]:
        raise InputError(f"{source} lacks {', '.join(missing)}; an SAE cannot be rebuilt without")
    if rest:
        raise InputError(
            f"{source} has unknown keys: {', '.join(sorted(rest)):.300}; was it written by a newer version?"
        )
    known["architecture"], kind = _ARCHITECTURES[known["architecture"]]
    known["skip"] = kind == "_skip_transcoder"
    if bool(kind) != (known.get("d_out") is not None):
        raise InputError(
            f"{source}: architecture {cfg['architecture']!r:.80} and d_out={known.get('d_out')} contradict"
        )
    try:
        return SAEConfig(**known, sources=_sources(metadata, source), metadata=metadata)
    except InputError as error:
        raise InputError(str(error) if source in str(error) else f"{source}: {error}") from None


def _refuse_conventions(cfg: Mapping[str, Any], source: str) -> None:
    """Conventions that change the outputs and that are not implemented here."""
    allowed = {
        "architecture": tuple(_ARCHITECTURES),
        # "expected_average_only_in" stands in checkpoints: the scale of the inputs is not yet in the weights
        "normalize_activations": ("none",),
        "reshape_activations": ("none", "hook_z"),  # heads side by side, as they always lie in rows here
        "dtype": get_args(Dtype),
    }
    for name, values in allowed.items():
        if (value := cfg.get(name, values[0])) not in values:
            raise InputError(
                f"{source}: {name} is {value!r:.80}, but only {', '.join(map(repr, values))} can be loaded"
            )


def _version() -> str:
    try:
        return version("midlens")
    except PackageNotFoundError:  # run from a clone that was never installed
        return "unknown"
