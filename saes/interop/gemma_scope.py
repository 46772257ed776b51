"""Gemma Scope (https://arxiv.org/abs/2408.05147): `params.npz` alone; model, site and layer are in its path.

    google/gemma-scope-9b-it-res:layer_20/width_131k/average_l0_81/params.npz

    z = x W_enc + b_enc ;    codes = z where z > threshold ;    x^ = codes W_dec + b_dec

The biases are those of raw activations; nothing is subtracted before encoding. Sites: `res` is the residual stream
after a block, `mlp` the MLP's output after its post-norm, `att` the heads' outputs before W_O side by side. Transcoders
read the normalised stream before the MLP and write the MLP's output. The SAEs of the embedding are refused: sources
disagree on whether they read it before or after Gemma's factor sqrt(d).
"""

import re
from typing import Any

from interp.errors import InputError
from saes.interop.files import Origin, fitting
from saes.sae import SAE

FILE = "params.npz"
_SHAPES = {"W_enc": "d f", "W_dec": "f out", "b_enc": "f", "b_dec": "out", "threshold": "f"}


def read(origin: Origin) -> SAE:
    """Read `params.npz`; transcoders are told by their path."""
    own = origin.name.replace(":", "/").split("/")[-4:]  # what lies above says nothing about the SAE
    if "embedding" in own:
        raise InputError(
            f"{origin.name}: Gemma Scope's SAEs of the embedding are not supported, since it is not settled whether "
            "they read the embedding before or after Gemma's factor sqrt(d)"
        )
    metadata = _metadata(origin.name)
    transcoder = "hook_name_out" in metadata or bool({"transcoder", "transcoders"} & set(own))
    file = origin.weights(FILE)
    weights = fitting(origin.tensors(file), _SHAPES, f"{origin.folder / file}")
    if not transcoder and weights["W_enc"].shape[0] != weights["W_dec"].shape[1]:
        raise InputError(
            f"{origin.folder / file} reads width {weights['W_enc'].shape[0]} and writes {weights['W_dec'].shape[1]}: "
            "a transcoder, which is told by its path: give its path in the suite, or put it into a folder `transcoders`"
        )
    return origin.build(weights, architecture="jumprelu", metadata=metadata, transcoder=transcoder)


def _metadata(name: str) -> dict[str, Any]:
    """What the path says; a copy under another name loses it, and then so does the SAE."""
    model = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders(?![^/:]))", name)
    layer = re.search(r"layer_(\d+)/", name + "/")
    known: dict[str, Any] = {"training_architecture": "jumprelu", "context_size": 1024, "prepend_bos": True}
    if model:
        tuned = "-it" if model[2] == "it" else ""
        known["model_name"] = f"google/gemma-2-{model[1]}{tuned}"
    if not model or not layer:
        return known
    block = f"blocks.{layer[1]}"
    sites = {
        "res": {"hook_name": f"{block}.hook_resid_post"},
        "mlp": {"hook_name": f"{block}.hook_mlp_out"},
        "att": {"hook_name": f"{block}.attn.hook_z"},
        "transcoders": {"hook_name": f"{block}.ln2.hook_normalized", "hook_name_out": f"{block}.hook_mlp_out"},
    }
    return known | sites[model[3]]
