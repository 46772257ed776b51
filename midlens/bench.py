"""`midlens bench`: how near this machine's limit extraction and SAE steps run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from midlens.console import Planned, item, say
from saes.bench_run import BenchConfig


@dataclass(frozen=True, kw_only=True)
class Bench(BenchConfig, Planned):
    """Measure this machine's ceilings, then extraction and SAE steps, each as a share of them."""

    example: ClassVar[str] = "midlens bench --quick --parts ceilings"
    figures: ClassVar[str] = "measurement, name, unit, median and facts of the measurement"
    streams: ClassVar[bool] = True

    out: Path | None = None
    """Append a JSON line per measurement to this file."""

    def plan(self) -> Mapping[str, object]:
        """What would be measured."""
        from saes.outline import bench_outline

        return bench_outline(self.settings(BenchConfig), self.out)

    def run(self) -> int:
        """Print each figure as soon as it is measured, and all of them in the end."""
        from interp.bench.report import Report, line
        from interp.loading import parse_device
        from saes.bench_run import measurements

        options = self.settings(BenchConfig)
        stated = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        report = Report(self.out, arguments=stated, device=parse_device(self.device))
        try:
            for row in measurements(options):
                added = report.add(row)
                item(added, line(added))
        except KeyboardInterrupt:
            say(f"\ninterrupted; measured so far:\n\n{report.table()}")
            return 130
        say(f"\n{report.table()}")
        if self.out is not None:
            say(str(self.out.resolve()))
        return 0
