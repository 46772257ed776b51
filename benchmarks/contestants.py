"""Who extracts activations in the extraction benchmark, each in its fastest documented configuration.

Every contestant computes the residual stream after block 15 in float32, from the same weights in memory (SAELens alone
insists on loading them itself, from a folder saved from them); some do it a second time in bfloat16, from a cast copy.
All but midlens and SAELens leave the rows in memory and drop them: nothing is written, which is in their favour. With
`collect=True` a contestant hands back all its rows, in the order of the token file, to be checked.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.workloads import Batch, Workload

LAYER = 15
SITE = f"blocks.{LAYER}.hook_resid_post"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # names the architecture to transformer-lens; nothing is fetched


@dataclass(frozen=True)
class Contestant:
    """A way to the activations of a workload; `run(workload, folder, False)` is what is timed."""

    name: str
    stores: str
    """What it leaves on disk."""
    batches: str
    """Which batches it is given: `exact`, `padded` or `packed` of the workload; midlens makes its own."""
    run: Callable[[Workload, Path, bool], Tensor | None]
    tolerance: float = 1e-4
    """Largest deviation from the bare forward that counts as the same, relative to the largest entry of a row."""
    computes: str = "float32"
    """The dtype of its forward pass."""


# Of computation in bfloat16, against float32, for 99 % of the rows: where attention is near a sink, 16 blocks of
# bfloat16 decide otherwise than float32; single rows move by a fifth of their largest entry, in the bare forward too.
BFLOAT16_TOLERANCE = 5e-2


def in_memory(
    name: str, capture: Callable[[Tensor], Tensor], batching: str, *, computes: str = "float32"
) -> Contestant:
    """A contestant that is a function from tokens "b t" to activations "b t d"."""
    known: dict[str, Sequence[Batch]] = {}

    def run(workload: Workload, _: Path, collect: bool) -> Tensor | None:
        # Batches are assembled once, before any timing: rivals are not charged for it, midlens is.
        batches = known.setdefault(workload.name, getattr(workload, batching)())
        rows = None
        with torch.inference_mode():
            for batch in batches:
                acts = capture(batch.tokens)
                if collect:
                    rows = torch.zeros(workload.n_tokens, acts.shape[-1]) if rows is None else rows
                    batch.place(acts.float(), rows)
        return rows

    tolerance = 1e-4 if computes == "float32" else BFLOAT16_TOLERANCE
    return Contestant(name, "nothing", batching, run, tolerance, computes)


def sharing(model: nn.Module) -> Any:
    """A copy of the modules over the same parameters and buffers: no contestant's hooks slow another one down."""
    kept = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in kept})


def bare(hf: Any) -> Callable[[Tensor], Tensor]:
    """The ceiling: 16 blocks of the Hugging Face model under SDPA; no head, final norm, hook or key-value cache."""
    body = sharing(hf).model
    del body.layers[LAYER + 1 :]
    body.norm = nn.Identity()
    return lambda tokens: body(input_ids=tokens, use_cache=False).last_hidden_state


