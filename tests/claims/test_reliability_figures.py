"""README, "Reliability": the counts are those of the committed runs."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().split("## Reliability\n")[1].split("\n## ")[0]


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_faults():
    rows = result("faults")["rows"]
    injected, survived = (sum(row[name] for row in rows) for name in ("injected", "survived"))
    kills = sum(row["injected"] for row in rows if "SIGKILL" in row["fault"])
    assert f"{injected:,} injected, {survived:,} survived" in SECTION and f"{kills} SIGKILLs" in SECTION


def test_hostile_files():
    total = result("hostile")["total"]
    assert total["attacks"] == total["held"] and f"{total['held']:,} attacks held off" in SECTION


def test_fuzzing():
    targets = result("fuzz")["targets"].values()
    tried = sum(one[name] for one in targets for name in ("value", "refused", "failed"))
    assert f"{len(targets)} targets, {tried / 1e6:.1f} million inputs" in SECTION
    assert not any(one["failed"] for one in targets) and "no failure left" in SECTION


def test_an_hour_of_work():
    soak = result("soak")
    slope, low, high = (soak["growth"]["rss"][name] / 2**20 for name in ("slope", "low", "high"))
    assert f"flat: {slope:+.0f} MiB, 95 % interval {low:.0f} to {high:+.0f}" in SECTION
    assert low < 0 < high, "not flat"
    assert f"({len(soak['samples'])} cycles" in SECTION and soak["samples"][-1]["hours"] >= 1
    assert all(soak["growth"][name]["slope"] == 0 for name in ("files", "threads", "tensors"))
