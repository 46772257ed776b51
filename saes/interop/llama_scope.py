"""Llama Scope (https://arxiv.org/abs/2410.20526) and Llamascopium, the library it grew into.

Both train on activations scaled to a mean norm of sqrt(d), s = sqrt(d) / norm, for the read and the written site alone,
and may weigh the selection by decoder norms w_j = |W_dec[j]| (`sparsity_include_decoder_norm`):

    z = s_in x W_enc + b_enc ;   feature j is active where z_j w_j > T, or among the k largest z_j w_j
    y^ = (codes W_dec + b_dec) / s_out

The scales are folded into the weights. JumpReLU codes stay those of the files, with thresholds T / w_j. TopK ranks by
z w, so its codes are multiplied by w and its rows divided by it.

| suite | files | T |
|---|---|---|
| Llama Scope | `hyperparams.json`, `checkpoints/final.safetensors` | theta s_out (theta s_in without w) |
| Llamascopium | `config.json`, `sae_weights.safetensors` | exp(log_jumprelu_threshold) |

Llama Scope's one threshold theta belongs to the form in which its authors run the SAEs: scales folded and rows made
units, where codes are z w / s_out. (So theta s_out is about 2 in every layer, of transcoders too, while theta goes with
the norms: 0.20 x 10.1 in L8R-8x, 0.33 x 5.9 in L15R-32x, 0.75 x 2.2 in L24R-32x, 0.10 x 18.9 in L8TC-8x.) Published
rows need not be units: a mean norm of 1.54 is reported for L15R-8x in
https://github.com/OpenMOSS/Llamascopium/issues/128. SAELens's loader compares z with theta s, without w; for unit rows
that is the same.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.errors import InputError
from saes.config import Architecture
from saes.interop.files import Origin, fitting, setting
from saes.interop.fold import fold_scales, fold_subtraction
from saes.sae import SAE, fold_decoder_norm

HYPERPARAMS, FINAL = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm"
_ACTIVATIONS: dict[str, Architecture] = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}
# from Llamascopium's names to those of its predecessors, which are torch's
_LINEAR = {"encoder.weight": "f d", "encoder.bias": "f", "decoder.weight": "out f", "decoder.bias": "out"}
_PLAIN = {"W_E": "d f", "b_E": "f", "W_D": "f out", "b_D": "out"}


class _Scales(NamedTuple):
    read: float
    written: float


def read_llama_scope(origin: Origin) -> SAE:
    """Read a folder of the published suite."""
    where = f"{origin.folder / HYPERPARAMS}"
    about = origin.json(HYPERPARAMS)
    d, f = setting(about, "d_model", int, where), setting(about, "d_sae", int, where)
    file = origin.weights(FINAL)
    weights = _weights(origin.tensors(file), f"{origin.folder / file}", d, f)
    norms = {} if about.get(_NORM) is None else setting(about, _NORM, dict, where)
    scales = _scales(about, norms.get("in"), norms.get("out", norms.get("in")), d, where)
    if about.get("act_fn") == "topk" and about.get("jump_relu_threshold"):
        about = about | {"act_fn": "jumprelu"}  # trained as TopK, published with the threshold that replaces it
    threshold = None
    if about.get("act_fn") == "jumprelu":
        theta = setting(about, "jump_relu_threshold", (float, int), where)
        weighed = about.get("sparsity_include_decoder_norm", True)
        threshold = torch.full((f,), float(theta) * (scales.written if weighed else scales.read))
    about = about | {"training_architecture": "topk"}  # the suite's recipe, whatever its files say now
    return _build(origin, about, weights, scales, threshold, where)


def read_llamascopium(origin: Origin) -> SAE:
    """Read a folder written by the library (`save_pretrained` and the config beside it)."""
    where = f"{origin.folder / CONFIG}"
    about = origin.json(CONFIG)
    if (kind := about.get("sae_type", "sae")) != "sae":
        raise InputError(f"{where}: sae_type is {kind!r}; only 'sae' (one site read, one written) can be loaded")
    file = origin.weights(WEIGHTS)
    tensors = origin.tensors(file)
    d = setting(about, "d_model", int, where)
    f = int(d * setting(about, "expansion_factor", (int, float), where))
    if long := [name for name, tensor in tensors.items() if name.startswith(_NORM) and tensor.numel() != 1]:
        raise InputError(f"{origin.folder / file}: {long[0]} has the shape {tuple(tensors[long[0]].shape)}, not one")
    norms = {
        name.removeprefix(f"{_NORM}."): tensors.pop(name).item() for name in list(tensors) if name.startswith(_NORM)
    }
    name = next((name for name in tensors if name.endswith("log_jumprelu_threshold")), None)
    threshold = tensors.pop(name).float().exp() if name else None
    if about.get("act_fn") == "jumprelu" and (threshold is None or threshold.shape != (f,)):
        raise InputError(f"{origin.folder / file} holds no log_jumprelu_threshold of length {f}, which jumprelu needs")
    weights = _weights(tensors, f"{origin.folder / file}", d, f)
    read, written = (norms.get(str(about.get(name))) for name in ("hook_point_in", "hook_point_out"))
    return _build(origin, about, weights, _scales(about, read, written, d, where), threshold, where)


def _weights(tensors: dict[str, Tensor], where: str, d: int, f: int) -> dict[str, Tensor]:
    """The four tensors under SAELens's names, whichever of the two spellings the file has; without a bias, zeros."""
    linear = any(name.startswith(("encoder.", "decoder.")) for name in tensors)
    names = _LINEAR if linear else _PLAIN
    bias = "decoder.bias" if linear else "b_D"
    shapes = {f"{name}?" if name == bias else name: letters for name, letters in names.items()}
    raw = fitting(tensors, shapes, where, d=d, f=f)
    W_enc, b_enc, W_dec = (raw.pop(name) for name in list(names)[:3])
    if linear:
        W_enc, W_dec = W_enc.T, W_dec.T.contiguous()  # the norms of a transposed view take longer than a copy
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": raw.get(bias, torch.zeros(W_dec.shape[1]))}


