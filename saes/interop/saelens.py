"""SAELens: its folders of every age (`cfg.json`, `sae_weights.safetensors`), and live SAEs of it.

Version 6, finished: `SAE.load`. Two more kinds of folder are read here:

- version 6, still in training. The settings of training go to the metadata. BatchTopK and Matryoshka SAEs become
  `jumprelu` with a constant threshold, as when SAELens saves them for inference: rows are made units first where the
  selection is weighed by their norms.
- before version 6. Old names (`hook_point`, `activation_fn_str`, `activation_fn_kwargs.k`), `log_threshold`, and a
  `scaling_factor` per feature, which multiplied the codes when decoding and goes into the decoder's rows.

What scales or reshapes each token by something not in the files (`layer_norm`, an average norm that was never folded)
is refused.
"""

from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from saes.cfg_json import check_types, from_cfg, major_version, to_cfg
from saes.config import Architecture
from saes.interop.files import Origin, fitting, setting
from saes.sae import CFG, SAE, WEIGHTS, checked, fold_decoder_norm

_BATCH = ("batchtopk", "matryoshka_batchtopk")
_TRAINING = {
    "aux_loss_coefficient", "decoder_init_norm", "jumprelu_bandwidth", "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input", "jumprelu_tanh_scale", "l0_coefficient",
    "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "matryoshka_widths",
    "pre_act_loss_coefficient", "target_l0", "topk_threshold_lr", "use_matryoshka_aux_loss", "use_sparse_activations",
}  # fmt: skip
_PLAIN = {"W_enc": "d f", "b_enc": "f", "W_dec": "f d", "b_dec": "d"}
_GATED = {"W_enc": "d f", "W_dec": "f d", "b_dec": "d", "b_gate": "f", "b_mag": "f", "r_mag": "f"}
_SCALINGS = {"scaling_factor?": "f", "finetuning_scaling_factor?": "f"}
_OLD_SHAPES: dict[Architecture, dict[str, str]] = {
    "standard": _PLAIN,
    "topk": _PLAIN,
    "jumprelu": _PLAIN | {"threshold?": "f", "log_threshold?": "f"},
    "gated": _GATED,
}
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_OLD_METADATA = ("model_name", "hook_name", "hook_head_index", "context_size", "prepend_bos", "dataset_path")


def read(origin: Origin) -> SAE:
    """Read a folder of any version."""
    cfg, where = origin.json(CFG), f"{origin.folder / CFG}"
    check_types(cfg, where, ("metadata",))
    version = (cfg.get("metadata") or {}).get("sae_lens_version") or cfg.get("sae_lens_version") or "0"
    if major_version(version, where) < 6:
        return _read_old(origin, cfg)
    check_types(cfg, where, ("architecture", "rescale_acts_by_decoder_norm"))
    if cfg.get("architecture") in _BATCH or _TRAINING & cfg.keys():
        return _read_training(origin, cfg)
    config, file = from_cfg(cfg, where), origin.weights(WEIGHTS)
    weights = checked(origin.tensors(file), config, f"{origin.folder / file}")
    if cfg.get("rescale_acts_by_decoder_norm"):
        weights = fold_decoder_norm(weights)
    return SAE.of_weights(config, **weights)


def _read_training(origin: Origin, cfg: dict[str, Any]) -> SAE:
    where, batch = f"{origin.folder / CFG}", cfg.get("architecture") in _BATCH
    settings = {name: cfg[name] for name in sorted(_TRAINING & cfg.keys())}
    settings |= {"training_architecture": cfg.get("architecture")} | ({"k": cfg.get("k")} if batch else {})
    rest = {name: value for name, value in cfg.items() if name not in _TRAINING}
    rest["metadata"] = (cfg.get("metadata") or {}) | settings
    file = origin.weights(WEIGHTS)
    weights, threshold = origin.tensors(file), 0.0
    if batch:
        if "topk_threshold" not in weights or weights["topk_threshold"].numel() != 1:
            raise InputError(f"{origin.folder / file} holds no topk_threshold, which {cfg['architecture']} needs")
        threshold = weights.pop("topk_threshold").item()
        rest = {name: value for name, value in rest.items() if name != "k"} | {"architecture": "jumprelu"}
    config = from_cfg(rest, where)
    if cfg.get("rescale_acts_by_decoder_norm"):
        fitting(weights, _PLAIN, f"{origin.folder / file}", d=config.d_in, f=config.d_sae)
        weights = fold_decoder_norm(weights)
    if batch and "b_enc" in weights:  # as long as the tensor that is there: the config's number is not yet checked
        weights["threshold"] = torch.full_like(weights["b_enc"], threshold)
    return SAE.of_weights(config, **checked(weights, config, f"{origin.folder / file}"))


