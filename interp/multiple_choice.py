"""Multiple-choice questions: how much of what a model knows survives an edit.

    chosen_i = argmax over options o of  log P(" o" | "Question: q_i\\nAnswer:") / number of tokens of o

The model is not shown the letters of the options but asked how likely each answer is in its own words: models of a
hundred million parameters choose between letters at chance and yet know many of the answers. Per question, so that
clean and edited runs are compared pair by pair; 40 right answers of 160 are chance.

    {"question": ..., "options": [four], "answer": 0..3, "topic": ...}         one a line: data/multiple_choice.jsonl
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from interp.errors import InputError
from interp.jsonlines import json_values
from interp.judging.likelihood import option_likelihoods
from interp.model import Edit, HookedModel
from interp.resources import data_path
from interp.sites import Site

PROMPT = "Question: {question}\nAnswer:"


@dataclass(frozen=True)
class Item:
    """One question."""

    question: str
    options: tuple[str, ...]
    answer: int
    """Index of the right option."""
    topic: str


@dataclass(frozen=True)
class Answers:
    """What a model chose."""

    chosen: Int[np.ndarray, " n"]
    right: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, "n c"]
    """Mean log-probability of each option's tokens."""

    @property
    def correct(self) -> np.ndarray:
        """Item by item."""
        return self.chosen == self.right

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.correct.mean())

    @property
    def margin(self) -> Float[np.ndarray, " n"]:
        """Score of the right option minus the best of the others: moves before the choice does."""
        rows = np.arange(len(self.right))
        others = self.scores.copy()
        others[rows, self.right] = -np.inf
        return self.scores[rows, self.right] - others.max(1)


def read_items(path: str | Path | None = None) -> tuple[Item, ...]:
    """The bundled questions, or a .jsonl file of one's own."""
    path = data_path("multiple_choice.jsonl") if path is None else Path(path)
    items = [_item(row, f"{path}, line {number}") for number, row in json_values(path, "questions")]
    if not items or len({len(item.options) for item in items}) != 1:
        raise InputError(f"{path}: expected questions, all with equally many options")
    return tuple(items)


def multiple_choice_accuracy(
    model: HookedModel,
    items: Sequence[Item] | None = None,
    edits: Mapping[Site, Edit] | Mapping[str, Edit] | None = None,
    *,
    prompt: str = PROMPT,
    token_budget: int | None = None,
    show: bool | None = False,
) -> Answers:
    """What the model answers to each item (the bundled ones by default), under `edits` if any are given."""
    items = read_items() if items is None else items
    if prompt.count("{question}") != 1:
        raise InputError(f"the prompt {prompt!r} must have {{question}} exactly once")
    found = option_likelihoods(
        model,
        [prompt.replace("{question}", item.question) for item in items],
        [[f" {option}" for option in item.options] for item in items],
        edits=edits,
        token_budget=token_budget,
        show=show,
    )
    scores = found.per_token
    return Answers(scores.argmax(1), np.array([item.answer for item in items]), scores)


def _item(row: Any, place: str) -> Item:
    options: list[Any] = row.get("options", []) if isinstance(row, dict) else []
    sound = (
        isinstance(options, list)
        and all(isinstance(option, str) and option.strip() for option in options)
        and len(set(options)) == len(options) >= 2
        and isinstance(row.get("question"), str)
        and type(row.get("answer")) is int
        and 0 <= row["answer"] < len(options)
    )
    if not sound:
        raise InputError(
            f'{place}: expected {{"question", "options": two or more different ones, "answer": index of the right '
            f"one}}, got {row!r}"
        )
    return Item(row["question"], tuple(options), row["answer"], str(row.get("topic", "")))
