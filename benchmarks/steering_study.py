"""Does optimal affine steering pay on a real model? Disturbance at an equal effect, and steered text.

    python benchmarks/steering_study.py            SmolLM2, three contrast sets; about 25 minutes of one core
    python benchmarks/steering_study.py --table    what the file holds

(a) Optimality. Edits that write along the same mean difference differ in what they read. Each is scaled so that
held-out source prompts move by the same amount along the held-out difference; measured is E|f(x) − x|² on held-out
neutral tokens, as a multiple of shrunk MidSteer's (bootstrap over prompts, paired), and KL on text of the built-in
corpus. The vanilla projection is about the origin, as published: where activations lie on the wrong side of it, β is
negative. The centred one is about the target's mean, and takes source prompts to it.

(b) Behaviour. Generated text by judges that see the text alone, at β and, for the other methods, at strengths of equal
mean disturbance of neutral activations; vanilla and addition also at β = 1, the flip also at the same β. Paired tests
over prompts. MidSteer's claim is that prompts of the target concept change less than under the flip (arXiv
2605.05220): the paired difference of |change of the score| there.

The layer is the one of largest debiased α on the training prompts. What was done is kept in `--work`.
"""

import argparse
import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.corpus import Document, read_corpus, split
from interp.judges import EmbeddingJudge, LexiconJudge
from interp.model import HookedModel
from interp.moments import prompt_rows, text_batches, whitener
from interp.multiple_choice import multiple_choice_accuracy, read_items
from interp.sealing import write_json
from interp.sites import Site
from interp.stats import bootstrap_ratio, paired_permutation
from interp.steering.baselines import RANDOM, fit_on, matched_betas
from interp.steering.closed_forms import add, midsteer, vanilla
from interp.steering.contrast import read_contrast
from interp.steering.edits import AffineEdit
from interp.steering.evaluate import evaluate
from interp.steering.evaluation import UNSTEERED, Point, SteeringEvaluation, accuracy
from interp.steering.evaluation_config import EvaluationConfig
from interp.steering.fit import Settings
from interp.steering.fit_data import Prompts, SiteData, gather
from interp.steering.methods import Recipe
from interp.steering.neutral import NeutralText, neutral_effect
from interp.steering.prompts import fitting_prompts, has_chat
from interp.steering.records import Records

RESULTS = Path(__file__).parent / "results" / "steering_study.json"
STREAM = tuple(f"resid_post.{layer}" for layer in (4, 8, 12, 16, 20))
OTHERS = ("attn_out.10", "mlp_out.10")
METHODS, KEPT = ("midsteer", "flip", "vanilla", "add"), "midsteer, target kept"
Row = dict[str, Any]


def token_rows(model: HookedModel, prompts: Prompts, texts: Sequence[Any], sites: Sequence[Site]) -> dict[Site, Any]:
    """(rows, prompt of each row) by site: every counted token."""
    parts = list(prompt_rows(model, text_batches(model, texts), sites, positions=prompts.positions))
    return {
        site: (torch.cat([one.acts[site].double() for one in parts]), torch.cat([one.prompt for one in parts]))
        for site in sites
    }


def variants(data: SiteData) -> dict[str, AffineEdit]:
    """Edits that write along μ_t − μ_s and differ in what they read."""
    assert data.target is not None
    s, t = (one.mean[:, None] - data.moments.mean[:, None] for one in (data.source, data.target))
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "full" says that it is unwise with few prompts, which is the point
        for how in ("shrink", "ridge", "full", "diag", "none"):
            found[f"MidSteer, {how}"] = midsteer(s, t, whitener(data.moments, how), data.moments.mean)
    difference = data.source.mean - data.target.mean
    found["vanilla projection"] = vanilla(difference)
    found["projection, centred"] = vanilla(difference, data.target.mean)
    found["difference of means"] = add(data.target.mean, data.source.mean)
    return found


def scaled(edit: AffineEdit, source: torch.Tensor, along: torch.Tensor) -> float:
    """β at which held-out source prompts move by the held-out difference."""
    return float(along @ along / (edit.change(source) @ along).mean())


