"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder per hookpoint, the run's `config.json` above.

    z = relu((x - b_dec) encoder.weight^T + encoder.bias)         (a transcoder subtracts nothing)
    codes = the k largest z ;      y^ = codes W_dec + b_dec (+ x W_skip^T)

`encoder.weight` and `W_dec` both have features as rows. `normalize_decoder` was a rule of training and `multi_topk` a
second loss; neither changes what an SAE computes. An SAE with a skip connection subtracts its bias before encoding but
not before the skip; the subtraction goes into the encoder's bias. `groupmax` (one feature per group) and the older
`signed` (largest by size) select otherwise and are refused.
"""

import re
from typing import Any

from interp.errors import InputError
from saes.interop.files import Origin, fitting, setting
from saes.interop.fold import fold_subtraction
from saes.sae import SAE

CONFIG, FILE = "cfg.json", "sae.safetensors"
_SHAPES = {"encoder.weight": "f d", "encoder.bias": "f", "W_dec": "f d", "b_dec": "d", "W_skip?": "d d"}
_KNOWN = {
    "activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection",
    "transcode", "d_in", "signed",
}  # fmt: skip

_OUTPUTS = {None: "hook_resid_post", "mlp": "hook_mlp_out"} | dict.fromkeys(
    ("attn", "attention", "self_attn"), "hook_attn_out"
)


def read(origin: Origin) -> SAE:
    """Read one hookpoint's folder."""
    where, about = f"{origin.folder / CONFIG}", origin.json(CONFIG)
    if unknown := sorted(about.keys() - _KNOWN):
        raise InputError(f"{where} has unknown keys: {', '.join(unknown)}; they may change what the SAE computes")
    if (activation := about.get("activation", "topk")) != "topk":
        raise InputError(f"{where}: activation is {activation!r}; only 'topk' can be loaded")
    if about.get("signed"):
        raise InputError(
            f"{where}: signed TopK keeps the largest activations by size, negative ones too; not supported"
        )
    d, k = setting(about, "d_in", int, where), setting(about, "k", int, where)
    size, own = ("num_latents", 1) if about.get("num_latents") else ("expansion_factor", d)
    f = own * setting(about, size, int, where)
    file = origin.weights(FILE)
    raw = fitting(origin.tensors(file), _SHAPES, f"{origin.folder / file}", d=d, f=f)
    weights = {"W_enc": raw["encoder.weight"].T, "b_enc": raw["encoder.bias"]} | {
        name: raw[name] for name in ("W_dec", "b_dec", "W_skip") if name in raw
    }
    if (said := bool(about.get("skip_connection"))) != ("W_skip" in weights):
        raise InputError(f"{where}: skip_connection is {said}, but {file} {'lacks' if said else 'holds'} a W_skip")
    transcoder = bool(about.get("transcode"))
    if "W_skip" in weights and not transcoder:
        weights = fold_subtraction(weights, weights["b_dec"])
    return origin.build(
        weights,
        architecture="topk",
        k=k,
        metadata=_metadata(origin, transcoder=transcoder, skip="W_skip" in weights),
        transcoder=transcoder,
        subtract=not transcoder and "W_skip" not in weights,
    )


def _metadata(origin: Origin, *, transcoder: bool, skip: bool) -> dict[str, Any]:
    """Model and corpus from the run's config, the site from the folder's name, a module path below the base model."""
    parent = origin.folder.parent / "config.json"
    run = Origin(parent.parent, origin.name).json(parent.name) if parent.is_file() else {}
    module, model = origin.folder.name, run.get("model")
    known = {"model_name": model, "dataset_path": run.get("dataset"), "context_size": run.get("ctx_len")}
    known |= {"training_architecture": "topk", "hf_hook_name": module}
    site = _site(module, str(model or ""))
    # an MLP's input is a norm's output with the norm's weight, which no TransformerLens hook shows
    written = {"hf_hook_name_out": module, "hook_name_out": site}
    return known | (written if transcoder else {"hook_name": site} | (written if skip else {}))


def _site(module: str, model: str) -> str | None:
    """TransformerLens's name of a module's output; none where a post-norm of Gemma 2 and 3 would come in between."""
    match = re.fullmatch(r"(?:\w+\.)*?(?:layers|h|blocks)\.(\d+)(?:\.(mlp|attn|attention|self_attn))?", module)
    if not match or (match[2] and "gemma" in model.lower()):
        return None
    return f"blocks.{match[1]}.{_OUTPUTS[match[2]]}"
