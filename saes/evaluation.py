"""`Evaluation`: the figures of one SAE as a record, and as one JSON file.

The file holds the scalars by name (the derived ones as well), `densities`, one number per feature, and `parts`: what
further evaluations found, each under its name. Finite numbers come back exactly.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.sealing import finite, read_json, write_sealed

_DERIVED = (
    "fvu", "alive", "density_over_1pct", "density_over_10pct",
    "log10_density_p10", "log10_density_median", "log10_density_p90",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one SAE; see `saes.evaluate` for what each leaves out."""

    n_tokens: int
    """Held-out rows measured, massive ones not counted: what alive and dead features and densities are counted over."""
    n_documents: int
    explained_variance: float
    explained_variance_all: float
    """With the massive rows counted."""
    massive_rows: int
    massive_threshold: float
    """Norm above which a row is massive; with several sites, the largest of their limits."""
    cosine: float
    """Between a row and its reconstruction, mean over rows."""
    l2_ratio: float
    """Norm of the reconstruction over norm of the row, mean over rows."""
    reconstruction_bias: float
    """γ: below 1 where reconstructions are too short."""
    l0: float
    """Active features per row."""
    dead_fraction: float
    """Features that fired on none of the `n_tokens` rows."""
    mse: float
    """Squared error summed over the width, per row."""
    ce_clean: float
    ce_spliced: float
    ce_zero: float
    delta_ce: float
    kl: float
    """KL(clean || spliced)."""
    kl_zero: float
    """KL(clean || zero-ablated)."""
    loss_recovered: float
    ce_tokens: int
    """Predicted tokens behind CE and KL."""
    densities: Float[Tensor, " f"]
    """Fires per row of each feature, float64."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Further evaluations by name, as JSON values."""

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return 1 - self.explained_variance

    @property
    def alive(self) -> int:
        """Features that fired on at least one of the `n_tokens` rows."""
        return int((self.densities > 0).sum())

    @property
    def density_over_1pct(self) -> float:
        """Share of all features that fire on more than 1 % of the rows."""
        return float((self.densities > 0.01).double().mean())

    @property
    def density_over_10pct(self) -> float:
        """Share of all features that fire on more than 10 % of the rows."""
        return float((self.densities > 0.1).double().mean())

    @property
    def log10_density_p10(self) -> float:
        """The tenth percentile of log10 density over features that fired; the lowest possible is -log10(n_tokens)."""
        return self._log_density(0.1)

    @property
    def log10_density_median(self) -> float:
        """The median of log10 density over features that fired."""
        return self._log_density(0.5)

    @property
    def log10_density_p90(self) -> float:
        """The ninetieth percentile of log10 density over features that fired."""
        return self._log_density(0.9)

    def _log_density(self, q: float) -> float:
        alive = self.densities[self.densities > 0]
        return float(alive.double().log10().quantile(q)) if len(alive) else math.nan

    def scalars(self) -> dict[str, float | int]:
        """Every number but the densities, by name; the derived ones last."""
        return {name: getattr(self, name) for name in (*_measured(), *_DERIVED)}

    def text(self) -> str:
        """The scalars as lines of name and value."""
        return as_lines(self.scalars())

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, which has neither NaN nor infinity: null stands for them."""
        content = self.scalars() | {"densities": self.densities.tolist(), "parts": dict(self.parts)}
        write_sealed(Path(path), json.dumps(finite(content), allow_nan=False) + "\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote; the numbers come back exactly, null as NaN."""
        found: Any = read_json(Path(path), "evaluation")
        names = {*_measured(), *_DERIVED, "densities", "parts"}
        if not isinstance(found, dict) or set(found) != names:
            keys = set(found) if isinstance(found, dict) else set()
            raise InputError(
                f"{path} is no evaluation of this version (missing: {sorted(names - keys)}, unknown: "
                f"{sorted(keys - names)}); evaluate the SAE again"
            )
        kept = {name: value for name, value in found.items() if name not in _DERIVED}
        for name, kind in ((one.name, one.type) for one in fields(cls) if one.name in _measured()):
            value = math.nan if kept[name] is None and kind is float else kept[name]
            if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
                raise InputError(f"{path} is damaged: {name} is {value!r:.40}; evaluate the SAE again")
            kept[name] = value if kind is int else float(value)
        densities = kept["densities"]
        if not isinstance(kept["parts"], dict) or not isinstance(densities, list) or not all(map(_is_share, densities)):
            raise InputError(f"{path} is damaged: densities are shares between 0 and 1; evaluate the SAE again")
        kept["densities"] = torch.tensor(densities, dtype=torch.float64)
        return cls(**kept)


def _is_share(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1


def as_lines(values: Mapping[str, Any]) -> str:
    """Numbers (and texts) as lines of name and value."""
    return "\n".join(f"{name:22} {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _measured() -> list[str]:
    return [field.name for field in fields(Evaluation) if field.name not in ("densities", "parts")]
