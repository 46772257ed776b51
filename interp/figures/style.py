"""The look that all figures share: template, palette, number words on axes.

The palette follows Okabe and Ito (2008), which stays distinct under the common colour-vision deficiencies, without its
yellow, orange and sky blue, which vanish on white; blue is shifted until every colour has a contrast of at least 3:1
both on white and on the near-black of the page's dark mode, and grey is dark enough to stand apart from purple.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#2a7fc0", "#d55e00", "#009e73", "#cc79a7", "#6c7278"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, GREY)
FONT = '-apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
# Text of 4.5:1 on white and about 4:1 on near-black, the best that one colour does on both; a page sets its own.
CELL_TEXT, CELL_PALE = "#15191d", "#eef1f4"
"""Of grids with words in their cells: opaque pale cells and dark text, legible on a light and on a dark ground."""
_INK, _GRID, _AXIS = "#6f777f", "rgba(125,133,141,0.28)", "rgba(125,133,141,0.55)"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def blank(**layout: Any) -> "plotly.graph_objects.Figure":
    """An empty figure in the house template; `layout` is Plotly's layout."""
    import plotly.graph_objects as go

    return dress(go.Figure(), **layout)


def dress(figure: "plotly.graph_objects.Figure", **layout: Any) -> "plotly.graph_objects.Figure":
    """`figure` in the house template."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": _GRID,
        "linecolor": _AXIS,
        "zerolinecolor": _AXIS,
        "zeroline": False,
        "showline": True,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 8},
    }
    template = go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": _INK},
            "colorway": list(PALETTE),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 10, "r": 14, "t": 14, "b": 10},
            "xaxis": axis | {"showgrid": False},
            "yaxis": axis | {"showline": False, "ticklabelstandoff": 4},
            "bargap": 0.06,
            "showlegend": False,
            "hoverlabel": {"font": {"family": FONT, "size": 12}},
            "modebar": {"orientation": "v"},
        }
    )
    figure.update_layout({"template": template, "height": 300} | layout)
    return figure


def cell_colour(colour: str, share: float) -> str:
    """`share` of `#rrggbb`, the rest `CELL_PALE`: an opaque ground on which `CELL_TEXT` is legible up to a half."""
    pairs = [(int(colour[i : i + 2], 16), int(CELL_PALE[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def whole(low: float, high: float) -> dict[str, Any]:
    """Ticks of an axis of whole numbers, such as layers, from `low` to `high`: about ten at most, none between two."""
    least = max(1.0, (high - low) / 10)
    power = 10.0 ** math.floor(math.log10(least))
    return {"tickmode": "linear", "tick0": 0, "dtick": next(f * power for f in (1, 2, 5, 10) if f * power >= least)}


def decades(low: float, high: float, *, even: bool = True) -> dict[str, Any]:
    """Ticks of an axis that holds log10 values from `low` to `high`: powers of ten, and 2 and 5 times these if few.

    Where fewer than three of those lie within a decade, ticks are evenly spaced round numbers, if `even`.
    """
    first, last = math.floor(low), math.ceil(high)
    if high - low > 3.5:
        step = max(1, (last - first) // 8)
        ticks = {exponent: power_of_ten(exponent) for exponent in range(first, last + 1, step)}
    else:
        ticks = {
            math.log10(factor) + exponent: f"{factor * 10.0**exponent:,.6g}"
            for exponent in range(first, last + 1)
            for factor in (1, 2, 5)
        }
    ticks = {place: name for place, name in ticks.items() if low - 1e-9 <= place <= high + 1e-9}
    if even and len(ticks) < 3 and high - low < 1:
        ticks = {math.log10(value): f"{value:,.6g}" for value in _round_values(10.0**low, 10.0**high)}
    return {"tickmode": "array", "tickvals": list(ticks), "ticktext": list(ticks.values())}


def _round_values(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(f * power for f in (5, 2, 1) if f * power <= (high - low) / 3)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def power_of_ten(exponent: int) -> str:
    """`-3` → `10⁻³`; 1, 10 and 100 are written out."""
    return str(10**exponent) if 0 <= exponent <= 2 else f"10{str(exponent).translate(_SUPERSCRIPT)}"
