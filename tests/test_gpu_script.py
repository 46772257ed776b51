"""`benchmarks/gpu.py` without a GPU: the whole script on a bare interpreter; how it judges, stops and resumes."""

import json
import os
import subprocess
import sys
import textwrap
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is first imported

from midlens_kernels import topk_decode

from benchmarks import gpu, gpu_cases, gpu_frame, gpu_kernels
from benchmarks.gpu_cases import Decode, Encode, Spectrum, compared
from benchmarks.gpu_frame import Bench, Item, Refused
from benchmarks.gpu_record import Deadline, Record, load, table
from tests.test_imports_are_silent import third_parties

ROOT = Path(gpu.__file__).resolve().parents[1]
CPU = torch.device("cpu")
FIELDS = {"run", "part", "item", "name", "shape", "dtype", "variant", "status", "device", "note"}
FIGURES = {"value", "unit", "low", "high", "ratio", "against", "peak_bytes"}
ALLOWED = {"torch", "triton", "transformers", "safetensors", "numpy", "jaxtyping", "tqdm"}


def bench(tmp_path, *, seconds: float = 1e9, part: str = "checks") -> Bench:
    record = Record.new_run(tmp_path / "out.json", {})
    record.this_run["environment"] = {"commit": None}
    return Bench(part, record, Deadline(seconds), CPU, tmp_path, small=True)


def item(name: str, call=lambda: {"value": 1.0, "unit": "ms"}) -> Item:
    return Item(name, "n 1", "float32", "plain", call)


def statuses(path: Path) -> dict[str, str]:
    return {row["name"]: row["status"] for row in load(path)["rows"]}


