"""`benchmarks/steering_study.py` in small: its equal effects are equal, its claims hold on SmolLM2, it goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import steering_study as study
from interp.moments import Moments
from interp.steering.diagnostics import Rows
from interp.steering.fit_data import SiteData


def test_variants_have_the_same_effect_and_whitening_by_a_known_covariance_disturbs_least():
    """On data whose covariance is known well: the theorem, through the study's own scaling and measure."""
    generator = torch.Generator().manual_seed(0)
    d, n = 12, 6000
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, d).double()
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    s, t = (torch.randn(d, generator=generator, dtype=torch.float64) @ mix for _ in range(2))

    def rows(shift: torch.Tensor) -> torch.Tensor:
        return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + mean + shift

    neutral, source, target = rows(torch.zeros(d).double()), rows(s), rows(t)
    along = target.mean(0) - source.mean(0)

    def costs(seen: torch.Tensor) -> dict[str, float]:
        data = SiteData(Rows.of(source), Rows.of(target), Rows.of(seen), None, (), Moments.from_rows(seen))
        found = {}
        for name, edit in study.variants(data).items():
            edit = edit.at(study.scaled(edit, source, along))
            moved = float((edit.change(source) @ along).mean())
            assert moved == pytest.approx(float(along @ along), rel=1e-9), name
            found[name] = float(edit.change(neutral).square().sum(1).mean())
        return found

    many, few = costs(neutral), costs(neutral[:13])
    assert min(many, key=lambda name: many[name]) == "MidSteer, full"
    assert many["MidSteer, shrink"] < many["MidSteer, none"]
    assert few["MidSteer, shrink"] < 0.8 * few["MidSteer, full"]  # the converse: few prompts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is left out")
def test_the_study_in_small_on_smollm2(tmp_path: Path):
    options = "--sets horse-motorcycle --train 40 --held-out 16 --prompts 6 --tokens 16 --documents 4 --betas 3"
    o = study.parsed(
        [*options.split(), "--questions", "6", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "study.json")]
    )
    found = study.study(o)
    assert json.loads(o.out.read_text()) == json.loads(json.dumps(found))
    rows = {(row["site"], row["variant"]): row for row in found["optimality"]}
    for site in {row["site"] for row in found["optimality"]}:
        assert rows[site, "MidSteer, shrink"]["ratio"] == 1
        for worse in ("MidSteer, full", "vanilla projection"):
            assert rows[site, worse]["ratio_low"] > 1, (site, worse)
    part = found["behaviour"]["horse-motorcycle"]
    by = {(row["method"], row["judge"]): row for row in part["points"]}
    steered, random = by["midsteer", "embedding"], by["random", "embedding"]
    assert steered["source"]["mean"]["low"] > 0  # six prompts, some without a change: too few for a permutation test
    assert random["source"]["mean"]["value"] < steered["source"]["mean"]["value"]
    assert 0 < steered["kl"]["value"] < 0.1
    assert np.isfinite([row["target_absolute"]["p"] for row in part["flip"]]).all()
    assert "midsteer" in study.tables(found)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    assert json.loads(json.dumps(study.study(o))) == json.loads(o.out.read_text())
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
