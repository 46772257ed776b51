"""Everything that needs a GPU to be known: kernels checked and timed, extraction and SAE steps at full size.

    python benchmarks/gpu.py                                        all four parts, at most 8 minutes each
    python benchmarks/gpu.py --parts checks sae --minutes 5         some of them
    python benchmarks/gpu.py --parts kernels --only topk_decode     one operation
    python benchmarks/gpu.py --cpu --out /tmp/try.json              the same code, tiny shapes, Triton's interpreter
    python benchmarks/gpu.py --table A.json B.json                  one table of files written before

    checks       every kernel against its reference on the device: values and gradients, odd and real shapes,
                 two runs bit for bit, no wait for the device
    extraction   Llama 3.1 8B to block 16 and Gemma 2 9B to block 20, sequence 1,024, bfloat16: no sink, host, disk
    sae          training steps at d 4,096, width 131,072, k 64 against dense autograd
    kernels      each kernel against the plain expression, torch.compile of it, and the path in plain PyTorch

It needs torch, triton, transformers, safetensors, numpy, jaxtyping and tqdm, nothing installed of this repository, and
nothing from the network. Each part runs in a process of its own, which is stopped when its minutes are over; every row
is on disk before the next item begins, so that an interrupted run has lost one item at most. A kernel that deviates
from its reference, or fails, is reported and not timed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "kernels", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from benchmarks.gpu_record import Deadline, Record, load, table  # noqa: E402  (its folder is known only now)

PARTS = ("checks", "extraction", "sae", "kernels")
RESTARTS = 20
GRACE = 10.0  # seconds to end in, once told to


def main(argv: list[str] | None = None) -> int:
    """Run the parts, print the table. 0: all went well; 1: something failed; 130: interrupted."""
    o = arguments(argv)
    if o.table:
        print(table(map(load, o.table)))
        return 0
    if o.child:
        work(o)
        return 0
    named = {"parts": o.parts, "only": o.only, "minutes": o.minutes, "cpu": o.cpu}
    record = Record.new_run(o.out, named)
    o.run = record.run
    status = 0
    try:
        with tempfile.TemporaryDirectory(dir=o.scratch, prefix="gpu-bench-") as scratch:
            for part in o.parts:
                (here if o.in_process else supervise)(o, part, Path(scratch))
    except KeyboardInterrupt:
        status = 130
    done = load(o.out)
    mine = [row for row in done["rows"] if row["run"] == record.run]
    before = [{"parts": {}}] * record.run  # rows of other runs in the file are not repeated
    print("\n" + table([{"runs": [*before, done["runs"][record.run]], "rows": mine}]))
    print(f"\nwritten: {o.out}")
    ends = [str(part["ended"]) for part in done["runs"][record.run]["parts"].values()]
    return status or int(any(row["status"] == "failed" for row in mine) or any(e.startswith("died") for e in ends))


def supervise(o: argparse.Namespace, part: str, scratch: Path) -> None:
    """One part in processes of its own: a further one where one died, none beyond the part's time."""
    begun = time.monotonic()
    ended = "interrupted"
    try:
        for _ in range(RESTARTS):
            left = 60 * o.minutes - (time.monotonic() - begun)
            status = _child(o, part, scratch, left) if left > 0 else None
            ended = "finished" if status == 0 else "time up" if status is None else f"died ({status})"
            if status in (0, None) or not _progress(o, part):
                break
    finally:
        _end(o, part, ended)


def _child(o: argparse.Namespace, part: str, scratch: Path, left: float) -> int | None:
    """The exit status of one process; None if it had to be stopped."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", part, "--run", str(o.run), "--out", str(o.out)]
    command += ["--scratch", str(scratch), "--seconds", str(max(1.0, left - min(20.0, 0.05 * left)))]
    command += ["--cpu"] * o.cpu + (["--only", *o.only] if o.only else [])
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            return process.wait(left)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            return None
        except BaseException:
            process.terminate()
            raise


def _progress(o: argparse.Namespace, part: str) -> bool:
    """Whether a process that died had begun something: only then does starting another one help."""
    record = Record(o.out, o.run)
    state = record.part(part)
    reached = len(state["begun"])
    last, state["reached"] = state.get("reached", 0), reached
    record.save()
    return reached > last


def _end(o: argparse.Namespace, part: str, ended: str) -> None:
    record = Record(o.out, o.run)
    if ended == "finished" and record.left_out(part):
        ended = "time up"
    record.part(part)["ended"] = ended
    record.save()


def here(o: argparse.Namespace, part: str, scratch: Path) -> None:
    """One part in this process: for a debugger, and for tests."""
    o.child, o.scratch, o.seconds = part, scratch, 60 * o.minutes
    ended = "interrupted"
    try:
        work(o)
        ended = "finished"
    finally:
        _end(o, part, ended)


def work(o: argparse.Namespace) -> None:
    """The part `o.child`, in the process that has the device."""
    deadline = Deadline(o.seconds)
    if not o.in_process:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is open is closed
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch

    gpu = torch.cuda.is_available() and not o.cpu
    if not gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before any is imported
        torch.set_num_threads(1)  # tiny products: threads of a busy machine would only wait for one another
    import importlib

    from benchmarks.gpu_frame import PACKAGES, Bench
    from interp.bench.measure import environment

    torch.manual_seed(0)
    device = torch.device("cuda" if gpu else "cpu")
    record = Record(o.out, o.run)
    record.this_run["environment"] = environment(PACKAGES, device=device)
    del record.this_run["environment"]["arguments"]  # of this process; the run's own stand beside it
    bench = Bench(o.child, record, deadline, device, Path(o.scratch), small=not gpu, only=tuple(o.only))
    importlib.import_module(f"benchmarks.gpu_{o.child}").run(bench)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", default=[], help="items that begin so: a name, or more of it")
    parser.add_argument("--minutes", type=float, default=8.0, help="for each part")
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on the CPU, also where there is a GPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json", help="runs are added to it")
    parser.add_argument("--scratch", type=Path, help="folder for stores (default: the system's temporary folder)")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only print what these files hold")
    parser.add_argument("--in-process", action="store_true", help="no process per part: for debugging")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
