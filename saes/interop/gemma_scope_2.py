"""Gemma Scope 2, on Gemma 3: `config.json` and `params.safetensors`, SAEs and single-layer transcoders.

    z = x w_enc + b_enc ;    codes = z where z > threshold ;    y^ = codes w_dec + b_dec (+ x affine_skip_connection)

`w_enc` is `d f`, `w_dec` is `f d`, the affine map `d_in d_out`; nothing is subtracted before encoding. The config names
the tensors read and written as Hugging Face modules. Cross-layer transcoders and crosscoders read or write several
layers and are refused.
"""

import re
from typing import Any

from interp.errors import InputError
from saes.interop.files import Origin, fitting, setting
from saes.sae import SAE

CONFIG, FILE = "config.json", "params.safetensors"
_SHAPES = {"w_enc": "d f", "w_dec": "f out", "b_enc": "f", "b_dec": "out", "threshold": "f"}
_SITES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}


def read(origin: Origin) -> SAE:
    """Read one SAE or transcoder; a folder without config (some were published so) is taken for an SAE."""
    about = origin.json(CONFIG) if (origin.folder / CONFIG).is_file() else {}
    where = f"{origin.folder / CONFIG}"
    kind, architecture = about.get("type", "sae"), about.get("architecture", "jump_relu")
    if kind not in ("sae", "transcoder"):
        raise InputError(f"{where}: type is {kind!r:.80}; only 'sae' and 'transcoder', of one layer, can be loaded")
    if architecture != "jump_relu":
        raise InputError(f"{where}: architecture is {architecture!r:.80}, expected 'jump_relu'")
    width = None if about.get("width") is None else setting(about, "width", int, where)
    affine = bool(about.get("affine_connection"))
    shapes = _SHAPES | ({"affine_skip_connection": "d out"} if affine else {})
    file = origin.weights(FILE)
    raw = fitting(origin.tensors(file), shapes, f"{origin.folder / file}", f=width)
    weights = {"W_enc": raw["w_enc"], "W_dec": raw["w_dec"]} | {n: raw[n] for n in ("b_enc", "b_dec", "threshold")}
    if affine:
        weights["W_skip"] = raw["affine_skip_connection"].T
    transcoder = kind == "transcoder"
    return origin.build(
        weights, architecture="jumprelu", metadata=_metadata(about, transcoder=transcoder), transcoder=transcoder
    )


def _metadata(about: dict[str, Any], *, transcoder: bool) -> dict[str, Any]:
    reads, writes = about.get("hf_hook_point_in"), about.get("hf_hook_point_out")
    known = {"training_architecture": "jumprelu", "context_size": 1024, "prepend_bos": True}
    known |= {"model_name": about.get("model_name"), "hf_hook_name": reads, "hook_name": _site(reads)}
    return known | ({"hf_hook_name_out": writes, "hook_name_out": _site(writes)} if transcoder else {})


def _site(module: Any) -> str | None:
    """TransformerLens's name; none for an MLP's input: the norm's output times its weight has no name there."""
    known = r"model\.(?:language_model\.)?layers\.(\d+)\.(.+)"
    match = re.fullmatch(known, module) if isinstance(module, str) else None
    point = _SITES.get(match[2]) if match else None
    return f"blocks.{match[1]}.{point}" if match and point else None
