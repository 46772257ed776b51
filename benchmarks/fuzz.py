"""Coverage-guided fuzzing of every parser of the project: executions, coverage, findings, slowest inputs.

    python benchmarks/fuzz.py                                   60 s a target; writes benchmarks/results/fuzz.json
    python benchmarks/fuzz.py --targets plan,shard --seconds 300
    python benchmarks/fuzz.py --engine mutations                without atheris: the property tests' mutations alone

Each target of tests/fuzzing runs in a process of its own. atheris instruments `interp` and `saes` (nothing else) and
libFuzzer follows new coverage; inputs come from libFuzzer's mutations and from tests/fuzzing/mutate.py by turns. A
finding (any error a target does not document, a write, an execution, a hang, memory above the limit) is kept once for
each place in the code, made smaller, in --findings; put into tests/fixtures/fuzz it is replayed by the tests.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
CORPUS = ROOT / "tests" / "fixtures" / "fuzz"
HANG, MEMORY = 20, 4096
"""Seconds and MiB (resident, torch included) that one input may take."""


class Watch:
    """Runs inputs of one target, counts them, and keeps what fails, once for each place."""

    def __init__(self, name: str, findings: Path) -> None:
        from fuzzing.targets import TARGETS, Runner

        self.runner, self.name, self.folder = Runner(TARGETS[name]), name, findings / name
        self.counts, self.slowest = {"value": 0, "refused": 0}, (0.0, b"")
        self.found: dict[str, bytes] = {}

    def __call__(self, data: bytes) -> None:
        start = time.perf_counter()
        try:
            self.counts[self.runner.run(data)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._keep(data, error)
        took = time.perf_counter() - start
        if took > self.slowest[0]:
            self.slowest = took, data

    def _keep(self, data: bytes, error: BaseException) -> None:
        from fuzzing.targets import signature

        place = signature(error)
        if place not in self.found or len(data) < len(self.found[place]):
            self.found[place] = data

    def facts(self) -> dict[str, Any]:
        """For the parent, as JSON."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return {
            **self.counts,
            "findings": {place: self._smaller(place, data) for place, data in sorted(self.found.items())},
            "slowest_ms": round(1000 * self.slowest[0], 2),
            "slowest_bytes": len(self.slowest[1]),
            "peak_mib": peak,
        }

    def _smaller(self, place: str, data: bytes) -> str:
        """Write the finding, cut down while it fails in the same place; the file's name."""
        step, deadline = len(data) // 2, time.monotonic() + 5
        while step and time.monotonic() < deadline:
            at = 0
            while at < len(data) and time.monotonic() < deadline:
                shorter = data[:at] + data[at + step :]
                if self.runner.finding(shorter) == place:
                    data = shorter
                else:
                    at += step
            step //= 2
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(data).hexdigest()[:16]
        (self.folder / name).write_bytes(data)
        return name


def seeds_of(name: str, runner: Any) -> list[bytes]:
    """Valid inputs, what every format meets, and earlier findings."""
    from fuzzing.targets import extremes

    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*runner.seeds, *extremes(runner.target.kind), *kept]


def child(name: str, seconds: float, engine: str, findings: Path, out: Path, seed: int) -> None:
    """One target, in this process."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["interp", "saes", "midlens"], enable_loader_override=False):
            watch = Watch(name, findings)
    else:
        watch = Watch(name, findings)
    from fuzzing.mutate import mutated

    kind, seeds = watch.runner.target.kind, seeds_of(name, watch.runner)
    started = time.monotonic()
    for data in seeds:
        watch(data)
    if engine == "mutations":
        chance = random.Random(seed)
        while time.monotonic() - started < seconds:
            watch(mutated(chance.choice(seeds), kind, chance))
        out.write_text(json.dumps(watch.facts()))
        return

    def own(data: bytes, limit: int, number: int) -> bytes:
        chance = random.Random(number)
        if chance.random() < 0.5:
            return atheris.Mutate(data, limit)
        return mutated(data, kind, chance)[:limit]

    ended = False

    def one(data: bytes) -> None:
        nonlocal ended
        watch(data)
        if not ended and time.monotonic() - started > seconds:
            ended = True
            out.write_text(json.dumps(watch.facts()))
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as corpus:
        for data in seeds:
            if len(data) < 1 << 16:
                (Path(corpus) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        flags = [f"-seed={seed}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}", f"-max_len={1 << 16}", "-verbosity=1",
                 "-print_final_stats=1", f"-artifact_prefix={findings}/{name}-", f"-max_total_time={int(seconds) + 30}"]  # fmt: skip
        atheris.Setup([sys.argv[0], *flags, corpus], one, custom_mutator=own)
        atheris.Fuzz()


def parent(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One target in a process of its own, under limits."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "facts.json"
        command = [sys.executable, __file__, "--child", name, "--out", str(out), "--seconds", str(options.seconds)]
        command += ["--engine", options.engine, "--findings", str(options.findings), "--seed", str(options.seed)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=environment,
                timeout=options.seconds + 180,
            )  # fmt: skip
            said = done.stderr
        except subprocess.TimeoutExpired as error:
            said = f"the process did not end\n{(error.stderr or b'').decode(errors='replace')}"
        facts: dict[str, Any] = {"findings": {}}
        if out.exists():
            facts = json.loads(out.read_text())
        else:
            facts["findings"] = {"the process ended early": said.strip()[-1500:]}
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    if coverage:
        first, last = coverage[0], coverage[-1]
        facts["coverage"] = {"edges_at_start": int(first[0]), "edges": int(last[0]), "inputs_kept": int(last[2])}
    facts["executions"] = facts.get("value", 0) + facts.get("refused", 0)
    return facts


def main() -> None:
    """Fuzz the targets one after the other and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--targets", default="", help="names with commas between; all by default")
    parser.add_argument("--engine", choices=("atheris", "mutations"), default="atheris")
    parser.add_argument("--findings", type=Path, default=ROOT / "runs" / "fuzz")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.findings = options.findings.resolve()
    options.findings.mkdir(parents=True, exist_ok=True)
    if options.child:
        child(options.child, options.seconds, options.engine, options.findings, options.out, options.seed)
        return
    from fuzzing.targets import TARGETS

    names = options.targets.split(",") if options.targets else list(TARGETS)
    if unknown := sorted(set(names) - TARGETS.keys()):
        sys.exit(f"no such targets: {', '.join(unknown)}; known: {', '.join(TARGETS)}")
    kept: dict[str, Any] = {}
    if options.out.exists() and options.targets:
        with contextlib.suppress(ValueError):
            kept = json.loads(options.out.read_text()).get("targets", {})
    for name in names:
        facts = parent(name, options) | {"seconds": options.seconds}
        kept[name] = facts
        print(f"{name:28} {facts['executions']:>9,} runs  {len(facts['findings'])} findings  "
              f"slowest {facts.get('slowest_ms', 0):.0f} ms  {facts.get('coverage', {}).get('edges', 0)} edges", flush=True)  # fmt: skip
        for place in facts["findings"]:
            print(f"    {place}: {facts['findings'][place][:200]}", flush=True)
        ordered = {one: kept[one] for one in TARGETS if one in kept}
        record = {"engine": options.engine, "python": sys.version.split()[0], "targets": ordered}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
