"""Scale on paper: time, disk and money for a billion tokens and more, from a rate in tokens per second per GPU.

    python benchmarks/scale.py                                     computed from the target rate and from the roofline
    python benchmarks/scale.py --results benchmarks/results/gpu.json       from the rate that gpu.py measured
    python benchmarks/scale.py --rate 60000 --gpu-hour 2.5 --tb-month 15

With N tokens, G GPUs, r tokens/s per GPU, B bytes a row (one row a token), W bytes/s that the disks of the run take
together, p $ per GPU-hour and s $ per TB and month:

    compute      N / (G r)                                seconds
    writing      N B / W                                  seconds
    time         max(compute, writing)                    the stages overlap; the slower one is what a run takes
    cost         p G time / 3600                          GPUs that wait for a disk are paid for
    break-even   W / G = r B                              below this the disk, not the GPU, limits the run
    store        s N B / 1e12                             $ a month
    passes       s N B / 1e12 / (p N / 3600 r)            forward passes that a month of the store costs: read more
                                                          often than that, or stream instead

The last line is free of N: a stream (`interp.stream`) pays N / r GPU-seconds for every pass over the tokens and stores
nothing. Llama 3.1 8B, the stream after block 16: 7.56 GFLOP a token at sequence 1,024, so 104,525 tokens/s where a
matrix unit does 790 TFLOP/s. A row holds 8,192 bytes in bfloat16 and 4,100 in int8 or fp8 with one float32 scale;
its token, document and position take another 12, left out here (0.15 and 0.3 per cent).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TARGET = 75_000.0  # tokens/s per H200: a target, not a measurement
ROOFLINE = 104_525.0  # 790 TFLOP/s over 7.56 GFLOP a token
ROW_BYTES = {"bfloat16": 8192, "int8 or fp8": 4100}
TOKENS = (1e9, 1e10)
GPUS = (1, 8, 64)
SHAPE, SINK = "llama-3.1-8b", "to disk"


class Run(NamedTuple):
    """One extraction: what limits it and what it takes."""

    seconds: float
    limit: str
    gpu_hours: float
    terabytes: float


def extraction(tokens: float, gpus: int, *, rate: float, row_bytes: float = 0, disk: float | None = None) -> Run:
    """`tokens` on `gpus` at `rate` tokens/s each, to disks that take `disk` bytes/s together (None: any rate)."""
    compute = tokens / (gpus * rate)
    writing = 0.0 if disk is None else tokens * row_bytes / disk
    seconds = max(compute, writing)
    limit = "disk" if writing > compute else "GPU"
    return Run(seconds, limit, gpus * seconds / 3600, tokens * row_bytes / 1e12)


def disk_needed(gpus: int, *, rate: float, row_bytes: float) -> float:
    """Bytes/s that the disks must take together for the GPUs never to wait."""
    return gpus * rate * row_bytes


def passes_worth_a_month(*, rate: float, row_bytes: float, gpu_hour: float, tb_month: float) -> float:
    """How many forward passes over the tokens cost as much as keeping their rows for a month."""
    return tb_month * row_bytes / 1e12 / (gpu_hour / (3600 * rate))


def measured_rate(path: Path) -> float:
    """The best rate to disk that `gpu.py` measured for the shape, whole script output or one part's."""
    rows = json.loads(path.read_text())["rows"]
    found = [
        row["value"]
        for row in rows
        if (row["part"], row["name"], row["unit"], row["status"]) == ("extraction", SHAPE, "tokens/s", "ok")
        and row["variant"].startswith(SINK)
        and row["device"] != "cpu"
    ]
    if not found:
        raise SystemExit(f"{path} holds no measured rate of {SHAPE} {SINK} on a GPU; run gpu.py --parts extraction")
    return max(found)


def tables(
    rates: dict[str, float], *, gpu_hour: Sequence[float], tb_month: float, disks: Sequence[float]
) -> list[list[list[str]]]:
    """The tables, each a list of rows of cells, the header first."""
    return [
        _time_and_cost(rates, gpu_hour),
        _store(tb_month),
        _disk_needed(rates),
        _disk_limited(rates, disks),
        _streaming(rates, gpu_hour, tb_month),
    ]


def _time_and_cost(rates: dict[str, float], gpu_hour: Sequence[float]) -> list[list[str]]:
    rows = [["tokens", "GPUs", *(f"hours, {name}" for name in rates), *(f"$, {name}" for name in rates)]]
    for tokens in TOKENS:
        for gpus in GPUS:
            runs = [extraction(tokens, gpus, rate=rate) for rate in rates.values()]
            costs = [_span([price * run.gpu_hours for price in gpu_hour]) for run in runs]
            rows.append([_tokens(tokens), str(gpus), *(f"{run.seconds / 3600:.2f}" for run in runs), *costs])
    return rows


