"""Scale on paper: arithmetic done by hand, what limits a run, and the README's tables."""

import json
import re

import pytest

from benchmarks import scale
from interp.bench.measure import ROOT


def test_a_billion_tokens_by_hand():
    """1e9 / 75,000 = 13,333.3 s; times 8,192 bytes 8.192 TB; 8 GPUs write 4.915 GB/s."""
    alone = scale.extraction(1e9, 1, rate=75_000, row_bytes=8192)
    assert alone.seconds == pytest.approx(13_333.333, rel=1e-6)
    assert alone.gpu_hours == pytest.approx(3.7037037, rel=1e-6)
    assert alone.terabytes == pytest.approx(8.192)
    assert scale.disk_needed(8, rate=75_000, row_bytes=8192) == pytest.approx(4.9152e9)


@pytest.mark.parametrize("gpus", scale.GPUS)
def test_more_gpus_take_less_time_for_the_same_money_until_the_disk_limits(gpus):
    alone = scale.extraction(1e9, 1, rate=75_000, row_bytes=8192)
    many = scale.extraction(1e9, gpus, rate=75_000, row_bytes=8192)
    assert many.seconds == pytest.approx(alone.seconds / gpus) and many.gpu_hours == pytest.approx(alone.gpu_hours)
    slow = scale.extraction(1e9, gpus, rate=75_000, row_bytes=8192, disk=1e8)
    assert slow.limit == "disk" and slow.seconds == pytest.approx(81_920)
    assert slow.gpu_hours == pytest.approx(gpus * 81_920 / 3600)  # waiting is paid for


def test_the_break_even_disk_is_where_the_limit_changes():
    need = scale.disk_needed(8, rate=75_000, row_bytes=4100)
    limits = [
        scale.extraction(1e9, 8, rate=75_000, row_bytes=4100, disk=need * factor).limit for factor in (0.99, 1.01)
    ]
    assert limits == ["disk", "GPU"]


def test_passes_worth_a_month_of_the_store():
    """A month of 8.192 TB at $20 is $163.84; a pass of 3.7037 GPU-hours at $4 is $14.81: 11.06 passes."""
    passes = scale.passes_worth_a_month(rate=75_000, row_bytes=8192, gpu_hour=4, tb_month=20)
    assert passes == pytest.approx(163.84 / 14.8148, rel=1e-4)


def test_the_roofline_follows_from_the_models_sizes():
    """17 blocks of Llama 3.1 8B: 218.1 M parameters each, and causal attention at sequence 1,024."""
    q_o, k_v, mlp = 2 * 4096 * 4096, 2 * 4096 * 1024, 3 * 4096 * 14336
    flops = 17 * (2 * (q_o + k_v + mlp) + 8192 * 1024)
    assert 790e12 / flops == pytest.approx(scale.ROOFLINE, rel=1e-3)


def row(**changes):
    given = {"part": "extraction", "name": scale.SHAPE, "unit": "tokens/s", "status": "ok", "variant": "to disk, 16k"}
    return {**given, "device": "NVIDIA H200", "value": 1.0, **changes}


def test_a_measured_rate_slots_in(tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu.json"
    others = [row(device="cpu", value=9e9), row(name="gemma-2-9b", value=8e9), row(variant="no sink", value=7e9)]
    path.write_text(json.dumps({"rows": [row(value=50_000.0), row(value=60_000.0), *others, row(part="sae")]}))
    assert scale.measured_rate(path) == 60_000
    monkeypatch.setattr("sys.argv", ["scale.py", "--results", str(path)])
    scale.main()
    assert "hours, measured" in (said := capsys.readouterr().out) and "| 1B | 1 | 4.63 |" in said
    path.write_text(json.dumps({"rows": others}))
    with pytest.raises(SystemExit, match=r"no measured rate of llama-3\.1-8b to disk"):
        scale.measured_rate(path)


def test_the_readme_shows_what_the_script_prints():
    text = (ROOT / "benchmarks/README.md").read_text()
    section = re.search(r"^## Scale on paper.*?(?=^## |\Z)", text, re.M | re.S)
    assert section is not None
    shown = re.findall(r"^\|.*$", section.group(), re.M)
    assert shown == [line for line in scale.report(scale.ON_PAPER).splitlines() if line]