def test_the_whole_script_on_a_bare_interpreter(tmp_path):
    """All four parts, with every package blocked that a GPU machine may lack; every row has every field."""
    blocked = sorted((third_parties() | {"scipy"}) - ALLOWED)
    assert {"tyro", "plotly", "pandas", "sae_lens", "transformer_lens"} <= set(blocked)
    out = tmp_path / "gpu.json"
    step = "topk step, d 8 f 32 k 2 batch 4, float32, product in bfloat16, torch"  # interpreted kernels take too long
    only = ["--only", "topk_decode", "tiny-llama", step]
    arguments = [
        "gpu.py",
        "--cpu",
        "--in-process",
        "--out",
        str(out),
        "--scratch",
        str(tmp_path),
        "--minutes",
        "60",
        *only,
    ]
    code = f"""
        import sys, runpy
        for name in {blocked!r}: sys.modules[name] = None
        sys.path = [p for p in sys.path if p not in ("", {str(ROOT)!r}, {str(ROOT / "kernels")!r})]
        sys.argv = {arguments!r}
        runpy.run_path({str(ROOT / "benchmarks/gpu.py")!r}, run_name="__main__")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = load(out)
    rows = content["rows"]
    assert all(set(row) >= FIELDS | FIGURES for row in rows)
    assert {row["part"] for row in rows} == set(gpu.PARTS)
    assert {row["status"] for row in rows} <= {"ok", "not timed"}, [r for r in rows if r["status"] == "failed"]
    (run,) = content["runs"]
    assert run["environment"]["versions"]["torch"] == torch.__version__ and "commit" in run["environment"]
    assert {name: part["ended"] for name, part in run["parts"].items()} == dict.fromkeys(gpu.PARTS, "finished")
    variants = {row["variant"] for row in rows}
    assert {"triton: values and gradients", "triton: two runs", "profile", "verdict"} <= variants
    assert {"no sink, budget 32", "to memory, budget 32", "to disk, budget 32"} <= variants
    assert {"production, torch", "dense, beside torch", "triton: forward and gradients"} <= variants
    assert all(row["value"] > 0 for row in rows if row["unit"] in ("ms", "tokens/s"))
    (hot,) = (row["detail"]["hottest"] for row in rows if row["variant"] == "profile")
    assert 0 < len(hot) <= 10 and all(each["calls"] >= 1 for each in hot)
    assert done.stdout.count("| part | what |") == 1 and "| kernels | topk_decode |" in done.stdout
    assert not list(tmp_path.glob("gpu-bench-*"))


def test_a_planted_wrong_kernel_is_reported_and_not_timed(tmp_path, monkeypatch):
    def wrong(acts, idx, W, **options):
        y = topk_decode(acts, idx, W, **options)
        return y + 1e-3 * y.detach().abs().max() * (torch.arange(y.shape[-1]) == 3)

    monkeypatch.setitem(gpu_cases.CALLS, "topk_decode", wrong)
    real = gpu_kernels.contests
    monkeypatch.setattr(gpu_kernels, "contests", lambda *a, **o: (e._replace(names=("triton",)) for e in real(*a, **o)))
    arguments = ["--cpu", "--in-process", "--out", str(tmp_path / "o.json"), "--only", "topk_decode"]
    assert gpu.main([*arguments, "--parts", "checks", "kernels"]) == 1
    rows = load(tmp_path / "o.json")["rows"]
    checks = [row for row in rows if row["part"] == "checks" and row["dtype"] == "float32"]
    assert {row["status"] for row in checks if row["variant"].endswith("gradients")} == {"failed"}
    assert all("y is off by" in row["note"] for row in checks if row["status"] == "failed")
    assert {row["status"] for row in checks if row["variant"].endswith("two runs")} == {"ok"}
    timed = [row for row in rows if row["part"] == "kernels" and row["variant"].startswith("triton")]
    assert timed and {row["status"] for row in timed} == {"not timed"}
    assert all("its check failed at n 5 k 3 f 21 d 17" in row["note"] for row in timed)
    (verdict,) = (row["note"] for row in rows if row["variant"] == "verdict")
    assert verdict.startswith("FASTER must not name it.")


def test_a_kernel_is_checked_before_it_is_timed_alone(tmp_path, monkeypatch):
    """`--parts kernels` without checks in the file makes the small ones; and checks of another commit do not count."""

    def failing(*_, **__):
        raise RuntimeError("no such luck")

    monkeypatch.setitem(gpu_cases.CALLS, "topk_decode", failing)
    at_work = bench(tmp_path, part="kernels")
    row = {"name": "topk_decode", "shape": "", "dtype": "", "variant": "triton: values and gradients", "device": "cpu"}
    at_work.record.this_run["environment"] = {"commit": "old"}
    at_work.record.add("checks", "old", **row)
    now = Record.new_run(at_work.record.path, {})
    now.this_run["environment"] = {"commit": "new"}
    at_work.record = now
    from benchmarks.gpu_checks import why_not_timed

    assert "no such luck" in (why_not_timed(at_work, "topk_decode") or "")
    now.content["rows"] = [{**r, "run": 1} for r in now.content["rows"] if r["item"] == "old"]
    assert why_not_timed(at_work, "topk_decode") is None


SIZES = (7, 4, 40, 24)  # n, k, f, d
CASES = {
    "topk": partial(Encode, "topk_encode", *SIZES, torch.float32),
    "topk weighted": partial(Encode, "topk_encode", *SIZES, torch.float32, weighted=True, bias=-2.0),
    "topk bfloat16": partial(Encode, "topk_encode", *SIZES, torch.bfloat16),
    "select, low product": partial(Encode, "threshold_select", *SIZES, torch.float32, compute=torch.bfloat16),
    "select weighted": partial(Encode, "threshold_select", *SIZES, torch.float32, weighted=True),
    "decode": partial(Decode, *SIZES, torch.float32),
    "decode ragged bfloat16": partial(Decode, *SIZES, torch.bfloat16, ragged=True),
    "spectrum": partial(Spectrum, 2, 24, 4, torch.float32),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_every_planted_fault_of_an_outcome_is_found(make):
    """What is right passes; changing any value, gradient or entry of it does not.

    Where the product is in low precision that is the production path, whose gradients are those of full precision.
    """
    case = make(device=CPU)
    found = case.outcome("torch" if "compute" in make.keywords else "reference")
    assert case.judge(found).problem is None
    numbers = [name for name in found if name not in ("idx", "rows", "g")]
    for name in numbers:
        worse = found[name].clone(memory_format=torch.contiguous_format)
        at = worse.abs().argmax()  # some entry that counts
        worse.view(-1)[at] *= 1.2
        judged = case.judge({**found, name: worse})
        assert judged.problem is not None and judged.where in (name, "entries"), name
        worse.view(-1)[at] = torch.nan
        assert case.judge({**found, name: worse}).problem is not None, name
    if "idx" in found:
        for change, said in ((40, "out of range"), (-1, "out of range")):
            idx = found["idx"].clone()
            idx[0] = change
            assert said in (case.judge({**found, "idx": idx}).problem or "")
        twice = found["idx"].clone()
        twice[1] = twice[0]
        rows = found["rows"].clone()
        rows[1] = rows[0]
        assert "taken twice" in (case.judge({**found, "idx": twice, "rows": rows}).problem or "")


@pytest.mark.parametrize("op", ["topk_encode", "threshold_select"])
def test_a_wrong_selection_is_found_though_its_values_are_right(op):
    """The lowest of all features instead of the highest of a token: its value and gradients are what they should be."""
    case = Encode(op, 7, 4, 40, 24, torch.float32, CPU)
    found = dict(case.outcome("reference"))
    x, encoder, b = (leaf.detach() for leaf in case.leaves)
    pre = x @ encoder.T + b
    token = int(found["rows"][0])
    first = found["idx"].clone()
    first[0] = pre[token].argmin()
    acts = found["acts"].clone()
    acts[0] = pre[token].min().relu()
    assert "ranks" in (case.judge({**found, "idx": first, "acts": acts}).problem or "")


def test_the_rule_of_tolerance_by_hand():
    """Truth 2, plain off by 0.25: allowed are 0.5 and 8 eps of float32 times 2."""
    truth, plain = {"y": torch.tensor([2.0, 0.0]).double()}, {"y": torch.tensor([2.25, 0.0])}
    assert compared({"y": torch.tensor([2.0, 0.499])}, plain, truth).problem is None
    assert compared({"y": torch.tensor([2.0, 0.501])}, plain, truth).problem == "y is off by 0.501, allowed 0.5"
    assert "bfloat16" in (compared({"y": torch.tensor([2.0, 0.0]).bfloat16()}, plain, truth).problem or "")


def test_errors_and_refusals_are_rows_and_touch_no_other_item(tmp_path):
    def broken():
        raise ValueError("a  bad\nthing")

    def refused():
        raise Refused("not here", "nowhere")

    at_work = bench(tmp_path)
    at_work.run([item("a", broken), item("b", refused), item("c")])
    rows = {row["name"]: row for row in load(tmp_path / "out.json")["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {"a": "failed", "b": "not here", "c": "ok"}
    assert rows["a"]["note"] == "ValueError: a bad thing" and "in broken" in rows["a"]["traceback"]


def test_no_item_starts_that_would_end_too_late(tmp_path, monkeypatch):
    """Items of 30 seconds in 100: three of them, by a clock of our own; then a short kind still has room."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    at_work = bench(tmp_path, seconds=100)

    def lasting(seconds):
        return lambda: (now.__setitem__(0, now[0] + seconds), {"value": 1.0})[1]

    items = [Item("long", "n 1", "", str(i), lasting(30)) for i in range(6)]
    at_work.run([*items, Item("short", "n 1", "", "", lasting(1))])
    done = [row["item"] for row in load(tmp_path / "out.json")["rows"]]
    assert done == ["long, n 1, 0", "long, n 1, 1", "long, n 1, 2", "short, n 1"]
    assert at_work.record.left_out("checks") == [f"long, n 1, {i}" for i in (3, 4, 5)]
    assert "left out: long, n 1, 3, long, n 1, 4" in table([load(tmp_path / "out.json")])


