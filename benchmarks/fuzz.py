"""Coverage-guided fuzzing of every parser of the project: executions, coverage, findings, slowest inputs.

    python benchmarks/fuzz.py                                   60 s a target; writes benchmarks/results/fuzz.json
    python benchmarks/fuzz.py --targets plan,shard --seconds-per-target 300
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
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
CORPUS = ROOT / "tests" / "fixtures" / "fuzz"
HANG, MEMORY = 20, 4096
"""Seconds and MiB (resident, torch included) that one input may take."""
COMPILED = [f"interp.sudoku.kernels.{name}" for name in ("puzzles", "random", "search", "traces")]
"""Modules that numba translates: it knows no instrumented bytecode."""
LONGEST = 1 << 15


class Watch:
    """Runs inputs of one target, counts them, and keeps what fails, once for each place."""

    def __init__(self, name: str, findings: Path) -> None:
        from fuzzing.targets import TARGETS, Runner

        self.runner, self.name, self.folder = Runner(TARGETS[name]), name, findings / name
        self.counts, self.slowest = {"value": 0, "refused": 0, "failed": 0}, (0.0, b"")
        self.found: dict[str, bytes] = {}

    def __call__(self, data: bytes) -> None:
        start = time.perf_counter()
        try:
            self.counts[self.runner.run(data)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.counts["failed"] += 1
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


def child(name: str, seconds: float, options: argparse.Namespace, out: Path) -> None:
    """One target, in this process; libFuzzer ends it."""
    watch = Watch(name, options.findings)
    from fuzzing.mutate import mutated

    kind, seeds = watch.runner.target.kind, seeds_of(name, watch.runner)
    for data in seeds:
        watch(data)
    started = time.monotonic()
    if options.engine == "mutations":
        chance = random.Random(options.seed)
        while time.monotonic() - started < seconds:
            watch(mutated(chance.choice(seeds), kind, chance))
        out.write_text(json.dumps(watch.facts()))
        return
    import atheris

    def own(data: bytes, limit: int, number: int) -> bytes:
        chance = random.Random(number)
        if chance.random() < 0.5:
            return atheris.Mutate(data, limit)
        return mutated(data, kind, chance)[:limit]

    def one(data: bytes) -> None:
        watch(data)
        if time.monotonic() - started > seconds:
            out.write_text(json.dumps(watch.facts()))
            os._exit(0)

    with tempfile.TemporaryDirectory() as corpus:
        for data in seeds:
            if len(data) < LONGEST:
                (Path(corpus) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        flags = {"seed": options.seed, "timeout": HANG, "rss_limit_mb": MEMORY, "max_len": LONGEST, "verbosity": 1}
        flags["artifact_prefix"] = f"{options.findings}/{name}-"
        atheris.Setup([sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), corpus], one,
                      custom_mutator=own)  # fmt: skip
        atheris.Fuzz()


def forked(name: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """One target in a process of its own, made by a fork: the imports, which take longest, are done once."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "facts.json", Path(folder) / "log"
        if not (process := os.fork()):
            with log.open("wb") as said:
                os.dup2(said.fileno(), 2)
            status = 1
            try:
                child(name, seconds, options, out)
                status = 0
            except BaseException as error:
                traceback.print_exception(error)
            finally:
                sys.stderr.flush()
                os._exit(status)
        deadline = time.monotonic() + seconds + 120
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.1)
        said = log.read_text(errors="replace")
        ended_early: dict[str, Any] = {"findings": {"the process ended early": said.strip()[-1500:]}}
        facts = json.loads(out.read_text()) if out.exists() else ended_early
    if coverage := re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said):
        first, last = coverage[0], coverage[-1]
        facts["coverage"] = {"edges_at_start": int(first[0]), "edges": int(last[0]), "inputs_kept": int(last[2])}
    return facts | {"executions": facts.get("value", 0) + facts.get("refused", 0) + facts.get("failed", 0)}


def imported(engine: str) -> None:
    """Every module of the targets, instrumented where atheris is to follow coverage."""
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(
            include=["interp", "saes", "midlens"], exclude=COMPILED, enable_loader_override=False
        ):
            import_all()
    else:
        import_all()


def import_all() -> None:
    """What is imported lazily too: a module that is first imported in a child would be imported in each of them."""
    import importlib
    import pkgutil

    import fuzzing.targets

    assert fuzzing.targets.TARGETS
    for package in ("interp", "saes", "midlens"):
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
    import midlens.__main__  # noqa: F401

    for name in ("gguf", "pyarrow.parquet", "tokenizers", "transformers.models.gpt2.modeling_gpt2", "tyro"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from transformers import PreTrainedTokenizerFast  # noqa: F401


def main() -> None:
    """Fuzz the targets one after the other and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds-per-target", type=float, default=60)
    parser.add_argument("--targets", default="", help="names, or kinds of input, with commas between; all by default")
    parser.add_argument("--engine", choices=("atheris", "mutations"), default="atheris")
    parser.add_argument("--findings", type=Path, default=ROOT / "runs" / "fuzz")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="add to the counts in --out instead of replacing them")
    parser.add_argument("--table", action="store_true", help="print the table of docs/reliability.md, run nothing")
    options = parser.parse_args()
    if options.table:
        import fuzzing.targets  # noqa: F401
        from fuzzing.report import table

        print(table(json.loads(options.out.read_text())), end="")
        return
    options.findings = options.findings.resolve()
    options.findings.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    warnings.simplefilter("ignore")
    imported(options.engine)
    from fuzzing.targets import TARGETS

    from interp.sealing import in_turn

    asked = options.targets.split(",") if options.targets else list(TARGETS)
    names = [name for one in asked for name in TARGETS if one in (name, TARGETS[name].kind)]
    if unknown := sorted(set(asked) - TARGETS.keys() - {target.kind for target in TARGETS.values()}):
        sys.exit(f"no such targets: {', '.join(unknown)}; known: {', '.join(TARGETS)}")
    for name in names:
        facts = forked(name, options.seconds_per_target, options) | {"seconds": options.seconds_per_target}
        edges = facts.get("coverage", {}).get("edges", 0)
        print(f"{name:28} {facts['executions']:>9,} runs  {len(facts['findings'])} findings  "
              f"slowest {facts.get('slowest_ms', 0):.0f} ms  {edges} edges", flush=True)  # fmt: skip
        for place, kept in facts["findings"].items():
            print(f"    {place}: {kept[:400]}", flush=True)
        with in_turn(options.out.parent):  # several may run beside each other, each over some of the targets
            _record(options, name, facts, list(TARGETS))


def _together(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Counts of both runs; what failed before and no longer does was fixed in between."""
    sums = {
        key: before.get(key, 0) + now.get(key, 0) for key in ("value", "refused", "failed", "executions", "seconds")
    }
    most = {key: max(before.get(key, 0), now.get(key, 0)) for key in ("slowest_ms", "peak_mib")}
    return before | now | sums | most


def _record(options: argparse.Namespace, name: str, facts: dict[str, Any], order: list[str]) -> None:
    held = json.loads(options.out.read_text())["targets"] if options.out.exists() else {}
    held[name] = _together(held[name], facts) if options.add and name in held else facts
    targets = {one: held[one] for one in order if one in held}
    record = {"engine": options.engine, "python": sys.version.split()[0], "targets": targets}
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
