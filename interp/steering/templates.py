"""Contrast sets written as templates: a sentence for each side, with slots that both sides fill alike.

    {"form": "text",
     "source": {"name": "negative", "description": "...", "words": [...]}, "target": {...},
     "templates": [{"id": "dish", "split": "train",
                    "source": "The {dish} came late, lukewarm and without any taste.",
                    "target": "The {dish} came quickly, piping hot and full of taste.",
                    "slots": {"dish": ["fish stew", "lamb curry"], "x": [["for the source", "for the target"], ...]}}]}

    filling i of a template:   slot s -> s[i] on both sides, or s[i][0] on the source's and s[i][1] on the target's

Every slot of a template has equally many fillers, taken in parallel, not multiplied: each text is one that somebody
read. The two sides of a filling are a pair. A template belongs to one split as a whole, so no held-out text has the
frame of a training text. A template may have other sides than `source` and `target` (`open`, `unrelated`), alone.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.errors import InputError
from interp.sealing import read_json

SIDES = ("source", "target", "open", "unrelated")
SPLITS = ("train", "held_out")
_SLOT = re.compile(r"\{(\w+)\}")


def expand(path: str | Path) -> list[dict[str, Any]]:
    """The lines of the contrast set that a template file describes: its header, then its texts in order."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read templates from {path}: there is no such file")
    spec = read_json(path, "set of templates")
    if not isinstance(spec, dict) or not isinstance(spec.get("templates"), list):
        raise InputError(f'{path}: expected an object with "templates", a list')
    header = {key: value for key, value in spec.items() if key != "templates"}
    rows: list[dict[str, Any]] = [{"set": header}] if header else []
    for template in spec["templates"]:
        rows += _filled(template, path)
    return rows


def write_lines(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Write expanded templates as the JSONL that `interp.steering.contrast` reads."""
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _filled(template: Any, path: Path) -> Iterator[dict[str, Any]]:
    name = template.get("id") if isinstance(template, Mapping) else None
    if not name or template.get("split") not in SPLITS or not any(side in template for side in SIDES):
        raise InputError(
            f'{path}: expected a template with "id", "split" ({" or ".join(SPLITS)}) and a sentence for one or more of '
            f"{', '.join(SIDES)}, got {template!r}"
        )
    sides, slots = [side for side in SIDES if side in template], template.get("slots", {})
    if not isinstance(name, str) or not all(
        isinstance(template[side], str) and template[side].strip() for side in sides
    ):
        raise InputError(f"{path}: the id and the sentences of a template are texts, not empty; got {template!r:.200}")
    if not isinstance(slots, dict) or not all(_is_filling(one) for one in slots.values()):
        raise InputError(
            f"{path}, template {name!r}: a slot has a list of texts, or of pairs of texts; got {slots!r:.200}"
        )
    counts = {len(fillers) for fillers in slots.values()} or {1}
    used = {slot for side in sides for slot in _SLOT.findall(template[side])}
    if len(counts) != 1 or used != set(slots):
        raise InputError(
            f"{path}, template {name!r}: the sentences use the slots {sorted(used)}, fillers are given for "
            f"{ {slot: len(fillers) for slot, fillers in slots.items()} }; expected one list for each slot, "
            "all of one length"
        )
    for i in range(counts.pop()):
        for side in sides:
            row = {"text": _fill(template[side], slots, i, side), "side": side}
            if len(sides) > 1:
                row["pair"] = f"{name}-{i}"
            yield {**row, "template": name, "split": template["split"]}


def _is_filling(fillers: Any) -> bool:
    """Texts, or pairs of them, for the source's sentence and for the target's; none of them empty."""
    texts = [one if isinstance(one, list) else [one, one] for one in fillers] if isinstance(fillers, list) else [[]]
    return all(len(pair) == 2 and all(isinstance(text, str) and text for text in pair) for pair in texts)


def _fill(sentence: str, slots: Mapping[str, list[Any]], i: int, side: str) -> str:
    def filler(match: re.Match[str]) -> str:
        chosen = slots[match[1]][i]
        return chosen if isinstance(chosen, str) else chosen[SIDES.index(side)]

    text = _SLOT.sub(filler, sentence)
    return text[0].upper() + text[1:]
