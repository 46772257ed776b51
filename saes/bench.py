"""Training steps timed: the production step beside the dense one that tutorials write, on the same weights.

    production   saes.optimise.step: blocks of pre-activations, sparse decode, gradients of active rows only
    dense        encode all n f, torch.topk, scatter into a dense n f, dense decode, mean squared error, autograd

Both take turns on one set of weights and one fused Adam, so both fit wherever one does; the auxiliary loss is left out
of both. The dense step does less beside its products: it scales, counts and clips nothing, and keeps decoder rows at
norm 1 by a division alone. What a step needs at least, with P parameters:

    products    2 n d f (encode) + 8 n k d (decode, and the gradients of codes, decoder and encoder's active rows)
    traffic     32 P bytes: weights and Adam's two moments read and written, gradients written and read
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from interp.bench.ceilings import Ceilings, matmul_rate, seconds_of
from interp.bench.flops import Product
from interp.bench.measure import free_memory, held_memory, peak_during, spread
from interp.bench.report import Row, make_row
from interp.errors import InputError
from saes.beginning import first_state
from saes.frame import Frame, measure
from saes.memory import memory_of
from saes.optimise import TrainState, refresh, step
from saes.recipe import SELECTING, Compute, TrainConfig, Training

DENSE: tuple[str, ...] = ("topk", "batchtopk")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which step to time."""

    d: int
    """Width of the activations."""
    f: int
    """Features."""
    k: int = 32
    batch: int = 1024
    architecture: Training = "topk"
    compute: Compute = "float32"

    def config(self) -> TrainConfig:
        """As a recipe: no auxiliary loss, and steps so small that what is active stays so."""
        more: dict[str, Any] = {} if self.architecture in SELECTING else {"start_l0": float(self.k)}
        sizes: dict[str, Any] = {"d_sae": self.f, "k": self.k, "batch_size": self.batch}
        return TrainConfig(
            architecture=self.architecture, compute=self.compute, aux_weight=0.0, lr=1e-7, **sizes, **more
        )

    @property
    def parameters(self) -> int:
        """Of an autoencoder."""
        return 2 * self.d * self.f + self.d + self.f

    @property
    def flops(self) -> int:
        """Of the products that a step needs."""
        return 2 * self.batch * self.d * self.f + 8 * self.batch * self.k * self.d

    @property
    def traffic(self) -> int:
        """Bytes that the optimiser reads and writes at least."""
        return 32 * self.parameters

    def dense_bytes(self) -> int:
        """About what the dense step holds: weights, moments, gradients, and five matrices of n f."""
        return 16 * self.parameters + 20 * self.batch * self.f


class _Side(NamedTuple):
    """One contestant: seconds per step of each round, and the most memory of a step."""

    step: Callable[[], object]
    seconds: list[float]
    peak: int | None


def time_steps(
    task: Task,
    *,
    device: torch.device | str = "cpu",
    repeats: int = 3,
    seconds: float = 1.0,
    ceilings: Ceilings | None = None,
    seed: int = 0,
) -> list[Row]:
    """Rows for the production step, the dense step where the architecture has one written here, and their ratio.

    In each of `repeats` rounds either side runs for `seconds`, or one step; `ceilings` give the rate of copies.
    """
    where = torch.device(device)
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    _check_memory(task, where)
    base = held_memory(where)
    x = torch.randn(task.batch, task.d, generator=torch.Generator().manual_seed(seed)).to(where)
    state = new_state(task, x, seed=seed)
    calls: dict[str, Callable[[], object]] = {"production": lambda: step(state, x)}
    if task.architecture in DENSE:
        scaled = state.frame.scaled(x).x
        calls["dense"] = lambda: dense_step(state, scaled)
    sides = {name: _Side(call, [], _peak(call, where, base)) for name, call in calls.items()}
    refresh(state)
    rates = list[float]()
    for turn in range(repeats):
        encode = [Product("encode", task.d, task.f)]
        rates.append(matmul_rate(encode, task.batch, _DTYPES[task.compute], where, seconds / 3))
        for side in list(sides.values())[:: 1 if turn % 2 == 0 else -1]:
            side.seconds.append(seconds_of(side.step, where, seconds))
    return _rows(task, sides, rates, ceilings, where)


