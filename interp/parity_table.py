"""The result of a parity run: rows of deviations, as text, as JSON, and as a verdict."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from interp.errors import InputError
from interp.sealing import write_json


class ParityError(RuntimeError):
    """A site deviates by more than the tolerance."""


class Deviation(NamedTuple):
    """max_t ‖a_t − b_t‖∞, and max_t ‖a_t − b_t‖∞ / ‖b_t‖∞; see `interp.parity`."""

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
    opinions: tuple[str, ...]
    """Those that were heard."""
    rows: tuple[ParityRow, ...]
    absent: Mapping[str, str]

    def worst(self, opinion: str = "plain") -> tuple[str, Deviation]:
        """The site with the largest relative deviation from `opinion`."""
        rows = [(row.name, row.deviations[opinion]) for row in self.rows if opinion in row.deviations]
        if not rows:
            why = self.absent.get(opinion, "it was not asked for")
            raise InputError(f"nothing was compared with {opinion!r}: {why}")
        return max(rows, key=lambda row: row[1].relative)

    def above(self, tolerance: float, *, opinions: Collection[str] | None = None) -> list[str]:
        """Rows whose relative deviation from some opinion (all that were heard, by default) exceeds `tolerance`."""
        asked = self.opinions if opinions is None else opinions
        return [
            f"{row.name} ({d.relative:.2e} from {name})"
            for row in self.rows
            for name in asked
            if (d := row.deviations.get(name)) is not None and not d.relative <= tolerance
        ]

    def raise_if_above(self, tolerance: float, *, opinion: str = "plain") -> None:
        """Raise `ParityError` naming every site whose relative deviation from `opinion` exceeds `tolerance`."""
        self.worst(opinion)
        if far := self.above(tolerance, opinions=[opinion]):
            shown = ", ".join(far[:5]) + (f" and {len(far) - 5} more" if len(far) > 5 else "")
            raise ParityError(
                f"{self.model}: {len(far)} of {len(self.rows)} rows deviate by more than {tolerance:.0e} relative, "
                f"in execution order: {shown}"
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
            "norm": "relative = max over positions t of max|a_t - b_t| / max|b_t|, b the opinion",
            "opinions": list(self.opinions),
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
        write_json(Path(path), self.to_json())

    def text(self) -> str:
        """The table for a terminal: one line per site, then the largest deviation from each opinion."""
        wide = max(len("site"), *(len(row.name) for row in self.rows))
        names = self.opinions
        head = f"{'site':<{wide}}" + "".join(f"  {name + ' abs':>20}  {'relative':>9}" for name in names)
        lines = [
            f"{self.model} ({self.family}, {self.dtype}) on {self.sequences} sequences, {self.tokens} tokens; "
            f"plain in {self.plain_dtype}; relative = worst position's max|a-b| / max|b|",
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
        lines += [f"{name}: not available: {' '.join(why.split())}" for name, why in self.absent.items()]
        return "\n".join(lines)


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else "inf"