def test_what_died_is_named_and_not_repeated(tmp_path):
    at_work = bench(tmp_path)
    at_work.run([item("a")])
    at_work.record.part("checks")["begun"].append(item("b").key)  # and then the process was gone
    runs = []
    at_work.run([item(name, lambda name=name: (runs.append(name), {})[1]) for name in "abc"])
    assert runs == ["c"]
    assert statuses(tmp_path / "out.json") == {"a": "ok", "b": "failed", "c": "ok"}
    assert [r["note"] for r in load(tmp_path / "out.json")["rows"]][1] == "the process died while it ran"


def fake_part(monkeypatch, run) -> None:
    module = types.ModuleType("benchmarks.gpu_checks")
    module.run = run
    monkeypatch.setitem(sys.modules, "benchmarks.gpu_checks", module)


def test_an_interruption_loses_nothing_that_was_measured(tmp_path, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    fake_part(monkeypatch, lambda b: b.run([item("a"), item("b", interrupted), item("c")]))
    out = tmp_path / "o.json"
    assert gpu.main(["--cpu", "--in-process", "--parts", "checks", "--out", str(out)]) == 130
    assert statuses(out) == {"a": "ok"}
    said = capsys.readouterr().out
    assert "| checks | a |" in said or "| checks | a | 1 cases" in said
    assert "checks: interrupted; left out: b, n 1, float32, plain, c, n 1, float32, plain" in said


def test_a_second_run_adds_to_the_file_and_tables_join_files(tmp_path, monkeypatch, capsys):
    fake_part(monkeypatch, lambda b: b.run([Item("a", "n 1", "", "x|y", lambda: {"value": 1234.5, "unit": "ms"})]))
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in (files[0], files[0], files[1]):
        assert gpu.main(["--cpu", "--in-process", "--parts", "checks", "--out", str(path)]) == 0
    assert [row["run"] for row in load(files[0])["rows"]] == [0, 1]
    capsys.readouterr()
    assert gpu.main(["--table", *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("| a |" in line for line in lines) == 3
    assert all(line.count("|") == lines[0].count("|") for line in lines if line.startswith("| checks"))


def processes(tmp_path, monkeypatch, script: str) -> Path:
    """`gpu.py` starts this instead of itself."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path / "o.json"


def test_a_part_that_hangs_is_stopped_when_its_time_is_up(tmp_path, monkeypatch, capsys):
    out = processes(tmp_path, monkeypatch, "exec sleep 600")
    assert gpu.main(["--cpu", "--parts", "checks", "sae", "--minutes", "0.01", "--out", str(out)]) == 0
    parts = load(out)["runs"][0]["parts"]
    assert {name: part["ended"] for name, part in parts.items()} == {"checks": "time up", "sae": "time up"}
    assert "checks: time up" in capsys.readouterr().out


def test_a_process_that_dies_is_followed_by_another_as_long_as_that_helps(tmp_path, monkeypatch):
    """One that begins one item more each time and dies; from the third on it begins none."""
    step = textwrap.dedent("""
        import json, sys
        path = sys.argv[sys.argv.index("--out") + 1]
        content = json.load(open(path))
        part = content["runs"][0]["parts"].setdefault("checks", {"planned": [], "begun": [], "ended": None})
        part["starts"] = part.get("starts", 0) + 1
        part["begun"] += ["item %d" % len(part["begun"])] * (len(part["begun"]) < 2)
        json.dump(content, open(path, "w"))
        sys.exit(75)
    """)
    (tmp_path / "step.py").write_text(step)
    out = processes(tmp_path, monkeypatch, f'exec {sys.executable} {tmp_path / "step.py"} "$@"')
    assert gpu.main(["--cpu", "--parts", "checks", "--out", str(out)]) == 1
    part = load(out)["runs"][0]["parts"]["checks"]
    assert part["starts"] == 3 and part["ended"] == "died (75)"


def row(entrant: str, low: float, high: float, *, mode: str = "forward", shape: str = "s", op: str = "op"):
    figures = {"value": (low + high) / 2, "low": low, "high": high, "status": "ok", "note": ""}
    return {"name": op, "shape": shape, "dtype": "float32", "variant": f"{entrant}: {mode}", **figures}


@pytest.mark.parametrize(
    "triton,word,may",
    [((1.0, 1.9), "faster", True), ((1.0, 2.5), "level", False), ((4.0, 5.0), "slower", False)],
)
def test_the_verdict_is_against_the_fastest_of_the_others(triton, word, may):
    rows = [row("plain", 8.0, 9.0), row("torch", 2.0, 3.0), row("triton", *triton), row("torch", 0.1, 0.2, shape="t")]
    said = gpu_kernels.verdict(rows, "op", [])["note"]
    assert f"{word} at 1: s, float32, forward" in said and said.startswith("FASTER may name") == may
    assert gpu_kernels.verdict(rows, "op", ["op, t"])["note"].startswith("FASTER must not name it.")
    slower = [
        *rows,
        row("plain", 1.0, 1.1, mode="forward and gradients"),
        row("triton", 2, 3, mode="forward and gradients"),
    ]
    assert gpu_kernels.verdict(slower, "op", [])["note"].startswith("FASTER must not name it.")


def test_quantiles_are_those_of_numpy(monkeypatch):
    times = [5.0, 1.0, 9.0, 2.0, 7.0, 3.0, 30.0]
    left = iter(times)
    monkeypatch.setattr(gpu_frame, "_by_clock", lambda call: next(left))
    found = gpu_frame.quantiles(lambda: None, CPU, seconds=0.0, repeats=len(times))
    wanted = np.quantile(times, [0.2, 0.5, 0.8])
    assert [found[name] for name in ("low", "value", "high")] == pytest.approx(wanted.tolist())


def test_the_file_is_whole_after_every_row(tmp_path, monkeypatch):
    """A write that fails half way leaves the file of before."""
    at_work = bench(tmp_path)
    at_work.run([item("a")])
    real = Path.write_text

    def half(self, text):
        real(self, text[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        at_work.run([item("b")])
    monkeypatch.undo()
    assert [r["name"] for r in json.loads((tmp_path / "out.json").read_text())["rows"]] == ["a"]
