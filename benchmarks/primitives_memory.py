"""Peak memory of the catalogue of literary primitives at full size, beside what the planner says it will be.

    python benchmarks/primitives_memory.py                         # 131,072 features, d 4096, 128,256 tokens

A model of one block and a trained SAE, of random weights, in the shapes of Llama 3.1 8B and Llama Scope's L15R-32x; an
untrained SAE is made of it, and both go through `find_candidates` as in a run: lens, contrasts, rules. The lens
computes chunks for `--seconds`, of each SAE its share, and repeats the last one for the remaining rows: time is not
measured here (see primitives_lens.py), and the peak does not depend on how many chunks there are. Decoys are left out:
they go through the same chunks, 4,096 at a time, after which the covariance's root takes some d x d in float64. So is
the model's depth: its weights are stated by the planner and held here for one block. Texts are cut to four words, which
fills a batch with texts at the price of few tokens. Peak: resident memory of the
process at its highest, less what it was before anything was allocated. First `load_sae` of Llama Scope's and Gemma
Scope's layout at `--loaded` features: its peak in bytes per weight, which is what goes with size.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from interp.bench.measure import environment, measure
from interp.model import HookedModel
from interp.quiet import quiet_transformers
from saes.config import SAEConfig
from saes.interop import load_sae
from saes.primitives import lens_scores
from saes.primitives.catalogue import LiteraryData, Selection, find_candidates, literary_data
from saes.primitives.contrast_scores import TextPair
from saes.primitives.dictionary import untrained_like
from saes.primitives.planning import catalogue_bytes
from saes.sae import SAE

SITE = "blocks.0.hook_resid_post"


def model_of(d: int, v: int, tokenizer: Any) -> HookedModel:
    """One random block in bfloat16, embeddings shared with the unembedding, with SmolLM2's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=v, hidden_size=d, intermediate_size=d, num_hidden_layers=1, num_attention_heads=d // 128,
        num_key_value_heads=max(1, d // 512), head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with quiet_transformers():
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return HookedModel.wrap(hf.eval(), tokenizer)


@torch.no_grad()
def sae_of(d: int, f: int) -> SAE:
    """A TopK SAE of random unit rows, made in place."""
    with torch.device("meta"):
        sae = SAE(SAEConfig(d_in=d, d_sae=f, architecture="topk", k=50, metadata={"hook_name": SITE}))
    sae = sae.to_empty(device="cpu")
    for rows in (sae.encoder, sae.W_dec):
        rows.normal_().div_(rows.norm(dim=1, keepdim=True))
    sae.b_enc.zero_()
    sae.b_dec.zero_()
    return sae


def repeating(seconds: float) -> Callable[..., Any]:
    """`lens_scores._chunk` for a time, then its last result again."""
    real, until, held = lens_scores._chunk, time.perf_counter() + seconds, dict[int, Any]()

    def chunk(rows: torch.Tensor, *rest: Any) -> Any:
        if len(rows) not in held or time.perf_counter() < until:
            held[len(rows)] = real(rows, *rest)
            print(f"   chunk of {len(rows)} rows", flush=True)
        return held[len(rows)]

    return chunk


def catalogues(o: argparse.Namespace) -> dict[str, int]:
    """The peak of both catalogues, beside the planner's parts."""
    bundled = literary_data()
    registers = {name: _short(pairs[:6]) for name, pairs in bundled.registers.items()}
    data = LiteraryData(bundled.emotions, _short(bundled.persons), registers)
    held, tokenizer = dict[str, int](), HookedModel.load("smollm2-135m").tokenizer

    def call() -> None:
        model = model_of(o.d, o.vocabulary, tokenizer)
        held["model"] = sum(p.numel() * p.element_size() for p in model.hf.parameters())
        sae, real = sae_of(o.d, o.features), lens_scores._chunk
        for one in ("trained", "untrained"):
            used = sae if one == "trained" else untrained_like(sae, l0=50)
            lens_scores._chunk = repeating(o.seconds / 2)
            try:
                find_candidates(model, used, data, Selection(decoys=0), site=SITE, force=True)
            finally:
                lens_scores._chunk = real
            print(one, "done", flush=True)

    taken = measure(call)
    assert taken.rss_rise is not None, "resident memory is read from /proc: Linux"
    return held | catalogue_bytes(o.d, o.vocabulary, o.features) | {"measured": taken.rss_rise}


def _short(pairs: Sequence[TextPair]) -> tuple[TextPair, ...]:
    """Four words of each text: as many texts as a batch has, and few tokens to encode."""
    cut = [[" ".join(text.split()[:4]) for text in pair] for pair in pairs]
    return tuple((marked, plain) for marked, plain in cut)


def loading(d: int, f: int) -> dict[str, float]:
    """Peak of `load_sae` over the bytes of the SAE's weights in float32, by layout."""
    found = {}
    for layout in ("llama_scope", "gemma_scope"):
        with tempfile.TemporaryDirectory() as folder:
            _write(layout, Path(folder), d, f)
            taken = measure(lambda at=folder: load_sae(at))
        assert taken.rss_rise is not None
        found[layout] = taken.rss_rise / (8 * d * f)
    return found


def _write(layout: str, folder: Path, d: int, f: int) -> None:
    w = torch.randn(f, d, generator=torch.Generator().manual_seed(0))
    if layout == "gemma_scope":
        np.savez(folder / "params.npz", W_enc=w.T.numpy(), W_dec=w.numpy(), b_enc=np.zeros(f, np.float32),
                 b_dec=np.zeros(d, np.float32), threshold=np.ones(f, np.float32))  # fmt: skip
        return
    (folder / "checkpoints").mkdir()
    tensors = {"encoder.weight": w, "encoder.bias": torch.zeros(f), "decoder.weight": w.T.contiguous(),
               "decoder.bias": torch.zeros(d)}  # fmt: skip
    save_file({k: t.to(torch.bfloat16) for k, t in tensors.items()}, folder / "checkpoints" / "final.safetensors")
    about = {"d_model": d, "d_sae": f, "act_fn": "jumprelu", "jump_relu_threshold": 0.33,
             "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 10.8, "out": 10.8},
             "hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post"}  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(about))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="of the lens")
    parser.add_argument("--features", type=int, default=131_072)
    parser.add_argument("--loaded", type=int, default=16_384, help="features of the SAE that is loaded")
    parser.add_argument("--d", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "primitives_memory.json")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    loaded = loading(o.d, o.loaded)
    parts = catalogues(o)
    measured = parts.pop("measured")
    result = {
        "shape": {"features": o.features, "d": o.d, "vocabulary": o.vocabulary},
        "bytes": {"measured peak": measured, "planner": sum(parts.values()), **parts},
        "peak of load_sae over the weights in float32": loaded,
        "environment": environment(("torch", "numpy", "transformers")),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=1))
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
