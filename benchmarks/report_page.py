"""The feature browser at 131,072 features: time and memory to build the page, its size, and how it behaves in Chromium.

    python benchmarks/report_page.py            # writes benchmarks/results/report_page.json
    python benchmarks/report_page.py --features 16384 --out small.json --page page.html

The features are made up, their texts are not: every context is a window of the built-in text in SmolLM2's tokens,
promoted and suppressed tokens are drawn from its vocabulary, densities are log-normal, 3 % of the features are dead.
Contexts recorded: `--contexts` a feature; how many of them the page holds follows from its budget. Times in the browser
are from the page's own clock: load until the first feature's card stands, a search until the list is redrawn.
"""

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from interp.bench.measure import environment
from interp.corpus import read_corpus
from interp.figures.densities import density_histogram
from interp.lens import token_strings
from interp.model import HookedModel
from interp.page import FeatureBrowser, Figure, Page, Section
from saes.examples import Example, Feature

ROOT = Path(__file__).resolve().parents[1]
QUERIES = {"promoted": " river", "contexts": "return the", "active": "value", "anywhere": "self."}
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def texts(tokenizer: Any, n_tokens: int) -> tuple[list[str], list[int], list[str]]:
    """The built-in text as tokens, the document of each, and the whole vocabulary."""
    owners: list[int] = []
    ids: list[int] = []
    for number, document in enumerate(read_corpus("builtin")):
        ids += (found := tokenizer(document.text)["input_ids"])
        owners += [number] * len(found)
        if len(ids) >= n_tokens:
            break
    names = token_strings(tokenizer, list(range(len(tokenizer))))
    tokens = [names[i] for i in ids]
    return tokens, owners, list(names.values())


def features(n: int, contexts: int, tokenizer: Any, *, seed: int = 0, window: int = 25) -> Iterator[Feature]:
    """Features as `saes.examples.read_features` gives them."""
    text, owners, vocabulary = texts(tokenizer, 400_000)
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    for index in range(n):
        promoted = tuple(
            (draw.choice(vocabulary), v) for v in sorted(draw.gammavariate(2, 0.6) for _ in range(10))[::-1]
        )
        suppressed = tuple((draw.choice(vocabulary), -v) for v, (_, v) in zip(range(10), promoted, strict=True))
        if draw.random() < 0.03:
            yield Feature(index, 0.0, 0.0, 0.0, (), (), promoted, suppressed, ())
            continue
        density = min(0.3, 10 ** draw.gauss(-3.2, 0.7))
        fires = np.sort(rng.gamma(2.0, 1.6, max(contexts, int(20_000 * density))))[::-1]
        low, high = (int(np.floor(4 * np.log2(x))) for x in (fires[-1], fires[0]))
        edges = 2.0 ** (np.arange(low, high + 2) / 4)
        examples = []
        for value in fires[:contexts].tolist():
            start = draw.randrange(len(text) - window)
            levels = [value * draw.random() if draw.random() < 0.1 else 0.0 for _ in range(window)]
            levels[16] = value
            doc = f"document/{owners[start + 16]}"
            examples.append(Example(doc, start, value, tuple(text[start : start + window]), tuple(levels), 16))
        counts = tuple(np.histogram(fires, bins=edges)[0].tolist())
        yield Feature(
            index, density, float(fires[0]), float(fires.mean()), counts, tuple(edges.tolist()), promoted, suppressed,
            tuple(examples),
        )  # fmt: skip


def build(path: Path, n: int, contexts: int, tokenizer: Any) -> dict[str, Any]:
    """Write the page. Features are made twice, first alone, and that time is subtracted."""
    start = time.perf_counter()
    densities = [feature.density for feature in features(n, contexts, tokenizer)]
    making = time.perf_counter() - start
    start = time.perf_counter()
    made = features(n, contexts, tokenizer)
    figure = Figure(density_histogram(densities, n_tokens=10**6), "How often features fire")
    browser = FeatureBrowser(made, population="1,000,000 made-up tokens")
    parts = [Section("Distributions", [figure]), Section("Features", [browser])]
    Page("Features", f"{n:,} made-up features", parts).write(path)
    took = time.perf_counter() - start
    return {
        "seconds": took - making,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "page_mb": path.stat().st_size / 1e6,
    }


def visit(path: Path, repeats: int) -> dict[str, Any]:
    """Open the page in Chromium; all times in milliseconds, medians of `repeats`."""
    sys.path.insert(0, str(ROOT))
    from tests.browser_tab import Tab, chromium

    found: dict[str, Any] = {}
    with chromium() as browser, Tab(browser, path, fragment="#feature-77777", offline=True) as tab:
        page = tab.page
        page.set_default_timeout(300_000)
        found["load_ms"] = page.evaluate("performance.now()")
        found["permalink"] = tab.chosen
        found["sampling"] = page.inner_text(".sampling") if page.locator(".sampling").count() else ""
        page.click("[data-filter=all]")
        for scope, query in QUERIES.items():
            times = []
            for turn in range(repeats):
                page.select_option(".browser select", scope)
                times.append(_timed(page, _type(query)))
                if turn == 0:
                    found[f"matches_{scope}"] = tab.count
                _timed(page, _type(""))
            found[f"search_{scope}_ms"] = statistics.median(times)
        for sort in ("density", "lens", "index"):
            found[f"sort_{sort}_ms"] = _timed(page, f"document.querySelector('[data-sort={sort}]').click()")
        page.focus(".rows")
        page.keyboard.press("End")
        found["end_of_list"] = tab.chosen
        page.evaluate("() => { const rows = document.querySelector('.rows'); rows.scrollTop = rows.scrollHeight; }")
        page.evaluate(SETTLED)
        found["last_row_shown"] = tab.visible()[-1]
        found["rows_in_document"] = page.locator(".option").count()
        found["heap_mb"] = page.evaluate("performance.memory.usedJSHeapSize / 1e6")
        found["complaints"] = tab.complaints
        found["requests"] = len([url for url in tab.requests if not url.startswith(tab.address)])
    return found


def _timed(page: Any, action: str) -> float:
    """Milliseconds from a line of JavaScript to the second frame behind it."""
    return page.evaluate(
        f"async () => {{ const t = performance.now(); {action}; await ({SETTLED})(); return performance.now() - t; }}"
    )


def _type(query: str) -> str:
    field = 'document.querySelector(".browser input")'
    return f"{field}.value = {json.dumps(query)}; {field}.dispatchEvent(new Event('input'))"


def main() -> None:
    """Build, visit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=131_072)
    parser.add_argument("--contexts", type=int, default=8, help="recorded per feature")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path, default=ROOT / "runs" / "report_page.html")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "report_page.json")
    o = parser.parse_args()
    built = build(o.page, o.features, o.contexts, HookedModel.load("smollm2-135m", upto="embed").tokenizer)
    result = {
        "features": o.features,
        "contexts_recorded": o.contexts,
        "build": built,
        "browser": visit(o.page, o.repeats),
        "environment": environment(["torch", "plotly", "playwright"]),
    }
    o.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
