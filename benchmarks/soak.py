"""An hour of work in one process: does memory, or anything else that a process holds, grow?

    python benchmarks/soak.py --minutes 60          SmolLM2; writes benchmarks/results/soak.json
    python benchmarks/soak.py --table               what the file holds
    python benchmarks/soak.py --image               docs/images/soak.png of it, drawn by Chromium

A cycle is what users do in one session: load the model, extract two stores, train an SAE from the store, evaluate it,
read its features, write the report (`saes.discover`); train another SAE from a stream without a store; fit a steering
and generate under it. Everything the cycle wrote is deleted. Then garbage is collected and counted is what is left:

    rss, pss       bytes of memory (pss: pages shared with other processes count in part; Linux)
    own            of rss what is no file: heap and stacks; the rest are files mapped into memory, such as libraries
    files          open file descriptors       threads, children      of this process
    objects        Python objects that the garbage collector follows, tensors among them
    cache          bytes in midlens's cache folder, which is one of its own here

Beyond what midlens does itself at the end of its jobs (`interp.heap`), freed memory is not handed back to the system
here; MALLOC_ARENA_MAX and its like, in the environment, are recorded. Growth an hour is the slope of Theil (1950) and
Sen (1968), the median over pairs of cycles, after a warm-up of the first fifth of the time; the interval is Sen's at
95 %, which takes the deviations of cycles for independent. A count that stays the same has the
slope 0. Cycles repeat the same options and seeds, for what differs would be another load, not growth.
"""

import argparse
import dataclasses
import gc
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import theilslopes

from interp.bench.measure import environment
from interp.cache import cache_path
from interp.from_text import ExtractConfig, stream_text
from interp.sealing import write_json
from interp.steering.apply_job import ApplyConfig, apply_job
from interp.steering.fit_job import FitConfig, fit_job
from saes.discover import DiscoverConfig, discover
from saes.recipe import TrainConfig
from saes.train import fit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
WARM_UP = 0.2
COUNTED = ("rss", "pss", "own", "files", "threads", "children", "objects", "tensors", "cache")
BYTES = ("rss", "pss", "own", "cache")
Row = dict[str, float]


class Trend(NamedTuple):
    """A straight line through measurements: growth an hour, its interval, and the value at hour 0."""

    slope: float
    low: float
    high: float
    start: float


@dataclass(frozen=True)
class Load:
    """What one cycle does."""

    model: str = "smollm2-135m"
    site: str = "resid_post.8"
    corpus: str = "builtin"
    tokens: int = 400
    width: int = 1024
    steering: FitConfig = field(
        default_factory=lambda: FitConfig(contrast="horse-motorcycle", max_prompts=12, level=None)
    )
    prompts: tuple[str, ...] = ("Tell me of your journey.", "What stands in the yard?")
    new_tokens: int = 16


def cycle(load: Load, folder: Path) -> None:
    """Once through everything, in a folder that is empty before and gone afterwards."""
    recipe = DiscoverConfig(
        model=load.model, site=load.site, corpus=load.corpus, out=folder / "run", train_tokens=load.tokens,
        held_out_tokens=load.tokens // 3, max_length=128, expansion=2, k=8, epochs=2.0, loss_tokens=load.tokens // 5,
        examples=4,
    )  # fmt: skip
    discover(recipe)
    words = ExtractConfig(load.model, (load.site,), load.corpus, max_tokens=load.tokens, max_length=128)
    stream = stream_text(words, folder / "tokens", buffer_bytes=1 << 22)
    fit(stream, TrainConfig(d_sae=load.width, k=8, epochs=1.0), folder / "streamed", site=load.site)
    sites = load.steering.sites or (load.site,)
    fit_job(load.model, dataclasses.replace(load.steering, sites=sites), folder / "steering")
    wanted = ApplyConfig(max_new_tokens=load.new_tokens, beside=True)
    for row in apply_job(load.model, folder / "steering", load.prompts, wanted):
        assert isinstance(row["steered"], str)
    shutil.rmtree(folder)


def held() -> Row:
    """What this process holds now, garbage collected."""
    gc.collect()
    objects = gc.get_objects()
    status = Path("/proc/self/status").read_text().splitlines()
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status + rollup if line.endswith(" kB")}
    tasks = Path("/proc/self/task").iterdir()
    return {
        "rss": kilobytes["VmRSS"] * 1024,
        "pss": kilobytes["Pss"] * 1024,
        "own": kilobytes["RssAnon"] * 1024,
        "files": len(os.listdir("/proc/self/fd")) - 1,  # one of them lists the folder
        "threads": threading.active_count(),
        "children": sum(len((task / "children").read_text().split()) for task in tasks),
        "objects": len(objects),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in objects),
        "cache": sum(path.stat().st_size for path in cache_path().rglob("*") if path.is_file()),
    }


