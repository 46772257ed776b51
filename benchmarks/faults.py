"""Faults by the hundred: kills, full and failing disks, damaged files, jumping clocks, second writers, no memory.

    python benchmarks/faults.py                       # all, as in results/faults.json
    python benchmarks/faults.py --add --seed 1 --rounds 60 --kinds kills --jobs extract train      # more of them
    python benchmarks/faults.py --rounds 4 --jobs train --kinds kills full --out faults.json

Each fault is put into a real job on a tiny model (`faults_jobs.py`), at a point drawn from the seed, in a process of
its own; then the same command is given again until it is done. A fault is survived if the folder is the undisturbed
run's byte for byte, nothing that was sealed was done again, and every error said what was the matter. Linux with a C
compiler.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from benchmarks.faults_calls import run_preloaded  # noqa: E402

KINDS = ("kills", "full", "small_disk", "failing", "awkward", "clocks", "memory", "shards", "checkpoints", "writers")
JOBS = ("extract", "train", "sweep", "discover", "report")
DEFAULT = Path(__file__).parent / "results" / "faults.json"
SHARES = {"kills": 1.0, "clocks": 0.5, "small_disk": 0.5, "awkward": 0.5, "failing": 0.5, "full": 0.5}
"""Of `--rounds`, for the kinds that are run less often than kills (a round of which has up to four)."""


def rows_of(kinds: list[str], names: list[str], rounds: int, seed: int, home: Path) -> Iterator[Any]:
    """Every kind of fault in every job it is for."""
    from benchmarks.faults_jobs import Jobs
    from benchmarks.faults_rounds import Course, can_mount
    from benchmarks.faults_stores import damaged_checkpoints, damaged_shards, damaged_weights
    from benchmarks.faults_writers import Contest

    jobs, may_mount = Jobs(home / "jobs"), can_mount(home / "mounted")

    def course(name: str) -> Course:
        return Course(jobs, jobs.named(name), home, seed)

    for name in names:
        own = course(name)
        acts: dict[str, Callable[[int], Any]] = {
            "kills": own.kills,
            "full": own.full,
            "small_disk": own.small_disk,
            "failing": own.failing,
            "awkward": own.awkward,
            "clocks": lambda n: own.kills(n, clock=True),  # noqa: B023
        }
        if name == "report" or not may_mount:  # the report's folder is not empty before it is begun
            del acts["small_disk"]
        for kind, act in acts.items():
            if kind in kinds:
                yield act(max(1, round(rounds * SHARES[kind])))
    half = max(1, rounds // 2)
    if "memory" in kinds:
        yield from (course(name).memory(rounds) for name in ("extract in pieces", "train"))
    if "shards" in kinds:
        yield from damaged_shards(course("extract"), half)
    if "checkpoints" in kinds:
        yield from damaged_checkpoints(course("train"), half)
        yield from damaged_weights(course("train"), half)
    if "writers" in kinds:
        contest = Contest(course("extract"))
        yield contest.race(half)
        yield contest.dead_owners(half)


def table(rows: list[dict[str, Any]]) -> str:
    """What came of it, as Markdown."""
    lines = ["| fault | job | injected | survived | where, or noticed when |", "|---|---|---:|---:|---|"]
    for row in rows:
        where = ", ".join(f"{name} {count}" for name, count in sorted(row["where"].items(), key=lambda i: -i[1]))
        lines.append(f"| {row['fault']} | {row['job']} | {row['injected']:,} | {row['survived']:,} | {where} |")
    injected, survived = (sum(row[name] for row in rows) for name in ("injected", "survived"))
    return "\n".join([*lines, f"| **all** | | **{injected:,}** | **{survived:,}** | |"])


def added(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of several runs, the same fault in the same job as one."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (*before, *rows):
        known = sums.setdefault((row["fault"], row["job"]), {"fault": row["fault"], "job": row["job"], "where": {}})
        for name in ("injected", "survived", "lost"):
            known[name] = known.get(name, 0) + row[name]
        for name, count in row["where"].items():
            known["where"][name] = known["where"].get(name, 0) + count
    return list(sums.values())


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the file, after every row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Where the figures are from."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "kernel": platform.release()}
    return {"commit": commit or None, "date": time.strftime("%Y-%m-%d", time.gmtime()), **versions}


def main() -> int:
    """Run, print the table and write the file; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="of kills per job; other kinds follow from it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--out", type=Path, default=DEFAULT)
    parser.add_argument("--add", action="store_true", help="to what the file holds, from runs with other seeds")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.out.read_text())["rows"]))
        return 0
    run_preloaded(__file__)
    home, begun = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    before = json.loads(options.out.read_text()) if options.add else {"runs": [], "rows": []}
    run = {
        "environment": environment(),
        "arguments": {n: getattr(options, n) for n in ("rounds", "seed", "kinds", "jobs")},
    }
    rows, lost = [], []
    try:
        for row in rows_of(options.kinds, options.jobs, options.rounds, options.seed, home):
            plain = {name: getattr(row, name) for name in ("fault", "job", "injected", "survived")}
            rows.append({**plain, "where": dict(row.where), "lost": len(row.lost)})
            lost += row.lost
            print(f"{row.fault}, {row.job}: {row.survived} of {row.injected} survived; {dict(row.where)}", flush=True)
            for line in row.lost[:5]:
                print(f"    {line}", flush=True)
            runs = [*before["runs"], {**run, "seconds": round(time.monotonic() - begun)}]
            write(options.out, {"runs": runs, "rows": added(before["rows"], rows)})
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(table(added(before["rows"], rows)))
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
