"""Models whose layers are cut across processes (tensor parallelism): sites show and take whole tensors all the same.

    torchrun --nproc-per-node 2 script.py
    model = HookedModel.load(name, tp_plan="auto")          every process has 1/n of q, k, v, o and of the MLP
    model.capture(...), model.edited(...), model.generate(...)      made by every process alike, with the same result
    store = together(model, lambda leader: extract(leader, tokens, sites, out))     one writes, all compute

transformers cuts q, k, v and the first MLP matrices by outputs and the others by inputs, so a process holds a slice of
the last axis of q, k, v, z, mlp_pre, mlp_pre_linear and mlp_post, and the whole of all else. Reading such a site
gathers, writing takes the own slice; with x_r the slice of process r (of ⌈width / n⌉ entries, the last ones shorter):

    gather   x = [x_0 ... x_{n-1}],   ∂/∂x_r = slice r of ∂/∂x         slice   x_r,   ∂/∂x = [∂/∂x_0 ... ∂/∂x_{n-1}]

These are the conjugate pair of Megatron-LM (Shoeybi et al. 2019, section 3), for losses that every process computes
alike. Whether a tensor is a slice is told by its width, and by its module's weights being DTensors.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from interp.errors import InputError
from interp.sites import Site

Work = TypeVar("Work")
_WHOLE_STYLES = {
    "colwise", "rowwise", "colwise_rep", "rowwise_rep", "colwise_gather_output", "rowwise_split_input",
    "embedding_rowwise", "embedding_colwise", "replicated_with_grad_allreduce", "replicate",
}  # fmt: skip


def group_of(module: nn.Module) -> Any:
    """The processes that a module's weights are cut across; `None` if they are whole."""
    weight: Any = getattr(module, "weight", None)
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        return None
    return mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")


def check_plan(hf: nn.Module) -> None:
    """Refuse a plan under which tensors other than those above are slices, such as sequence parallelism."""
    plan = getattr(hf, "tp_plan", None) if any(group_of(module) is not None for module in hf.modules()) else None
    if odd := sorted(set((plan or {}).values()) - _WHOLE_STYLES):
        raise InputError(
            f"the model is cut in the styles {', '.join(odd)}, under which sites would show slices; expected only "
            f"{', '.join(sorted(_WHOLE_STYLES))}"
        )


def gathered(x: Tensor, width: int, module: nn.Module) -> Tensor:
    """The whole of `x`, whose last axis is `width` long in the whole model; `x` itself if it is not cut."""
    group = None if x.shape[-1] == width else group_of(module)
    return x if group is None else _Gather.apply(x, width, group)


def sliced(x: Tensor, like: Tensor, module: nn.Module) -> Tensor:
    """This process's slice of a whole tensor, to stand in the place of `like`."""
    group = None if x.shape[-1] == like.shape[-1] else group_of(module)
    return x if group is None else _Slice.apply(x, group)


def _bounds(width: int, group: Any) -> tuple[int, int]:
    """Start and length of this process's slice, as `torch.chunk` cuts."""
    chunk = -(-width // dist.get_world_size(group))
    start = min(width, chunk * dist.get_rank(group))
    return start, min(chunk, width - start)


def _join(x: Tensor, width: int, group: Any) -> Tensor:
    n = dist.get_world_size(group)
    chunk = -(-width // n)
    padded = torch.nn.functional.pad(x, (0, chunk - x.shape[-1])).contiguous()
    parts = [torch.empty_like(padded) for _ in range(n)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts, -1)[..., :width]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int, group: Any) -> Tensor:
        ctx.bounds = _bounds(width, group)
        return _join(x, width, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].narrow(-1, *ctx.bounds), None, None


class _Slice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.width, ctx.group = x.shape[-1], group
        return x.narrow(-1, *_bounds(ctx.width, group)).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _join(grads[0], ctx.width, ctx.group), None


class Leader:
    """The model in the process that decides what runs; every capture of it runs in the other processes too."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def capture(self, tokens: Tensor, sites: Any, **options: Any) -> dict[Site, Tensor]:
        """`HookedModel.capture`, in all processes."""
        options = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in options.items()}
        dist.broadcast_object_list([(tokens.cpu(), [str(site) for site in sites], options)], src=0)
        return self._model.capture(tokens, sites, **options)


def first_process() -> bool:
    """Whether this process is the one that speaks and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def together(model: Any, work: Callable[[Any], Work]) -> Work | None:
    """`work(model)` in the first process; the others compute what it captures until it is done, and get None.

    For what writes files, such as `extract`. An error of the first process is one of the others too; if another process
    fails, torchrun ends them all.
    """
    if not dist.is_initialized():
        return work(model)
    if first_process():
        well = False
        try:
            done = work(Leader(model))
            well = True
        finally:
            dist.broadcast_object_list([well], src=0)
        return done
    while True:
        asked: list[Any] = [None]
        dist.broadcast_object_list(asked, src=0)
        if asked[0] is False:
            raise InputError("the first of the processes that share the model failed; see what it says")
        if asked[0] is True:
            return None
        tokens, sites, options = asked[0]
        with torch.inference_mode():
            model.capture(tokens, sites, **options)
