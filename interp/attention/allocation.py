"""Head widths from measured ranks: layers whose routing needs few planes get narrow heads.

A skew matrix from heads of width e has e planes at most, so a layer of routing rank r (two per plane) needs e >= r / 2.
The rule here, `e_l = round_up(margin * r_l / 2)`, and that values and outputs shrink along, are **inferred**:
arXiv 2605.18826 reports 47 to 65 % fewer attention parameters, more than queries and keys alone could give.
"""

import math
from collections.abc import Sequence

from interp.errors import InputError


def allocated_widths(
    ranks: Sequence[float], widest: int, *, margin: float = 1.0, multiple: int = 4, monotone: bool = False
) -> tuple[int, ...]:
    """The width of each layer's heads: half its rank times `margin`, up to the next `multiple`, `widest` at most.

    `monotone`: no layer narrower than the one before it (a cascade as such).
    """
    if multiple < 2 or multiple % 2 or widest < multiple:
        raise InputError(f"multiple must be even and at most the full width, got {multiple} and {widest}")
    if not ranks or not all(math.isfinite(r) and r >= 0 for r in ranks) or margin <= 0:
        raise InputError("allocated_widths takes one rank per layer, finite and not negative, and a margin above 0")
    widths: list[int] = []
    for rank in ranks:
        width = min(widest, max(multiple, multiple * math.ceil(margin * rank / 2 / multiple)))
        widths.append(max(width, widths[-1]) if monotone and widths else width)
    return tuple(widths)
