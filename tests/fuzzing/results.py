"""Targets that are results kept as JSON: of steering, literary primitives, patching, surveys, Sudoku studies."""

import json
import math
from pathlib import Path

import numpy as np
from fuzzing.mutate import written
from fuzzing.registry import Prepared, target

from interp.errors import InputError
from interp.sealing import read_json


def _same(a: object, b: object) -> bool:
    """Equal as JSON, NaN included."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


@target("steering_evaluation", "json")
def _(folder: Path) -> Prepared:
    from steering_samples import evaluation

    from interp.steering.evaluation import SteeringEvaluation

    path = evaluation(n=3, methods=("midsteer",)).save(folder / "evaluation.json")

    def parse(_: bytes) -> None:
        found = SteeringEvaluation.load(path)
        assert _same(SteeringEvaluation.from_json(json.loads(json.dumps(found.to_json()))).to_json(), found.to_json())
        assert all(point.name for point in found.points) and found.judges is not None
        for method in found.methods:
            found.of(method)

    return Prepared(parse, [path.read_bytes()], path)


@target("steering_generated", "json")
def _(folder: Path) -> Prepared:
    from interp.steering.generation import Generated

    path = folder / "texts.json"

    def parse(_: bytes) -> None:
        found = Generated.from_json(read_json(path, "texts"))
        assert len({len(column) for column in vars(found).values()}) == 1 and found.part(slice(0, 1))
        assert Generated.from_json(found.to_json()) == found or any(map(math.isnan, found.losses))

    made = Generated(("a", "b"), (1.0, 2.0), (3, 4), (0.0, 0.5), (0.5, 1.0))
    return Prepared(parse, [written(made.to_json())], path)


def _spec(feature: int = 3):
    from saes.primitives.specs import SteeringSpec, Term

    return SteeringSpec((Term(feature, 0.5), Term(feature + 1, -0.25)), 10.0, site="blocks.1.hook_resid_post",
                        n_features=16)  # fmt: skip


def _coverage():
    from saes.primitives.results import Cell, Condition, Coverage, Sample, Shuffled, Trial

    samples = tuple(
        Sample(name, seed, "p", "t", {"a": "joy", "b": None}, {"a": True, "b": None}, -1.5, 0.25)
        for name in ("steered", "zero")
        for seed in (0, 1)
    )
    conditions = tuple(Condition.of(name, "joy", samples, _spec() if name == "steered" else None) for name in
                       ("steered", "zero"))  # fmt: skip
    cell = Cell(
        "joy", "recipe", _spec(), conditions, samples, (Trial(_spec(), 0.5), Trial(_spec(5), 0.1, 0.2, -1.0, 0.0))
    )
    shuffled = Shuffled(0.5, 4, 0.0, 1, 10)
    return Coverage("toy", ("a", "b"), ("joy", "fear"), (cell,), 2, 0.1, 0.2, math.nan, shuffled, {"validity": {}})


def _catalogue():
    from saes.primitives.catalogue import Candidate, Catalogue

    facts = {"features": 16, "categories": "toy", "site": "blocks.1.hook_resid_post"}
    return Catalogue((Candidate(3, "naming", "joy", {"q": 0.01}), Candidate(4, "self", "first person", {})), facts)


def _run(folder: Path) -> Path:
    from saes.primitives.recipes import CATALOGUE_FILE, COVERAGE_FILE

    (folder / CATALOGUE_FILE).write_bytes(written(_catalogue().to_json()))
    (folder / COVERAGE_FILE).write_bytes(written(_coverage().to_json()))
    return folder


def _of_run(name: str, file: str) -> None:
    @target(name, "json")
    def _(folder: Path) -> Prepared:
        from saes.primitives.catalogue import Catalogue
        from saes.primitives.recipes import load_recipes, load_run
        from saes.primitives.results import Coverage

        path = _run(folder)

        def parse(_: bytes) -> None:
            catalogue, coverage = load_run(path)
            for passed in ("any", "soft", "strict"):
                for spec in load_recipes(path, passed=passed).values():
                    assert spec.describe() and spec.raw
            assert coverage.table() is not None and coverage.passes("strict") >= 0 and coverage.chance_soft >= 0
            assert all(isinstance(candidate.category, str) for candidate in catalogue.of("naming"))
            assert _same(Coverage.from_json(coverage.to_json()).to_json(), coverage.to_json())
            assert _same(Catalogue.from_json(catalogue.to_json()).to_json(), catalogue.to_json())

        return Prepared(parse, [(path / file).read_bytes()], path / file)


_of_run("primitives_coverage", "coverage.json")
_of_run("primitives_catalogue", "catalogue.json")


@target("steering_spec", "json")
def _(folder: Path) -> Prepared:
    from saes.primitives.specs import SteeringSpec

    path = folder / "spec.json"

    def parse(_: bytes) -> None:
        spec = SteeringSpec.from_json(read_json(path, "specification"))
        assert SteeringSpec.from_json(spec.to_json()) == spec and spec.describe() and spec.scaled(2.0)

    return Prepared(parse, [written(_spec().to_json())], path)


@target("kept_jsonl", "jsonl", repairs=True)
def _(folder: Path) -> Prepared:
    from saes.primitives.kept import Kept

    path = folder / "kept.jsonl"
    kept = Kept(path)
    kept.add([(["a", 1], {"x": 1}), ("b", [2])])
    kept.add([("c", None)])
    seed = path.read_bytes()

    def parse(_: bytes) -> None:
        Kept(path).get("b")

    return Prepared(parse, [seed], path)


@target("patch_table", "json")
def _(folder: Path) -> Prepared:
    from interp.patching import PatchTable
    from interp.sites import Site

    cells = np.array([[[0.5, math.nan], [1.0, 2.0]]] * 2)
    sites = (Site.parse("resid_post.1"), Site.parse("z.0[1]"))
    table = PatchTable("denoising", sites, (0, 1), cells, np.array([1.0, 2.0]), np.array([0.0, 0.5]))
    path = folder / "table.json"

    def parse(_: bytes) -> None:
        found = PatchTable.from_json(read_json(path, "table"))
        assert found.share.shape == found.values.shape[:2]
        assert _same(PatchTable.from_json(found.to_json()).to_json(), found.to_json())

    return Prepared(parse, [written(table.to_json())], path)


@target("twin_config", "json")
def _(folder: Path) -> Prepared:
    from interp.attention.sd_model import TwinConfig

    path = folder / "twin.json"
    made = TwinConfig(width=8, heads=2, n_ctx=16, kinds=("standard", "sd_token"), head_widths=(4, 4))

    def parse(_: bytes) -> None:
        found = TwinConfig.from_json(read_json(path, "twin"))
        assert found.layers == len(found.kinds)

    return Prepared(parse, [written(made.to_json())], path)


@target("survey", "json")
def _(folder: Path) -> Prepared:
    from interp.attention.survey_files import Parts
    from interp.attention.survey_result import ModelSurvey

    facts = {"name": "toy", "revision": None, "family": "llama", "shape": {"layers": 1}}
    (folder / "model.json").write_bytes(written(facts))
    parts = Parts(folder)
    parts.open("spectra", {"seed": 0})
    parts.write("spectra", 0, [{"layer": 0, "head": h, "rank": 2.5} for h in range(2)], 0.5, {})

    def parse(_: bytes) -> None:
        survey = ModelSurvey.load(folder)
        assert json.dumps(survey.summary())

    path = folder / "parts" / "spectra-000.json"
    return Prepared(parse, [path.read_bytes()], path)


@target("sudoku_result", "json")
def _(folder: Path) -> Prepared:
    from interp.sudoku.solving_study import Curve, Example, SolvingStudy
    from interp.sudoku.study_files import FORMAT, VERSION, read_result

    whole = np.array([1, 2], np.int64)
    example = Example(whole, whole, whole, 2, whole)
    curve = Curve(whole, whole, np.array([0.5, 0.25]), np.array([math.nan, 1.0]))
    study = SolvingStudy(4, "unique", 10, 1, 1, 8, 16, 5, 4, 0, 80, 70, curve, (example,))
    content = {"format": FORMAT, "version": VERSION, "part": "solving", "name": "seed0", "settings": {"seed": 0}}
    path = folder / "solving.json"

    def parse(_: bytes) -> None:
        result = read_result(path)
        value = result.value
        assert isinstance(value, SolvingStudy) is (result.part == "solving")
        if isinstance(value, SolvingStudy) and value.puzzles:
            assert math.isfinite(value.rate) and len(value.interval) == 2
        assert _same(type(value).from_json(value.to_json()).to_json(), value.to_json())

    return Prepared(parse, [written(content | {"result": study.to_json()})], path)


@target("sudoku_metrics", "jsonl")
def _(folder: Path) -> Prepared:
    from interp.sudoku.solving_study import read_curve

    lines = [written({"step": i, "puzzles": 8 * i, "excess": 0.5, "lr": 1e-3}) for i in range(3)]
    return Prepared(lambda _: read_curve(folder), [b"\n".join(lines) + b"\n"], folder / "metrics.jsonl")


@target("loop_metrics", "jsonl", repairs=True)
def _(folder: Path) -> Prepared:
    from interp.loop import Metrics

    path = folder / "metrics.jsonl"
    lines = [written({"step": i, "loss": 0.5}) for i in range(3)]
    return Prepared(lambda _: Metrics(path, after=9), [b"\n".join(lines) + b"\n"], path)


@target("attention_result", "json")
def _(folder: Path) -> Prepared:
    from interp.attention_report.results import result_sections

    path = folder / "surgery.json"
    base = {"perplexity": 20.0, "perplexity_low": 19.0, "perplexity_high": 21.0, "delta_ce": 0.1, "level": "kernel",
            "gauge": "raw", "alpha": 1, "beta": 0, "planes": None, "modes": None, "heads": "0.1", "n_tokens": 10,
            "n_documents": 2}  # fmt: skip
    record = {
        "model": "toy",
        "heads": "all",
        "all_heads": [base, base, base | {"planes": 2}],
        "single_heads": [base, base],
    }
    return Prepared(lambda _: result_sections([path]), [written(record)], path)


@target("stages_json", "json")
def _(folder: Path) -> Prepared:
    from saes.stages import Stages

    path = folder / "stages.json"

    def parse(_: bytes) -> None:
        said: list[str] = []
        Stages(path, said.append).close()
        if not said:
            raise InputError("nothing was said")

    return Prepared(parse, [written({"model": 1.5, "text": 2})], path)
