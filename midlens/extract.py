"""`midlens extract`: text through a model, activations to disk."""

from dataclasses import dataclass, fields
from pathlib import Path

from interp.from_text import ExtractConfig
from midlens.console import say


@dataclass(frozen=True, kw_only=True)
class Extract(ExtractConfig):
    """Run a model over text and store activations; the same command again continues after an interruption."""

    out: Path
    """Folder of the activation store."""

    def run(self) -> int:
        """Print the plan, extract, say where."""
        from interp.from_text import extract_text

        config = ExtractConfig(**{field.name: getattr(self, field.name) for field in fields(ExtractConfig)})
        extract_text(config, self.out, announce=say)
        say(str(self.out.resolve()))
        return 0
