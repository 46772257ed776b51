"""A foldable steering as a LoRA adapter with a bias, in the files of the PEFT library, and read back without it.

    y = W x + b + B (A x) + h        A = Vᵀ W [r in],  B = β U [out r],  h = β (U (Vᵀ b − c) + δ)

    adapter_config.json          peft_type LORA, r, lora_alpha = r (so that the scaling is 1), lora_bias, target_modules
    adapter_model.safetensors    base_model.model.PATH.lora_A.weight, .lora_B.weight, .lora_B.bias, float32

PEFT's `lora_bias` puts the bias on B: there h is scaled as B is, hence the scaling of 1. PEFT runs it on modules with
and without a bias of their own; it merges the bias into modules that have one. All modules share one r, the largest
rank; smaller ones are filled with zeros. A and h hold the model's own weights, so the adapter fits that model alone:
the safetensors header keeps the steering's provenance and `lora_applied` checks it. What can be written is what can be
folded (`interp.steering.fold`). Logits of PEFT 0.21 on these files agree with the hooks'; programs that know LoRA
without a bias alone cannot use them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.anatomy import module_at
from interp.errors import InputError
from interp.model import HookedModel
from interp.sealing import read_json, write_json
from interp.steering.fold import LowRank, apply_changes, weight_changes
from interp.steering.steering import Steering, refuse_other_model
from interp.tensorfile import read_tensors, write_tensors
from interp.typed import fits

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_B.bias": "bias"}


@dataclass(frozen=True, eq=False)
class Adapter:
    """Changes by module path, and what the steering said of its origin."""

    changes: Mapping[str, LowRank]
    provenance: Mapping[str, Any]


def save_lora(model: HookedModel, steering: Steering, folder: str | Path, *, force: bool = False) -> None:
    """Write the adapter of a steering for this model."""
    folder, changes = Path(folder), weight_changes(model, steering, force=force)
    rank = max(1, *(len(change.A) for change in changes.values()))
    tensors: dict[str, Tensor] = {}
    for path, change in changes.items():
        more = rank - len(change.A)
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = torch.nn.functional.pad(change.A, (0, 0, 0, more)).float()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = torch.nn.functional.pad(change.B, (0, more)).float()
        tensors[f"{_PREFIX}{path}.lora_B.bias"] = change.bias.float()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "lora_bias": True,
        "bias": "none",
        "fan_in_fan_out": not isinstance(module_at(model.hf, next(iter(changes))), torch.nn.Linear),
        "target_modules": list(changes),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, tensors, {"method": steering.method, "provenance": dict(steering.provenance)})
    write_json(folder / CONFIG, config)


def load_lora(folder: str | Path) -> Adapter:
    """Read an adapter of linear modules, ours or another of the plain LoRA kind; other kinds are refused."""
    folder = Path(folder)
    config = read_json(folder / CONFIG, "LoRA adapter")
    scale = _scale(config, folder / CONFIG)
    tensors, facts = read_tensors(folder / TENSORS, "LoRA adapter")
    by_path: dict[str, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        part = next((part for part in _PARTS if name.endswith("." + part)), None)
        if part is None or not name.startswith(_PREFIX):
            raise InputError(f"{folder / TENSORS} holds {name!r}; expected {_PREFIX}PATH.lora_A.weight, lora_B.weight")
        by_path.setdefault(name[len(_PREFIX) : -len(part) - 1], {})[_PARTS[part]] = x.double()
    changes = {}
    for path, parts in by_path.items():
        if missing := {"A", "B"} - set(parts):
            raise InputError(f"{folder / TENSORS} lacks lora_{missing.pop()} of {path}")
        bias = parts.get("bias", parts["B"].new_zeros(parts["B"].shape[:1]))
        a, b = parts["A"], parts["B"]
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or bias.shape != b.shape[:1]:
            raise InputError(
                f"{folder / TENSORS}: the factors of {path} have the shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                "which make no product"
            )
        changes[path] = LowRank(a, scale * b, scale * bias)
    provenance = facts.get("provenance", {}) if isinstance(facts, dict) else {}
    if not isinstance(provenance, dict):
        raise InputError(f"{folder / TENSORS}: the provenance is {provenance!r:.80}, expected an object")
    return Adapter(changes, provenance)


def _scale(config: Any, path: Path) -> float:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"{path} is no LoRA adapter (peft_type {found!r:.40})")
    other = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "use_qalora")
    if used := [name for name in other if config.get(name)]:
        raise InputError(f"{path} uses {', '.join(used)}, which is not read here: expected plain LoRA")
    if config.get("bias", "none") != "none":
        raise InputError(f"{path}: bias={config['bias']!r} retrains the model's own biases; expected 'none'")
    alpha: Any = config.get("lora_alpha")
    rank: Any = config.get("r")
    if not fits(alpha, float) or not fits(rank, int) or rank < 1:
        raise InputError(f"{path} gives no usable r and lora_alpha")
    return float(alpha) / rank


@contextmanager
def lora_applied(model: HookedModel, folder: str | Path, *, force: bool = False) -> Iterator[HookedModel]:
    """The model with an adapter added to its weights, within this block."""
    adapter = load_lora(folder)
    if not force:
        refuse_other_model(adapter.provenance, model)
    known = dict(model.hf.named_modules())
    if unknown := sorted(set(adapter.changes) - set(known)):
        raise InputError(f"the adapter changes {', '.join(unknown)}, which {model.name} does not have")
    folding = apply_changes(model, adapter.changes)
    try:
        yield model
    finally:
        folding.unfold()