def _read_old(origin: Origin, cfg: dict[str, Any]) -> SAE:
    where = f"{origin.folder / CFG}"
    cfg = {_RENAMED.get(name, name): value for name, value in cfg.items() if value is not None}
    check_types(cfg, where, ("architecture", "d_in", "d_sae", "apply_b_dec_to_input"))
    architecture, k = _old_architecture(cfg, where)
    if (scale := cfg.get("normalize_activations") or "none") != "none":
        raise InputError(
            f"{where}: normalize_activations is {scale!r}: inputs were scaled by something the files do not hold; "
            "load it with sae_lens, fold the scale into its weights and save it again"
        )
    shapes, sizes = _OLD_SHAPES[architecture] | _SCALINGS, {"d": cfg.get("d_in"), "f": cfg.get("d_sae")}
    file = origin.weights(WEIGHTS)
    weights = fitting(origin.tensors(file), shapes, f"{origin.folder / file}", **sizes)
    weights = _rescaled(weights, cfg, where)
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    if architecture == "jumprelu" and "threshold" not in weights:
        raise InputError(f"{origin.folder / file} holds neither threshold nor log_threshold, which jumprelu needs")
    metadata = {name: cfg.get(name) for name in _OLD_METADATA}
    return origin.build(
        weights,
        architecture=architecture,
        k=k,
        metadata=metadata | {"sae_lens_training_version": cfg.get("sae_lens_training_version")},
        subtract=cfg.get("apply_b_dec_to_input", True),
    )


def _old_architecture(cfg: dict[str, Any], where: str) -> tuple[Architecture, int | None]:
    """Before version 6, TopK was an activation function of a standard SAE."""
    name, activation = cfg.get("architecture") or "standard", cfg.get("activation_fn") or "relu"
    more = cfg.get("activation_fn_kwargs")
    if name == "standard" and activation == "topk" and isinstance(more, dict) and more.get("k") is not None:
        return "topk", setting(more, "k", int, f"{where}, activation_fn_kwargs")
    if name not in _OLD_SHAPES or name == "topk" or activation != "relu":
        raise InputError(
            f"{where}: architecture {name!r:.80} with activation_fn {activation!r:.80} cannot be loaded; known from "
            "before version 6 are standard, gated and jumprelu with relu, and standard with topk"
        )
    return name, None


def _rescaled(weights: dict[str, Tensor], cfg: dict[str, Any], where: str) -> dict[str, Tensor]:
    """Decoder rows times the finetuned factor of each feature; a factor that no setting asks for must be 1."""
    kept = {name: tensor for name, tensor in weights.items() if f"{name}?" not in _SCALINGS}
    for factor in (tensor for name, tensor in weights.items() if f"{name}?" in _SCALINGS):
        if not cfg.get("finetuning_scaling_factor") and not torch.allclose(factor, torch.ones_like(factor)):
            raise InputError(f"{where}: the weights hold a scaling_factor, but finetuning_scaling_factor is not set")
        kept["W_dec"] = kept["W_dec"] * factor[:, None]
    return kept


def to_saelens(sae: SAE) -> Any:
    """The same SAE as a live object of `sae_lens`, on the same device, with copies of the weights."""
    config = sae.config
    if config.sources:
        raise InputError("sae_lens has no crosscoders: of this one only the folder (save) can be handed on")
    if config.is_transcoder and config.architecture not in ("standard", "jumprelu"):
        raise InputError(
            f"sae_lens has no {config.architecture} transcoder, only ReLU and JumpReLU ones; a {config.architecture} "
            "transcoder can be saved and loaded here"
        )
    try:
        import sae_lens
    except ModuleNotFoundError as error:
        raise InputError(f"to_saelens needs {error.name}, which is not installed: pip install sae-lens") from None
    cfg = to_cfg(config) | {"device": str(sae.W_dec.device)}
    settings = sae_lens.SAE.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict(cfg)
    kind: Any = sae_lens.SAE.get_sae_class_for_architecture(cfg["architecture"])
    theirs = kind(settings)
    theirs.load_state_dict({name: tensor.detach().clone() for name, tensor in sae.weights().items()})
    return theirs