def optimality(model: HookedModel, name: str, o: argparse.Namespace, data: Mapping[Site, SiteData]) -> list[Row]:
    """A row for each site and variant."""
    contrast = read_contrast(name)
    held, sites = fitting_prompts(contrast, chat=has_chat(model), n=o.held_out, held_out=True), list(data)
    source, target, neutral = (
        token_rows(model, held, texts, sites) for texts in (held.source, held.target or (), held.neutral or ())
    )
    text = NeutralText.of(model, documents(), n=o.documents, length=48)
    rows = []
    for site in sites:
        along = target[site][0].mean(0) - source[site][0].mean(0)
        edits = variants(data[site])
        edits = {key: edit.at(scaled(edit, source[site][0], along)) for key, edit in edits.items()}
        x, prompt = neutral[site]
        sizes = torch.bincount(prompt).double().numpy()
        moved = {
            key: torch.bincount(prompt, weights=edit.change(x).square().sum(1)).numpy() for key, edit in edits.items()
        }
        single = {key: {site: edit.to(dtype=torch.float32)} for key, edit in edits.items()}
        effects = neutral_effect(model, text, dict(enumerate(single.values())))
        ours = moved["MidSteer, shrink"]
        for number, (key, edit) in enumerate(edits.items()):
            low, high = bootstrap_ratio(moved[key], ours)
            rows.append(
                {
                    "set": name,
                    "site": str(site),
                    "variant": key,
                    "beta": edit.beta,
                    "disturbance": float(moved[key].sum() / sizes.sum()),
                    "share_of_variance": float(moved[key].sum() / sizes.sum() / (x - x.mean(0)).square().sum(1).mean()),
                    "ratio": float(moved[key].sum() / ours.sum()),
                    "ratio_low": low,
                    "ratio_high": high,
                    "kl": effects[number].mean(effects[number].kl),
                }
            )
        print(f"{name} {site}: " + ", ".join(f"{row['variant']} {row['ratio']:.2f}" for row in rows[-len(edits) :]))
    return rows


def documents() -> list[Document]:
    """Text that no edit was fitted on."""
    return list(split(read_corpus("builtin"))[1])


def behaviour(
    model: HookedModel, name: str, o: argparse.Namespace, data: Mapping[Site, SiteData]
) -> tuple[SteeringEvaluation, Row]:
    """The evaluation at the layer of largest α, and what else was measured there."""
    stream = [Site.parse(site) for site in STREAM]
    settings = Settings(Recipe("midsteer"))
    every = fit_on(model, {site: data[site] for site in stream}, ["midsteer"], settings=settings, random=False)
    facts = every["midsteer"].provenance["sites"]
    best = max(facts, key=lambda site: facts[site]["alpha_debiased"])
    chosen = {Site.parse(best): data[Site.parse(best)]}
    methods = fit_on(model, chosen, METHODS, settings=settings)
    kept = dataclasses.replace(settings, preserve="target")
    methods[KEPT] = fit_on(model, chosen, ["midsteer"], settings=kept, random=False)["midsteer"]
    betas = matched_betas(methods, "midsteer", o.betas)
    betas |= {name: (betas[name][-1], 1.0) for name in ("vanilla", "add")}  # equal disturbance, and as they are used
    betas["flip"] = (*betas["flip"], *o.betas)
    betas[RANDOM] = betas[RANDOM][-1:]
    config = EvaluationConfig(
        betas=tuple(o.betas),
        n_prompts=o.prompts,
        max_new_tokens=o.tokens,
        neutral_documents=o.documents,
        neutral_length=48,
        questions=0,
        samples=2,
    )
    found = evaluate(
        model, methods, read_contrast(name), judges=[EmbeddingJudge(), LexiconJudge()], neutral=documents(),
        betas=betas, config=config, out=o.work / name,
    )  # fmt: skip
    alphas = {site: {key: one[key] for key in ("alpha_debiased", "rho", "eta")} for site, one in facts.items()}
    extra: Row = {"site": best, "alphas": alphas}
    if o.questions:
        extra["retention"] = retention(model, methods, betas, o)
    return found, extra


def retention(model: HookedModel, methods: Mapping[str, Any], betas: Mapping[str, Sequence[float]], o: Any) -> Row:
    """Multiple-choice questions at the largest strength of every method."""
    items = read_items()[: o.questions]
    base = multiple_choice_accuracy(model, items).correct.tolist()
    found = {}
    for name, steering in methods.items():
        answers = multiple_choice_accuracy(model, items, steering.at(betas[name][-1]).hooks()).correct.tolist()
        found[name] = dataclasses.asdict(accuracy(answers, base, level=0.95))
    return found


