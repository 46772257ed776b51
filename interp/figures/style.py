"""The look that all figures share: template, palette, number words on axes.

The palette follows Okabe and Ito (2008), which stays distinct under the common colour-vision deficiencies, without its
yellow, orange and sky blue, which vanish on white; blue and purple are shifted until every colour has a contrast of at
least 3:1 both on white and on the near-black of the page's dark mode.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#2a7fc0", "#d55e00", "#009e73", "#b9659a", "#7d848c"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, GREY)
FONT = '-apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
# Text of 4.5:1 on white and about 4:1 on near-black, the best that one colour does on both; a page sets its own.
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


def decades(low: float, high: float) -> dict[str, Any]:
    """Ticks of an axis that holds log10 values from `low` to `high`: powers of ten, and 2 and 5 times these if few."""
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
    return {"tickmode": "array", "tickvals": list(ticks), "ticktext": list(ticks.values())}


def power_of_ten(exponent: int) -> str:
    """`-3` → `10⁻³`; 1, 10 and 100 are written out."""
    return str(10**exponent) if 0 <= exponent <= 2 else f"10{str(exponent).translate(_SUPERSCRIPT)}"
