"""`midlens parity MODEL`: every site of a model against independent implementations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from midlens.console import Command, finish, say


@dataclass(frozen=True)
class Parity(Command):
    """Compare every site with an independent forward pass, Hugging Face's eager attention and transformer-lens.

    Prints the largest deviation per site; ends with status 1 if one exceeds the tolerance. Whether a model is wired
    rightly is asked in float32; in 16 bits, the default where the hardware has them, rounding alone can exceed it.
    """

    example: ClassVar[str] = "midlens parity smollm2-135m --dtype float32 --upto resid_post.3 --out parity.json"
    figures: ClassVar[str] = "tolerance, compared, above, rows (the table)"

    model: Annotated[str, tyro.conf.Positional]
    """A preset (smollm2-135m, gemma-2-9b, ...), a hub id, a local folder or a .gguf file."""
    tolerance: float | None = None
    """Largest relative deviation allowed; by default 1e-4 for float32 and 5e-2 for 16-bit models."""
    out: Path | None = None
    """Also write the table to this file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the model computes in; auto: bfloat16 where the hardware has it, else float32."""
    device: str | None = None
    """Where the model runs: cpu, cuda, ...; by default a GPU where there is one."""
    upto: str | None = None
    """Load only what this site needs, e.g. resid_post.15."""
    sites: tuple[str, ...] = ()
    """The sites to compare, e.g. resid_post.3 z.3; all by default."""
    opinions: tuple[Literal["plain", "hf_eager", "transformer_lens"], ...] = ("plain", "hf_eager", "transformer_lens")
    """Whom to ask."""
    float32: bool = True
    """Of a 16-bit model: also load it in float32, and show how far each site is from that (no part of the verdict)."""

    def run(self) -> int:
        """Load, compare, print; 0 if everything agrees, else 1."""
        import torch

        from interp.errors import InputError
        from interp.loading import parse_dtype
        from interp.model import HookedModel
        from interp.parity import FLOAT32, default_tolerance, parity, prompt_tokens

        if self.out is not None and not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}; make it first")
        dtype = None if self.dtype == "auto" else parse_dtype(self.dtype)
        model = HookedModel.load(self.model, upto=self.upto, dtype=dtype, device=self.device)
        tokens, lengths = prompt_tokens(model)
        wide = None
        if self.float32 and model.dtype in (torch.bfloat16, torch.float16):
            wide = HookedModel.load(self.model, upto=self.upto, dtype=torch.float32, device=self.device)
        asked = {"sites": self.sites or None, "opinions": self.opinions, "float32": wide}
        table = parity(model, tokens, lengths=lengths, **asked)
        tolerance = default_tolerance(model.dtype) if self.tolerance is None else self.tolerance
        far = table.above(tolerance, opinions=[name for name in table.opinions if name != FLOAT32])
        say(table.text())
        if self.out is not None:
            table.save(self.out)
        count, heard = len({line.split(" ")[0] for line in far}), sum(bool(row.deviations) for row in table.rows)
        say(f"{'FAILED' if far else 'passed'}: {count} of {heard} compared rows above {tolerance:.0e} relative")
        if far and model.dtype != torch.float32:
            say(f"computed in {str(model.dtype).removeprefix('torch.')}: --dtype float32 tells a fault from rounding")
        figures = {"tolerance": tolerance, "compared": heard, "above": count, "rows": table.to_json()["rows"]}
        return finish(*([] if self.out is None else [self.out]), figures=figures, status=1 if far else 0)
