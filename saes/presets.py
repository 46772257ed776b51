"""Pretrained SAEs by name: where they lie, and the model and site they were made for.

| name | model | site | features |
|---|---|---|---|
| `llama-scope-l15r-32x` | Llama 3.1 8B (base) | blocks.15.hook_resid_post | 131,072, one threshold, about 50 active |
| `gemma-scope-9b-it-l20-131k` | Gemma 2 9B IT | blocks.20.hook_resid_post | 131,072, JumpReLU, about 81 active |

`saes.interop.load_sae(name)` loads one; the models are presets of `interp.presets`.
"""

from dataclasses import dataclass

from interp.sites import Point, Site

USED_ON = "midlens_used_on"
"""Key of an SAE's metadata: a model it is used on, where that is another than the one it was trained on."""


@dataclass(frozen=True)
class SAEPreset:
    """One pretrained SAE; `model` is the preset of the model it is used on, `chat` whether that is a chat model."""

    name: str
    source: str
    """`organisation/repository:folder` on the hub."""
    layout: str
    """Of its files there (`saes.interop.load`), whatever else may lie beside them."""
    model: str
    site: Site
    chat: bool
    d_in: int
    d_sae: int
    l0: float
    """Mean active features per token, as published."""
    notes: str = ""


SAE_PRESETS: dict[str, SAEPreset] = {
    preset.name: preset
    for preset in (
        SAEPreset(
            "llama-scope-l15r-32x",
            "fnlp/Llama3_1-8B-Base-LXR-32x:Llama3_1-8B-Base-L15R-32x",
            "llama_scope",
            model="llama-3.1-8b-instruct",
            site=Site(Point.RESID_POST, 15),
            chat=True,
            d_in=4096,
            d_sae=131_072,
            l0=50,
            notes="trained on the base model without BOS; on chat data of the instruct model as sparse",
        ),
        SAEPreset(
            "gemma-scope-9b-it-l20-131k",
            "google/gemma-scope-9b-it-res:layer_20/width_131k/average_l0_81",
            "gemma_scope",
            model="gemma-2-9b-it",
            site=Site(Point.RESID_POST, 20),
            chat=True,
            d_in=3584,
            d_sae=131_072,
            l0=81,
            notes="trained without the positions of the chat template's user prefix",
        ),
    )
}
