"""Goodfire's SAEs: one pickled state dict and no config; plain ReLU, nothing subtracted before encoding.

    codes = relu(x E^T + e) ;    x^ = codes D^T + c          (E, e: `encoder_linear`; D, c: `decoder_linear`)

The two published ones carry model and layer in their name. A `.safetensors` file with the same tensors is read as well.
"""

import re
from typing import Any

from interp.errors import InputError
from saes.interop.files import Origin, fitting
from saes.sae import SAE

_SHAPES = {
    "encoder_linear.weight": "f d",
    "encoder_linear.bias": "f",
    "decoder_linear.weight": "d f",
    "decoder_linear.bias": "d",
}


def read(origin: Origin) -> SAE:
    """Read the one file named, or the folder's only `.pth` or `.pt`."""
    file = origin.file or _only(origin)
    raw = fitting(origin.tensors(file), _SHAPES, f"{origin.folder / file}")
    weights = {
        "W_enc": raw["encoder_linear.weight"].T,
        "b_enc": raw["encoder_linear.bias"],
        "W_dec": raw["decoder_linear.weight"].T,
        "b_dec": raw["decoder_linear.bias"],
    }
    return origin.build(weights, architecture="standard", metadata=_metadata(file))


def found(origin: Origin) -> list[str]:
    """The pickles of a folder that another layout does not claim."""
    names = (path.name for path in sorted(origin.folder.iterdir()) if path.suffix in (".pth", ".pt"))
    return [name for name in names if name not in ("ae.pt",)]


def _only(origin: Origin) -> str:
    names = found(origin)
    if len(names) != 1:
        raise InputError(
            f"{origin.folder} holds {', '.join(names) or 'no .pth or .pt file'}, expected one: name the file that is "
            "the SAE (part=...)"
        )
    return names[0]


def _metadata(file: str) -> dict[str, Any]:
    match = re.match(r"(Llama-[\d.]+-\d+B-Instruct)-SAE-l(\d+)", file)
    known: dict[str, Any] = {"training_architecture": "standard"}
    if not match:
        return known
    site = f"blocks.{match[2]}.hook_resid_post"
    return known | {"model_name": f"meta-llama/{match[1]}", "hook_name": site, "dataset_path": "lmsys/lmsys-chat-1m"}
