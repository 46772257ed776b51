"""Texts that try to become something else on a page, and every kind of page with such texts wherever it has any."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

PAYLOADS = (
    "</script><script>window.pwned=1</script>",
    "<script>window.pwned=2</script>",
    "<img src=x onerror=window.pwned=3>",
    "<img src='http://example.org/x.png'>",
    "</textarea></title></style></noscript><svg onload=window.pwned=4>",
    "<!--",
    "--><iframe srcdoc='<script>parent.pwned=5</script>'></iframe>",
    "]]><x>",
    "javascript:window.pwned=6",
    '<a href="javascript:window.pwned=7">x</a>',
    '<a href="http://example.org/">y</a>',
    "\" onmouseover=\"window.pwned=8\" x=\"",
    "' onfocus='window.pwned=9' autofocus='",
    "<b>bold</b>",
    "<style>body{display:none}</style>",
    "<span style=\"fill:url(http://example.org/z)\">z</span>",
    "<meta http-equiv=refresh content='0;url=http://example.org/'>",
    "<base href='http://example.org/'>",
    "<form action='http://example.org/'><button>go</button></form>",
    "${window.pwned=10} {{constructor}} %{x}",
    "\u2028window.pwned=11\u2029",
    "\u202egnp.exe\u2066",
    "\ufeff\u200b",
    "\\u003cscript\\u003ewindow.pwned=12\\u003c/script\\u003e",
    "&lt;script&gt; &amp;lt; &#60;img src=x onerror=window.pwned=13&#62;",
    "\x00<\x00script>window.pwned=14</script>",
)  # fmt: skip
ALL = " | ".join(PAYLOADS)


def sae_report(path: Path) -> Path:
    """Every text as a promoted token, a token of a context and a document's name; all of them as provenance."""
    from saes.report import write_report
    from tests import report_samples as samples

    features = samples.features(40, seed=3, n_examples=4, dead=0.0)
    for i, text in enumerate(PAYLOADS):
        first = features[i].examples[0]
        first = replace(first, tokens=(text, *first.tokens[1:]), doc_id=text)
        chips = ((text, 9.0), *features[i].promoted)
        features[i] = replace(
            features[i], promoted=chips, suppressed=chips, examples=(first, *features[i].examples[1:])
        )
    return write_report(
        path,
        evaluation=samples.evaluation(features),
        features=features,
        training_log=samples.training_log(50),
        provenance={**samples.PROVENANCE, "model": ALL, "site": ALL, ALL: ALL, "table": {ALL: ALL}},
        timings={ALL: 1.0},
        norms=samples.norms(),
        massive_rule=ALL,
        population=ALL,
    )


def attention_report(path: Path) -> Path:
    """A model of that name, whose parts were refused for that reason."""
    from interp.attention.survey_result import ModelSurvey
    from interp.attention_report.report import write_report
    from tests.attention import survey_samples as samples

    folder = samples.folder(path.parent / "survey", ALL, kernel=False, rope=False)
    return write_report(path, [ModelSurvey.load(folder)])


def sudoku_report(path: Path) -> Path:
    """Results of a model of that name."""
    from interp.sudoku_report.report import write_report
    from tests.sudoku import study_samples as samples

    return write_report(path, samples.renamed(ALL))


def steering_report(path: Path) -> Path:
    """Prompts, texts and settings."""
    from interp.steering_report.report import write_report
    from tests import steering_samples as samples

    known, samples.HOSTILE = samples.HOSTILE, ALL
    try:
        return write_report(path, samples.evaluation())
    finally:
        samples.HOSTILE = known


def primitives_report(path: Path) -> Path:
    """Stories, prompts, emotions, judges and tokens."""
    from saes.primitives_report import write_primitives_report
    from tests.primitives import report_cases as cases

    found, catalogue = cases.coverage(3), cases.catalogue()
    cells = []
    for cell in found.cells:
        stories = tuple(
            replace(story, text=PAYLOADS[i % len(PAYLOADS)], prompt=ALL) for i, story in enumerate(cell.samples)
        )
        cells.append(replace(cell, samples=stories))
    return write_primitives_report(
        path,
        coverage=replace(found, cells=tuple(cells), judges=(*found.judges[:-1], ALL)),
        catalogue=catalogue,
        untrained=cases.catalogue(strong=False),
        provenance={"model": ALL, "site": ALL, ALL: {ALL: ALL}},
        promoted={c.feature: [(text, 1.0) for text in PAYLOADS] for c in catalogue.candidates},
        known={ALL: (20, 27)},
    )


