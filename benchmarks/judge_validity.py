"""How often each judge is right about held-out texts of the contrast sets, with 95 % intervals.

    python benchmarks/judge_validity.py --out runs/judge_validity.json          (SmolLM2; minutes on two cores)

A hit is the right one of two sides; a text about which a judge has no usable answer is a miss, and counted beside.
`order` is the share of pairs (source, target) that the judge's weight puts in the right order (AUC): what is left of a
judge whose threshold is off. Log-prob judges are asked to choose, yes or no, and for a number from 0 to 10. Texts are
taken at even steps from each side; the embedding knows the concepts by their descriptions, the lexicon by word lists.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from interp.judges import EmbeddingJudge, Judge, LexiconJudge, LogProbJudge, Question, Scores
from interp.model import HookedModel
from interp.sealing import write_json
from interp.stats import wilson
from interp.steering.contrast import SETS, ContrastSet, read_contrast


class Asked(NamedTuple):
    """A question, and what about its answer speaks for the target."""

    question: Question
    kind: str

    def towards(self, scores: Scores) -> np.ndarray:
        """Larger is more of the target; nan without an answer."""
        return scores.expected if self.kind == "0 to 10" else scores.weights[:, 1]

    def says_target(self, scores: Scores) -> np.ndarray:
        """The decision: option 1, or more than 5 of 10."""
        return scores.values > 5 if self.kind == "0 to 10" else scores.choice == 1


def questions(contrast: ContrastSet) -> list[Asked]:
    """The same question in three forms."""
    source, target = contrast.concepts
    choice = Question.choice(
        f"Is the text {source.name} or {target.name}?",
        [source.name, target.name],
        descriptions=[source.description, target.description],
        words=[source.words, target.words],
    )
    return [
        Asked(choice, "choice"),
        Asked(Question.yes_no(f"Is this {target.description}?"), "yes or no"),
        Asked(Question.rating(f"How much is this {target.description}, from 0 to 10?"), "0 to 10"),
    ]


def measure(judge: Judge, contrast: ContrastSet, asked: Asked, n: int) -> dict[str, object]:
    """One line of the table."""
    sides = [_spread(texts, n) for texts in (contrast.held_out.source, contrast.held_out.target)]
    scores = [judge.score(texts, asked.question) for texts in sides]
    right = int((~asked.says_target(scores[0]) & ~scores[0].failed).sum() + asked.says_target(scores[1]).sum())
    total = sum(map(len, sides))
    low, high = wilson(right, total)
    a, b = (asked.towards(one)[~one.failed] for one in scores)
    difference = b[:, None] - a[None]
    order = float(((difference > 0) + 0.5 * (difference == 0)).mean()) if difference.size else float("nan")
    line = {"set": contrast.name, "judge": judge.name, "asked": asked.kind, "hits": right, "n": total}
    return {**line, "low": low, "high": high, "unusable": sum(s.n_failed for s in scores), "order": order}


def _spread(texts: Sequence[str], n: int) -> list[str]:
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(n, len(texts))).astype(int)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["sentiment", "formality", "horse-motorcycle"], choices=SETS)
    parser.add_argument("--model", default="smollm2-135m", help="of the log-prob judges; 'none' leaves them out")
    parser.add_argument("--n", type=int, default=24, help="texts a side for the log-prob judges (others: all)")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    judges: list[tuple[Judge, int]] = [(LexiconJudge(), 10**6), (EmbeddingJudge(), 10**6)]
    if o.model != "none":
        model = HookedModel.load(o.model)
        judges += [(LogProbJudge(model, chat=chat, name=f"log-prob {kind}"), o.n) for chat, kind in _ways(model)]
    lines = []
    print(f"{'set':17} {'judge':15} {'asked':10} {'hits':>9}  95 % interval  unusable  order")
    for name in o.sets:
        contrast = read_contrast(name)
        for judge, n in judges:
            for asked in questions(contrast) if isinstance(judge, LogProbJudge) else questions(contrast)[:1]:
                line = measure(judge, contrast, asked, n)
                lines.append(line)
                hits = f"{line['hits']}/{line['n']}"
                interval = f"{line['low']:.2f} to {line['high']:.2f}"
                print(
                    f"{name:17} {judge.name:15} {asked.kind:10} {hits:>9}  {interval:>13}  {line['unusable']:>8}  "
                    f"{line['order']:.2f}",
                    flush=True,
                )
    if o.out:
        o.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(o.out, {"model": o.model, "lines": lines})


def _ways(model: HookedModel) -> list[tuple[bool, str]]:
    chat = bool(getattr(model.tokenizer, "chat_template", None))
    return [(False, "plain"), *([(True, "chat")] if chat else [])]


if __name__ == "__main__":
    main()
