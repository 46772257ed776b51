"""`benchmarks/soak.py` on a tiny model: its cycles run, its counts are the system's, and what leaks is found."""

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import soak
from interp.errors import InputError
from interp.figures.trends import trend_panels
from interp.steering.fit_job import FitConfig
from tests.tiny_folder import tiny_folder

if not Path("/proc/self/smaps_rollup").exists():
    pytest.skip("the counts are read from Linux's /proc", allow_module_level=True)
HELD: list[object] = []


def test_cycles_of_a_tiny_model_leave_no_file_thread_or_tensor(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_folder(tmp_path)
    for name, words in {"source": "w1 w2 w3", "target": "w7 w8 w9", "neutral": "w20 w21 w22"}.items():
        lines = [f"{words} w{30 + i} w{40 + i % 7} w{50 - i}" for i in range(12)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    texts = {name: tmp_path / f"{name}.txt" for name in ("source", "target", "neutral")}
    load = soak.Load(
        str(tmp_path / "model"), "resid_post.1", str(tmp_path / "text.jsonl"), 300, 64, FitConfig(**texts, level=None),
        ("w1 w2", "w3"), 3,
    )  # fmt: skip
    rows = soak.soak(load, tmp_path / "soak", minutes=0, cycles=4)
    assert [json.loads(line) for line in (tmp_path / "soak/samples.jsonl").read_text().splitlines()] == rows
    assert not (tmp_path / "soak/cycle").exists()
    # The first cycles load code and fill caches of libraries; from then on every cycle leaves what the last one left.
    for name in ("files", "threads", "children", "tensors", "cache"):
        assert rows[-1][name] == rows[-2][name], (name, rows)


def test_counts_are_the_systems(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = soak.held()
    kept = [torch.full((1 << 25,), 1.0), torch.zeros(1)]
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        after = soak.held()
    finally:
        for file in files:
            os.close(file)
    assert after["files"] - before["files"] == 5 and after["tensors"] - before["tensors"] == len(kept)
    assert 100 << 20 < after["rss"] - before["rss"] < 160 << 20  # of 128
    assert soak.held()["files"] == before["files"]


def rows(grows: float, noise: float) -> list[soak.Row]:
    """An hour of samples: `grows` an hour behind a warm-up that takes far more, with noise and single outliers."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(1, 101):
        start = 500 * max(0.0, 15 - i)
        odd = 10_000 * (i % 17 == 0)
        wobble = noise * float(torch.randn((), generator=generator))
        made.append(dict.fromkeys(soak.COUNTED, 1000 - start + grows * i / 100 + wobble + odd) | {"hours": i / 100})
    return made


def test_growth_is_found_behind_the_warm_up_and_only_there():
    found = soak.growth(rows(grows=50.0, noise=2.0))["rss"]
    assert found.low < 50 < found.high and found.low > 40 and found.high < 60
    flat = soak.growth(rows(grows=0.0, noise=2.0))["rss"]
    assert flat.low < 0 < flat.high and abs(flat.slope) < 5
    still = soak.growth([row | {"files": 7.0} for row in rows(0.0, 1.0)])["files"]
    assert still == (0.0, 0.0, 0.0, 7.0)


def test_the_table_and_the_page_show_every_count(tmp_path: Path):
    samples = rows(grows=3 * 2**20, noise=1.0)
    growth = {name: value._asdict() for name, value in soak.growth(samples).items()}
    text = soak.table({"samples": samples, "growth": growth})
    assert "100 cycles in 60 minutes" in text and "| rss | 0.6 MiB | 3.0 MiB | +3.0 MiB | +3.0 to +3.0 |" in text
    html = soak.page({"samples": samples, "growth": growth}, tmp_path / "soak.html").read_text()
    assert all(name in html for name in soak.COUNTED) and "pss, MiB" in html


def test_panels_refuse_series_of_another_length():
    with pytest.raises(InputError, match="as many in every series, 2 of x"):
        trend_panels([1, 2], {"rss": [1.0]}, x_title="minutes")
