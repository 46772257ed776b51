"""Folding an affine edit into the weights of the module whose output it edits: nothing is left to run.

    y = W x + b;   y + β (U (Vᵀ y − c) + δ) = W' x + b'
    W' = W + β U (Vᵀ W)            rank r:  B A  with  B = β U [out r],  A = Vᵀ W [r in]
    b' = b + β (U (Vᵀ b − c) + δ)  a bias is made where the module has none (Llama's o_proj)

Only outputs of one linear map can be folded: `attn_out` and `mlp_out` of families that add them to the stream as they
are, with the scope `all`, since weights know no positions. Refused, with the reason: sites of the residual stream (a
sum of many modules), `attn_out` and `mlp_out` of Gemma 2 and 3 (a norm stands behind the module), edits that are not
affine, other scopes, quantised, offloaded and shared modules.

    copy = fold(model, steering)                 # a changed copy; the model stays as it was
    with folded(model, steering): ...            # in place, put back at the end
    folding = fold_in_place(model, steering);  folding.unfold()

Sums are formed in float64 and rounded once to the weight's precision: in float32 logits agree with the hooks' to
rounding; in bfloat16 a change far below a weight's own rounding is lost, which hooks do not lose. Padding is steered
too, which no real token sees. transformers' Llama, Mistral and Qwen build no bias there when a checkpoint is loaded
again: ship the file of `interp.steering.lora`, or fold after loading. The identity is that of low-rank adapters with a
bias (Hu et al. 2021, "LoRA"); MidSteer's appendix B folds in the same way.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.anatomy import module_at
from interp.errors import InputError
from interp.model import HookedModel
from interp.sites import Point, Site
from interp.steering.edits import AffineEdit
from interp.steering.steering import Steering

_WRITERS = {Point.ATTN_OUT: "o", Point.MLP_OUT: "mlp_post"}


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to a linear map: B A to its matrix [out in], `bias` to its bias."""

    A: Float[Tensor, "r i"]
    B: Float[Tensor, "o r"]
    bias: Float[Tensor, " o"]


@dataclass(eq=False)
class Folding:
    """Weights changed in place, and what stood there before."""

    model: HookedModel
    before: list[tuple[nn.Module, nn.Parameter, nn.Parameter | None]] = field(default_factory=list)

    def unfold(self) -> None:
        """Put the very parameters back that were there before; a second call does nothing."""
        while self.before:
            module, weight, bias = self.before.pop()
            module.weight, module.bias = weight, bias  # pyright: ignore[reportArgumentType]


def fold(model: HookedModel, steering: Steering, *, force: bool = False) -> HookedModel:
    """A copy of the model with the steering in its weights."""
    changes = weight_changes(model, steering, force=force)
    if len(model.board):
        raise InputError(f"{model.name} has hooks (`edited`, a capture): leave their block before copying the model")
    again = HookedModel(copy.deepcopy(model.hf), model.tokenizer, model.anatomy)
    again.name, again.revision, again.preset = model.name, model.revision, model.preset
    apply_changes(again, changes)
    return again


def fold_in_place(model: HookedModel, steering: Steering, *, force: bool = False) -> Folding:
    """Change the model's own weights; the result's `unfold` puts them back."""
    return apply_changes(model, weight_changes(model, steering, force=force))


@contextmanager
def folded(model: HookedModel, steering: Steering, *, force: bool = False) -> Iterator[HookedModel]:
    """The model with the steering in its weights, within this block."""
    folding = fold_in_place(model, steering, force=force)
    try:
        yield model
    finally:
        folding.unfold()


def weight_changes(model: HookedModel, steering: Steering, *, force: bool = False) -> dict[str, LowRank]:
    """By the module's path below the Hugging Face model, what folding adds to it, in float64."""
    steering.check(model, force=force)
    if steering.scope != "all":
        raise InputError(
            f"the scope {steering.scope!r} cannot be folded: weights act on every token. Use hooks, or a "
            "steering of the scope 'all'"
        )
    found = {}
    for site, edit in steering.edits.items():
        if not isinstance(edit, AffineEdit):
            raise InputError(
                f"the edit at {site} is a {type(edit).__name__}: only the low-rank maps of AffineEdit are folded. "
                "Use hooks"
            )
        module, path = writer_of(model, site)
        found[path] = _change(module, edit)
    return found


