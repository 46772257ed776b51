"""A survey's numbers of one model: quartiles over its heads, medians by layer, heads against their nulls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
RANKS = {
    "erank1": "effective rank, exp H(σ)",
    "erank2": "effective rank, exp H(σ²)",
    "participation": "participation ratio",
    "stable": "stable rank",
    "r90": "90 % of the energy",
    "r95": "95 % of the energy",
    "r99": "99 % of the energy",
    "numerical": "numerical rank",
}
"""Every definition of rank, by the ending of its columns."""
OBJECTS = {
    "kernel": "",
    "raw": "op_raw_",
    "key-centred": "op_key_centred_",
    "doubly centred": "op_double_centred_",
}
"""What ranks and fractions are measured of, by the beginning of their columns."""
BEHAVIOUR = {
    "previous_token": "previous token",
    "duplicate_token": "duplicate token",
    "induction": "induction",
    "sink_share": "sink share",
}
METRICS = {
    "routing_fraction": "routing fraction ‖A‖² / ‖M‖²",
    "symmetry": "symmetry tr M² / ‖M‖²",
    "routing_filtering_ratio": "routing/filtering ‖A‖ / ‖S‖",
    "directionality": "directionality (rows against columns)",
    "rotation_share": "rotation share Σ|Im λ| / Σ|λ|",
    "henrici": "non-normality (Henrici, of ‖M‖)",
    "spectral_abscissa": "largest Re λ",
    "numerical_abscissa": "largest eigenvalue of the symmetric part",
}
"""What is measured of the weight kernel, by column."""
LAYERED = (
    *(f"{prefix}routing_fraction" for prefix in OBJECTS.values()),
    *(f"{prefix}routing_{rank}" for prefix in OBJECTS.values() for rank in ("r90", "erank1")),
    "rotation_share",
)
_NOT_MEASURED = {"layer", "head", "group", "capacity"}


def values(rows: Sequence[Row], column: str) -> np.ndarray:
    """The finite numbers of a column."""
    found = np.array([row[column] for row in rows if row.get(column) is not None], dtype=np.float64)
    return found[np.isfinite(found)]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Of a table of heads, as JSON has it."""
    columns = dict.fromkeys(name for row in rows for name in row)
    metrics = {}
    for name in columns:
        if name in _NOT_MEASURED or name.endswith("_std"):
            continue
        if (found := values(rows, name)).size:
            low, middle, high = np.quantile(found, (0.25, 0.5, 0.75)).tolist()
            metrics[name] = {"q25": low, "median": middle, "q75": high, "heads": int(found.size)}
    return {
        "heads": len(rows),
        "metrics": metrics,
        "by_layer": {name: by_layer(rows, name) for name in LAYERED if name in metrics},
        "beyond_null": {name.removeprefix("z_"): beyond(rows, name) for name in metrics if name.startswith("z_")},
        "positive_abscissa": positive(rows, "spectral_abscissa"),
        "null_positive_abscissa": positive(rows, "null_spectral_abscissa"),
    }


def by_layer(rows: Sequence[Row], column: str) -> dict[str, float]:
    """The median over each layer's heads, by layer."""
    layers = sorted({int(row["layer"]) for row in rows})
    found = {layer: values([row for row in rows if row["layer"] == layer], column) for layer in layers}
    return {str(layer): float(np.median(of)) for layer, of in found.items() if of.size}


def beyond(rows: Sequence[Row], column: str, z: float = 2.0) -> float:
    """The share of heads more than `z` standard deviations from their null."""
    return float((np.abs(values(rows, column)) > z).mean())


def positive(rows: Sequence[Row], column: str) -> dict[str, int] | None:
    """How many heads have a value over 0, and of how many; `None` where the column is missing."""
    found = values(rows, column)
    return {"heads": int((found > 0).sum()), "of": int(found.size)} if found.size else None
