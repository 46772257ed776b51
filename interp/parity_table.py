"""The result of a parity run: rows of deviations, as text, as JSON, and as a verdict."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from interp.errors import InputError


class ParityError(RuntimeError):
    """A site deviates by more than the tolerance."""


class Deviation(NamedTuple):
    """max |a − b|, and the same over max |b|."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class ParityRow:
    """One site (or `logits`) and how far it is from each opinion that has it."""

    name: str
    deviations: Mapping[str, Deviation]


@dataclass(frozen=True)
class ParityTable:
    """What was compared, how far apart it is, and which opinions were not available and why."""

    model: str
    family: str
    dtype: str
    plain_dtype: str
    sequences: int
    tokens: int
    rows: tuple[ParityRow, ...]
    absent: Mapping[str, str]

    @property
    def opinions(self) -> tuple[str, ...]:
        """The opinions that were heard."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.deviations))

    def worst(self, opinion: str = "plain") -> tuple[str, Deviation]:
        """The site with the largest relative deviation from `opinion`."""
        rows = [(row.name, row.deviations[opinion]) for row in self.rows if opinion in row.deviations]
        if not rows:
            why = self.absent.get(opinion, "it was not asked for")
            raise InputError(f"nothing was compared with {opinion!r}: {why}")
        return max(rows, key=lambda row: row[1].relative)

    def raise_if_above(self, tolerance: float, *, opinion: str = "plain") -> None:
        """Raise `ParityError` naming every site whose relative deviation from `opinion` exceeds `tolerance`."""
        self.worst(opinion)
        far = [
            f"{row.name} ({d.relative:.2e})"
            for row in self.rows
            if (d := row.deviations.get(opinion)) is not None and not d.relative <= tolerance
        ]
        if far:
            shown = ", ".join(far[:5]) + (f" and {len(far) - 5} more" if len(far) > 5 else "")
            raise ParityError(
                f"{self.model}: {len(far)} of {len(self.rows)} rows deviate from {opinion} by more than "
                f"{tolerance:.0e} relative, in execution order: {shown}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite deviation is the string "inf"."""
        return {
            "model": self.model,
            "family": self.family,
            "dtype": self.dtype,
            "plain_dtype": self.plain_dtype,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "norm": "relative = max |a - b| / max |b| per site, b the opinion",
            "absent": dict(self.absent),
            "rows": [
                {"site": row.name}
                | {
                    name: {"absolute": _number(d.absolute), "relative": _number(d.relative)}
                    for name, d in row.deviations.items()
                }
                for row in self.rows
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def text(self) -> str:
        """The table for a terminal: one line per site, then the largest deviation from each opinion."""
        wide = max(len("site"), *(len(row.name) for row in self.rows))
        names = self.opinions
        head = f"{'site':<{wide}}" + "".join(f"  {name + ' abs':>20}  {'relative':>9}" for name in names)
        lines = [
            f"{self.model} ({self.family}, {self.dtype}) on {self.sequences} sequences, {self.tokens} tokens; "
            f"plain in {self.plain_dtype}; relative = max|a-b| / max|b| per site",
            head,
        ]
        for row in self.rows:
            cells = []
            for name in names:
                d = row.deviations.get(name)
                cells.append(f"  {'-':>20}  {'-':>9}" if d is None else f"  {d.absolute:>20.2e}  {d.relative:>9.2e}")
            lines.append(f"{row.name:<{wide}}" + "".join(cells))
        for name in names:
            site, d = self.worst(name)
            lines.append(f"largest against {name}: {d.relative:.2e} relative at {site}")
        lines += [f"{name}: not available: {why}" for name, why in self.absent.items()]
        return "\n".join(lines)


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else "inf"