def hooked(hf: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
    """The usual recipe: a forward hook on block 15 and a full forward pass; SDPA, no key-value cache."""
    model, seen = sharing(hf), []
    model.model.layers[LAYER].register_forward_hook(lambda _module, _inputs, output: seen.append(output))

    def capture(tokens: Tensor) -> Tensor:
        model(input_ids=tokens, use_cache=False, **options)
        output = seen.pop()
        return output if isinstance(output, Tensor) else output[0]

    return capture


def transformer_lens(hf: nn.Module, tokenizer: Any, *, stop: bool) -> Callable[[Tensor], Tensor]:
    """`TransformerBridge.run_with_cache` of one name, by its docstring (transformer-lens 3.9).

    `names_filter` with the canonical name, a plain dict instead of an ActivationCache, no compatibility mode (it would
    only add work), `stop_at_layer` in one of the two rows. The bridge forces eager attention (`boot_transformers` says
    so). HookedTransformer is no contestant: its list of models holds no SmolLM2.
    """
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(HUB_NAME, hf_model=sharing(hf), tokenizer=tokenizer, device="cpu")
    options: dict[str, Any] = {"stop_at_layer": LAYER + 1} if stop else {}
    name = f"blocks.{LAYER}.hook_out"  # what SITE is an alias of; asking for the alias caches it twice

    def capture(tokens: Tensor) -> Tensor:
        found = bridge.run_with_cache(tokens, names_filter=name, device="cpu", return_cache_object=False, **options)
        return found[1][name]

    return capture


def nnsight(hf: nn.Module) -> Callable[[Tensor], Tensor]:
    """`tracer.stop()` after the save, as the "Early Stopping" tutorial (nnsight.net) has it.

    The `NNsight` wrapper of any PyTorch module, not TransformersModel: it passes token ids straight on, without a
    tokenizer's collation and without a mask (which would keep SDPA from its fast path).
    """
    from nnsight import NNsight

    model: Any = NNsight(sharing(hf))

    def capture(tokens: Tensor) -> Tensor:
        output: Any = None  # the traced block assigns it
        with model.trace(input_ids=tokens, use_cache=False) as tracer:
            output = model.model.layers[LAYER].output.save()
            tracer.stop()
        return output if isinstance(output, Tensor) else output[0]

    return capture


def midlens(hf: Any, tokenizer: Any, *, store_dtype: Literal["float32", "bfloat16"]) -> Contestant:
    """`interp.extract.extract` to a fresh folder: planning, batching, hashing, fsync and manifest are all timed.

    Every token is stored (the default leaves out first positions and special tokens) and batches hold as many
    tokens as everybody's, so that the same rows come from the same work.
    """
    from interp.extract import extract
    from interp.model import HookedModel
    from interp.plan import Exclusions
    from interp.store import ActivationStore

    model = HookedModel.wrap(sharing(hf), tokenizer)
    everything = Exclusions(first_position=False, special_tokens=False, template=False)

    def run(workload: Workload, folder: Path, collect: bool) -> Tensor | None:
        store = extract(
            model,
            workload.file,
            [SITE],
            folder,
            max_length=workload.max_length,
            token_budget=workload.batch_tokens,
            store_dtype=store_dtype,
            exclude=everything,
            progress=False,
        )
        return _read(store, workload) if collect else None

    def _read(store: ActivationStore, workload: Workload) -> Tensor:
        store.verify()
        keys = store.keys(0, len(store))
        at = torch.from_numpy(workload.file.offsets)[keys.doc.long()] + keys.position
        rows = torch.full((workload.n_tokens, hf.config.hidden_size), torch.nan)
        rows[at] = store.rows(SITE, 0, len(store)).float()
        assert torch.equal(keys.token.long(), torch.from_numpy(workload.file.tokens[at.numpy()].astype("int64")))
        return rows

    computes = str(hf.dtype).removeprefix("torch.")
    tolerance = 1e-4 if store_dtype == "float32" else 2**-8
    name = f"midlens extract, {store_dtype}" + (", computed in bfloat16" if computes == "bfloat16" else "")
    tolerance = tolerance if computes == "float32" else BFLOAT16_TOLERANCE
    return Contestant(name, f"{store_dtype}, fsynced, checksums", "own", run, tolerance, computes)


def sae_lens(model_folder: Path, hf: Any) -> Contestant:
    """SAELens's CacheActivationsRunner over a pretokenised data set, float32 Arrow on disk.

    `model_class_name="AutoModelForCausalLM"` with a Hugging Face hook name (docs/training_saes.md, "Training on
    Huggingface Models"): SDPA, and it stops after the hooked layer. Pretokenised (the same page, "Pretokenizing
    datasets"); not streaming; no shuffling afterwards; all in one buffer, so in one Arrow shard. Autocast would change
    the dtype. Its sequences must all have one length: mixed documents are packed, as its own pretokenizer does, with
    attention across documents, and the tokens left at the end are dropped (and not counted).
    """
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    runners: dict[str, Any] = {}

    def make(workload: Workload) -> Any:
        length, width = workload.packed_length, hf.config.hidden_size
        ids = workload.file.tokens[: workload.n_packed].reshape(-1, length).astype("int64")
        prompts = workload.batch_tokens // length
        cfg = CacheActivationsRunnerConfig(
            dataset_path="override_dataset",
            model_name=str(model_folder),
            model_class_name="AutoModelForCausalLM",
            model_from_pretrained_kwargs={"dtype": torch.float32},
            hook_name=f"model.layers.{LAYER}",
            model_batch_size=prompts,
            training_tokens=ids.size,
            context_size=length,
            d_in=width,
            buffer_size_gb=(ids.size + 0.5) * width * 4 / 1e9,  # exactly all batches; the default of 2 GB would run on
            new_cached_activations_path="unset",
            dtype="float32",
            device="cpu",
            streaming=False,
            shuffle=False,
            prepend_bos=False,
        )
        return CacheActivationsRunner(cfg, override_dataset=Dataset.from_dict({"input_ids": ids.tolist()}))

    def run(workload: Workload, folder: Path, collect: bool) -> Tensor | None:
        if workload.name not in runners:
            runners[workload.name] = make(workload)  # loads the model: happens while checking, never while timing
        runner = runners[workload.name]
        runner.cfg.new_cached_activations_path = str(folder)
        stored = runner.run()
        if not collect:
            return None
        return stored.with_format("torch")[:][runner.cfg.hook_name].flatten(0, 1)

    return Contestant("SAELens cache runner", "float32, Arrow", "packed", run)
