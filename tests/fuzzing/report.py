"""The figures of benchmarks/results/fuzz.json as the table of docs/reliability.md."""

from pathlib import Path
from typing import Any

from fuzzing.registry import TARGETS

CORPUS = Path(__file__).parents[1] / "fixtures" / "fuzz"
GROUPS = {
    "texts": "names, arguments, judges' answers, tables, texts, chats",
    "results": "results kept as JSON, ledgers, metrics",
    "stores": "token files, plans, stores, shards, GGUF headers",
    "saes": "sparse autoencoders: ours and eight layouts of other tools",
    "trained": "steerings, adapters, checkpoints, moments, Sudoku files",
}
"""By the module of tests/fuzzing that has them."""


def kept(name: str) -> int:
    """How many findings of a target are replayed by the tests."""
    return sum(path.is_file() for path in (CORPUS / name).glob("*"))


def table(record: dict[str, Any]) -> str:
    """Markdown: one line for each group of targets, and all together."""
    lines = [
        "| what is read | targets | seconds | inputs tried | gave a value | refused in words | failures left | "
        "findings fixed and replayed | slowest input |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    runs = record["targets"]
    groups = {title: [n for n, t in TARGETS.items() if t.group == group] for group, title in GROUPS.items()}
    for title, names in [*groups.items(), ("**all**", list(TARGETS))]:
        own = [runs[name] for name in names if name in runs]
        sums = [sum(one.get(key, 0) for one in own) for key in ("executions", "value", "refused")]
        left, fixed = sum(len(one["findings"]) for one in own), sum(map(kept, names))
        seconds = round(sum(one["seconds"] for one in own))
        cells = [len(own), seconds, *sums, left, fixed, f"{max(one.get('slowest_ms', 0) for one in own):,.0f} ms"]
        shown = " | ".join(cell if isinstance(cell, str) else f"{cell:,}" for cell in cells)
        lines.append(f"| {title} | {shown} |")
    return "\n".join(lines) + "\n"