def _scales(about: dict[str, Any], read: Any, written: Any, d: int, where: str) -> _Scales:
    """s_in and s_out; norms per token or batch make no affine map of the input and are refused."""
    match about.get("norm_activation"):
        case "inference":
            return _Scales(1.0, 1.0)
        case "dataset-wise":
            for name, norm in (("in", read), ("out", written)):
                if not isinstance(norm, float | int) or not math.isfinite(norm) or norm <= 0:
                    raise InputError(f"{where}: the average activation norm '{name}' is {norm!r}, expected one above 0")
            return _Scales(math.sqrt(d) / read, math.sqrt(d) / written)
        case other:
            raise InputError(
                f"{where}: norm_activation is {other!r}; only 'dataset-wise' and 'inference' can be loaded, the others "
                "divide by the norm of each token or batch, which is no property of the SAE"
            )


def _build(
    origin: Origin,
    about: dict[str, Any],
    weights: dict[str, Tensor],
    scales: _Scales,
    threshold: Tensor | None,
    where: str,
) -> SAE:
    """Fold everything; `threshold` is T of the module's docstring."""
    if about.get("use_glu_encoder"):
        raise InputError(f"{where}: use_glu_encoder is set; an encoder with a second, multiplied half is not supported")
    if (act := about.get("act_fn")) not in list(_ACTIVATIONS):
        raise InputError(
            f"{where}: act_fn is {act!r:.80}, only {', '.join(_ACTIVATIONS)} can be loaded (a batchtopk SAE needs a "
            "threshold for single tokens: convert it to jumprelu first)"
        )
    architecture = _ACTIVATIONS[act]
    if about.get("apply_decoder_bias_to_pre_encoder"):
        weights = fold_subtraction(weights, weights["b_dec"])
    weighed = about.get("sparsity_include_decoder_norm", True)
    if architecture == "topk" and weighed:
        weights = fold_decoder_norm(weights)
    if architecture == "jumprelu" and threshold is not None:
        norm = weights["W_dec"].norm(dim=1)  # a row of zeros has a score of 0: it is never active
        never = torch.full_like(threshold, torch.finfo(threshold.dtype).max)
        weights["threshold"] = torch.where(norm > 0, threshold / norm, never) if weighed else threshold
    reads, writes = about.get("hook_point_in"), about.get("hook_point_out")
    transcoder = bool(writes) and writes != reads
    metadata = {"model_name": _model(origin.name), "hook_name": reads, "prepend_bos": True, "context_size": 1024}
    metadata |= {"training_architecture": about.get("training_architecture", act)}
    return origin.build(
        fold_scales(weights, s_in=scales.read, s_out=scales.written),
        architecture=architecture,
        k=setting(about, "top_k", int, where) if architecture == "topk" else None,
        metadata=metadata | ({"hook_name_out": writes} if transcoder else {}),
        transcoder=transcoder,
    )


def _model(name: str) -> str | None:
    """The model, where the suite's name tells it."""
    return "meta-llama/Llama-3.1-8B" if "Llama3_1-8B-Base" in name else None
