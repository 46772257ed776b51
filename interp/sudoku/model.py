"""The transformer that learns to solve: transformers' GPT-2, built from a config, so that everything here reads it.

    tokens -> wte + wpe -> L times [x += attn(ln_1 x);  x += W_out gelu(W_in ln_2 x)] -> ln_f -> W_U -> logits

The paper's model ("world model" of Sudoku, arXiv 2605.18847) is a pre-norm GPT-2 of 8 layers, 8 heads, width 576, an
MLP of 3456, GELU in its tanh form, LayerNorm with epsilon 1e-6, 300 learned positions, no dropout, an unembedding of
its own. This is the same but for three details:

- the unembedding has no bias (theirs has one); GPT-2 in transformers has none, and tools that read W_U expect none;
- weights start normal with deviation `1 / sqrt(d_model)`, biases at 0, and the two matrices that write into the stream
  are smaller by `1 / sqrt(2 L)`, as in GPT-2 (theirs: Flax's defaults, 1 / sqrt(fan-in) everywhere);
- n x n boards with n = 4 and 6 beside 9, and any size.

A saved model is a folder: `model.safetensors`, with this config in its header, and `config.json`, transformers' own.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InputError
from interp.model import HookedModel
from interp.sealing import write_json
from interp.sudoku.board import Rules
from interp.sudoku.naming import tokenizer_of
from interp.sudoku.tokens import Vocabulary
from interp.tensorfile import read_tensors, write_tensors
from interp.typed import built

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class SudokuModelConfig:
    """The shape of a model for n x n boards."""

    n: int
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    n_ctx: int
    """Learned positions: no sequence, clues and all, is longer."""

    def __post_init__(self) -> None:
        rules = Rules.of(self.n)
        for name in ("d_model", "n_layers", "n_heads", "d_mlp"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.d_model % self.n_heads:
            raise InputError(f"d_model={self.d_model}: expected a multiple of n_heads={self.n_heads}")
        if self.n_ctx < rules.n_cells + 2:
            raise InputError(
                f"n_ctx={self.n_ctx}: expected at least {rules.n_cells + 2}, the {rules.n_cells} cells of a board with "
                f"END_CLUES and SUCCESS"
            )

    @property
    def rules(self) -> Rules:
        """The board's."""
        return Rules.of(self.n)

    @property
    def vocabulary(self) -> Vocabulary:
        """The board's."""
        return Vocabulary(self.rules)

    def to_json(self) -> dict[str, int]:
        """The fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> "SudokuModelConfig":
        """What `to_json` gave; refuses fields it does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != known:
            found = sorted(fields) if isinstance(fields, dict) else fields
            raise InputError(
                f"a Sudoku model's config has the fields {found!s:.200}; expected {sorted(known)}: was it written by "
                f"another version?"
            )
        return built(cls, fields, "a Sudoku model's config")


@dataclass(frozen=True)
class SudokuModel:
    """A model with what belongs to its board."""

    hooked: HookedModel
    rules: Rules
    vocabulary: Vocabulary
    config: SudokuModelConfig

    @classmethod
    def of(cls, model: "GPT2LMHeadModel", config: SudokuModelConfig) -> "SudokuModel":
        """A model in memory, as it is."""
        return cls(HookedModel.wrap(model, tokenizer_of(config.vocabulary)), config.rules, config.vocabulary, config)


def build_model(config: SudokuModelConfig, *, seed: int) -> "GPT2LMHeadModel":
    """An untrained model: float32, on the CPU, in evaluation mode; its weights are a function of (config, seed)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = config.vocabulary
    settings: dict[str, Any] = dict(
        vocab_size=words.size,
        n_positions=config.n_ctx,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_inner=config.d_mlp,
        activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new in one fused operation
        layer_norm_epsilon=1e-6,
        initializer_range=config.d_model**-0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.success,
        pad_token_id=None,  # transformers would ask for a mask wherever it meets PAD; the tokenizer knows it
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**settings)).eval()


def save_model(model: "GPT2LMHeadModel", config: SudokuModelConfig, folder: str | Path) -> None:
    """Write weights and config into `folder`; each file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = model.config.to_dict()
    settings["architectures"] = [type(model).__name__]
    write_json(folder / "config.json", settings)
    write_tensors(folder / WEIGHTS, model.state_dict(), {"sudoku": config.to_json()})


def load_model(
    folder: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> SudokuModel:
    """A saved or trained model, on a GPU if there is one and no `device` is named."""
    folder = Path(folder)
    if not (folder / WEIGHTS).exists() and (folder / "run.json").exists():
        raise InputError(
            f"{folder} holds a training run that is not finished: train it to its end with the same settings"
        )
    tensors, facts = read_tensors(folder / WEIGHTS, "Sudoku model")
    if not isinstance(facts, dict) or "sudoku" not in facts:
        raise InputError(
            f"{folder / WEIGHTS} holds weights, but not those of a Sudoku model (no such config in its header)"
        )
    config = SudokuModelConfig.from_json(facts["sudoku"])
    _refuse_other_shapes(config, tensors, folder / WEIGHTS)
    model = build_model(config, seed=0)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS} does not hold the weights of its config: {error!s:.200}") from error
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(model, device=device, dtype=dtype)  # transformers' own `to` hides its type
    return SudokuModel.of(model, config)


def _refuse_other_shapes(config: SudokuModelConfig, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Before memory is taken for what a config says: its numbers must be those of the tensors beside it."""
    wanted = {
        "transformer.wte.weight": (config.vocabulary.size, config.d_model),
        "transformer.wpe.weight": (config.n_ctx, config.d_model),
        "transformer.h.0.mlp.c_fc.weight": (config.d_model, config.d_mlp),
    }
    layers = {name.split(".")[2] for name in tensors if name.startswith("transformer.h.")}
    wrong = [name for name, shape in wanted.items() if name not in tensors or tuple(tensors[name].shape) != shape]
    if wrong or len(layers) != config.n_layers:
        raise InputError(
            f"{path} does not hold the weights of its config: {', '.join(wrong) or f'{len(layers)} layers'}"
        )
