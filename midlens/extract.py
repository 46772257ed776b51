"""`midlens extract`: text through a model, activations to disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from interp.distributed import WhereConfig
from interp.from_text import ExtractConfig
from interp.remote import as_url
from midlens.console import Planned, finish, say


@dataclass(frozen=True, kw_only=True)
class Extract(WhereConfig, ExtractConfig, Planned):
    """Run a model over text and store activations; the same command again continues after an interruption."""

    example: ClassVar[str] = (
        "midlens extract --model smollm2-135m --sites resid_post.15 --max-tokens 200000 --out runs/store"
    )
    figures: ClassVar[str] = "rows, sites, shards"

    out: Path
    """Folder of the activation store, or its URL (s3://bucket/store)."""

    def plan(self) -> Mapping[str, object]:
        """What would be extracted, from the model's config and the text."""
        from interp.outline import extraction_outline

        return extraction_outline(self.settings(ExtractConfig), self.out)

    def run(self) -> int:
        """Print the plan, extract, say where."""
        from interp.distributed import extract_anywhere
        from interp.sharded import first_process

        where, config = self.settings(WhereConfig), self.settings(ExtractConfig)
        store = extract_anywhere(config, self.out, where, announce=say)
        if self.tp_plan is not None and not first_process():
            return 0
        if isinstance(store, Path):
            return finish(store, figures={"part": self.part})
        figures = {"rows": len(store), "sites": list(map(str, store.sites)), "shards": len(store.manifest["shards"])}
        if (url := as_url(self.out)) is not None:
            say(url)
            return finish(figures=figures | {"url": url})
        return finish(self.out, figures=figures)
