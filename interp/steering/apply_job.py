"""Texts under a saved steering, beside those of the model as it is, prompt by prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.heap import trimmed
from interp.model import HookedModel
from interp.placement import PlacingConfig
from interp.steering.generation import Writing, generate_texts
from interp.steering.prompts import Prompt, has_chat
from interp.steering.steering import Steering


@dataclass(frozen=True)
class ApplyConfig(PlacingConfig):
    """How texts are generated."""

    beta: float | None = None
    """Strength at every site; by default each site's own."""
    chat: bool | None = None
    """Put the prompts to the model as the user's turn; by default where it has a chat template."""
    max_new_tokens: int = 64
    """Longest text."""
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float | None = None
    """Draw from the likeliest tokens of this total probability."""
    batch_size: int = 32
    """Texts generated together; changes nothing but the speed."""
    beside: bool = False
    """Also the text without steering."""
    seed: int = 0
    """Of the drawn tokens."""


def apply_job(
    model: HookedModel | str,
    folder: str | Path,
    prompts: Sequence[str],
    config: ApplyConfig | None = None,
    *,
    force: bool = False,
) -> Iterator[dict[str, Any]]:
    """{"prompt", "steered" and, if asked for, "unsteered"} for every prompt, in their order."""
    config = config or ApplyConfig()
    if not prompts:
        raise InputError("give a prompt, or a file of prompts")
    steering = Steering.load(folder)
    if isinstance(model, str):
        model = HookedModel.load(model, **config.placing())
    steering.check(model, force=force)
    steering = steering if config.beta is None else steering.at(config.beta)
    chat = has_chat(model) if config.chat is None else config.chat
    if chat and not has_chat(model):
        raise InputError(
            f"{model.name} has no chat template: leave chat out, and the prompts are continued as they are"
        )
    given = [Prompt(text, instruction=chat) for text in prompts]
    steered, plain = _written(model, given, steering, config)
    for i, text in enumerate(prompts):
        row = {"prompt": text, "steered": steered[i]}
        yield row if plain is None else {**row, "unsteered": plain[i]}


@trimmed()
def _written(
    model: HookedModel, prompts: list[Prompt], steering: Steering, config: ApplyConfig
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Texts under the steering and, if asked for, without it."""
    writing = Writing(config.max_new_tokens, config.temperature, config.top_p, config.batch_size, config.seed)
    steered = generate_texts(model, prompts, steering.hooks(), writing=writing).texts
    return steered, generate_texts(model, prompts, writing=writing).texts if config.beside else None
