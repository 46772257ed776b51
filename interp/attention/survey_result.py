"""What a survey found of one model, read from its folder; the folder holds all there is to know."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.attention.survey_files import Parts, Row, joined
from interp.attention.survey_summary import summarise
from interp.errors import InputError
from interp.typed import read_object


@dataclass(frozen=True)
class ModelSurvey:
    """What a survey found of one model."""

    name: str
    folder: Path
    facts: dict[str, Any]
    """revision, family and shape (layers, heads, groups, d, e)."""
    parts: dict[str, dict[str, Any]]
    """By part: settings, layers that are done, seconds, and `refused` (the reason, or null)."""
    rows: list[Row]
    """One per head, sorted by layer and head."""

    @classmethod
    def load(cls, folder: str | Path, names: Iterable[str] | None = None) -> "ModelSurvey":
        """From its folder; `names` picks parts."""
        folder = Path(folder)
        facts, parts = read_object(folder / "model.json", "survey of a model"), Parts(folder)
        if not isinstance(facts.get("name"), str) or not isinstance(facts.get("shape"), dict):
            raise InputError(f"{folder / 'model.json'} is no survey of a model: it has no name or no shape")
        found, tables = {}, []
        for name in parts.names() if names is None else [n for n in names if n in parts.names()]:
            rows, seconds = parts.read(name)
            found[name] = parts.facts(name) | {"layers": parts.layers(name), "seconds": seconds}
            tables.append(rows)
        return cls(facts["name"], folder, facts, found, joined(tables))

    def arrays(self) -> dict[str, dict[int, Any]]:
        """Eigenvalues, spectra and offset curves by name and layer."""
        return Parts(self.folder).arrays()

    def summary(self) -> dict[str, Any]:
        """Facts, parts and quartiles, as JSON has them."""
        return {**self.facts, "parts": self.parts, **summarise(self.rows)}
