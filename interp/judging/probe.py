"""A judge fitted on labelled texts: a linear read-out of embeddings or of a model's pooled activations.

    scores = w_c · (e(text) - mean) / scale + b_c,     fitted by interp.probes.fit_logistic

It is fitted on other texts than it scores, and refuses a text that it was fitted on. What it reads may be the sentence
embedding, or the mean over positions of a site of any model in memory; reading the model under study at the site that
is steered would measure the edit itself, so take another model, or the text run through the clean one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.batching import default_token_budget
from interp.errors import InputError
from interp.judging.embedding import Embed
from interp.judging.question import Question, Scores, check_texts
from interp.model import HookedModel
from interp.sites import Site


@dataclass(frozen=True)
class ProbeJudge:
    """A fitted read-out; `ProbeJudge.fit` makes one."""

    embed: Embed
    classes: tuple[str, ...]
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]
    fitted_on: frozenset[str]
    name: str = "probe"

    @classmethod
    def fit(
        cls, embed: Embed, texts: Sequence[str], labels: Sequence[str], *, C: float = 1.0, name: str = "probe"
    ) -> "ProbeJudge":
        """Multinomial logistic regression on standardised coordinates."""
        from interp.probes import fit_logistic

        check_texts(texts, name)
        classes = tuple(sorted(set(labels)))
        if len(texts) != len(labels) or len(classes) < 2:
            raise InputError(
                f"{name}: {len(texts)} texts and {len(labels)} labels of {len(classes)} classes; expected one label a "
                "text, and two classes or more"
            )
        x = torch.from_numpy(np.asarray(embed(list(texts)), np.float64))
        mean, scale = x.mean(0), x.std(0).clamp(min=1e-8)
        y = torch.tensor([classes.index(one) for one in labels])[:, None]
        binary = len(classes) == 2
        probe = fit_logistic(
            (x - mean) / scale, y.bool() if binary else y, classes=None if binary else len(classes), C=C
        )
        weight, bias = probe.weight[0], probe.bias[0]
        if binary:  # one row, the log-odds of the second class
            weight, bias = (torch.cat([torch.zeros_like(w), w]) for w in (weight, bias))
        return cls(embed, classes, mean, scale, weight, bias, frozenset(texts), name)

    def score(self, texts: Sequence[str], question: Question, *, seed: int = 0) -> Scores:
        """Softmax over the question's options, all of which must be classes of the probe."""
        check_texts(texts, self.name)
        if unknown := [option for option in question.options if option not in self.classes]:
            raise InputError(
                f"{self.name}: the probe knows {', '.join(self.classes)}, but not the option {unknown[0]!r}; fit it on "
                "labels of that name"
            )
        if seen := [i for i, text in enumerate(texts) if text in self.fitted_on]:
            raise InputError(
                f"{self.name}: text {seen[0]} is one the probe was fitted on ({texts[seen[0]][:60]!r}); judge others"
            )
        x = torch.from_numpy(np.asarray(self.embed(list(texts)), np.float64))
        scores = (x - self.mean) / self.scale @ self.weight.T + self.bias
        chosen = scores[:, [self.classes.index(option) for option in question.options]]
        return Scores(self.name, question, chosen.double().softmax(-1).numpy())


def pooled(model: HookedModel, site: Site | str, *, max_length: int = 128, token_budget: int | None = None) -> Embed:
    """A function from texts to the mean over positions of `site`; position 0 is left out, a lone token kept."""
    where = Site.parse(site)

    def embed(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        rows: list[np.ndarray] = [np.zeros(0)] * len(texts)
        batch = model.to_tokens(list(texts))
        lengths = batch.lengths.clamp(max=max_length).cpu()
        budget = token_budget or default_token_budget(model.device.type)
        order, at = torch.argsort(lengths, descending=True).tolist(), 0
        while at < len(order):
            longest = int(lengths[order[at]])
            part = order[at : at + max(1, budget // longest)]
            at += len(part)
            x = model.capture(batch.tokens[part, :longest], [where], lengths=lengths[part].to(model.device))[where]
            for row, i in enumerate(part):
                own = x[row, min(1, int(lengths[i]) - 1) : int(lengths[i])]
                rows[i] = own.double().mean(0).cpu().numpy()
        return np.stack(rows)

    return torch.no_grad()(embed)