def soak(load: Load, folder: Path, *, minutes: float, cycles: int | None = None) -> list[Row]:
    """Cycles until the time is over (or so many of them); what was held after each, also in folder/samples.jsonl."""
    shutil.rmtree(folder / "cycle", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows, begun = [], time.monotonic()
    with (folder / "samples.jsonl").open("w") as log:
        while (time.monotonic() - begun < 60 * minutes) if cycles is None else len(rows) < cycles:
            cycle(load, folder / "cycle")
            rows.append({"hours": (time.monotonic() - begun) / 3600, **held()})
            log.write(json.dumps(rows[-1]) + "\n")
            log.flush()
    return rows


def growth(rows: Sequence[Row]) -> dict[str, Trend]:
    """Per count, its growth an hour after the warm-up."""
    kept = warmed(rows)
    hours = [row["hours"] for row in kept]
    found = {name: theilslopes([row[name] for row in kept], hours, alpha=0.95) for name in COUNTED}
    return {name: Trend(*(float(x) for x in (f[0], f[2], f[3], f[1]))) for name, f in found.items()}


def warmed(rows: Sequence[Row]) -> list[Row]:
    """The samples behind the warm-up."""
    return [row for row in rows if row["hours"] >= WARM_UP * rows[-1]["hours"]]


def table(result: Mapping[str, Any]) -> str:
    """For people."""
    rows = result["samples"]
    lines = [f"{len(rows)} cycles in {60 * rows[-1]['hours']:.0f} minutes", ""]
    lines += ["|  | after warm-up | at the end | growth an hour | 95 % |", "|---|--:|--:|--:|--:|"]
    for name, found in result["growth"].items():
        scale, unit, form = (2**20, " MiB", ",.1f") if name in BYTES else (1, "", ",.0f")
        first, last = (x[name] / scale for x in (warmed(rows)[0], rows[-1]))
        slope, low, high = (found[x] / scale for x in ("slope", "low", "high"))
        span = f"{low:+,.1f} to {high:+,.1f}"
        lines.append(f"| {name} | {first:{form}}{unit} | {last:{form}}{unit} | {slope:+,.1f}{unit} | {span} |")
    return "\n".join(lines)


def page(result: Mapping[str, Any], path: Path) -> Path:
    """The counts over time, with their slopes, as an offline page."""
    from interp.figures.trends import trend_panels
    from interp.page import Figure, Page, Section

    rows, kept = result["samples"], warmed(result["samples"])
    series, lines = {}, {}
    for name, found in result["growth"].items():
        title, scale = (f"{name}, MiB", 2**20) if name in BYTES else (name, 1)
        series[title] = [row[name] / scale for row in rows]
        ends = (kept[0]["hours"], kept[-1]["hours"])
        lines[title] = tuple((60 * x, (found["start"] + found["slope"] * x) / scale) for x in ends)
    figure = trend_panels([60 * row["hours"] for row in rows], series, x_title="minutes", lines=lines)
    lead = f"{len(rows)} cycles; one point a cycle. Lines: the slope of Theil and Sen behind the warm-up."
    parts = [Section("Held after each cycle", [Figure(figure, "What the process holds")])]
    return Page("Soak", lead, parts).write(path)


def image(result: Mapping[str, Any], path: Path) -> None:
    """The figure as a picture."""
    from playwright.sync_api import sync_playwright

    html = page(result, ROOT / "runs" / "soak" / "soak.html")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        tab = browser.new_page(viewport={"width": 1000, "height": 900})
        tab.goto(html.resolve().as_uri())
        tab.locator(".js-plotly-plot").first.screenshot(path=str(path))
        browser.close()


def main() -> None:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cycles", type=int, help="so many, however long they take")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "soak")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what the file holds")
    parser.add_argument("--image", action="store_true", help="draw what the file holds")
    o = parser.parse_args()
    if o.table or o.image:
        result = json.loads(o.out.read_text())
        if o.image:
            image(result, ROOT / "docs" / "images" / "soak.png")
    else:
        os.environ["XDG_CACHE_HOME"] = str(o.work / "cache")
        rows = soak(Load(), o.work, minutes=o.minutes, cycles=o.cycles)
        found = {name: value._asdict() for name, value in growth(rows).items()}
        about = environment(["torch", "transformers", "numpy", "safetensors", "plotly"])
        heap = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
        result = {"growth": found, "load": dataclasses.asdict(Load()), "heap": heap, "samples": rows}
        result["environment"] = about
        write_json(o.out, result)
        page(result, o.work / "soak.html")
    sys.stdout.write(table(result) + "\n")


if __name__ == "__main__":
    main()
