"""`Team`: the processes that train one SAE together, and what they tell each other in a step.

    data          every process has all features and a part of the tokens of each batch
    dictionary    every process has all tokens and a part of the features (a block of rows of encoder and decoder)

Each process computes the loss of the whole batch by the whole dictionary. A sum over tokens or features is therefore
summed over the processes going forward and passed on unchanged going backward: the derivative of the loss by the sum is
the same everywhere, and each owns the terms it contributed. What features read (`read`) goes forward unchanged and is
summed going backward, since every block of features contributes to the derivative of what all of them read (the pair of
operators of Megatron-LM, Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053). Gradients of the parameters are then
summed over the tokens' processes once.

`ALONE`, the team of one, does nothing in any of these: there is one code of a step, for one process and for many.
"""

import functools
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.processes import open_group

Parallel = Literal["data", "dictionary"]
SHARDED = frozenset("encoder W_dec b_enc b_mag r_mag log_threshold silent".split())
"""Tensors of a run that have one row per feature; all others are the same in every process."""


class _Summed(torch.autograd.Function):
    """Sum over processes forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        whole = part.contiguous().clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


class _Read(torch.autograd.Function):
    """Identity forward, sum over processes backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole, group=ctx.group)
        return whole, None


@dataclass(frozen=True)
class Team:
    """A process's place: number `rank` of `size`, and how the work is divided (None: alone)."""

    parallel: Parallel | None = None
    rank: int = 0
    size: int = 1

    def over_tokens(self, part: Tensor) -> Tensor:
        """A sum over tokens, from the sum over this process's tokens."""
        return _Summed.apply(part, None) if self.parallel == "data" else part

    def over_features(self, part: Tensor) -> Tensor:
        """A sum over features, from the sum over this process's features."""
        return _Summed.apply(part, None) if self.parallel == "dictionary" else part

    def over_both(self, part: Tensor) -> Tensor:
        """A sum over tokens and features."""
        return self.over_tokens(self.over_features(part))

    def read(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """What the features of all processes read."""
        return _Read.apply(x, None) if self.parallel == "dictionary" else x

    @torch.no_grad()
    def least(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The least of the processes' values."""
        if self.parallel is not None:
            value = value.clone()
            dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return value

    @torch.no_grad()
    def chosen_per_token(self, scores: Float[Tensor, "n k_here"], k: int) -> Float[Tensor, "n k_here"] | None:
        """1 where a score is among its token's k largest of all processes; None if all are (one process)."""
        if self.parallel != "dictionary":
            return None
        every = torch.cat(self._gathered(scores, k), dim=1)
        return (scores >= every.topk(k, dim=1).values[:, -1:]).to(scores.dtype)

    @torch.no_grad()
    def chosen(self, scores: Float[Tensor, " m"], count: int) -> Float[Tensor, " m"] | None:
        """1 where a score is among the `count` largest of all processes; None if all are (one process)."""
        if self.parallel is None or count == 0:
            return None
        every = torch.cat(self._gathered(scores, count))
        return (scores >= every.topk(count).values[-1]).to(scores.dtype)

    def _gathered(self, scores: Tensor, k: int) -> list[Tensor]:
        """Every process's scores, filled up to k along the last axis with less than any score."""
        filled = scores.new_full((*scores.shape[:-1], k), -torch.inf)
        filled[..., : scores.shape[-1]] = scores
        every = [torch.empty_like(filled) for _ in range(self.size)]
        dist.all_gather(every, filled)
        return every

    @torch.no_grad()
    def sum_gradients(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Add up what the processes' tokens say about every parameter."""
        if self.parallel == "data":
            for parameter in parameters.values():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)

    @torch.no_grad()
    def clip(self, parameters: dict[str, torch.nn.Parameter], largest: float) -> None:
        """Scale the gradient of the whole dictionary to a norm of at most `largest`."""
        if self.parallel != "dictionary":
            torch.nn.utils.clip_grad_norm_(parameters.values(), largest)
            return
        norms = {n: p.grad.norm().square() for n, p in parameters.items() if p.grad is not None}
        own = torch.stack([v for n, v in norms.items() if n in SHARDED]).sum()
        dist.all_reduce(own)
        shared = sum((v for n, v in norms.items() if n not in SHARDED), own.new_zeros(()))
        total = (own + shared).sqrt()
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), largest, total)

    def tokens(self, n: int) -> slice:
        """This process's tokens of a batch of n."""
        return _block(n, self.rank, self.size) if self.parallel == "data" else slice(0, n)

    def features(self, f: int) -> slice:
        """This process's features of f."""
        if self.parallel != "dictionary":
            return slice(0, f)
        if f % self.size:
            raise InputError(
                f"a dictionary of {f} features does not divide into {self.size} processes; take a width that is a "
                f"multiple of {self.size}, or parallel='data'"
            )
        return _block(f, self.rank, self.size)

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a parameter of the whole dictionary."""
        if self.parallel != "dictionary" or name not in SHARDED:
            return whole
        return whole[self.features(len(whole))]

    @torch.no_grad()
    def whole(self, name: str, part: Tensor) -> Tensor:
        """A parameter of the whole dictionary, from every process's part."""
        if self.parallel != "dictionary" or name not in SHARDED:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def agreed(self, number: int) -> int:
        """The sum over the dictionary's processes of a number of features (waits for them)."""
        if self.parallel != "dictionary":
            return number
        total = torch.tensor(number)
        dist.all_reduce(total)
        return int(total)

    def wait(self) -> None:
        """Until every process is here."""
        if self.parallel is not None:
            dist.barrier()


ALONE = Team()


def _block(n: int, rank: int, size: int) -> slice:
    return slice(n * rank // size, n * (rank + 1) // size)


@functools.cache
def team(parallel: Parallel | str | None) -> Team:
    """The team that `torchrun` started this process in; `ALONE` without one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if parallel is None:
        if size > 1:
            raise InputError(
                f"{size} processes were started, but it isn't said what they divide: parallel='data' (the tokens of a "
                "batch) or 'dictionary' (the features)"
            )
        return ALONE
    if parallel not in ("data", "dictionary"):
        raise InputError(f"parallel is one of 'data', 'dictionary', got {parallel!r}")
    if "RANK" not in os.environ:
        raise InputError(
            f"parallel={parallel!r} needs processes: start with `torchrun --nproc-per-node N -m midlens …`"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # "cuda" then means this process's own
    open_group()
    return Team("data" if parallel == "data" else "dictionary", dist.get_rank(), dist.get_world_size())
