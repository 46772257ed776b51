"""Recipes read back from a run's folder steer a model to the same text, and files that do not fit are refused."""

import json
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch

from interp.errors import InputError
from interp.model import HookedModel
from interp.sealing import write_json
from interp.sites import Site
from saes.primitives.recipes import load_recipes, load_run
from saes.primitives.results import Coverage
from saes.primitives.specs import SteeringSpec, Term
from saes.sae import SAE, SAEConfig
from tests.primitives import report_cases as cases
from tests.tiny_models import tiny

SITE = Site.parse("resid_post.1")


def write_run(folder: Path, coverage: Coverage, **facts: object) -> Path:
    """The two files that a run leaves."""
    catalogue = cases.catalogue()
    catalogue.facts.update(facts)
    folder.mkdir(exist_ok=True)
    write_json(folder / "catalogue.json", catalogue.to_json())
    write_json(folder / "coverage.json", coverage.to_json())
    return folder


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel.wrap(tiny("llama"))


@pytest.fixture(scope="module")
def sae() -> SAE:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 48, generator=rng)
    return SAE.of_weights(
        SAEConfig(d_in=48, d_sae=64, architecture="topk", k=8), W_enc=rows.T, W_dec=rows, b_enc=torch.zeros(64),
        b_dec=torch.zeros(48),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_a_reloaded_recipe_writes_the_same_tokens(model: HookedModel, sae: SAE, mode: str, tmp_path: Path):
    # Numbers that no short decimal holds: JSON has to keep every bit of them.
    own = SteeringSpec((Term(5, 1 / 3), Term(17, -(2**0.5))), 10 / 7, mode=mode)
    (cell,) = cases.coverage(1).cells
    coverage = replace(cases.coverage(1), cells=(replace(cell, chosen=own),))
    found = load_recipes(write_run(tmp_path, coverage, features=64))
    assert found == {cell.emotion: own}
    tokens = torch.randint(3, 97, (4, 6), generator=torch.Generator().manual_seed(1))

    def written(spec: SteeringSpec | None) -> torch.Tensor:
        hooks = spec.hooks(sae, SITE) if spec is not None else None
        return model.generate(tokens, edits=hooks, max_new_tokens=24, temperature=1.0, seed=3)

    before = written(own)
    assert torch.equal(written(found[cell.emotion]), before)
    assert not torch.equal(written(None), before)
    assert not torch.equal(written(replace(own, terms=own.terms[:1])), before)
    for name, edit in own.hooks(sae, SITE).items():
        assert name == SITE
        with model.edited({SITE: edit}):
            steered = model(tokens)
        with model.edited(found[cell.emotion].hooks(sae, SITE)):
            assert torch.equal(model(tokens), steered)


def test_only_recipes_that_were_chosen_and_passed_as_asked(tmp_path: Path, monkeypatch):
    cells = list(cases.coverage(3).cells)
    marks = [(True, True), (False, True), (False, False)]
    for i, (strict, soft) in enumerate(marks):
        conditions = tuple(
            replace(one, strict=strict if one.name == "steered" else True, soft=soft if one.name == "steered" else True)
            for one in cells[i].conditions
        )
        cells[i] = replace(cells[i], conditions=conditions)
    names = [cell.emotion for cell in cells]
    without = replace(cases.coverage(4).cells[3], chosen=None)
    folder = write_run(tmp_path, replace(cases.coverage(0), cells=(*cells, without)))
    assert list(load_recipes(folder)) == names
    assert list(load_recipes(folder, passed="soft")) == names[:2]
    assert list(load_recipes(folder, passed="strict")) == names[:1]
    assert load_run(folder)[1].cells[-1] == without
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the type checker of the tests would come first
    with pytest.raises(InputError, match=r"unknown passed='all'; known: any, soft, strict"):
        load_recipes(folder, passed="all")  # pyright: ignore[reportArgumentType]


def test_files_that_are_missing_damaged_or_of_two_runs_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no catalogue\.json and no coverage\.json; expected the folder of a fin"):
        load_recipes(tmp_path)
    folder = write_run(tmp_path, cases.coverage(2))
    value = json.loads((folder / "coverage.json").read_text())

    write_run(folder, cases.coverage(2), categories="press-release")
    with pytest.raises(InputError, match=r"coverage\.json of 'cowen-keltner-2017'; expected files of on"):
        load_recipes(folder)
    write_run(folder, cases.coverage(2), features=3)
    with pytest.raises(InputError, match=r"recipe of admiration uses features \[\d+.*\], but the SAE .* has 3; expec"):
        load_recipes(folder)
    write_run(folder, cases.coverage(2), features="many")
    with pytest.raises(InputError, match="does not say how many features the SAE has"):
        load_recipes(folder)
    write_run(folder, cases.coverage(2))
    write_json(folder / "coverage.json", {**value, "more": 1})
    with pytest.raises(InputError, match="more"):
        load_recipes(folder)
    (folder / "coverage.json").write_text("{")
    with pytest.raises(InputError, match="is damaged, it is not JSON"):
        load_recipes(folder)
