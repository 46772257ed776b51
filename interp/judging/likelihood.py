"""What a model would answer, read from log-probabilities: no sampling, no parsing, always an answer.

    log P(option | context) = Σ_j log p(o_j | context, o_1 ... o_{j-1})          options of any number of tokens

Where one option begins another ("1" and "10" in a tokenizer that splits digits), the sum for the shorter also counts
every answer that goes on to the longer one. The longer ones' probability is taken off:

    P(o) <- P(o) - Σ over options o' that continue o, and no other such option, of P(o')

Options that share their first tokens share a row of the batch, so a question whose options are single tokens costs one
row. Context and option are tokenised together, and the option begins where the tokens first depend on it: a merge
across the boundary is counted, not lost. Rows are batched by length under a token budget, without padding between
equals: which texts stand in a batch changes no result beyond rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.batching import default_token_budget
from interp.errors import InputError
from interp.model import Edit, HookedModel
from interp.progress import bar
from interp.sites import Site

Ids = tuple[int, ...]
Normalise = Literal["none", "tokens"]


@dataclass(frozen=True)
class Likelihoods:
    """Log-probabilities of each option behind each context."""

    sums: Float[np.ndarray, "n c"]
    """log P, of the whole option."""
    tokens: Int[np.ndarray, "n c"]
    """How many tokens each option has."""

    @property
    def per_token(self) -> Float[np.ndarray, "n c"]:
        """Mean log-probability of an option's tokens: for options that are phrases of different length."""
        return self.sums / self.tokens


def option_likelihoods(
    model: HookedModel,
    contexts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    edits: Mapping[Site, Edit] | Mapping[str, Edit] | None = None,
    token_budget: int | None = None,
    show: bool | None = False,
) -> Likelihoods:
    """log P of `options[i][j]` written straight behind `contexts[i]`; every context has equally many options.

    A context ends where the answer begins: give it the blank before the answer, or the options theirs.
    """
    if not contexts or len(contexts) != len(options) or len({len(some) for some in options}) != 1:
        raise InputError(
            f"{len(contexts)} contexts and {len(options)} lists of {sorted({len(some) for some in options})} options: "
            "expected one list for each context, all of one length"
        )
    split = [_tokenised(model, context, some) for context, some in zip(contexts, options, strict=True)]
    rows = sorted({(i, context + branch) for i, (context, some) in enumerate(split) for branch in _branches(some)})
    starts = [len(context) for context, _ in split]
    found: dict[tuple[int, Ids], float] = {}
    with torch.no_grad(), model.edited(edits or {}), bar(len(rows), "options", show=show, unit="row") as progress:
        for part in _batches(rows, token_budget or default_token_budget(model.device.type)):
            wanted = {i: _steps(split[i][1]) for i, _ in part}
            found.update(_run(model, part, starts, wanted))
            progress.update(len(part))
    sums = np.array([[_total(found, i, ids) for ids in some] for i, (_, some) in enumerate(split)])
    return Likelihoods(_exclusive(sums, split), np.array([[len(ids) for ids in some] for _, some in split]))


def _tokenised(model: HookedModel, context: str, options: Sequence[str]) -> tuple[Ids, list[Ids]]:
    """Tokens of the context up to the first one that an option could change, and of each option from there on."""
    if empty := [option for option in options if not option.strip()]:
        raise InputError(f"the option {empty[0]!r} is empty; every option needs a word")
    plain = _ids(model, context)
    whole = [_ids(model, context + option) for option in options]
    shared = min(_common(plain, ids) for ids in whole)
    if shared == 0:
        raise InputError(f"the context {context!r} leaves no token before its options; put some text in front of them")
    split = [ids[shared:] for ids in whole]
    if len(set(split)) != len(split):
        raise InputError(f"two of the options {list(options)!r} have the same tokens; expected different ones")
    return plain[:shared], split


def _ids(model: HookedModel, text: str) -> Ids:
    batch = model.to_tokens([text])
    return tuple(batch.tokens[0, : int(batch.lengths[0])].tolist())


def _common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _steps(options: Sequence[Ids]) -> set[tuple[Ids, int]]:
    """(what precedes, the token): every step any option takes."""
    return {(ids[:j], ids[j]) for ids in options for j in range(len(ids))}


def _branches(options: Sequence[Ids]) -> list[Ids]:
    """The longest contexts: each other one begins one of these, whose row has its logits too."""
    needed = {ids[:-1] for ids in options}
    return [ids for ids in needed if not any(other != ids and other[: len(ids)] == ids for other in needed)]


def _batches(rows: list[tuple[int, Ids]], token_budget: int) -> list[list[tuple[int, Ids]]]:
    """Rows from long to short, cut so that rows times the longest stays within the budget (one row at least)."""
    batches: list[list[tuple[int, Ids]]] = []
    for row in sorted(rows, key=lambda row: (-len(row[1]), row)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0][1]) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _run(
    model: HookedModel,
    part: list[tuple[int, Ids]],
    starts: list[int],
    wanted: Mapping[int, set[tuple[Ids, int]]],
) -> dict[tuple[int, Ids], float]:
    """log p of every wanted step that the rows of one batch hold."""
    lengths = torch.tensor([len(ids) for _, ids in part])
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for _, ids in part], batch_first=True)
    logits = model(tokens.to(model.device), lengths=lengths.to(model.device))
    steps: list[tuple[int, int, int]] = []  # row, position, token
    names: list[tuple[int, Ids]] = []
    for row, (i, ids) in enumerate(part):
        branch = ids[starts[i] :]
        for before, token in wanted[i]:
            if branch[: len(before)] == before:
                steps.append((row, starts[i] + len(before) - 1, token))
                names.append((i, (*before, token)))
    row, position, token = torch.tensor(steps, device=logits.device).T
    values = torch.log_softmax(logits[row, position].float(), -1).gather(1, token[:, None])[:, 0]
    return dict(zip(names, values.tolist(), strict=True))


def _total(found: Mapping[tuple[int, Ids], float], i: int, ids: Ids) -> float:
    return sum(found[i, ids[: j + 1]] for j in range(len(ids)))


def _exclusive(sums: np.ndarray, split: Sequence[tuple[Ids, list[Ids]]]) -> np.ndarray:
    """Take the longer options' probability off the options that they continue."""
    result = sums.copy()
    for i, (_, some) in enumerate(split):
        for j, ids in enumerate(some):
            inside = [k for k, other in enumerate(some) if k != j and other[: len(ids)] == ids]
            direct = [k for k in inside if not any(_begins(some[m], some[k]) for m in inside if m != k)]
            if direct:
                rest = 1 - float(np.exp(sums[i, direct] - sums[i, j]).sum())
                result[i, j] += np.log(max(rest, 1e-12))
    return result


def _begins(a: Ids, b: Ids) -> bool:
    return a != b and b[: len(a)] == a
