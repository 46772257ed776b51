"""`midlens primitives`: features that name emotions, recipes that write them, and what judges say beside controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from midlens.console import Planned, finish, say
from saes.primitives.options import PrimitivesConfig


@dataclass(frozen=True, kw_only=True)
class Primitives(PrimitivesConfig, Planned):
    """Find literary primitives in an SAE, search recipes for emotions, judge what is written beside controls.

    The same command again continues after an interruption; no judge is paid twice. Texts in other languages: give the
    files (scenes, show_tell, technique_pairs, person_pairs, openings, words), one JSON object a line like those of
    `data/primitives`."""

    example: ClassVar[str] = "midlens primitives --model smollm2-135m --emotions joy fear awe --budget 15"
    figures: ClassVar[str] = "emotions, strict, soft, chance_strict, chance_soft, candidates, untrained, unusable"

    def plan(self) -> Mapping[str, object]:
        """Memory, time, texts and judge calls, from shapes alone."""
        from saes.primitives.planning import outline

        return outline(self.settings(PrimitivesConfig))

    def run(self) -> int:
        """Run every stage; the report's path is the last line."""
        from saes.primitives.pipeline import figures, run_primitives

        config = self.settings(PrimitivesConfig)
        path = run_primitives(config, say=say)
        return finish(path, figures=figures(config.out))
