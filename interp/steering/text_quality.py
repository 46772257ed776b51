"""Whether steered text still reads as text: repetition, compressibility, and the loss the unsteered model gives it.

    repetition_n(text) = 1 - distinct n-grams / n-grams                  of words, lower-case; 0 is none
    zlib ratio(text)   = compressed bytes / bytes                        about 0.5 to 0.9 for some lines of English
    loss(text)         = - Σ_i log p(token_i | prompt, tokens before i)  under the model without any edit

All three catch what strong steering does first: loops. The loss alone is no measure of quality, for a loop is easy to
predict; repetition alone none either, for a list repeats. They are to be read side by side. The zlib ratio of a short
text is above its asymptote (the format's own bytes count), so only texts of similar length compare.
"""

import re
import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.model import HookedModel

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]")


def repetition(text: str, *, n: int = 3) -> float:
    """The share of word n-grams that occurred before in the text; 0 for a text of fewer than n words."""
    if n < 1:
        raise InputError(f"repetition: n={n}, expected n-grams of 1 word or more")
    words = _WORD.findall(text.lower())
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def zlib_ratio(text: str) -> float:
    """Bytes after compression per byte before; 1 for an empty text."""
    raw = text.encode(errors="surrogatepass")
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 1.0


@torch.no_grad()
def continuation_losses(
    model: HookedModel,
    prompts: Int[Tensor, "b t"],
    lengths: Int[Tensor, " b"],
    new: Int[Tensor, "b n"],
    counts: Int[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Summed negative log-probability of the first `counts` new tokens of each row, behind its right-padded prompt."""
    b, n = new.shape
    device = model.device
    prompts, lengths, new, counts = (x.to(device) for x in (prompts, lengths, new, counts))
    total = torch.zeros(b, int((lengths + counts).max()), dtype=torch.int64, device=device)
    total[:, : prompts.shape[1]] = prompts[:, : total.shape[1]]
    steps = torch.arange(n, device=device)
    row, step = torch.nonzero(steps < counts[:, None], as_tuple=True)
    total[row, lengths[row] + step] = new[row, step]
    logits = model(total, lengths=lengths + counts)
    picked = torch.log_softmax(logits[row, lengths[row] + step - 1].float(), dim=-1)
    losses = -picked.gather(1, new[row, step][:, None])[:, 0].double()
    return torch.zeros(b, dtype=torch.float64, device=device).index_add_(0, row, losses).cpu()