def _change(module: nn.Module, edit: AffineEdit) -> LowRank:
    w, edit = matrix(module).double(), edit.to(matrix(module).device, torch.float64)
    own: Tensor | None = module.bias  # pyright: ignore[reportAssignmentType]
    read = -edit.c if own is None else edit.V.T @ own.detach().double() - edit.c
    bias = edit.U @ read if edit.delta is None else edit.U @ read + edit.delta
    return LowRank(edit.V.T @ w, edit.beta * edit.U, edit.beta * bias)


def apply_changes(model: HookedModel, changes: Mapping[str, LowRank]) -> Folding:
    """Add low-rank changes to modules of the model, in place; where one is refused, none is made."""
    modules = {path: module_at(model.hf, path) for path in changes}
    for path, module in modules.items():
        require_foldable(model.hf, module, path)
        change, (rows, columns) = changes[path], matrix(module).shape
        if change.A.shape[1] != columns or change.B.shape[0] != rows or len(change.bias) != rows:
            raise InputError(
                f"{path} is {rows} x {columns}, the change is {change.B.shape[0]} x {change.A.shape[1]}: it is of "
                "another model"
            )
    folding = Folding(model)
    for path, module in modules.items():
        folding.before.append((module, module.weight, module.bias))  # pyright: ignore[reportArgumentType]
        _add(module, changes[path])
    return folding


def _add(module: nn.Module, change: LowRank) -> None:
    weight: nn.Parameter = module.weight  # pyright: ignore[reportAssignmentType]
    old: nn.Parameter | None = module.bias  # pyright: ignore[reportAssignmentType]
    a, b, bias = (x.to(weight.device, torch.float64) for x in (change.A, change.B, change.bias))
    added = b @ a
    new = weight.detach().double() + (added if isinstance(module, nn.Linear) else added.T)
    bias = bias if old is None else old.detach().double() + bias
    module.weight = nn.Parameter(new.to(weight.dtype), requires_grad=weight.requires_grad)
    module.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)


def writer_of(model: HookedModel, site: Site) -> tuple[nn.Module, str]:
    """The linear module whose output a site is, and its path below the Hugging Face model."""
    if site.point not in _WRITERS or site.layer is None:
        streams = (Point.EMBED, Point.RESID_PRE, Point.RESID_MID, Point.RESID_POST)
        why = (
            "the residual stream is a sum of what many modules write, so no single weight makes it"
            if site.point in streams
            else "it is no output that one matrix writes to the stream"
        )
        raise InputError(f"{site} cannot be folded: {why}. Fit at attn_out or mlp_out, or use hooks")
    anatomy, name = model.anatomy, _WRITERS[site.point]
    below = getattr(anatomy, name)
    module = anatomy.at(model.hf, site.layer, below)
    out = anatomy.at(model.hf, site.layer, getattr(anatomy, site.point.short))
    if out is not module and not isinstance(out, nn.Dropout):
        raise InputError(
            f"{site} of {anatomy.spec.family} cannot be folded: {type(out).__name__} normalises what {below} gives "
            "before it is added to the stream, and an affine map behind a norm is none in front of it. Use hooks"
        )
    path = next(path for path, one in model.hf.named_modules() if one is module)
    require_foldable(model.hf, module, path)
    return module, path


def matrix(module: nn.Module) -> Float[Tensor, "o i"]:
    """The matrix of a linear module, output first (GPT-2 keeps it input first)."""
    weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
    return weight.detach() if isinstance(module, nn.Linear) else weight.detach().T


def require_foldable(hf: nn.Module, module: nn.Module, path: str) -> None:
    """Refuse what is not a plain linear module of its own."""
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if type(module) not in (nn.Linear, Conv1D) or not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise InputError(
            f"{path} is a {type(module).__module__.split('.')[0]} {type(module).__name__}, quantised or adapted: its "
            "weights cannot take the sum. Load the model unquantised and with adapters merged, or use hooks"
        )
    if weight.is_meta:
        raise InputError(f"{path} is not in memory (offloaded): load the model without offloading, or use hooks")
    holders = {
        name
        for name, one in hf.named_modules(remove_duplicate=False)
        if any(parameter is weight for parameter in one.parameters(recurse=False))
    }
    if len(holders) > 1:
        raise InputError(
            f"the weight of {path} is shared with {', '.join(sorted(holders - {path}))} (tied): folding would "
            "change all of them. Use hooks"
        )
