"""`HookedModel`: a Hugging Face model whose inside can be read and edited under the names of `interp.sites`.

    model = HookedModel.load("smollm2-135m", upto=Site.parse("resid_post.15"))
    acts = model.capture(tokens, ["resid_post.15"], lengths=lengths)      # runs nothing above layer 15
    with model.edited({site: lambda x, where: x + direction}):
        logits = model(tokens)

The model itself is used as it is, through forward hooks: nothing is copied, moved, cast or replaced, so quantised,
sharded and LoRA-merged models work. The caller's grad mode holds everywhere; extraction runs in inference mode.

Sequences are right-padded and no attention mask is passed: a causal model needs none, and fused attention stays on.
Rows at padding positions hold numbers without meaning. `padding="left"` rotates the rows, runs, and rotates back.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.anatomy import Anatomy, ModelSpec
from interp.attention_choice import attention_for
from interp.chat import TokenBatch, adds_bos, to_tokens
from interp.compiled import compile_blocks
from interp.display import ShownModel
from interp.editing import Edit, Editing
from interp.errors import InputError
from interp.families import anatomy_of
from interp.masks import one_sequence_per_row
from interp.offload import entry_device
from interp.placement import Placing
from interp.recording import Reached, Recording
from interp.running import Frame, Padding, Where, checkpointing
from interp.sites import Site
from interp.switchboard import Switchboard

if TYPE_CHECKING:
    from interp.presets import Preset

__all__ = ["Edit", "HookedModel", "Where"]


class HookedModel(ShownModel):
    """A model that can be captured from and edited; see the module's docstring."""

    def __init__(self, hf: nn.Module, tokenizer: Any, anatomy: Anatomy) -> None:
        anatomy.validate(hf)
        self.hf, self.tokenizer, self.anatomy = hf, tokenizer, anatomy
        self.name: str = getattr(getattr(hf, "config", None), "_name_or_path", "") or type(hf).__name__
        self.revision: str | None = None
        self.preset: Preset | None = None
        self.board = Switchboard()
        self._where: Where | None = None
        self._passes = 0

    @classmethod
    def wrap(cls, hf_model: nn.Module, tokenizer: Any = None, *, anatomy: Anatomy | None = None) -> "HookedModel":
        """A model that is already in memory, with or without its head; one of no known family needs an `anatomy`."""
        return cls(hf_model, tokenizer, anatomy if anatomy is not None else anatomy_of(hf_model))

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        upto: Site | str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        compile: bool = False,
        trust_pickle: bool = False,
        **placing: Unpack[Placing],
    ) -> "HookedModel":
        """A model as `interp.loading.load_hf` finds it; `compile`: `interp.compiled`; `placing`: `interp.placement`."""
        from interp.loading import load_hf

        loaded = load_hf(name, upto=upto, dtype=dtype, device=device, trust_pickle=trust_pickle, **placing)
        anatomy = anatomy_of(loaded.hf)
        model = cls(
            loaded.hf,
            loaded.tokenizer,
            dataclasses.replace(anatomy, spec=dataclasses.replace(anatomy.spec, n_layers=loaded.n_layers)),
        )
        model.name, model.revision, model.preset = loaded.name, loaded.revision, loaded.preset
        if compile:
            compile_blocks(model.anatomy, model.hf)
        return model

    @property
    def cfg(self) -> ModelSpec:
        """The numbers of the architecture."""
        return self.anatomy.spec

    @property
    def loaded_layers(self) -> int:
        """How many of `cfg.n_layers` are in memory."""
        return len(self.anatomy.blocks(self.hf))

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return entry_device(self.anatomy.body(self.hf))

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return self.cfg.dtype

    @property
    def where(self) -> Where:
        """The positions of the pass that is running; edits get it."""
        if self._where is None:
            raise InputError(
                "no pass is running: run the model through this HookedModel (an edit belongs to the one it was given "
                "to), or inside `with model.running(where)`"
            )
        return self._where

    @contextmanager
    def running(self, where: Where) -> Iterator[None]:
        """Say at what positions the pass in this block is, for callers that run `model.hf` themselves (generation)."""
        self._require_rest()
        self._where = where
        self._passes += 1
        try:
            yield
        finally:
            self._where = None

    def _require_rest(self) -> None:
        """Refuse a pass inside a pass: captures and edits of the one would act on the other."""
        if self._where is not None:
            raise InputError(
                "another pass of this model is running. An edit must not run the model it edits: compute what it "
                "needs before, and two threads must take turns"
            )

    def __call__(
        self, tokens: Int[Tensor, "b t"], *, lengths: Int[Tensor, " b"] | None = None, padding: Padding = "right"
    ) -> Float[Tensor, "b t v"]:
        """Logits (soft-capped where the model does so)."""
        self.require_head("logits")
        tokens = self._checked(tokens)
        frame = Frame.of(tokens, lengths, padding)
        return frame.leave(self._forward(tokens, lengths, frame))

    def capture(
        self,
        tokens: Int[Tensor, "b t"],
        sites: Site | str | Iterable[Site | str],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        padding: Padding = "right",
        stop: bool = True,
    ) -> dict[Site, Tensor]:
        """The tensors at `sites`, by site. With `stop` nothing above the last of them runs."""
        return self.run_recorded(tokens, sites, lengths=lengths, padding=padding, stop=stop)[1]

    def run_recorded(
        self,
        tokens: Int[Tensor, "b t"],
        sites: Site | str | Iterable[Site | str],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        padding: Padding = "right",
        stop: bool = False,
    ) -> tuple[Float[Tensor, "b t v"] | None, dict[Site, Tensor]]:
        """Logits and captures of one pass; no logits (`None`) if it stopped or the model has no head."""
        tokens, wanted = self._checked(tokens), Site.parse_all(sites)
        self._require_rest()
        for site in wanted:
            self.anatomy.check(self.hf, site)
        if not wanted and stop:
            return None, {}
        frame, logits = Frame.of(tokens, lengths, padding), None
        recording = Recording(self.anatomy, self.hf, wanted, frame=frame, stop=stop)
        with recording.attached(self.board):
            try:
                out = self._forward(tokens, lengths, frame)
                logits = frame.leave(out) if self.anatomy.has_head(self.hf) else None
            except Reached:
                pass
        return logits, recording.result()

    @contextmanager
    def edited(self, edits: Mapping[Site, Edit] | Mapping[str, Edit]) -> Iterator[None]:
        """Apply `edits` to every pass in this block; nested blocks compose, the outer edit of a site first."""
        editing = Editing(self.anatomy, self.hf, edits, lambda: self.where)
        before, undo = self._passes, editing.attach(self.board)
        try:
            yield
            editing.check_fired(self._passes - before)
        finally:
            for detach in undo:
                detach()

    def require_head(self, purpose: str) -> None:
        """Refuse what needs the unembedding if the model was loaded without it."""
        if not self.anatomy.has_head(self.hf):
            raise InputError(
                f"{purpose} need the unembedding, but {self.name} was loaded without it "
                f"({self.loaded_layers} of {self.cfg.n_layers} layers); load it without `upto`"
            )

    def _forward(self, tokens: Tensor, lengths: Tensor | None, frame: Frame) -> Tensor:
        if len(self.board) and torch.is_grad_enabled() and checkpointing(self.hf):
            raise InputError(
                "gradient checkpointing runs every block a second time in the backward pass, when edits and captures "
                "are gone, so gradients would be wrong: switch it off, call hf.eval() first, or run "
                "without gradients"
            )
        device = self.device
        ahead = device.type == "cuda"  # from pinned memory without a wait; the other direction would have to wait
        tokens = frame.enter(tokens.to(device, non_blocking=ahead))
        lengths = None if lengths is None else lengths.to(device, non_blocking=ahead)
        known, attention = one_sequence_per_row(device), attention_for(self.anatomy.spec, self.hf, device)
        with self.running(Where.plain(tokens, lengths)), attention, known:
            out = self.hf(tokens, **self.anatomy.options)
        return out if isinstance(out, Tensor) else out.logits if hasattr(out, "logits") else out.last_hidden_state

    def _checked(self, tokens: Any) -> Tensor:
        if not isinstance(tokens, Tensor):
            raise InputError(
                f"tokens are of type {type(tokens).__name__}: expected a tensor of token ids, (sequences, positions). "
                f"`to_tokens` makes one of texts: batch = model.to_tokens(texts), then batch.tokens and batch.lengths"
            )
        if tokens.ndim != 2 or not tokens.numel():
            raise InputError(
                f"tokens of shape {tuple(tokens.shape)}: expected (sequences, positions), neither of them 0"
            )
        if tokens.dtype not in (torch.int64, torch.int32):
            raise InputError(f"tokens of dtype {tokens.dtype}: expected token ids, int64 or int32")
        # On a GPU the comparison would wait for the queue; there the embedding's own assertion has to do.
        if tokens.device.type == "cpu" and not bool(((tokens >= 0) & (tokens < self.cfg.d_vocab)).all()):
            raise InputError(
                f"token ids from {int(tokens.min())} to {int(tokens.max())}: expected 0 to {self.cfg.d_vocab - 1}; "
                f"do tokenizer and model belong together?"
            )
        return tokens

    def run_with_cache(self, tokens: Int[Tensor, "b t"], names_filter: Any = None, **options: Any) -> Any:
        """Logits and activations by name, as in TransformerLens: see `interp.compat.run_with_cache`."""
        from interp.compat import run_with_cache

        return run_with_cache(self, tokens, names_filter, **options)

    def run_with_hooks(self, tokens: Int[Tensor, "b t"], fwd_hooks: Any = (), **options: Any) -> Any:
        """Logits of a pass with hooks, as in TransformerLens: see `interp.compat.run_with_hooks`."""
        from interp.compat import run_with_hooks

        return run_with_hooks(self, tokens, fwd_hooks, **options)

    def generate(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        padding: Padding = "right",
        edits: Mapping[Site, Edit] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> Int[Tensor, "b n"]:
        """The new tokens of each row, edited on the way: see `interp.generate`."""
        from interp.generate import Sampling, generate

        return generate(
            self,
            self._checked(tokens),
            lengths=lengths,
            padding=padding,
            edits=edits,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p, seed),
            stop_tokens=stop_tokens,
            use_cache=use_cache,
        )

    def bridge(self) -> Any:
        """A transformer-lens `TransformerBridge` on the same weights: see `interp.bridge`."""
        from interp.bridge import bridge

        return bridge(self)

    def to_tokens(self, texts: Any, *, prepend_bos: bool | None = None, generation_prompt: bool = False) -> TokenBatch:
        """Texts and chats as right-padded tokens, lengths and a mask of what is not content: see `interp.chat`.

        `prepend_bos=None` does as the preset says; without a preset, as the tokenizer does by itself.
        """
        if prepend_bos is None:
            prepend_bos = self.preset.prepend_bos if self.preset else adds_bos(self.tokenizer)
        batch = to_tokens(self.tokenizer, texts, prepend_bos=prepend_bos, generation_prompt=generation_prompt)
        return batch._replace(**{name: x.to(self.device) for name, x in batch._asdict().items()})