def summary(found: SteeringEvaluation) -> list[Row]:
    """A row for each point and judge, without the scores of single prompts."""
    rows = []
    for point in found.points:
        for judge in found.judges:
            row: Row = {"method": point.method, "beta": point.beta, "judge": judge, "kl": dataclasses.asdict(point.kl)}
            row["delta_ce"] = dataclasses.asdict(point.delta_ce)
            for kind, one in point.sets.items():
                change = dataclasses.asdict(one.change[judge])
                row[kind] = {"score": one.mean[judge].value, "repetition": one.repetition.value, **change}
                row[kind]["perplexity"] = one.perplexity.value
            rows.append(row)
    return rows


def against_flip(found: SteeringEvaluation, method: str) -> list[Row]:
    """The method minus the flip: |change of the score| on target prompts, and the change on source prompts.

    Once at equal disturbance of neutral activations, once at equal β. At equal β both move source prompts alike, by
    β (μ_t − μ_s); target prompts the flip moves back by as much, MidSteer on by β ρ (μ_t − μ_s)."""
    ours, flips = found.of(method), found.of("flip")
    half = len(ours)
    at = {one.beta: one for one in flips}
    nominal = [at[beta] for beta in found.facts["config"]["betas"]]
    matched = [one for one in flips if one not in nominal]
    if len(matched) < half:
        raise ValueError(f"expected {half} strengths of the flip at equal disturbance, found {len(matched)}")
    pairs = [("equal disturbance", a, b) for a, b in zip(ours, matched, strict=True)]
    pairs += [("equal β", a, at[a.beta]) for a in ours if a.beta in at]
    return [_minus(found, how, a, b, judge) for how, a, b in pairs for judge in found.judges]


def _minus(found: SteeringEvaluation, how: str, ours: Point, flip: Point, judge: str) -> Row:
    base = found.of(UNSTEERED)[0]

    def moved(point: Point, kind: str) -> np.ndarray:
        return np.array(point.sets[kind].scores[judge]) - np.array(base.sets[kind].scores[judge])

    row: Row = {"how": how, "method": ours.method, "beta": ours.beta, "beta_flip": flip.beta, "judge": judge}
    less = np.abs(moved(ours, "target")) - np.abs(moved(flip, "target"))
    signed = {kind: moved(ours, kind) - moved(flip, kind) for kind in ("source", "target")}
    for key, values in {**signed, "target_absolute": less}.items():
        low, high = bootstrap_ratio(values, np.ones(len(values)))
        row[key] = {"value": float(values.mean()), "low": low, "high": high, "p": paired_permutation(values)}
    return row


def study(o: argparse.Namespace) -> Row:
    """Everything, in order; each part is kept and not done again."""
    torch.set_num_threads(1)
    model = HookedModel.load(o.model, dtype="float32", device="cpu")
    sites = [Site.parse(site) for site in (*STREAM, *OTHERS)]
    compared = [Site.parse(site) for site in (STREAM[1], STREAM[3], *OTHERS)]
    records = Records(o.work / "study")
    result: Row = {"model": o.model, "options": {k: v for k, v in vars(o).items() if k not in ("work", "out", "table")}}
    for name in o.sets:
        key = {**{k: v for k, v in result["options"].items() if k != "sets"}, "set": name}
        fitted = {one: key[one] for one in ("model", "set", "train", "held_out", "documents")}
        held: dict[str, Mapping[Site, SiteData]] = {}

        def data(name: str = name, held: dict[str, Mapping[Site, SiteData]] = held) -> Mapping[Site, SiteData]:
            if not held:
                held[name] = gather(model, fitting_prompts(read_contrast(name), chat=has_chat(model), n=o.train), sites)
            return held[name]

        a = records.get(
            f"a-{name}", fitted, lambda d=data, n=name: optimality(model, n, o, {site: d()[site] for site in compared})
        )

        def part_b(d: Any = data, n: str = name) -> Row:
            found, extra = behaviour(model, n, o, d())
            found.save(o.work / n / "evaluation.json")
            return {**extra, "evaluation": found.to_json()}

        extra = dict(records.get(f"b-{name}", key, part_b))
        found = SteeringEvaluation.from_json(extra.pop("evaluation"))
        flip = [row for method in ("midsteer", KEPT) for row in against_flip(found, method)]
        told = {"points": summary(found), "flip": flip, "samples": list(found.samples)}
        result.setdefault("optimality", []).extend(a)
        result.setdefault("behaviour", {})[name] = {**extra, **told}
        write_json(o.out, result)
    return result


