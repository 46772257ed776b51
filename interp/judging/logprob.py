"""A loaded language model as judge: the probabilities it gives to the options as answers to the question.

    p_w(c | text) ∝ exp( log P(option c | prompt_w(text)) - mean over neutral texts u of log P(option c | prompt_w(u)) )
    weight_c = mean over wordings and orders w of p_w(c | text)

Every wording of the prompt is asked in several orders of the options, since small models favour what they read first
or last; the numbers of a rating keep their order, which is part of their meaning. The second term is what the model
answers about texts that say nothing to the question: it takes off the model's liking for an option as such, after
Zhao et al. 2021, "Calibrate before use", who put "N/A" and the like for the text. Three plain sentences are used here:
on 32 training texts of the sentiment set SmolLM2-135M hit 72 % with them and 55 % with "N/A", "" and "[MASK]". Ratings
are not calibrated. Options of several tokens, and numbers of several digits, are summed over their tokens:
`interp.judging.likelihood`.

This judge always has an answer. `facts["mass"]` says how much probability the options had altogether: near 0, the model
would have said something else, and its weights mean little.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.chat import render
from interp.errors import InputError
from interp.judging.likelihood import Likelihoods, option_likelihoods
from interp.judging.question import Question, Scores, check_texts
from interp.model import HookedModel

WORDINGS = (
    "Question: {question}\nOptions: {options}\nText: {text}",
    '{question}\n\nText: "{text}"\n\nPossible answers: {options}. Give only the answer.',
)
NEUTRAL = (
    "The meeting is on Thursday.",
    "There are seven chairs in the room.",
    "The box contains paper and two pencils.",
)
_SLOTS = ("{text}", "{question}", "{options}")


@dataclass(frozen=True)
class LogProbJudge:
    """Asks a model that is in memory; see the module's docstring."""

    model: HookedModel
    wordings: tuple[str, ...] = WORDINGS
    """Prompts with the slots {text}, {question} and {options}."""
    orders: int = 2
    """How many orders of the options each wording is asked in; for two options, two are all."""
    calibrate: bool = True
    """Divide by the answers about neutral texts."""
    chat: bool | None = None
    """Ask through the chat template; by default where the tokenizer has one."""
    name: str = "log-prob"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if self.model.tokenizer is None:
            raise InputError(f"{self.name}: the model came without a tokenizer, so it cannot read texts")
        self.model.require_head("a log-prob judge's answers")
        if not self.wordings or self.orders < 1:
            raise InputError(f"{self.name}: expected one wording and one order or more")
        for wording in self.wordings:
            if missing := [slot for slot in _SLOTS if wording.count(slot) != 1]:
                raise InputError(f"{self.name}: the wording {wording!r} must have {missing[0]} exactly once")

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """The mean of its probabilities over wordings and orders."""
        check_texts(texts, self.name)
        neutral = NEUTRAL if self.calibrate and question.values is None else ()
        n, weights, masses = len(texts), [], []
        for wording in self.wordings:
            for order in self._orders(question, seed):
                found = self._asked(wording, order, [*texts, *neutral], question).sums
                weights.append(_softmax(found[:n] - (found[n:].mean(0) if neutral else 0)))
                masses.append(np.exp(found[:n]).sum(1))
        mass = float(np.mean(masses))
        return Scores(self.name, question, np.mean(weights, axis=0), {"mass": mass, "prompts": len(weights)})

    def _orders(self, question: Question, seed: int) -> list[list[int]]:
        """Rotations of one order drawn from the seed; as they are for a rating."""
        c = len(question.options)
        if question.values is not None:
            return [list(range(c))]
        first = np.random.default_rng(seed).permutation(c)
        count = min(self.orders, c)
        return [np.roll(first, k * c // count).tolist() for k in range(count)]

    def _asked(self, wording: str, order: list[int], texts: Sequence[str], question: Question) -> Likelihoods:
        listed = ", ".join(question.options[i] for i in order)
        prompts = [_filled(wording, text, question.text, listed) for text in texts]
        chat = bool(getattr(self.model.tokenizer, "chat_template", None)) if self.chat is None else self.chat
        if chat:
            turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
            contexts = [render(self.model.tokenizer, turn, generation_prompt=True).text for turn in turns]
            options = question.options
        else:
            contexts = [f"{prompt}\nAnswer:" for prompt in prompts]
            options = [f" {option}" for option in question.options]
        return option_likelihoods(self.model, contexts, [options] * len(contexts), token_budget=self.token_budget)


def _filled(wording: str, text: str, question: str, options: str) -> str:
    """The wording with its slots filled at once: a text that holds a slot's name is left as it is."""
    parts = {"{text}": text, "{question}": question, "{options}": options}
    places = sorted((wording.index(slot), slot) for slot in parts)
    filled, at = "", 0
    for place, slot in places:
        filled += wording[at:place] + parts[slot]
        at = place + len(slot)
    return filled + wording[at:]


def _softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    exps = np.exp(logits - logits.max(1, keepdims=True))
    return exps / exps.sum(1, keepdims=True)
