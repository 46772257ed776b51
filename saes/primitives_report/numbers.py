"""Numbers and specifications as the page spells them."""

from collections.abc import Mapping, Sequence

from interp.page.numbers import MISSING, number
from saes.primitives.specs import SteeringSpec

GLUE = "\u00a0"  # a space at which no line breaks


def interval(bounds: Sequence[float], form: str = ".2f") -> str:
    """`[0.79, 0.83]`, in one line."""
    low, high = (number(x, form) for x in bounds)
    return f"[{low},{GLUE}{high}]"


def chance(p: float) -> str:
    """A probability, in words where it is too small for digits."""
    return f"{p:.1e}".replace("e-0", "e-").replace("-", "−") if 0 < p < 1e-3 else number(p, ".3g")


def recipe(spec: SteeringSpec | None) -> str:
    """`#17 +0.50, #4 −0.25` in fractions of the mean norm; "none" for none."""
    if spec is None:
        return "none"
    terms = ", ".join(f"#{term.feature} {number(term.strength, '+.2f')}" for term in spec.terms)
    return terms if spec.mode == "add" else f"{terms}, held"


def plain(value: object) -> object:
    """Lists in words; mappings, which the page makes groups, item by item; a dash for what is not given."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        value = ", ".join(str(plain(item)) for item in value)
    return MISSING if value in (None, "") else value