def _store(tb_month: float) -> list[list[str]]:
    rows = [["rows as", "bytes", *(f"TB, {_tokens(n)}" for n in TOKENS), *(f"$ a month, {_tokens(n)}" for n in TOKENS)]]
    for name, size in ROW_BYTES.items():
        volumes = [tokens * size / 1e12 for tokens in TOKENS]
        rows.append([name, f"{size:,}", *(f"{v:.1f}" for v in volumes), *(f"{tb_month * v:,.0f}" for v in volumes)])
    return rows


def _disk_needed(rates: dict[str, float]) -> list[list[str]]:
    rows = [["rate", "rows as", *(f"GB/s, {_gpus(gpus)}" for gpus in GPUS)]]
    for name, rate in rates.items():
        for stored, size in ROW_BYTES.items():
            needs = [disk_needed(gpus, rate=rate, row_bytes=size) / 1e9 for gpus in GPUS]
            rows.append([name, stored, *(f"{need:.2f}" for need in needs)])
    return rows


def _disk_limited(rates: dict[str, float], disks: Sequence[float]) -> list[list[str]]:
    """Hours for the smaller number of tokens at the first rate, by what the disks take together."""
    rate = next(iter(rates.values()))
    rows = [["rows as", "disks, GB/s", *(f"hours, {_gpus(gpus)}" for gpus in GPUS)]]
    for stored, size in ROW_BYTES.items():
        for disk in disks:
            runs = [extraction(TOKENS[0], gpus, rate=rate, row_bytes=size, disk=disk * 1e9) for gpus in GPUS]
            rows.append([stored, f"{disk:g}", *(f"{run.seconds / 3600:.2f} ({run.limit})" for run in runs)])
    return rows


def _streaming(rates: dict[str, float], gpu_hour: Sequence[float], tb_month: float) -> list[list[str]]:
    """What one pass costs without a store, and how many passes a month of the store is worth."""
    head = [f"$ a pass, {_tokens(n)}" for n in TOKENS]
    rows = [["rate", *head, *(f"passes worth a month of {stored}" for stored in ROW_BYTES)]]
    for name, rate in rates.items():
        hours = [extraction(tokens, 1, rate=rate).gpu_hours for tokens in TOKENS]
        worth = [
            [
                passes_worth_a_month(rate=rate, row_bytes=size, gpu_hour=price, tb_month=tb_month)
                for price in sorted(gpu_hour, reverse=True)
            ]
            for size in ROW_BYTES.values()
        ]
        rows.append([name, *(_span([p * h for p in gpu_hour]) for h in hours), *map(_span, worth)])
    return rows


def _span(values: Sequence[float]) -> str:
    ends = [f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in (min(values), max(values))]
    return "–".join(dict.fromkeys(ends))


def _tokens(count: float) -> str:
    return f"{count / 1e9:g}B"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count > 1)}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, numbers to the right."""
    align = ["---" if column == 0 else "--:" for column in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], align, *rows[1:]))


def report(
    rates: dict[str, float],
    *,
    gpu_hour: Sequence[float] = (2.0, 4.0),
    tb_month: float = 20.0,
    disks: Sequence[float] = (0.3, 1.0, 5.0, 25.0),
) -> str:
    """All tables as Markdown."""
    return "\n\n".join(map(markdown, tables(rates, gpu_hour=gpu_hour, tb_month=tb_month, disks=disks)))


ON_PAPER = {"target 75k/s": TARGET, "roofline 104.5k/s": ROOFLINE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, help="tokens/s per GPU (default: the target and the roofline)")
    parser.add_argument("--results", type=Path, help="JSON of gpu.py, to take the measured rate from")
    parser.add_argument("--gpu-hour", type=float, nargs="+", default=[2.0, 4.0], help="$ per GPU-hour, an assumption")
    parser.add_argument("--tb-month", type=float, default=20.0, help="$ per TB and month, an assumption")
    parser.add_argument("--disks", type=float, nargs="+", default=[0.3, 1.0, 5.0, 25.0], help="GB/s, all together")
    o = parser.parse_args()
    rates = dict(ON_PAPER)
    if o.results:
        rates = {"measured": measured_rate(o.results), **rates}
    elif o.rate:
        rates = {f"{o.rate:,.0f}/s": o.rate}
    print(report(rates, gpu_hour=o.gpu_hour, tb_month=o.tb_month, disks=o.disks))


if __name__ == "__main__":
    main()
