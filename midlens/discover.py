"""`midlens discover`: from a model and text to a trained, evaluated, readable SAE and its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from midlens.console import Planned, finish, say
from saes.discover import DiscoverConfig, discover


@dataclass(frozen=True)
class Discover(DiscoverConfig, Planned):
    """From a model and text to a trained, evaluated, readable SAE and one offline HTML report."""

    example: ClassVar[str] = "midlens discover --model smollm2-135m --train-tokens 20000 --out runs/small"
    figures: ClassVar[str] = "those of evaluation.json"

    def plan(self) -> Mapping[str, object]:
        """Both extractions and the training, from the model's config and the text."""
        from saes.outline import discover_outline

        return discover_outline(self.settings(DiscoverConfig))

    def run(self) -> int:
        """Run every stage; the report's path is the last line."""
        import json

        path = discover(self.settings(DiscoverConfig), say=say)
        return finish(path, figures=json.loads((self.out / "evaluation.json").read_text()))
