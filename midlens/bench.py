"""`midlens bench`: how near this machine's limit extraction and SAE steps run."""

from dataclasses import dataclass, fields
from pathlib import Path

from midlens.console import say
from saes.bench_run import BenchConfig


@dataclass(frozen=True, kw_only=True)
class Bench(BenchConfig):
    """Measure this machine's ceilings, then extraction and SAE steps, each as a share of them."""

    out: Path | None = None
    """Append a JSON line per measurement to this file."""

    def run(self) -> int:
        """Print each figure as soon as it is measured, and all of them in the end."""
        from interp.bench.report import Report, line
        from interp.loading import parse_device
        from saes.bench_run import measurements

        options = {field.name: getattr(self, field.name) for field in fields(BenchConfig)}
        stated = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        report = Report(self.out, arguments=stated, device=parse_device(self.device))
        try:
            for row in measurements(BenchConfig(**options)):
                say(line(report.add(row)))
        except KeyboardInterrupt:
            say(f"\ninterrupted; measured so far:\n\n{report.table()}")
            return 130
        say(f"\n{report.table()}")
        if self.out is not None:
            say(str(self.out.resolve()))
        return 0