def parts(path: Path) -> Path:
    """Every part that a page can have, and a figure whose every name is such a text."""
    import plotly.graph_objects as go

    from interp.page import Figure, KeyValues, Metrics, Note, Page, Row, Section, Table, Tile

    figure = go.Figure(go.Bar(x=list(PAYLOADS), y=list(range(len(PAYLOADS))), name=ALL, text=list(PAYLOADS)))
    figure.update_layout(title=ALL, xaxis_title=ALL, showlegend=True)
    figure.add_annotation(text=ALL, x=0, y=0)
    everything = (
        Metrics([Tile(ALL, ALL, ALL, ALL)]),
        Note(ALL),
        Table([ALL, "n"], [[text, 1] for text in PAYLOADS], title=ALL),
        KeyValues({ALL: ALL, "group": {ALL: ALL}}, title=ALL),
        Row([Figure(figure, ALL, ALL)]),
    )
    return Page(ALL, ALL, [Section(ALL, everything, lead=ALL)], footer=ALL).write(path)


def notebook(path: Path) -> Path:
    """What notebooks show: tables of values, shaded texts; as one page without a policy."""
    import numpy as np

    from interp.display import html_table
    from interp.figures.token_highlights import highlight_tokens

    shown = [html_table(ALL, {ALL: ALL, "list": list(PAYLOADS)})]
    shown += [highlight_tokens(list(PAYLOADS), np.ones(len(PAYLOADS)), names=[ALL])._repr_html_()]
    path.write_text(f"<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>{''.join(shown)}")
    return path


PAGES: dict[str, Callable[[Path], Path]] = {
    "SAE report": sae_report,
    "steering report": steering_report,
    "parts of pages": parts,
    "notebook values": notebook,
    "primitives report": primitives_report,
    "attention report": attention_report,
    "sudoku report": sudoku_report,
}
SLOW = ("primitives report", "attention report", "sudoku report")


def inspected(browser: Any, path: Path) -> dict[str, Any]:
    """What a page did in a real browser, its policy switched off so that it alone is no defence."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True)
    complaints: list[str] = []
    asked: list[str] = []
    address = path.as_uri()
    context.route("**/*", lambda route: route.continue_() if route.request.url == address else route.abort())
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    tab.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
    tab.goto(address)
    tab.wait_for_function("[...document.querySelectorAll('.plot')].every(e => e.querySelector('.main-svg'))")
    for feature in range(len(PAYLOADS) if tab.locator(".detail").count() else 0):
        tab.evaluate(f"location.hash = '#feature-{feature}'")
        tab.wait_for_function(f"document.querySelector('.detail h3').textContent === 'Feature {feature}'")
    found = tab.evaluate(FOUND)
    context.close()
    return {**found, "complaints": complaints, "asked": [url for url in asked if url.split("#")[0] != address]}


FOUND = """() => {
    const all = [...document.querySelectorAll("*")];
    const links = all.flatMap(e => ["href", "xlink:href", "src", "srcdoc", "action", "data"]
        .map(name => e.getAttribute(name)).filter(value => value !== null && !value.startsWith("#")
            && !value.startsWith("data:,") && !value.startsWith("data:image/png;base64,")));
    return {
        ran: window.pwned ?? null,
        handlers: all.flatMap(e => e.getAttributeNames().filter(name => name.startsWith("on"))),
        foreign: all.map(e => e.tagName.toLowerCase()).filter(tag => ["img", "iframe", "object", "embed", "base",
            "form", "textarea", "x", "b-evil"].includes(tag)),
        scripts: [...document.scripts].filter(s => s.textContent.startsWith("window.pwned")).length,
        refreshes: document.querySelectorAll("meta[http-equiv=refresh]").length,
        styles: all.filter(e => (e.getAttribute("style") ?? "").includes("example.org")).length,
        links,
        hidden: getComputedStyle(document.body).display === "none",
        text: document.body.textContent,
    };
}"""


def as_shown(text: str) -> str:
    """A text as pages show it: what HTML cannot hold is replaced."""
    import re

    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text)
