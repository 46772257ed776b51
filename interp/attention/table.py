"""One row per head of a model: what its weight kernel M = W_Q W_K^T is, and how far that is from chance.

    kernel_rows(model)          # [{"layer": 0, "head": 0, "routing_fraction": ..., "z_routing_r90": ...}, ...]
    kernel_eigenvalues(model)   # of M, complex, layers x heads x min(d, e)

Columns of a row:

    layer, head, group          which head, and whose keys it reads
    energy ... rotation_share   every `HeadMetrics` field
    routing_<rank>, filtering_<rank>            every `Ranks` field; a plane of routing counts 2
    capacity                    the highest rank a part can have: 2e, or the dimensions there are if they are fewer
    null_<name>, z_<name>       mean over `draws` heads of the same singular values in random orientation, and how many
                                of their standard deviations the head is away (`interp.attention.nulls`)
    gaussian_<name>, gaussian_z_<name>          the same against heads of random numbers, one null for a shape

A z-score is NaN where the draws do not differ. A zero head has energies and ranks 0, and NaN for ratios and scores. A
row depends on the model, the conventions, `draws` and `seed`, not on which other layers are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from interp.attention.bilinear import Bilinear
from interp.attention.heads import Kernel, kernel, kernel_shape
from interp.attention.metrics import directionality
from interp.attention.nulls import Null, gaussian_null, matched_null, measures
from interp.attention.threads import one_thread
from interp.model import HookedModel
from interp.progress import bar


def kernel_rows(
    model: HookedModel | nn.Module,
    *,
    layers: Sequence[int] | None = None,
    fold_norm: bool = True,
    biases: bool = False,
    draws: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row per head; `draws=0` leaves the nulls out."""
    shape = kernel_shape(model)
    chosen = range(shape.layers) if layers is None else layers
    rows: list[dict[str, Any]] = []
    with bar(len(chosen) * shape.heads, "kernels", unit="head", show=None if progress else False) as shown:
        for layer in chosen:
            found = kernel(model, layer, fold_norm=fold_norm, biases=biases)
            columns = kernel_columns(found, draws=draws, seed=seed, measured=shown.update)
            listed = {name: column.tolist() for name, column in columns.items()}
            for h in range(shape.heads):
                place = {"layer": layer, "head": h, "group": h // (shape.heads // shape.groups)}
                rows.append(place | {name: listed[name][h] for name in listed})
    return rows


def kernel_eigenvalues(
    model: HookedModel | nn.Module,
    *,
    layers: Sequence[int] | None = None,
    fold_norm: bool = True,
    biases: bool = False,
    progress: bool = True,
) -> Complex[Tensor, "l h e"]:
    """The min(d, e) eigenvalues of every M that need not be zero, in no order."""
    shape = kernel_shape(model)
    chosen = range(shape.layers) if layers is None else layers
    found: list[Tensor] = []
    with bar(len(chosen) * shape.heads, "eigenvalues", unit="head", show=None if progress else False) as shown:
        for layer in chosen:
            with one_thread():
                found.append(kernel(model, layer, fold_norm=fold_norm, biases=biases).bilinear.eigenvalues())
            shown.update(shape.heads)
    return torch.stack(found)


def kernel_columns(
    kernel: Kernel, *, draws: int = 20, seed: int = 0, measured: Callable[[int], object] | None = None
) -> dict[str, Tensor]:
    """All columns of one layer's heads but their place, each `h`; `measured(1)` is called after every head."""
    with one_thread() as workers, ThreadPoolExecutor(workers, thread_name_prefix="head") as pool:
        m, d, e = kernel.bilinear, kernel.dimensions, kernel.left.shape[-1]
        a, b = m.core

        def of_head(head: int) -> dict[str, Tensor]:
            core = Bilinear(a[head], b[head])
            columns = measures(core)
            if draws:
                columns |= _against(matched_null(core, draws, (seed, kernel.layer, head), d=d), columns, "null_", "z_")
            if measured is not None:
                measured(1)
            return columns

        found = list(pool.map(of_head, range(len(a))))
        columns = {name: torch.stack([one[name] for one in found]) for name in found[0]}
        columns |= {"directionality": directionality(m), "capacity": torch.full((len(a),), min(2 * e, d))}
        if draws:
            columns |= _against(gaussian_null(d, e, seed=seed), columns, "gaussian_", "gaussian_z_")
        return columns


def _against(null: Null, found: Mapping[str, Tensor], mean: str, z: str) -> dict[str, Tensor]:
    means = {f"{mean}{name}": value.expand_as(found["energy"]) for name, value in null.mean.items()}
    return means | {f"{z}{name}": value for name, value in null.z(found).items()}
