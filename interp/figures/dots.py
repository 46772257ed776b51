"""Values with their intervals, as several figures draw them."""

from collections.abc import Sequence
from typing import NamedTuple

from interp.figures.attention_style import Look

Measured = tuple[float, float, float]


class Dots(NamedTuple):
    """A value with its interval for every row or group, NaN where there is none; an interval of NaN is not drawn."""

    name: str
    values: Sequence[Measured]
    look: Look | None = None
