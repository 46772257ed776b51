"""Hostile input: every hand-made attack of the tests, counted and measured.

    python benchmarks/hostile.py                      # all of them, some three minutes, and the pages in a browser
    python benchmarks/hostile.py --only "SAE pickle"  # one kind

An attack is held off when it is refused with an `InputError`, nothing ran or was written outside its folder, and the
peak of resident memory grew by less than 200 MiB. Every attack is bounded (`tests/hostile_samples.py`), so that one
that works does no harm. Pages count one attack for each text on each page. Writes `results/hostile.json`: the totals
and one row per attack.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from interp.bench.measure import environment
from interp.sealing import write_json
from tests import hostile_files, hostile_models, hostile_saes, hostile_stores, hostile_text
from tests.browser_tab import REASON, chromium
from tests.hostile_samples import tried

ATTACKS = (*hostile_models.ATTACKS, *hostile_stores.ATTACKS, *hostile_saes.ATTACKS, *hostile_files.ATTACKS)
_LINES = ("ran", "complaints", "asked", "handlers", "foreign", "links", "scripts", "refreshes", "styles", "hidden")


def attacked(only: str) -> list[dict[str, Any]]:
    """One row per attack."""
    rows = []
    for attack in (one for one in ATTACKS if only in one.target):
        with tempfile.TemporaryDirectory() as folder:
            found = tried(attack, Path(folder))
        rows.append(
            {
                "target": attack.target,
                "attack": attack.name,
                "refused": found.refused,
                "escaped": list(found.escaped),
                "held": found.held,
                "seconds": round(found.seconds, 4),
                "peak_mib": round(found.growth / 2**20, 1),
            }
        )
        if not found.held:
            print(f"NOT HELD  {attack.id}: {found.said:.300} {found.escaped}")
    return rows


def shown() -> list[dict[str, Any]]:
    """One row per page and text."""
    rows = []
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        for name, make in hostile_text.PAGES.items():
            (base := Path(folder) / name.replace(" ", "-")).mkdir()
            begun = time.perf_counter()
            found = hostile_text.inspected(browser, make(base / "page.html"))
            held = not any(found[line] for line in _LINES)
            seconds = (time.perf_counter() - begun) / len(hostile_text.PAYLOADS)
            row = {"target": f"page: {name}", "held": held, "refused": False, "escaped": [], "peak_mib": 0.0}
            rows += [row | {"attack": text, "seconds": round(seconds, 4)} for text in hostile_text.PAYLOADS]
            if not held:
                print(f"NOT HELD  {name}: { ({line: found[line] for line in _LINES if found[line]}) }")
    return rows


def totals(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By target: attacks, held off, the slowest and the one that took most memory."""
    found: dict[str, dict[str, Any]] = {}
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        found[target] = {
            "attacks": len(own),
            "held": sum(row["held"] for row in own),
            "slowest_seconds": max(row["seconds"] for row in own),
            "largest_peak_mib": max(row["peak_mib"] for row in own),
        }
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="targets that hold this text")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "hostile.json")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        import transformers  # noqa: F401  # so that no attack is charged with loading it

        rows = attacked(o.only)
        rows += shown() if not o.only and not REASON else []
    by_target = totals(rows)
    for target, row in by_target.items():
        print(f"{target:32s} {row['held']:4d} of {row['attacks']:4d} held, {row['slowest_seconds']:6.2f} s at most")
    whole = {"attacks": len(rows), "held": sum(row["held"] for row in rows)}
    whole |= {"code_that_ran_or_files_outside": sum(bool(row["escaped"]) for row in rows)}
    print(f"{'all':32s} {whole['held']:4d} of {whole['attacks']:4d} held")
    result = {
        "total": whole,
        "targets": by_target,
        "environment": environment(["torch", "transformers", "safetensors"]),
    }
    write_json(o.out, result | {"rows": rows})


if __name__ == "__main__":
    main()
