"""Every head of a model as rows: energies, metrics and ranks of its weight kernel, beside the matched null.

    kernel_rows(model)          # [{"layer": 0, "head": 0, "group": 0, "routing_fraction": ..., "z_routing_r90": ...}, ...]
    kernel_eigenvalues(model)   # of M, complex, layers x heads x min(d, e)

Columns of a row:

    layer, head, group          which head, and whose keys it reads
    every `HeadMetrics` field
    routing_<rank>, filtering_<rank>        every `Ranks` field; a plane of routing counts 2
    capacity                    the highest rank a part can have: 2e, or the dimensions there are if they are fewer
    null_<name>, z_<name>       mean over `draws` heads of the same singular values in random orientation, and how many
                                of their standard deviations the head is away (`interp.attention.nulls`)

A row depends on the model, the conventions, `draws` and `seed`, not on which other layers are asked for.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from interp.attention.heads import kernel, kernel_shape
from interp.attention.metrics import head_metrics
from interp.attention.nulls import matched_null
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
    """One row per head; `draws=0` leaves the null out."""
    shape = kernel_shape(model)
    chosen = range(shape.layers) if layers is None else layers
    rows: list[dict[str, Any]] = []
    with bar(len(chosen) * shape.heads, "kernels", unit="head", show=None if progress else False) as shown:
        for layer in chosen:
            found = kernel(model, layer, fold_norm=fold_norm, biases=biases)
            m = found.bilinear
            columns = head_metrics(m)._asdict()
            for part, spectrum in (("routing", m.routing()), ("filtering", m.filtering())):
                columns |= {f"{part}_{name}": rank for name, rank in spectrum.ranks()._asdict().items()}
            d, e = m.left.shape[-2] - found.centred, m.left.shape[-1]
            null = matched_null(m, draws, (seed, layer), d=d) if draws else None
            if null is not None:
                scores = null.z(columns)
                columns |= {f"null_{name}": mean for name, mean in null.mean.items()}
                columns |= {f"z_{name}": score for name, score in scores.items()}
            listed = {name: column.tolist() for name, column in columns.items()}
            for h in range(shape.heads):
                place = {"layer": layer, "head": h, "group": h // (shape.heads // shape.groups)}
                rows.append(place | {name: listed[name][h] for name in listed} | {"capacity": min(2 * e, d)})
            shown.update(shape.heads)
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
            found.append(kernel(model, layer, fold_norm=fold_norm, biases=biases).bilinear.eigenvalues())
            shown.update(shape.heads)
    return torch.stack(found)