def tables(result: Row) -> str:
    """Markdown."""
    lines = ["| set | site | variant | disturbance, × MidSteer shrink | share of variance | KL |", "|" + "---|" * 6]
    for row in result["optimality"]:
        ratio = f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        cells = (row["set"], row["site"], row["variant"], ratio, f"{row['share_of_variance']:.3g}", f"{row['kl']:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_optimality_summary(result["optimality"])]
    for name, part in result["behaviour"].items():
        head = "method | β | judge | KL | source: change | p | wrong way | target | unrelated | repetition"
        lines += ["", f"{name}, {part['site']}", "", f"| {head} |", "|" + "---|" * 10]
        lines += [_point_line(row) for row in part["points"]]
        lines += ["", *(_flip_line(row) for row in part["flip"])]
        for method, one in part.get("retention", {}).items():
            right = f"{one['correct']['value']:.2f} of {one['n']} questions"
            lines.append(f"- {method}: {right}, change {_interval(one['change'])}")
    return "\n".join(lines)


def _optimality_summary(rows: Sequence[Row]) -> list[str]:
    """Over sets and sites: the least, middle and largest ratio of each variant, and where its interval lies above 1."""
    lines = ["| variant | least | median | largest | interval above 1 | below 1 | median KL |", "|" + "---|" * 7]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        ratios = np.array([row["ratio"] for row in own])
        above, below = (
            sum(side) for side in zip(*((r["ratio_low"] > 1, r["ratio_high"] < 1) for r in own), strict=True)
        )
        shown = [f"{value:.2f}" for value in (ratios.min(), np.median(ratios), ratios.max())]
        kl = f"{np.median([row['kl'] for row in own]):.4f}"
        lines.append(f"| {' | '.join([variant, *shown, f'{above} of {len(own)}', f'{below} of {len(own)}', kl])} |")
    return lines


def _point_line(row: Row) -> str:
    source = row["source"]
    changes = [_interval(row[kind]["mean"]) for kind in ("source", "target", "unrelated")]
    wrong = f"{100 * source['wrong_way']['value']:.0f} %"
    cells = [row["method"], f"{row['beta']:g}", row["judge"], f"{row['kl']['value']:.4f}", changes[0]]
    cells += [f"{source['p']:.2g}", wrong, *changes[1:], f"{source['repetition']:.2f}"]
    return f"| {' | '.join(cells)} |"


def _flip_line(row: Row) -> str:
    said = [f"{_interval(row[key])} (p = {row[key]['p']:.2g})" for key in ("source", "target", "target_absolute")]
    pair = f"{row['method']}, β {row['beta']:g}, minus flip, β {row['beta_flip']:g}"
    return (
        f"- {row['how']}: {pair}, {row['judge']}: change on source prompts {said[0]}; on target prompts {said[1]}, "
        f"of its size {said[2]}"
    )


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['value']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sets", nargs="+", default=["horse-motorcycle", "dog-cat", "sentiment"])
    parser.add_argument("--betas", nargs="+", type=float, default=[2.0, 4.0])
    parser.add_argument("--train", type=int, default=96, help="prompts of each kind to fit on")
    parser.add_argument("--held-out", type=int, default=40, help="prompts of each kind for disturbance")
    parser.add_argument("--prompts", type=int, default=12, help="prompts of each kind to generate from")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--questions", type=int, default=80, help="multiple-choice questions at the largest strength")
    parser.add_argument("--work", type=Path, default=Path("runs/steering_study"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    return parser.parse_args(arguments)


def main() -> None:
    o = parsed()
    print(tables(json.loads(o.out.read_text()) if o.table else study(o)))


if __name__ == "__main__":
    main()
