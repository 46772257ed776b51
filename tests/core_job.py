"""The core on a bare interpreter: `make test-core` runs this where only the core's own packages are installed.

Every module of the core is imported, and a tiny model goes through the work: extraction to a store, an SAE trained on
it and evaluated in the model, a steering fitted and applied, attention split into routing and filtering.
"""

import importlib
import importlib.metadata
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "kernels")]
PACKAGES = ("torch", "numpy", "scipy", "safetensors", "transformers", "jaxtyping", "tqdm", "triton")
TOOLS = {"pip", "setuptools", "wheel"}


def norm(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_environment() -> None:
    """Refuse to call this a bare machine if anything is installed that the core's packages do not bring."""
    allowed, open_names = set(TOOLS), list(PACKAGES)
    while open_names:
        name = norm(open_names.pop())
        if name in allowed:
            continue
        allowed.add(name)
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        open_names += [re.split(r"[\s<>=!~;\[(]", line)[0] for line in wanted if "extra ==" not in line]
    found = {norm(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    if more := sorted(found - allowed):
        raise SystemExit(f"this is no bare environment, it also holds {', '.join(more)}")
    if missing := sorted(set(PACKAGES) - {"triton"} - found):
        raise SystemExit(f"the core's packages {', '.join(missing)} are not installed")


def check_imports() -> int:
    """Every module of the core imports."""
    from tests.core_modules import CORE

    for name in CORE:
        importlib.import_module(name)
    return len(CORE)


def work(folder: Path) -> None:
    """One tiny model through the core's work."""
    import torch

    from interp.attention.heads import kernel
    from interp.extract import extract
    from interp.model import HookedModel
    from interp.sites import Site
    from interp.steering.closed_forms import add
    from saes.evaluate import evaluate
    from saes.recipe import TrainConfig
    from saes.train import fit
    from tests.tiny_models import tiny
    from tests.toy_store import token_file, word_tokenizer

    tokenizer = word_tokenizer()
    tiny("gemma2", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    model, site = HookedModel.load(folder / "model", dtype="float32"), Site.parse("resid_post.1")
    tokens = token_file(folder / "tokens", [20] * 40)
    store = extract(model, tokens, [site], folder / "store", progress=False)
    store.verify()
    sae = fit(store, TrainConfig(d_sae=96, k=8, batch_size=64, epochs=4.0), folder / "sae", site=site)
    found = evaluate(sae, store, site, model=model, tokens=tokens, max_ce_tokens=200)
    assert len(store) > 500 and found.n_tokens > 0
    acts: Any = store.rows(site, 0, len(store)).float()
    edit = add(acts[:200].mean(0), acts[200:].mean(0) + 1.0)
    ids = torch.arange(4, 24).reshape(2, 10)
    plain = model.generate(ids, max_new_tokens=4, stop_tokens=())
    with model.edited({site: lambda x, where: edit(x)}):
        steered = model.generate(ids, max_new_tokens=4, stop_tokens=())
    assert plain.shape == steered.shape == (2, 4)
    bilinear = kernel(model, 1).bilinear
    dense, energies = bilinear.dense(), bilinear.energies()
    for sign, energy in ((-1, energies.routing), (1, energies.filtering)):
        part = (dense + sign * dense.mT) / 2
        torch.testing.assert_close(energy.double(), part.square().sum((-2, -1)), rtol=1e-4, atol=1e-6)


def main() -> None:
    """All of it; the last line says what ran."""
    check_environment()
    modules = check_imports()
    with tempfile.TemporaryDirectory() as folder:
        work(Path(folder))
    heavy = sorted({"pandas", "plotly", "sklearn", "sae_lens", "transformer_lens"} & set(sys.modules))
    assert not heavy, heavy
    sys.stdout.write(f"the core's {modules} modules run on {', '.join(PACKAGES)} alone\n")


if __name__ == "__main__":
    main()
