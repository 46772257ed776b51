"""What an edit of the residual stream costs the language model: cross-entropy bars."""

from typing import TYPE_CHECKING

from interp.figures.style import BLUE, GREEN, VERMILLION, blank

if TYPE_CHECKING:
    import plotly.graph_objects


def loss_bars(*, clean: float, spliced: float, zero: float) -> "plotly.graph_objects.Figure":
    """Cross-entropy, nats per token: clean, with the SAE's reconstruction spliced in, and with zeros spliced in."""
    bars = (("zero-ablated", zero, VERMILLION), ("SAE spliced in", spliced, BLUE), ("clean model", clean, GREEN))
    figure = blank(xaxis_title="loss, nats per token (lower is better)")
    figure.add_bar(
        orientation="h",
        y=[name for name, _, _ in bars],
        x=[value for _, value, _ in bars],
        marker_color=[colour for _, _, colour in bars],
        width=0.62,
        text=[f"{value:.3f}" for _, value, _ in bars],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.4f} nats per token<extra></extra>",
    )
    figure.update_xaxes(range=[0, 1.1 * max(value for _, value, _ in bars)])
    return figure
