"""`midlens extract`: text through a model, activations to disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from interp.from_text import ExtractConfig
from midlens.console import Planned, finish, say


@dataclass(frozen=True, kw_only=True)
class Extract(ExtractConfig, Planned):
    """Run a model over text and store activations; the same command again continues after an interruption."""

    example: ClassVar[str] = (
        "midlens extract --model smollm2-135m --sites resid_post.15 --max-tokens 200000 --out runs/store"
    )
    figures: ClassVar[str] = "rows, sites, shards"

    out: Path
    """Folder of the activation store."""

    def plan(self) -> Mapping[str, object]:
        """What would be extracted, from the model's config and the text."""
        from interp.outline import extraction_outline

        return extraction_outline(self.settings(ExtractConfig), self.out)

    def run(self) -> int:
        """Print the plan, extract, say where."""
        from interp.from_text import extract_text

        config = self.settings(ExtractConfig)
        store = extract_text(config, self.out, announce=say)
        figures = {"rows": len(store), "sites": list(map(str, store.sites)), "shards": len(store.manifest["shards"])}
        return finish(self.out, figures=figures)