def new_state(task: Task, x: Float[Tensor, "n d"], *, seed: int = 0) -> TrainState:
    """A run about to take its first step on `x`, on the device of `x`."""
    config, sample = replace(task.config(), b_dec="mean", seed=seed), x.cpu()
    frame = Frame((measure(sample, massive=10.0),), (task.d,))
    sizes: dict[str, Any] = {"steps": 1000, "batch_size": task.batch}
    return first_state(config, config.shape(task.d), frame, sample, **sizes, device=x.device)


def dense_loss(state: TrainState, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared error of scaled activations by way of a dense matrix of codes."""
    sae, config = state.sae, state.config
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.compute == "bfloat16"):
        pre = functional.linear(state.read(x), sae.encoder, sae.b_enc)
        if config.architecture == "topk":
            best = pre.topk(config.k, dim=1, sorted=False)
            codes = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
        else:
            best = pre.flatten().topk(config.k * len(x), sorted=False)
            codes = torch.zeros_like(pre.flatten()).scatter(0, best.indices, best.values.relu()).view_as(pre)
        return functional.mse_loss((codes @ sae.W_dec + sae.b_dec).float(), x)


def dense_step(state: TrainState, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """One step of the dense way on scaled activations."""
    loss = dense_loss(state, x)
    loss.backward()
    state.adam.step()
    state.adam.zero_grad()
    with torch.no_grad():
        state.sae.W_dec.div_(torch.linalg.vector_norm(state.sae.W_dec, dim=1, keepdim=True))
    return loss.detach()


def _check_memory(task: Task, device: torch.device) -> None:
    config = task.config()
    stated = memory_of(config, config.shape(task.d)).peak
    needed = max(stated, task.dense_bytes()) if task.architecture in DENSE else stated
    free = free_memory(device)
    if free is not None and needed > free:
        raise InputError(
            f"a step of {task.f:,} features at width {task.d:,} in batches of {task.batch:,} takes about "
            f"{needed / 2**30:.1f} GiB (production {stated / 2**30:.1f}), and {free / 2**30:.1f} GiB are free on "
            f"{device}: give fewer features or a smaller batch"
        )


def _peak(call: Callable[[], object], device: torch.device, base: int | None) -> int | None:
    """The most a step holds beyond `base`, weights included; Adam's moments exist after the first."""
    call()
    peak = peak_during(call, device)
    return None if peak is None or base is None else peak - base


def _rows(
    task: Task, sides: dict[str, _Side], rates: list[float], ceilings: Ceilings | None, device: torch.device
) -> list[Row]:
    config, copy = task.config(), None if ceilings is None else ceilings.get("memory_copy")
    shape = f"{task.architecture}, {task.d} x {task.f:,}, k {task.k}, batch {task.batch:,}"
    products = spread([task.flops / rate for rate in rates])["median"]
    traffic = None if copy is None else task.traffic / copy
    facts: dict[str, Any] = {**asdict(task), "device": str(device), "flops": task.flops, "traffic": task.traffic}
    facts |= {"matmul": rates, "seconds_of_products": products, "seconds_of_traffic": traffic}
    kind = "cuda_peak" if device.type == "cuda" else "rss_rise"
    rows = []
    for name, side in sides.items():
        memory = {} if side.peak is None else {kind: side.peak}
        if name == "production":
            memory["stated"] = memory_of(config, config.shape(task.d)).peak
        shares = [task.flops / rate / taken for rate, taken in zip(rates, side.seconds, strict=True)]
        floor = None if traffic is None else (products + traffic) / spread(side.seconds)["median"]
        more = {"share": spread(shares), "share_of_floor": floor, "seconds": side.seconds, "memory": memory}
        limited = "" if traffic is None else "products" if products >= traffic else "optimiser's traffic"
        speed = [task.batch / taken for taken in side.seconds]
        rows.append(
            make_row("sae step", f"{name}, {shape}", "tokens/s", speed, step=name, limited_by=limited, **more, **facts)
        )
    if "dense" in sides:
        ratios = [b / a for a, b in zip(sides["production"].seconds, sides["dense"].seconds, strict=True)]
        rows.append(make_row("sae step", "production over dense", "x", ratios, step="ratio", **facts))
    return rows
