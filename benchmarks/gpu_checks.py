"""Part "checks" of `gpu.py`: every kernel against its reference, values and gradients, on the device.

Each case gives three rows: the largest error as a share of what is allowed (`gpu_cases`), whether two runs agree bit
for bit, and whether the operation, forward and backward, ever waits for the device. The path in plain PyTorch is
checked too: it was written on CPUs.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu_cases import Case, Decode, Encode, Spectrum
from benchmarks.gpu_frame import Bench, Item, Refused, said

BACKENDS = ("triton", "torch")
VALUES, TWICE, WAITS = "values and gradients", "two runs", "no wait"
OPS = ("topk_encode", "topk_decode", "threshold_select", "bilinear_spectrum")
WAITING = ("bilinear_spectrum",)  # it refuses what is not finite, and PyTorch's eigenvalue routines wait themselves
TINY = [(5, 3, 21, 17)]
ODD = [(3, 4, 7, 33), (9, 32, 129, 65), (17, 5, 300, 48)]  # n, k, f, d
REAL = [(1024, 64, 131_072, 4096), (1000, 64, 16_384, 2304)]
FACTORS = {"tiny": [(2, 9, 3)], "odd": [(3, 33, 5), (2, 7, 6), (1, 300, 48)], "real": [(4, 576, 64), (2, 1024, 128)]}


def run(bench: Bench) -> None:
    """All cases, the odd ones of every operation before the large ones."""
    bench.run(items(bench))


def items(bench: Bench, *, quick: bool = False) -> Iterator[Item]:
    """One item a case and backend."""
    for of, make in cases(bench.device, small=bench.small or quick):
        for backend in BACKENDS:
            yield _item(of, make, backend, bench.device)


def cases(device: torch.device, *, small: bool) -> Iterator[tuple[dict[str, str], Callable[[], Case]]]:
    """What identifies each case, and how to make it."""
    for size in ("tiny",) if small else ("odd", "real"):
        for op, number in product(OPS, (torch.float32, torch.bfloat16)):
            if op == "bilinear_spectrum":
                for h, d, e in FACTORS[size]:
                    of = {"name": op, "shape": f"h {h} d {d} e {e}", "dtype": _name(number)}
                    yield of, partial(Spectrum, h, d, e, number, device)
                continue
            for sizes in {"tiny": TINY, "odd": ODD, "real": REAL}[size]:
                for options in _options(op, number, real=size == "real"):
                    make = partial(Decode, *sizes) if op == "topk_decode" else partial(Encode, op, *sizes)
                    yield _labels(op, sizes, number, options), partial(make, number, device, **options)


def _options(op: str, number: torch.dtype, *, real: bool) -> Iterator[dict[str, Any]]:
    yield {}
    if op == "topk_decode":
        yield {"ragged": True}
        return
    if number is torch.float32:
        yield {"compute": torch.bfloat16}
        yield {"weighted": True}
    if not real:
        yield {"bias": -3.0}  # fewer than k positive


def _labels(op: str, sizes: tuple[int, ...], number: torch.dtype, options: dict[str, Any]) -> dict[str, str]:
    said_of = {"compute": "", "weighted": " weighted", "ragged": " ragged", "bias": " few positive"}
    shape = "n {} k {} f {} d {}".format(*sizes) + "".join(said_of[name] for name in options)
    dtype = _name(number) + (", product in bfloat16" if "compute" in options else "")
    return {"name": op, "shape": shape, "dtype": dtype}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _item(of: dict[str, str], make: Callable[[], Case], backend: str, device: torch.device) -> Item:
    return Item(**of, variant=backend, call=lambda: checked(make(), backend, device))


def checked(case: Case, backend: str, device: torch.device) -> list[dict[str, Any]]:
    """The three rows of a case."""
    if backend == "triton" and importlib.util.find_spec(f"midlens_kernels.{case.op}._triton") is None:
        raise Refused("not here", f"{case.op} has no Triton kernel")
    first = case.outcome(backend)
    if backend == "triton" and f"midlens_kernels.{case.op}._triton" not in sys.modules:
        raise AssertionError("the Triton kernel was asked for, and something else ran")
    judged = case.judge(first)
    row = {"value": judged.share, "unit": "of what is allowed", "note": judged.problem or f"largest: {judged.where}"}
    rows = [{"variant": f"{backend}: {VALUES}", "status": "failed" if judged.problem else "ok", **row}]
    second = case.outcome(backend)
    differ = [name for name, t in first.items() if not torch.equal(t, second[name])]
    rows.append(_row(f"{backend}: {TWICE}", f"{', '.join(differ)} differ between two runs" if differ else None))
    if device.type == "cuda" and case.op not in WAITING:
        rows.append(_row(f"{backend}: {WAITS}", waits(lambda: case.outcome(backend), device)))
    return rows


def _row(variant: str, problem: str | None) -> dict[str, Any]:
    return {"variant": variant, "status": "failed" if problem else "ok", "note": problem or ""}


def waits(call: Callable[[], Any], device: torch.device) -> str | None:
    """What makes the host wait for the device in `call`, if anything."""
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return said(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def why_not_timed(bench: Bench, op: str) -> str | None:
    """Why the Triton kernel of `op` must not be timed: a check of it failed, here or in another run of this file.

    Checks count if they were made of this commit on this device. If there are none, the small ones are made now.
    """
    found = _checks(bench, op)
    if not found:
        record = bench.record
        checking = Bench("checks", record, bench.deadline, bench.device, bench.scratch, bench.small)
        triton = (i for i in items(checking, quick=True) if i.name == op and i.variant == "triton")
        checking.run(triton)
        record.part("checks")["ended"] = "finished"
        found = _checks(bench, op)
    if not found:
        return "there was no time to check it"
    if absent := [row for row in found if row["status"] == "not here"]:
        return absent[0]["note"]
    failed = [row for row in found if row["status"] == "failed" and not row["variant"].endswith((TWICE, WAITS))]
    return f"its check failed at {failed[0]['shape']}, {failed[0]['dtype']}: {failed[0]['note']}" if failed else None


def _checks(bench: Bench, op: str) -> list[dict[str, Any]]:
    runs = bench.record.content["runs"]
    commit = bench.record.this_run["environment"]["commit"]
    return [
        row
        for row in bench.record.content["rows"]
        if (row["part"], row["name"], row["device"]) == ("checks", op, bench.device_name)
        and row["variant"].startswith("triton")
        and row["status"] != "left out"
        and runs[row["run"]]["environment"]["commit"] == commit
    ]
