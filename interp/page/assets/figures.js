"use strict";
/* Draws every <div data-figure="ID"> from the JSON element ID. Colours of text, axes and grid come from page.css, so that
   dark mode and print need no redrawing. */
(() => {
  const config = {
    displaylogo: false,
    responsive: true,
    displayModeBar: "hover",
    modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
  };
  for (const element of document.querySelectorAll("[data-figure]")) {
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    Plotly.newPlot(element, figure.data, figure.layout, config);
  }
  window.addEventListener("beforeprint", () => {
    for (const element of document.querySelectorAll("[data-figure]")) Plotly.Plots.resize(element);
  });
})();
