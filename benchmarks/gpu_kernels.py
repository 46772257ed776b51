"""Part "kernels" of `gpu.py`: each Triton kernel timed against everything else that computes the same.

Rows hold milliseconds (median, 20 and 80 per cent quantiles), memory beyond what the inputs hold, and how many times as
fast as the plain expression. A verdict for each operation ends the part: at each shape and dtype, in training (forward
and gradients) and forward alone, the kernel is

    faster   its 80 per cent quantile lies below the 20 per cent quantile of the fastest other entrant
    slower   its 20 per cent quantile lies above the 80 per cent quantile of the fastest other entrant
    level    neither

`FASTER` in `_dispatch.py` may name an operation that was slower nowhere and faster somewhere, where all its shapes were
measured.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

from benchmarks.gpu_checks import why_not_timed
from benchmarks.gpu_contests import Contest, Entry, contests
from benchmarks.gpu_frame import Bench, Item, Refused, quantiles

MODES = ("forward and gradients", "forward")
VERDICT = "verdict"
Outcome = Literal["faster", "level", "slower"]


def run(bench: Bench) -> None:
    """Every contest, then a verdict for each operation from what was measured."""
    bench.run(items(bench))
    state = bench.record.part(bench.part)
    for op in dict.fromkeys(row["name"] for row in bench.record.rows(bench.part)):
        item = Item(op, "", "", VERDICT, dict)
        missing = [key for key in bench.record.left_out(bench.part) if key.startswith(f"{op},")]
        if item.key not in state["planned"]:
            bench.add(item, **verdict(bench.record.rows(bench.part), op, missing))


def items(bench: Bench) -> Iterator[Item]:
    """One item an entrant of a contest; tensors are kept from one entrant to the next."""
    made = Made()
    for entry in contests(bench.device, small=bench.small):
        for name in entry.names:
            yield Item(**entry.of, variant=name, call=partial(timed, bench, made, entry, name))


class Made:
    """The contest that was made last."""

    def __init__(self) -> None:
        self.of: dict[str, str] | None = None
        self.contest: Contest | None = None

    def get(self, entry: Entry) -> Contest:
        if self.of != entry.of or self.contest is None:
            self.of, self.contest = entry.of, None  # the old one's memory first
            self.contest = entry.make()
        return self.contest


def timed(bench: Bench, made: Made, entry: Entry, name: str) -> list[dict[str, Any]]:
    """Milliseconds of one entrant in both modes."""
    if name == "triton" and (why := why_not_timed(bench, entry.of["name"])):
        raise Refused("not timed", why)
    contest = made.get(entry)
    gradients = contest.gradients(name)
    effort: dict[str, Any] = {"seconds": 0.0, "repeats": 3, "warm": 1} if bench.small else {}
    rows: list[dict[str, Any]] = []
    for mode, call in zip(MODES, (partial(contest.both, name, gradients), partial(contest.forward, name)), strict=True):
        row: dict[str, Any] = {"variant": f"{name}: {mode}", **quantiles(call, bench.device, **effort)}
        for plain in [row, *bench.record.rows(bench.part)]:
            same = all(plain.get(field, value) == value for field, value in entry.of.items())
            if same and plain["variant"] == f"plain: {mode}":
                row |= {"ratio": plain["value"] / row["value"], "against": "plain"}
        rows.append(row)
    return rows


def verdict(rows: Sequence[dict[str, Any]], op: str, missing: Sequence[str]) -> dict[str, Any]:
    """What the rows say of the kernel of `op`, and whether "auto" may choose it."""
    mine = [row for row in rows if row["name"] == op and row["status"] == "ok" and row["value"] is not None]
    found: dict[Outcome, list[str]] = {"faster": [], "level": [], "slower": []}
    for row in mine:
        entrant, _, mode = row["variant"].partition(": ")
        if entrant == "triton":
            same = [r for r in mine if all(r[f] == row[f] for f in ("shape", "dtype")) and r["variant"].endswith(mode)]
            others = [r for r in same if r is not row and r["variant"].partition(": ")[2] == mode]
            found[judged(row, others)].append(f"{row['shape']}, {row['dtype']}, {mode}")
    refused = [row["note"] for row in rows if row["name"] == op and row["status"] in ("not timed", "failed")]
    may = bool(found["faster"]) and not found["slower"] and not missing and not refused
    said = [f"{name} at {len(where)}: {'; '.join(where)}" for name, where in found.items() if where]
    said += [f"not timed: {why}" for why in refused[:1]] + [f"not reached: {'; '.join(missing)}"] * bool(missing)
    return {"note": f"FASTER {'may' if may else 'must not'} name it. " + ". ".join(said or ["nothing was measured"])}


def judged(row: dict[str, Any], others: Sequence[dict[str, Any]]) -> Outcome:
    """By the quantiles, against the fastest of the others."""
    best = min(others, key=lambda r: r["value"])
    return "faster" if row["high"] < best["low"] else "slower" if row["low"] > best["high"] else "level"
